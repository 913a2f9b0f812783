// Look-ups in dicts that other threads may change.
#pragma once

#include <pybind11/pybind11.h>

namespace onepass::python {

namespace py = pybind11;

// Return a value of a dict, or null if the key is missing. Without the GIL a borrowed reference is not safe, not
// even in a critical section: the look-up may suspend the section, and another thread may then remove the value.
inline py::object find(py::handle dict, py::handle key) {
#if PY_VERSION_HEX >= 0x030D0000
  PyObject* value = nullptr;
  const bool failed = PyDict_GetItemRef(dict.ptr(), key.ptr(), &value) < 0;
  auto result = py::reinterpret_steal<py::object>(value);
#else
  auto result = py::reinterpret_borrow<py::object>(PyDict_GetItemWithError(dict.ptr(), key.ptr()));
  const bool failed = !result && PyErr_Occurred() != nullptr;
#endif
  if (failed) throw py::error_already_set();
  return result;
}

}  // namespace onepass::python
