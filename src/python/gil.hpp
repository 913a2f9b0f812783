// The GIL: releasing it for long work, and surviving the end of the interpreter.
#pragma once

#include <pybind11/pybind11.h>

#include <chrono>
#include <cstddef>
#include <thread>

namespace onepass::python {

namespace py = pybind11;

// Below this many elements a step is over before another thread could have made use of the GIL.
constexpr std::size_t release_gil_from = 1 << 16;

// During finalization CPython before 3.14 terminates threads that request the GIL by unwinding their stacks. The
// unwinding must not pass through destructors: they promise not to throw, and would release objects without the GIL. So
// it is caught where it can begin, and the thread waits for the process to end.
[[noreturn]] inline void wait_for_exit() noexcept {
  for (;;) std::this_thread::sleep_for(std::chrono::hours(1));
}

// Call a function without the GIL.
template <class Function>
void without_gil(Function function) {
  PyThreadState* const state = PyEval_SaveThread();
  function();
  try {
    PyEval_RestoreThread(state);
  } catch (...) {
    wait_for_exit();
  }
}

template <class Function>
void without_gil_if(bool worth_it, Function function) {
  if (worth_it) {
    without_gil(function);
  } else {
    function();
  }
}

// Call a Python function, in which this thread may lose the GIL.
inline py::object call(const py::object& function, const py::tuple& arguments) {
  PyObject* result = nullptr;
  try {
    result = PyObject_Call(function.ptr(), arguments.ptr(), nullptr);
  } catch (...) {
    wait_for_exit();
  }
  if (result == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(result);
}

}  // namespace onepass::python
