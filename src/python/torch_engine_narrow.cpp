// TorchEngine: the memory of tensors in fewer bits.
#include <algorithm>
#include <iterator>
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

// Fill narrow_objects_ with the tensors of a parameter that only narrow storage has.
void TorchEngine::collect_storage(std::size_t i) {
  const TorchStorage& options = storages_[entries_[i].group];
  narrow_objects_.resize(entries_.size());
  NarrowObjects& objects = narrow_objects_[i];
  for (std::size_t k = 0; k < options.scales.size(); ++k) objects.scales[k] = find(objects_[i].dict, options.scales[k]);
  if (options.master_bits != 16) objects.low = find(objects_[i].dict, options.low);
}

// Finder of the memory of one parameter's tensors.
class TorchEngine::Finder {
 public:
  Finder(const TensorViewer& viewer, const TensorLayout& layout) : viewer_(viewer), layout_(layout) {}

  // Set the place of a tensor's memory. Return the tensor's view, or nothing if Python must look at the tensor.
  template <class Pointer>
  std::optional<DLTensor> find(const py::object& tensor, Pointer& place) {
    std::optional<DLTensor> view = tensor ? viewer_.view(tensor.ptr()) : std::nullopt;
    if (!view) return std::nullopt;
    const bool is_empty = view->size() == 0;
    if (!is_empty && view->data == nullptr) return std::nullopt;
    place = static_cast<Pointer>(is_empty ? nullptr : view->address());
    if (!is_empty) found_.push_back(tensor);
    return view;
  }

  // The same for a tensor that must have the parameter's layout and this storage.
  bool find_elements(const py::object& tensor, Storage storage, void*& place) {
    const std::optional<DLTensor> view = find(tensor, place);
    return view && view->storage() == storage && layout_.fits(*view);
  }
  bool find_low(const py::object& tensor, std::uint8_t bits, void*& place) {
    const std::optional<DLTensor> view = find(tensor, place);
    return view && view->is_integer(bits) && layout_.fits(*view);
  }
  bool find_scales(const py::object& tensor, std::size_t count, float*& place) {
    const std::optional<DLTensor> view = find(tensor, place);
    return view && view->storage() == Storage::plain && view->is_contiguous() && view->size() == count;
  }

  const std::vector<py::object>& found() const { return found_; }

 private:
  const TensorViewer& viewer_;
  const TensorLayout& layout_;
  std::vector<py::object> found_;
};

// Find the memory of a parameter whose arrays may be narrower than float32. Return false if Python must look at it.
bool TorchEngine::locate_narrow(std::size_t i, const DLTensor& view) {
  Entry& entry = entries_[i];
  const TorchStorage& options = storages_[entry.group];
  const bool was_narrow = std::exchange(entry.is_narrow, options.is_narrow(view));
  if (!was_narrow || !entry.is_narrow || objects_[i].rows) return false;
  const bool is_known = entry.layout.fits(view);
  if (!is_known) {
    if (!view.is_dense()) return false;
    entry.layout = TensorLayout::shape_of(view);
  }
  Parameter parameter = {};
  parameter.size = view.size();
  Finder finder(viewer_, entry.layout);
  if (!find_narrow(i, parameter, finder)) return false;
  if (!is_known || !has_same_memory(parameter, core_.parameters()[i])) {
    has_moved_ = true;
    core_.set_memory(i, parameter);
    for (const py::object& tensor : finder.found()) unchecked_.push_back({tensor, i, nullptr});
  }
  has_moved_ = has_moved_ || !entry.is_in_ranges;
  return locate_narrow_gradient(i);
}

bool TorchEngine::find_narrow(std::size_t i, Parameter& parameter, Finder& finder) const {
  const std::size_t g = entries_[i].group;
  const TorchStorage& options = storages_[g];
  const StepObjects& objects = objects_[i];
  const NarrowObjects& narrow = narrow_objects_[i];
  const auto tensor = py::reinterpret_borrow<py::object>(entries_[i].tensor);
  const bool is_large = parameter.size >= options.narrow_from;
  NarrowStorage& storage = parameter.storage;
  Operands& operands = parameter.operands;
  const bool is_bfloat16 = finder.find_elements(tensor, Storage::bfloat16, operands.param);
  if (!is_bfloat16 && !finder.find_elements(tensor, Storage::plain, operands.param)) return false;
  parameter.dtype = onepass::float32;
  parameter.is_narrow = is_bfloat16 || (options.has_narrow_states && is_large);
  storage.param = is_bfloat16 ? Storage::bfloat16 : Storage::plain;
  storage.master_bits = options.master_bits;
  storage.stochastic = options.stochastic;
  const std::size_t states = rule(g).state_count;
  for (std::size_t k = 0; k < states; ++k) {
    storage.state[k] = is_large ? options.states[k] : Storage::plain;
    if (!finder.find_elements(objects.tensors[k], storage.state[k], operands.state[k])) return false;
    storage.divisor[k] = options.divisors[k];
    const bool has_scales = storage.state[k] == Storage::float8;
    if (has_scales && !finder.find_scales(narrow.scales[k], scales_of(parameter.size), storage.scale[k])) {
      return false;
    }
  }
  const bool has_average = state_names_[g].size() > states;
  if (has_average && !finder.find_elements(objects.tensors[states], Storage::plain, operands.average)) return false;
  const bool has_low = is_bfloat16 && options.master_bits != 16;
  return !has_low || finder.find_low(narrow.low, options.master_bits == 32 ? 16 : 8, storage.low);
}

bool TorchEngine::locate_narrow_gradient(std::size_t i) {
  const std::optional<DLTensor> view = viewer_.view(objects_[i].gradient.ptr());
  const std::optional<Storage> stored = view ? view->storage() : std::nullopt;
  if (!stored || *stored == Storage::float8 || !entries_[i].layout.fits(*view)) return false;
  pointers_[i].storage = *stored;
  return take_gradient(i, *view);
}

}  // namespace onepass::python
