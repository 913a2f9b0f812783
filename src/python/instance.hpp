// Bound objects in plain C functions, past pybind11's dispatcher.
#pragma once

#include <pybind11/pybind11.h>

#include <exception>
#include <new>

namespace onepass::python {

namespace py = pybind11;

// The C++ object of a bound instance; null before its __init__ was called. pybind11's public casts do not detect this:
// they return uninitialized memory.
template <class T>
T* try_get(PyObject* self) {
  auto* const instance = reinterpret_cast<py::detail::instance*>(self);
  // The garbage collector may visit an instance while pybind11 is still creating it.
  if (!instance->simple_layout && instance->nonsimple.values_and_holders == nullptr) return nullptr;
  const auto value = instance->get_value_and_holder();
  return value.holder_constructed() ? value.value_ptr<T>() : nullptr;
}

// The result of a function, or null with a Python exception set for the C++ exception that it throws.
template <class Function>
PyObject* guarded(Function function) {
  try {
    return function();
  } catch (py::error_already_set& error) {
    error.restore();
  } catch (const py::builtin_exception& error) {
    error.set_error();
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  return nullptr;
}

// Add a method to a bound class. The definition must outlive the class.
inline void add_method(const py::object& type, PyMethodDef& definition) {
  auto method =
      py::reinterpret_steal<py::object>(PyDescr_NewMethod(reinterpret_cast<PyTypeObject*>(type.ptr()), &definition));
  if (!method) throw py::error_already_set();
  type.attr(definition.ml_name) = method;
}

// A function with more parameters than PyCFunction has, as PyMethodDef takes it.
template <class Function>
PyCFunction as_cfunction(Function* function) {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

}  // namespace onepass::python
