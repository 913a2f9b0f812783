#define ONEPASS_IMPORTS_NUMPY
#include "python/arrays.hpp"

#include <algorithm>
#include <iterator>

namespace onepass::python {

void import_numpy() {
  if (PyArray_ImportNumPyAPI() < 0) throw py::error_already_set();
}

Parameter describe(const py::array& param, const std::vector<py::array>& states,
                   const std::optional<py::array>& average) {
  const std::optional<DType> dtype = dtype_of(param);
  if (!dtype) throw py::type_error("arrays must be native float32 or float64");
  if (states.size() > onepass::max_states) throw py::value_error("too many states");
  const auto checked_data = [&](const py::array& state) {
    if (dtype_of(state) != dtype || state.size() != param.size()) {
      throw py::value_error("state must have the dtype and size of its parameter");
    }
    return data_of(state);
  };
  const auto size = static_cast<std::size_t>(param.size());
  const auto rows = static_cast<std::size_t>(param.ndim() == 0 ? 1 : param.shape(0));
  Parameter parameter{*dtype, size, rows == 0 ? 0 : size / rows, {}, 0, 0, {}};
  parameter.operands.param = data_of(param);
  for (std::size_t k = 0; k < states.size(); ++k) parameter.operands.state[k] = checked_data(states[k]);
  if (average) parameter.operands.average = checked_data(*average);
  return parameter;
}

ParameterRecord::ParameterRecord(py::object key, py::array param, std::vector<py::array> states,
                                 const std::optional<py::array>& average)
    : key(std::move(key)),
      param(std::move(param)),
      states(std::move(states)),
      shape(this->param.shape(), this->param.shape() + this->param.ndim()),
      order(PyArray_FLAGS(as_array(this->param)) & any_order) {
  if (average) this->states.push_back(*average);
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
