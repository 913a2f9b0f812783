#include "python/torch_group.hpp"

#include <pybind11/critical_section.h>
#include <pybind11/stl.h>

#include <utility>

#include "core/dispatch.hpp"
#include "python/dict.hpp"
#include "python/gc.hpp"

namespace onepass::python {

TorchGroup::TorchGroup(py::dict group, py::tuple tensors, const std::string& rule, py::dict places, py::set fixed_zeros,
                       std::vector<double> options, const CommonOptions& common)
    : group_(std::move(group)),
      tensors_(std::move(tensors)),
      fixed_zeros_(std::move(fixed_zeros)),
      common_(common),
      core_(std::make_shared<onepass::Group>(onepass::find_rule(rule), options, common)) {
  renew(std::move(places), std::move(options), common);
}

void TorchGroup::renew(py::dict places, std::vector<double> options, const CommonOptions& common) {
  places_ = std::move(places);
  std::vector<Item> items;
  for (const auto& [key, value] : py::reinterpret_steal<py::dict>(PyDict_Copy(group_.ptr()))) {
    Item item;
    item.key = py::reinterpret_borrow<py::object>(key);
    item.value = py::reinterpret_borrow<py::object>(value);
    item.is_params = PyUnicode_Check(key.ptr()) && PyUnicode_CompareWithASCIIString(key.ptr(), "params") == 0;
    item.is_watched = places_.contains(key);
    if (item.is_watched) {
      item.places = places_[key].cast<std::vector<std::size_t>>();
      item.has_fixed_zero = fixed_zeros_.contains(key);
      const bool is_number = PyFloat_Check(value.ptr()) || PyLong_Check(value.ptr());
      item.is_changeable = !item.places.empty() && !is_number;  // provisional: take() sets it when it reads the numbers
    }
    items.push_back(std::move(item));
  }
  items_.swap(items);
  common_ = common;
  numbers_ = std::move(options);
  numbers_.insert(numbers_.end(), {common.lr, common.weight_decay, common.clip_value, common.ema_decay});
  pass_on();
}

// Pass the numbers to the core.
void TorchGroup::pass_on() {
  const std::size_t count = numbers_.size() - common_numbers;
  common_.lr = numbers_[count];
  common_.weight_decay = numbers_[count + 1];
  common_.clip_value = numbers_[count + 2];
  common_.ema_decay = numbers_[count + 3];
  core_->set({numbers_.begin(), numbers_.begin() + static_cast<std::ptrdiff_t>(count)}, common_);
}

bool TorchGroup::update(const TensorViewer& viewer, bool is_renewed) {
  changes_.clear();
  std::vector<Change> changes;
  changes.swap(changes_);  // keeps its room
  bool taken = find_changes(changes, is_renewed);
  if (!changes.empty()) {
    std::vector<double> numbers = numbers_;
    for (Change& change : changes) taken = taken && take(change, viewer, numbers);
    if (taken) {
      numbers_.swap(numbers);
      pass_on();
      for (Change& change : changes) {
        std::swap(change.item.value, change.value);
        change.item.is_changeable = change.is_changeable;
      }
    }
  }
  changes.clear();
  changes_.swap(changes);
  return taken;
}

// Fill changes with the items whose value is a different object or may have changed in place. Return false if the dict
// has other items. Release no object: a destructor could run code that changes the dict.
bool TorchGroup::find_changes(std::vector<Change>& changes, bool is_renewed) {
  const py::scoped_critical_section section(group_);
  if (static_cast<std::size_t>(PyDict_GET_SIZE(group_.ptr())) != items_.size()) return false;
  PyObject* key = nullptr;
  PyObject* value = nullptr;
  PyObject* params = nullptr;
  Py_ssize_t at = 0;
  for (std::size_t i = 0; PyDict_Next(group_.ptr(), &at, &key, &value) != 0; ++i) {
    Item& item = items_[i];
    if (key != item.key.ptr()) return false;
    if (value != item.value.ptr() || (item.is_changeable && !is_renewed)) {
      changes.push_back({item, py::reinterpret_borrow<py::object>(value), false});
    }
    if (item.is_params) params = value;
  }
  return params != nullptr && has_same_tensors(params);
}

bool TorchGroup::has_same_tensors() const {
  const py::object params = find(group_, py::str("params"));
  return params && has_same_tensors(params.ptr());
}

bool TorchGroup::has_same_tensors(PyObject* params) const {
  if (!PyList_CheckExact(params) && !PyTuple_CheckExact(params)) return false;
  const py::scoped_critical_section section{py::handle(params)};
  const Py_ssize_t count = PyTuple_GET_SIZE(tensors_.ptr());
  if (PySequence_Fast_GET_SIZE(params) != count) return false;
  for (Py_ssize_t i = 0; i < count; ++i) {
    if (PySequence_Fast_GET_ITEM(params, i) != PyTuple_GET_ITEM(tensors_.ptr(), i)) return false;
  }
  return true;
}

// Read the numbers of a changed item. Returns false where Python must read them.
bool TorchGroup::take(Change& change, const TensorViewer& viewer, std::vector<double>& numbers) {
  const Item& item = change.item;
  PyObject* const value = change.value.ptr();
  if (!item.is_watched) return true;
  if (item.places.empty()) return false;
  const auto take_number = [&](PyObject* object, std::size_t place) {
    const std::optional<TensorViewer::Number> number = viewer.number(object);
    if (!number || (item.has_fixed_zero && (number->value == 0) != (numbers[place] == 0))) return false;
    numbers[place] = number->value;
    change.is_changeable = change.is_changeable || !number->is_fixed;
    return true;
  };
  if (item.places.size() == 1) return take_number(value, item.places[0]);
  change.is_changeable = PyList_CheckExact(value) != 0;
  if (!change.is_changeable && !PyTuple_CheckExact(value)) return false;
  std::vector<py::object> parts;  // held, and read outside the section: reading a number may suspend it
  {
    const py::scoped_critical_section section{py::handle(value)};
    if (static_cast<std::size_t>(PySequence_Fast_GET_SIZE(value)) != item.places.size()) return false;
    for (std::size_t k = 0; k < item.places.size(); ++k) {
      parts.push_back(py::reinterpret_borrow<py::object>(PySequence_Fast_GET_ITEM(value, static_cast<Py_ssize_t>(k))));
    }
  }
  for (std::size_t k = 0; k < parts.size(); ++k) {
    if (!take_number(parts[k].ptr(), item.places[k])) return false;
  }
  return true;
}

int TorchGroup::traverse(visitproc visit, void* argument) const {
  for (const Item& item : items_) {
    if (const int result = visit_all({&item.key, &item.value}, visit, argument)) return result;
  }
  return visit_all({&group_, &tensors_, &places_, &fixed_zeros_}, visit, argument);
}

void TorchGroup::clear() {
  items_.clear();
  group_ = py::dict();
  tensors_ = py::tuple();
}

void register_torch_group(py::module_& m) {
  py::class_<TorchGroup>(m, "TorchGroup", py::custom_type_setup(&set_up_collection<TorchGroup>))
      .def(py::init<py::dict, py::tuple, const std::string&, py::dict, py::set, std::vector<double>,
                    const CommonOptions&>(),
           py::arg("group"), py::arg("tensors"), py::arg("rule"), py::arg("places"), py::arg("fixed_zeros"),
           py::arg("options"), py::arg("common"));
}

}  // namespace onepass::python
