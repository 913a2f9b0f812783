#define ONEPASS_IMPORTS_NUMPY
#include "python/arrays.hpp"

#include <algorithm>
#include <iterator>
#include <string_view>

namespace onepass::python {

void import_numpy() {
  if (PyArray_ImportNumPyAPI() < 0) throw py::error_already_set();
}

std::optional<Storage> narrow_storage_of(PyArrayObject* array) {
  if (!PyArray_ISNOTSWAPPED(array)) return std::nullopt;
  if (PyArray_TYPE(array) == NPY_HALF) return Storage::float16;
  if (PyArray_TYPE(array) < NPY_USERDEF) return std::nullopt;
  const std::string_view name = PyArray_DESCR(array)->typeobj->tp_name;  // "ml_dtypes.bfloat16"
  const std::size_t dot = name.rfind('.');
  if (name.substr(dot == std::string_view::npos ? 0 : dot + 1) == "bfloat16") return Storage::bfloat16;
  return std::nullopt;
}

namespace {

// The memory of an array that a step writes, or an exception.
void* checked_data(const py::array& array, int type, std::size_t size) {
  PyArrayObject* const a = as_array(array);
  if (PyArray_TYPE(a) != type || static_cast<std::size_t>(PyArray_SIZE(a)) != size || !is_contiguous(array) ||
      !PyArray_ISBEHAVED(a)) {
    throw py::value_error("narrow state: an array has another dtype, size or layout than its parameter needs");
  }
  return PyArray_DATA(a);
}

Parameter describe_narrow(const py::array& param, const std::vector<py::array>& states,
                          const std::optional<py::array>& average, const NarrowArrays& narrow) {
  const bool is_raw = PyArray_TYPE(as_array(param)) == NPY_UINT16;  // the bits of a bfloat16 tensor
  const std::optional<Storage> storage = is_raw ? Storage::bfloat16 : storage_of(param, onepass::float32);
  if (!storage || *storage == Storage::float16) throw py::type_error("parameters must be float32 or bfloat16");
  const auto size = static_cast<std::size_t>(param.size());
  const auto rows = static_cast<std::size_t>(param.ndim() == 0 ? 1 : param.shape(0));
  Parameter parameter = {};
  parameter.dtype = onepass::float32;
  parameter.size = size;
  parameter.row_size = rows == 0 ? 0 : size / rows;
  parameter.operands.param = data_of(param);
  parameter.is_narrow = true;
  parameter.storage.param = *storage;
  parameter.storage.stochastic = narrow.stochastic;
  parameter.storage.first = narrow.first;
  if (narrow.first % onepass::scale_group != 0) throw py::value_error("first must be a multiple of scale_group");
  if (*storage == Storage::bfloat16) {
    const unsigned bits = narrow.master_bits;
    if (bits != 32 && bits != 24 && bits != 16) throw py::value_error("master_bits must be 32, 24 or 16");
    parameter.storage.master_bits = narrow.master_bits;
    if (bits != 16) {
      if (!narrow.low) throw py::value_error("the lower part of a parameter is missing");
      parameter.storage.low = checked_data(*narrow.low, bits == 32 ? NPY_INT16 : NPY_INT8, size);
    }
  }
  if (narrow.scales.size() != states.size() || narrow.divisors.size() != states.size()) {
    throw py::value_error("one entry for each state");
  }
  for (std::size_t k = 0; k < states.size(); ++k) {
    const int type = PyArray_TYPE(as_array(states[k]));
    if (type != NPY_FLOAT && type != NPY_UINT16 && type != NPY_UINT8) {
      throw py::value_error("state must be float32, uint16 or uint8");
    }
    parameter.operands.state[k] = checked_data(states[k], type, size);
    parameter.storage.divisor[k] = narrow.divisors[k];
    parameter.storage.state[k] = type == NPY_FLOAT    ? Storage::plain
                                 : type == NPY_UINT16 ? Storage::bfloat16
                                                      : Storage::float8;
    if (type != NPY_UINT8) continue;
    if (!narrow.scales[k]) throw py::value_error("the scales of a state are missing");
    parameter.storage.scale[k] = static_cast<float*>(checked_data(*narrow.scales[k], NPY_FLOAT, scales_of(size)));
  }
  if (average) parameter.operands.average = checked_data(*average, NPY_FLOAT, size);
  return parameter;
}

}  // namespace

Parameter describe(const py::array& param, const std::vector<py::array>& states,
                   const std::optional<py::array>& average, const std::optional<NarrowArrays>& narrow) {
  if (states.size() > onepass::max_states) throw py::value_error("too many states");
  if (narrow) return describe_narrow(param, states, average, *narrow);
  const std::optional<DType> dtype = dtype_of(param);
  if (!dtype) throw py::type_error("arrays must be native float32 or float64");
  const auto checked_data = [&](const py::array& state) {
    if (dtype_of(state) != dtype || state.size() != param.size()) {
      throw py::value_error("state must have the dtype and size of its parameter");
    }
    return data_of(state);
  };
  const auto size = static_cast<std::size_t>(param.size());
  const auto rows = static_cast<std::size_t>(param.ndim() == 0 ? 1 : param.shape(0));
  Parameter parameter = {};
  parameter.dtype = *dtype;
  parameter.size = size;
  parameter.row_size = rows == 0 ? 0 : size / rows;
  parameter.operands.param = data_of(param);
  for (std::size_t k = 0; k < states.size(); ++k) parameter.operands.state[k] = checked_data(states[k]);
  if (average) parameter.operands.average = checked_data(*average);
  return parameter;
}

ParameterRecord::ParameterRecord(py::object key, py::array param, std::vector<py::array> states,
                                 const std::optional<py::array>& average, const std::optional<NarrowArrays>& narrow)
    : key(std::move(key)),
      param(std::move(param)),
      states(std::move(states)),
      shape(this->param.shape(), this->param.shape() + this->param.ndim()),
      order(PyArray_FLAGS(as_array(this->param)) & any_order) {
  if (average) this->states.push_back(*average);
  if (!narrow) return;
  if (narrow->low) this->states.push_back(*narrow->low);
  for (const std::optional<py::array>& scale : narrow->scales) {
    if (scale) this->states.push_back(*scale);
  }
}

bool ParameterRecord::has_shape(PyArrayObject* array) const {
  if (static_cast<std::size_t>(PyArray_NDIM(array)) != shape.size()) return false;
  for (std::size_t axis = 0; axis < shape.size(); ++axis) {
    if (PyArray_DIMS(array)[axis] != shape[axis]) return false;
  }
  return true;
}

MemoryRanges MemoryRanges::with(const std::vector<ParameterRecord>& records, std::size_t first) const {
  MemoryRanges result = *this;
  const auto add = [&](const py::array& array) {
    const auto begin = reinterpret_cast<std::uintptr_t>(data_of(array));
    if (array.nbytes() != 0) result.ranges_.emplace_back(begin, begin + static_cast<std::size_t>(array.nbytes()));
  };
  for (std::size_t i = first; i < records.size(); ++i) {
    add(records[i].param);
    for (const py::array& state : records[i].states) add(state);
  }
  std::sort(result.ranges_.begin(), result.ranges_.end());
  return result;
}

bool MemoryRanges::overlap(const void* data, std::size_t bytes) const {
  const auto begin = reinterpret_cast<std::uintptr_t>(data);
  const auto after = std::upper_bound(ranges_.begin(), ranges_.end(), Range{begin, UINTPTR_MAX});
  if (after != ranges_.end() && after->first < begin + bytes) return true;
  return after != ranges_.begin() && std::prev(after)->second > begin;
}

}  // namespace onepass::python
