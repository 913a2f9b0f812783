// What every entry from Python shares: who has the interpreter, errors, garbage collection.
#pragma once

#include <pybind11/critical_section.h>
#include <pybind11/pybind11.h>

#include <chrono>
#include <cstddef>
#include <exception>
#include <initializer_list>
#include <new>
#include <thread>

namespace onepass::python {

namespace py = pybind11;

// Below this many elements a step is over before another thread could have made use of the interpreter.
constexpr std::size_t release_gil_from = 1 << 16;

// Python before 3.14 ends a thread that wants the interpreter when the interpreter ends, by unwinding its stack. That
// must not pass through destructors: they promise not to throw, and would release objects that this thread may not
// touch. So where that can begin it is caught, and the thread waits for the process to end.
[[noreturn]] inline void wait_for_the_end() noexcept {
  for (;;) std::this_thread::sleep_for(std::chrono::hours(1));
}

// Calls the function while other threads have the interpreter.
template <class Function>
void without_gil(Function function) {
  PyThreadState* const state = PyEval_SaveThread();
  function();
  try {
    PyEval_RestoreThread(state);
  } catch (...) {
    wait_for_the_end();
  }
}

// Calls a function of Python, in which this thread may lose the interpreter.
inline py::object call(const py::object& function, const py::tuple& arguments) {
  PyObject* result = nullptr;
  try {
    result = PyObject_Call(function.ptr(), arguments.ptr(), nullptr);
  } catch (...) {
    wait_for_the_end();
  }
  if (result == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(result);
}

template <class Function>
void without_gil_if(bool worth_it, Function function) {
  if (worth_it) {
    without_gil(function);
  } else {
    function();
  }
}

// Fills a slot of a Python object, whatever its class makes of assignments. No signal is handled meanwhile.
inline void assign(py::handle object, py::handle slot, py::handle value) {
  if (PyObject_GenericSetAttr(object.ptr(), slot.ptr(), value.ptr()) != 0) throw py::error_already_set();
}

// Whether a slot of a Python object holds this very object.
inline bool is_held(const py::object& object, const py::str& slot, const py::object& value) {
  const auto found = py::reinterpret_steal<py::object>(PyObject_GenericGetAttr(object.ptr(), slot.ptr()));
  if (!found) throw py::error_already_set();
  return found.is(value);
}

// Has an object remember one value in the place of another that it was known to hold, after the function; does neither
// where it holds another by now, and returns false. So threads that change what they have read need no lock: one of
// Python's, taken in a with statement, may stay locked when a signal comes.
template <class Function>
bool replace(const py::object& object, const py::str& slot, const py::object& known, const py::object& value,
             Function before) {
  const py::scoped_critical_section section(object);
  if (!is_held(object, slot, known)) return false;
  before();
  assign(object, slot, value);
  return true;
}

// The optimizer of an object; null before its __init__ was called.
template <class T>
T* find(PyObject* self) {
  auto* const instance = reinterpret_cast<py::detail::instance*>(self);
  // The garbage collector may look while pybind11 is still making the object.
  if (!instance->simple_layout && instance->nonsimple.values_and_holders == nullptr) return nullptr;
  const auto value = instance->get_value_and_holder();
  return value.holder_constructed() ? value.value_ptr<T>() : nullptr;
}

// Has the garbage collector visit these objects, those that are null left out.
inline int visit_all(std::initializer_list<const py::object*> objects, visitproc visit, void* argument) {
  for (const py::object* object : objects) {
    if (const int found = object->ptr() == nullptr ? 0 : visit(object->ptr(), argument)) return found;
  }
  return 0;
}

// Lets the garbage collector find cycles through what an object of this class holds.
template <class T>
void set_up_collection(PyHeapTypeObject* heap_type) {
  PyTypeObject* const type = &heap_type->ht_type;
  type->tp_flags |= Py_TPFLAGS_HAVE_GC;
  type->tp_traverse = [](PyObject* self, visitproc visit, void* arg) {
    Py_VISIT(Py_TYPE(self));
    const T* const held = find<T>(self);
    return held == nullptr ? 0 : held->traverse(visit, arg);
  };
  type->tp_clear = [](PyObject* self) {
    if (T* const held = find<T>(self)) held->clear();
    return 0;
  };
}

// What the function returns, or null with Python's exception for what it throws.
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

}  // namespace onepass::python
