// Enumerations that are strings in Python. pybind11's own enumerations use streams: core/system_file.hpp has the reason
// against them.
#pragma once

#include <pybind11/pybind11.h>

#include <cstddef>

namespace onepass::python {

// Base of the type_caster of an enumeration; names(E) returns its strings, in the order of the enumeration.
template <class E>
struct NamedEnum {
  PYBIND11_TYPE_CASTER(E, pybind11::detail::const_name("str"));

  bool load(pybind11::handle source, bool) {
    if (!PyUnicode_Check(source.ptr())) return false;
    std::size_t i = 0;
    for (const char* name : names(E{})) {
      value = static_cast<E>(i++);
      if (PyUnicode_CompareWithASCIIString(source.ptr(), name) == 0) return true;
    }
    return false;
  }

  static pybind11::handle cast(E value, pybind11::return_value_policy, pybind11::handle) {
    return PyUnicode_FromString(names(E{})[static_cast<std::size_t>(value)]);
  }
};

}  // namespace onepass::python
