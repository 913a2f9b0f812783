// The memory of tensors in fewer bits.
#include "python/torch_storage.hpp"

#include <pybind11/stl.h>

#include <algorithm>
#include <iterator>
#include <string>
#include <type_traits>
#include <utility>

#include "python/dict.hpp"
#include "python/torch_engine.hpp"

namespace onepass::python {
namespace {

bool has_same_memory(const Parameter& a, const Parameter& b) {
  const NarrowStorage& x = a.storage;
  const NarrowStorage& y = b.storage;
  const auto equal = [](const auto& some, const auto& others) {
    return std::equal(std::begin(some), std::end(some), std::begin(others));
  };
  return a.size == b.size && a.is_narrow == b.is_narrow && a.operands.param == b.operands.param &&
         a.operands.average == b.operands.average && equal(a.operands.state, b.operands.state) && x.param == y.param &&
         equal(x.state, y.state) && equal(x.scale, y.scale) && x.low == y.low;
}

}  // namespace

// Fill held_storage_ with the tensors of a parameter that only narrow storage has.
void TorchEngine::collect_storage(std::size_t i) {
  const TorchStorage& options = storages_[entries_[i].group];
  held_storage_.resize(entries_.size());
  HeldStorage& held = held_storage_[i];
  for (std::size_t k = 0; k < options.scales.size(); ++k) held.scales[k] = find(held_[i].dict, options.scales[k]);
  if (options.has_low()) held.low = find(held_[i].dict, options.low);
}

// Find the memory of a parameter whose arrays may be narrower than float32. Return false if Python must look at it.
bool TorchEngine::locate_narrow(std::size_t i, const DLTensor& view) {
  Entry& entry = entries_[i];
  const TorchStorage& options = storages_[entry.group];
  const std::optional<Storage> own = view.storage();
  const bool was_narrow = std::exchange(entry.is_narrow, options.is_narrow(view));
  if (!was_narrow || !entry.is_narrow || held_[i].rows) return false;
  if (own != Storage::plain && own != Storage::bfloat16) return false;
  const bool is_known = entry.layout.fits(view);
  if (!is_known) {
    if (!view.is_dense()) return false;
    entry.layout = TensorLayout::shape_of(view);
  }
  const Storage moments = view.size() < options.narrow_from ? Storage::plain : options.moments;
  const bool is_bfloat16 = own == Storage::bfloat16;
  Parameter parameter = {};
  parameter.dtype = onepass::float32;
  parameter.size = view.size();
  parameter.is_narrow = is_bfloat16 || moments != Storage::plain;
  NarrowStorage& storage = parameter.storage;
  storage.param = *own;
  storage.master_bits = options.master_bits;
  storage.stochastic = options.stochastic;
  std::vector<py::object> tensors;
  const auto place = [&](const py::object& tensor, auto*& where) {
    std::optional<DLTensor> found = tensor ? viewer_.view(tensor.ptr()) : std::nullopt;
    if (!found || (found->size() != 0 && found->data == nullptr)) return std::optional<DLTensor>();
    where = static_cast<std::remove_reference_t<decltype(where)>>(found->size() == 0 ? nullptr : found->address());
    if (found->size() != 0) tensors.push_back(tensor);
    return found;
  };
  const auto has_storage = [&](const std::optional<DLTensor>& found, Storage stored) {
    return found && found->storage() == stored && entry.layout.fits(*found);
  };
  if (!place(py::reinterpret_borrow<py::object>(entry.tensor), parameter.operands.param)) return false;
  const HeldStorage& held = held_storage_[i];
  const std::size_t states = rule(entry.group).state_count;
  for (std::size_t k = 0; k < states; ++k) {
    if (!has_storage(place(held_[i].tensors[k], parameter.operands.state[k]), moments)) return false;
    storage.state[k] = moments;
    storage.divisor[k] = options.divisors[k];
    if (moments != Storage::float8) continue;
    const std::optional<DLTensor> scales = place(held.scales[k], storage.scale[k]);
    if (!scales || scales->storage() != Storage::plain || !scales->is_contiguous()) return false;
    if (scales->size() != scales_of(parameter.size)) return false;
  }
  if (state_names_[entry.group].size() > states &&
      !has_storage(place(held_[i].tensors[states], parameter.operands.average), Storage::plain)) {
    return false;
  }
  if (is_bfloat16 && options.has_low()) {
    const std::optional<DLTensor> low = place(held.low, storage.low);
    if (!low || !low->is_integer(options.master_bits == 32 ? 16 : 8) || !entry.layout.fits(*low)) return false;
  }
  if (!is_known || !has_same_memory(parameter, core_.parameters()[i])) {
    has_moved_ = true;
    core_.set_memory(i, parameter);
    for (py::object& tensor : tensors) unchecked_.push_back({std::move(tensor), i, nullptr});
  }
  has_moved_ = has_moved_ || !entry.is_in_ranges;

  const std::optional<DLTensor> gradient = viewer_.view(held_[i].gradient.ptr());
  const std::optional<Storage> stored = gradient ? gradient->storage() : std::nullopt;
  if (!stored || *stored == Storage::float8 || !entry.layout.fits(*gradient)) return false;
  pointers_[i].storage = *stored;
  return take_gradient(i, *gradient);
}

void register_torch_storage(py::module_& m) {
  py::class_<TorchStorage>(m, "TorchStorage")
      .def(py::init([](const std::string& moments, std::size_t narrow_from, std::vector<py::object> scales,
                       std::vector<bool> divisors, py::object low, unsigned char master_bits, bool stochastic) {
             if (scales.size() != divisors.size() || scales.size() > onepass::max_states) {
               throw py::value_error("one name of scales and one divisor for each moment");
             }
             const Storage stored = moments == "float8"     ? Storage::float8
                                    : moments == "bfloat16" ? Storage::bfloat16
                                                            : Storage::plain;
             return TorchStorage{stored,         narrow_from, std::move(scales), std::move(divisors),
                                 std::move(low), master_bits, stochastic};
           }),
           py::arg("moments"), py::arg("narrow_from"), py::arg("scales"), py::arg("divisors"), py::arg("low"),
           py::arg("master_bits"), py::arg("stochastic"));
}

}  // namespace onepass::python
