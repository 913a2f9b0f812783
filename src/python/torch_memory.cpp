// The memory of a step's tensors: addresses, layouts, overlaps.
#include <pybind11/stl.h>

#include <algorithm>
#include <iterator>
#include <tuple>
#include <utility>

#include "python/torch_engine.hpp"

namespace onepass::python {
namespace {

constexpr char nothing = 0;  // the memory of gradients without elements

}  // namespace

// Fill pointers_ and the core's parameters with the memory of the tensors in objects_. Runs no Python code.
TorchEngine::Found TorchEngine::locate() {
  unchecked_.clear();
  std::size_t elements = 0;
  for (std::size_t i = 0; i < entries_.size(); ++i) {
    pointers_[i] = {};
    if (objects_[i].substitute) {
      use_substitute(i);
    } else if (objects_[i].gradient) {
      if (!locate_tensors(i) || !locate_counts(i)) return Found::odd;
    } else {
      continue;
    }
    elements += core_.parameters()[i].size;
    read_counts(i);
  }
  elements_ = std::max(elements_, elements);
  if (!unchecked_.empty()) return Found::unchecked;
  for (int tries = 0; tries < 2; ++tries) {
    if (has_moved_) update_ranges();
    if (are_gradients_disjoint()) return Found::ready;
    has_moved_ = true;  // try again: the overlap may be with memory that no longer belongs to a parameter
  }
  return Found::odd;
}

// Return true if no gradient overlaps a parameter or state.
bool TorchEngine::are_gradients_disjoint() {
  for (std::size_t i = 0; i < entries_.size(); ++i) {
    const Parameter& parameter = core_.parameters()[i];
    const Gradient& gradient = pointers_[i];
    if (!objects_[i].gradient || parameter.size == 0 || gradient.data == entries_[i].disjoint) continue;
    const bool has_rows = gradient.rows != nullptr;
    const std::size_t size = has_rows ? gradient.row_count * parameter.row_size : parameter.size;
    if (!is_disjoint(i, gradient.data, size * onepass::bytes_of(gradient.storage, parameter.dtype))) return false;
    if (!has_rows) entries_[i].disjoint = gradient.data;
  }
  return true;
}

// Find the memory of a parameter and of its state. Returns false if Python must look at one of the tensors.
bool TorchEngine::locate_tensors(std::size_t i) {
  Entry& entry = entries_[i];
  const std::optional<DLTensor> view = viewer_.view(entry.tensor);
  if (!view) return false;
  const std::optional<DType> dtype = view->dtype();
  if (!dtype) return locate_narrow(i, *view);
  const bool is_known = entry.layout.matches(*view);
  if (!is_known) {
    if (entry.is_narrow) return locate_narrow(i, *view);
    if (!view->is_dense()) return false;
    entry.layout = TensorLayout(*view);
  }
  Operands operands = core_.parameters()[i].operands;
  const std::size_t unchecked = unchecked_.size();
  if (!locate_memory(i, *view, operands.param, py::reinterpret_borrow<py::object>(entry.tensor), is_known))
    return false;
  const std::size_t states = rule(entry.group).state_count;
  for (std::size_t k = 0; k < state_names_[entry.group].size(); ++k) {
    const py::object& tensor = objects_[i].tensors[k];
    const std::optional<DLTensor> state = viewer_.view(tensor.ptr());
    void*& place = k < states ? operands.state[k] : operands.average;
    if (!state || !locate_memory(i, *state, place, tensor, is_known)) return false;
  }
  if (!is_known || unchecked_.size() != unchecked) {
    has_moved_ = true;
    Parameter parameter = {};
    parameter.dtype = *dtype;
    parameter.size = view->size();
    parameter.row_size =
        view->ndim == 0 || view->shape[0] == 0 ? 0 : parameter.size / static_cast<std::size_t>(view->shape[0]);
    parameter.operands = operands;
    core_.set_memory(i, parameter);
  }
  has_moved_ = has_moved_ || !entry.is_in_ranges;
  return objects_[i].rows ? locate_rows(i, *view) : locate_gradient(i);
}

// Set the place of a tensor's memory, which must have the parameter's layout. A new address has yet to be checked.
bool TorchEngine::locate_memory(std::size_t i, const DLTensor& view, void*& place, const py::object& tensor,
                                bool is_known) {
  if (!entries_[i].layout.matches(view)) return false;
  void* const address = view.size() == 0 ? nullptr : view.address();
  if (view.size() != 0 && view.data == nullptr) return false;
  if (place == address && is_known) return true;
  place = address;
  if (address != nullptr) unchecked_.push_back({tensor, i, nullptr});
  return true;
}

bool TorchEngine::locate_gradient(std::size_t i) {
  const std::optional<DLTensor> view = viewer_.view(objects_[i].gradient.ptr());
  return view && entries_[i].layout.matches(*view) && take_gradient(i, *view);
}

bool TorchEngine::take_gradient(std::size_t i, const DLTensor& view) {
  const Entry& entry = entries_[i];
  const StepObjects& objects = objects_[i];
  const std::size_t size = view.size();
  if (size != 0 && view.data == nullptr) return false;
  const void* const data = size == 0 ? &nothing : view.address();
  pointers_[i].data = data;
  // is_neg takes long, and contiguous tensors are practically never lazily negated, except the imaginary part of one
  // conjugate number: check gradients of more elements once for each address.
  if (!objects.gradient_is_checked && (size == 1 || entry.gradient != data)) {
    unchecked_.push_back({objects.gradient, i, data});
  }
  return true;
}

// Find the rows and values of a sparse gradient. Return false if they do not fit the parameter as they are.
bool TorchEngine::locate_rows(std::size_t i, const DLTensor& param) {
  const std::optional<DLTensor> rows = viewer_.view(objects_[i].rows.ptr());
  const std::optional<DLTensor> elements = viewer_.view(objects_[i].values.ptr());
  const Parameter& parameter = core_.parameters()[i];
  if (!rows || !elements || param.ndim == 0 || !param.is_contiguous()) return false;
  if (!rows->is_integer(64) || rows->ndim != 2 || rows->shape[0] != 1 || !rows->is_contiguous()) return false;
  if (elements->dtype() != parameter.dtype || elements->ndim != param.ndim || !elements->is_contiguous() ||
      elements->shape[0] != rows->shape[1] ||
      !std::equal(param.shape + 1, param.shape + param.ndim, elements->shape + 1)) {
    return false;
  }
  if (elements->size() != 0 && (elements->data == nullptr || rows->data == nullptr)) return false;
  const auto count = static_cast<std::size_t>(rows->shape[1]);
  const Gradient sum = entries_[i].sums.of(static_cast<const std::int64_t*>(rows->address()), count,
                                           elements->address(), parameter.dtype, parameter.row_size);
  pointers_[i] = sum;
  return count == 0 || (sum.rows[0] >= 0 && sum.rows[sum.row_count - 1] < param.shape[0]);
}

bool TorchEngine::locate_counts(std::size_t i) {
  for (std::size_t k = 0; k < scalar_names_.size(); ++k) {
    const std::optional<DLTensor> view = viewer_.view(objects_[i].scalars[k].ptr());
    if (!view || view->size() != 1 || view->data == nullptr) return false;
    const std::optional<DType> dtype = view->dtype();
    if (!dtype) return false;
    objects_[i].counts[k] = {view->address(), *dtype};
    has_moved_ = has_moved_ || (k == 0 && view->address() != entries_[i].count);
  }
  return true;
}

// Have the core take the arrays of a substitute, which Python has checked.
void TorchEngine::use_substitute(std::size_t i) {
  const auto [param, gradient, states, average, scalars, narrow, average_tensor] =
      objects_[i]
          .substitute
          .cast<std::tuple<py::array, py::object, std::vector<py::array>, std::optional<py::array>,
                           py::array_t<double, py::array::c_style>, std::optional<NarrowArrays>, py::object>>();
  Entry& entry = entries_[i];
  if (!average_tensor.is_none()) objects_[i].tensors[rule(entry.group).state_count] = average_tensor;
  entry.layout = {};
  entry.gradient = entry.disjoint = nullptr;
  core_.set_memory(i, describe(param, states, average, narrow));
  has_moved_ = true;
  entry.is_sparse = PyTuple_CheckExact(gradient.ptr()) != 0;
  if (entry.is_sparse) {
    const auto [rows, values] = gradient.cast<std::pair<py::array_t<std::int64_t, py::array::c_style>, py::array>>();
    const Parameter& parameter = core_.parameters()[i];
    const auto count = static_cast<std::size_t>(rows.size());
    if (static_cast<std::size_t>(values.size()) != count * parameter.row_size) {
      throw py::value_error("values of a sparse gradient: expected a row of the parameter for each row number");
    }
    pointers_[i] = entry.sums.of(rows.data(), count, data_of(values), parameter.dtype, parameter.row_size);
  } else {
    const void* const data = data_of(gradient);
    pointers_[i].data = data == nullptr ? &nothing : data;
  }
  for (std::size_t k = 0; k < static_cast<std::size_t>(scalars.size()); ++k) {
    objects_[i].counts.at(k) = {const_cast<double*>(scalars.data(static_cast<py::ssize_t>(k))), onepass::float64};
  }
  // The first step of a rule without counts needs a substitute only for the count.
  entry.is_odd = entry.is_odd && (!scalar_names_.empty() || scalars.at(0) != 0);
}

// Check tensors at new addresses. Return false if a tensor is lazily negated: its memory holds the negated numbers.
bool TorchEngine::check_negated() {
  const std::vector<Unchecked> unchecked = std::move(unchecked_);
  unchecked_.clear();
  for (const Unchecked& one : unchecked) {
    if (call(one.tensor.attr("is_neg"), py::tuple()).cast<bool>()) return false;
    if (one.gradient == nullptr) continue;
    objects_[one.parameter].gradient_is_checked = true;
    entries_[one.parameter].gradient = one.gradient;
  }
  return true;
}

// Check all tensors again at the next step.
void TorchEngine::forget() {
  for (Entry& entry : entries_) {
    entry.layout = {};
    entry.gradient = nullptr;
  }
  has_moved_ = true;
}

// Add the memory of a parameter and of its state to ranges_.
void TorchEngine::add_ranges(std::size_t i) {
  const Parameter& parameter = core_.parameters()[i];
  const NarrowStorage& storage = parameter.storage;
  const auto add = [&](const void* data, std::size_t bytes) {
    if (data == nullptr || bytes == 0) return;
    const auto begin = reinterpret_cast<std::uintptr_t>(data);
    ranges_.push_back({begin, begin + bytes, i});
  };
  const auto add_elements = [&](const void* data, Storage stored) {
    add(data, parameter.size * onepass::bytes_of(parameter.is_narrow ? stored : Storage::plain, parameter.dtype));
  };
  add_elements(parameter.operands.param, storage.param);
  for (std::size_t k = 0; k < onepass::max_states; ++k) add_elements(parameter.operands.state[k], storage.state[k]);
  add_elements(parameter.operands.average, Storage::plain);
  if (!parameter.is_narrow) return;
  for (const float* const scales : storage.scale) add(scales, scales_of(parameter.size) * sizeof(float));
  add(storage.low, parameter.size * (storage.master_bits == 32 ? 2U : 1U));
}

// Fill ranges_ with the memory of the parameters of this step.
void TorchEngine::update_ranges() {
  ranges_.clear();
  for (std::size_t i = 0; i < entries_.size(); ++i) {
    entries_[i].disjoint = nullptr;
    entries_[i].is_in_ranges = pointers_[i].data != nullptr;
    if (!entries_[i].is_in_ranges) continue;
    add_ranges(i);
  }
  std::sort(ranges_.begin(), ranges_.end(), [](const Range& a, const Range& b) { return a.begin < b.begin; });
  std::vector<const void*> counts;
  for (std::size_t i = 0; i < entries_.size(); ++i) {
    entries_[i].count = entries_[i].is_in_ranges ? objects_[i].counts[0].data : nullptr;
    if (entries_[i].count != nullptr) counts.push_back(entries_[i].count);
  }
  std::sort(counts.begin(), counts.end());
  has_overlaps_ = std::adjacent_find(counts.begin(), counts.end()) != counts.end();
  std::uintptr_t end = 0;
  std::size_t owner = 0;
  for (const Range& range : ranges_) {
    if (range.begin < end) {
      if (range.parameter == owner) {
        call(explain_, py::make_tuple("overlapping_state", owner));
        throw py::value_error("state overlaps its parameter");
      }
      has_overlaps_ = true;
    }
    if (range.end > end) {
      end = range.end;
      owner = range.parameter;
    }
  }
  has_moved_ = false;
}

bool TorchEngine::is_disjoint(std::size_t i, const void* data, std::size_t bytes) const {
  if (objects_[i].substitute) return true;
  const auto begin = reinterpret_cast<std::uintptr_t>(data);
  const auto after = std::upper_bound(ranges_.begin(), ranges_.end(), begin,
                                      [](std::uintptr_t value, const Range& range) { return value < range.begin; });
  if (after != ranges_.end() && after->begin < begin + bytes) return false;
  return after == ranges_.begin() || std::prev(after)->end <= begin;
}

}  // namespace onepass::python
