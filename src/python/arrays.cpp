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

// The elements of each row of a parameter.
std::size_t row_size_of(const py::array& param) {
  const auto rows = static_cast<std::size_t>(param.ndim() == 0 ? 1 : param.shape(0));
  return rows == 0 ? 0 : static_cast<std::size_t>(param.size()) / rows;
}

// The memory of an array that a step writes, or an exception.
void* checked_data(const std::optional<py::array>& array, int type, std::size_t size) {
  PyArrayObject* const a = array ? as_array(*array) : nullptr;
  const bool good = a != nullptr && PyArray_TYPE(a) == type && static_cast<std::size_t>(PyArray_SIZE(a)) == size &&
                    (PyArray_FLAGS(a) & any_order) != 0 && PyArray_ISBEHAVED(a);
  if (!good) throw py::value_error("narrow state: an array is missing, or of another dtype, size or layout");
  return PyArray_DATA(a);
}

// Describes a bfloat16 parameter's lower part.
void describe_low(NarrowStorage& storage, const NarrowArrays& narrow, std::size_t size) {
  const unsigned bits = narrow.master_bits;
  if (bits != 32 && bits != 24 && bits != 16) throw py::value_error("master_bits must be 32, 24 or 16");
  storage.master_bits = narrow.master_bits;
  if (bits != 16) storage.low = checked_data(narrow.low, bits == 32 ? NPY_INT16 : NPY_INT8, size);
}

// Describes state k.
void describe_state(Parameter& parameter, std::size_t k, const py::array& state, const NarrowArrays& narrow) {
  NarrowStorage& storage = parameter.storage;
  const int type = PyArray_TYPE(as_array(state));
  switch (type) {
    case NPY_FLOAT:
      storage.state[k] = Storage::plain;
      break;
    case NPY_UINT16:
      storage.state[k] = Storage::bfloat16;
      break;
    case NPY_UINT8:
      storage.state[k] = Storage::float8;
      storage.scale[k] = static_cast<float*>(checked_data(narrow.scales.at(k), NPY_FLOAT, scales_of(parameter.size)));
      break;
    default:
      throw py::value_error("state must be float32, uint16 or uint8");
  }
  parameter.operands.state[k] = checked_data(state, type, parameter.size);
  storage.divisor[k] = narrow.divisors.at(k);
}

Parameter describe_narrow(const py::array& param, const std::vector<py::array>& states,
                          const std::optional<py::array>& average, const NarrowArrays& narrow) {
  const bool is_raw = PyArray_TYPE(as_array(param)) == NPY_UINT16;  // the bits of a bfloat16 tensor
  const std::optional<Storage> storage = is_raw ? Storage::bfloat16 : storage_of(param, onepass::float32);
  if (!storage || *storage == Storage::float16) throw py::type_error("parameters must be float32 or bfloat16");
  if (narrow.first % onepass::scale_group != 0) throw py::value_error("first must be a multiple of scale_group");
  Parameter parameter;
  parameter.dtype = onepass::float32;
  parameter.size = static_cast<std::size_t>(param.size());
  parameter.row_size = row_size_of(param);
  parameter.operands.param = data_of(param);
  parameter.is_narrow = true;
  parameter.storage.param = *storage;
  parameter.storage.stochastic = narrow.stochastic;
  parameter.storage.first = narrow.first;
  parameter.part_of = narrow.part_of;
  if (*storage == Storage::bfloat16) describe_low(parameter.storage, narrow, parameter.size);
  for (std::size_t k = 0; k < states.size(); ++k) describe_state(parameter, k, states[k], narrow);
  if (average) parameter.operands.average = checked_data(average, NPY_FLOAT, parameter.size);
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
  Parameter parameter;
  parameter.dtype = *dtype;
  parameter.size = static_cast<std::size_t>(param.size());
  parameter.row_size = row_size_of(param);
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
