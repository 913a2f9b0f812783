// NumPy arrays as the core's parameters and gradients.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "core/optimizer.hpp"

// NumPy's C API as of the oldest version that onepass runs with, imported once, by import_numpy().
#define NPY_NO_DEPRECATED_API NPY_1_7_API_VERSION
#define NPY_TARGET_VERSION NPY_1_21_API_VERSION
#define PY_ARRAY_UNIQUE_SYMBOL onepass_numpy_api
#ifndef ONEPASS_IMPORTS_NUMPY
#define NO_IMPORT_ARRAY
#endif
#include <numpy/arrayobject.h>

namespace onepass::python {

namespace py = pybind11;

// Import NumPy's C API; required before anything else here.
void import_numpy();

constexpr int any_order = NPY_ARRAY_C_CONTIGUOUS | NPY_ARRAY_F_CONTIGUOUS;

inline PyArrayObject* as_array(py::handle array) { return reinterpret_cast<PyArrayObject*>(array.ptr()); }
inline void* data_of(py::handle array) { return PyArray_DATA(as_array(array)); }
inline bool is_contiguous(py::handle array) { return (PyArray_FLAGS(as_array(array)) & any_order) != 0; }

// float32 or float64 in native byte order; any other dtype is none.
inline std::optional<DType> dtype_of(py::handle array) {
  if (!PyArray_ISNOTSWAPPED(as_array(array))) return std::nullopt;
  if (PyArray_TYPE(as_array(array)) == NPY_FLOAT) return onepass::float32;
  if (PyArray_TYPE(as_array(array)) == NPY_DOUBLE) return onepass::float64;
  return std::nullopt;
}

// The storage of numbers that the core computes with in float32: float32, float16, or bfloat16 of ml_dtypes, in native
// byte order; any other dtype is none.
std::optional<Storage> narrow_storage_of(PyArrayObject* array);

// The storage of numbers that the core computes with in this dtype.
inline std::optional<Storage> storage_of(py::handle array, DType dtype) {
  if (dtype_of(array) == dtype) return Storage::plain;
  return dtype == onepass::float32 ? narrow_storage_of(as_array(array)) : std::nullopt;
}

// The number of scales for this number of float8 elements.
constexpr std::size_t scales_of(std::size_t size) { return (size + onepass::scale_group - 1) / onepass::scale_group; }

// Storage of one parameter's arrays where some are narrower than float32. The dtypes of the states say which: uint8 is
// float8, uint16 is bfloat16.
struct NarrowArrays {
  std::vector<std::optional<py::array>> scales;  // of each state, for float8
  std::vector<bool> divisors;                    // for each state: a rule divides by it or takes its root
  std::optional<py::array> low;                  // the lower part of a bfloat16 parameter
  unsigned char master_bits;
  bool stochastic;
  std::uint64_t first;                 // index of the arrays' first element in the whole parameter
  std::optional<std::size_t> part_of;  // index of the whole parameter if the arrays are a part of it
};

// A parameter for the core. The caller has checked the layouts of the arrays.
Parameter describe(const py::array& param, const std::vector<py::array>& states,
                   const std::optional<py::array>& average, const std::optional<NarrowArrays>& narrow = std::nullopt);

// The arrays of one parameter, and the layout that its gradients must have.
struct ParameterRecord {
  ParameterRecord(py::object key, py::array param, std::vector<py::array> states,
                  const std::optional<py::array>& average, const std::optional<NarrowArrays>& narrow);

  // True if an array has the parameter's shape.
  bool has_shape(PyArrayObject* array) const;

  py::object key;
  py::array param;
  std::vector<py::array> states;  // and all other arrays that the step writes
  std::vector<npy_intp> shape;
  int order;  // NumPy's flags of the contiguous orders that the parameter has
  // The last gradient that was found to overlap no array of the optimizer.
  const void* disjoint = nullptr;
  std::size_t disjoint_bytes = 0;
};

// The memory of all parameters and state: finds gradients that overlap it.
class MemoryRanges {
 public:
  // These ranges and the arrays of more parameters.
  MemoryRanges with(const std::vector<ParameterRecord>& records, std::size_t first) const;

  // True if these bytes overlap a range.
  bool overlap(const void* data, std::size_t bytes) const;

 private:
  using Range = std::pair<std::uintptr_t, std::uintptr_t>;
  std::vector<Range> ranges_;  // sorted
};

}  // namespace onepass::python
