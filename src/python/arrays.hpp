// NumPy's arrays as the core's parameters.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstddef>
#include <optional>
#include <vector>

#include "core/optimizer.hpp"

namespace onepass::python {

namespace py = pybind11;
using NumPy = py::detail::npy_api;

constexpr int any_order = NumPy::NPY_ARRAY_C_CONTIGUOUS_ | NumPy::NPY_ARRAY_F_CONTIGUOUS_;

inline const py::detail::PyArray_Proxy& fields(PyObject* array) { return *py::detail::array_proxy(array); }

// float32 or float64 in the machine's byte order; nothing else.
inline std::optional<DType> dtype_of(PyObject* array) {
  const auto* const descr = py::detail::array_descriptor_proxy(fields(array).descr);
  if (descr->byteorder != '=' && descr->byteorder != '|') return std::nullopt;
  if (descr->type_num == NumPy::NPY_FLOAT_) return onepass::float32;
  if (descr->type_num == NumPy::NPY_DOUBLE_) return onepass::float64;
  return std::nullopt;
}

// What a parameter's arrays look like to the core. The caller has checked their layouts.
inline Parameter describe(const py::array& param, const std::vector<py::array>& states,
                          const std::optional<py::array>& average) {
  const std::optional<DType> dtype = dtype_of(param.ptr());
  if (!dtype) throw py::type_error("arrays must be native float32 or float64");
  if (states.size() > onepass::max_states) throw py::value_error("too many states");
  const auto data_of = [&](const py::array& state) {
    if (dtype_of(state.ptr()) != dtype || state.size() != param.size()) {
      throw py::value_error("state must have the dtype and size of its parameter");
    }
    return fields(state.ptr()).data;
  };
  const auto size = static_cast<std::size_t>(param.size());
  const auto rows = static_cast<std::size_t>(param.ndim() == 0 ? 1 : param.shape(0));
  Parameter parameter{*dtype, size, rows == 0 ? 0 : size / rows, {}, 0, 0, {}};
  parameter.operands.param = fields(param.ptr()).data;
  for (std::size_t k = 0; k < states.size(); ++k) parameter.operands.state[k] = data_of(states[k]);
  if (average) parameter.operands.average = data_of(*average);
  return parameter;
}

}  // namespace onepass::python
