// Learning rates and decays that are functions of the step.
#pragma once

#include <pybind11/pybind11.h>

#include <cmath>
#include <cstdint>

#include "python/gil.hpp"

namespace onepass::python {

namespace py = pybind11;

// Return the value of an option at step t: the number itself, or the number that its schedule returns. The number is at
// least the minimum and below the limit. Otherwise calls failed, which throws: failed("failed_schedule", error) where
// the schedule raised an error, failed("wrong_rate", result) for other results. Ctrl-C and a lack of memory, which are
// not the schedule's fault, pass unchanged.
template <class Failed>
double evaluate_schedule(const py::object& option, std::int64_t t, double minimum, double limit, Failed failed) {
  const auto is_of_schedule = [](const py::error_already_set& error) {
    return error.matches(PyExc_Exception) && !error.matches(PyExc_MemoryError);
  };
  py::object result = option;
  if (PyCallable_Check(option.ptr()) != 0) {
    try {
      result = call(option, py::make_tuple(t));
    } catch (const py::error_already_set& error) {
      if (!is_of_schedule(error)) throw;
      failed("failed_schedule", error.value());
    }
  }
  if (PyFloat_CheckExact(result.ptr())) {
    const double number = PyFloat_AS_DOUBLE(result.ptr());
    if (number >= minimum && number < limit) return number;
  } else if (PyComplex_Check(result.ptr()) == 0) {
    const double number = PyFloat_AsDouble(result.ptr());
    if (number == -1 && PyErr_Occurred() != nullptr) {
      const py::error_already_set error;
      if (!is_of_schedule(error)) throw error;  // NOLINT(misc-throw-by-value-catch-by-reference)
    } else if (number >= minimum && number < limit) {
      return number;
    }
  }
  failed("wrong_rate", result);
  return 0;
}

}  // namespace onepass::python
