// Parameter group of a PyTorch optimizer, with its options for the core.
#pragma once

#include <pybind11/pybind11.h>

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "core/optimizer.hpp"
#include "python/tensor_view.hpp"

namespace onepass::python {

namespace py = pybind11;

// Watcher of a group's dict, which passes changed numbers in the dict to the core.
class TorchGroup {
 public:
  // places: for each name of an option, the indices of its numbers (one, or two for a pair) in the list of the rule's
  // numbers, lr, weight_decay, clip_value and ema_decay; no index if every change of the option needs Python. Items
  // with other names belong to the user. fixed_zeros: names of options whose change between zero and nonzero needs
  // Python.
  TorchGroup(py::dict group, py::tuple tensors, const std::string& rule, py::dict places, py::set fixed_zeros,
             std::vector<double> options, const CommonOptions& common);

  // Read all items again, and set their numbers to these options.
  void renew(py::dict places, std::vector<double> options, const CommonOptions& common);

  // Pass changed numbers to the core. Return false if Python must read the group.
  // is_renewed: renew() has just read values that may change in place.
  bool update(const TensorViewer& viewer, bool is_renewed);

  // Return true if the group still has the same tensors.
  bool has_same_tensors() const;
  bool is_of(PyObject* group) const { return group == group_.ptr(); }
  const py::tuple& tensors() const { return tensors_; }
  const std::shared_ptr<onepass::Group>& core() const { return core_; }

  // For the garbage collector.
  int traverse(visitproc visit, void* argument) const;
  void clear();

 private:
  static constexpr std::size_t common_numbers = 4;
  struct Item {
    py::object key;
    py::object value;
    bool is_params = false;
    bool is_watched = false;     // the item is an option
    bool is_changeable = false;  // the value can change in place
    bool has_fixed_zero = false;
    std::vector<std::size_t> places;
  };
  struct Change {
    Item& item;
    py::object value;
    bool is_changeable;
  };

  bool has_same_tensors(PyObject* params) const;
  bool find_changes(std::vector<Change>& changes, bool is_renewed);
  static bool take(Change& change, const TensorViewer& viewer, std::vector<double>& numbers);
  void pass_on();

  py::dict group_;
  py::tuple tensors_;
  py::dict places_;
  py::set fixed_zeros_;
  std::vector<Item> items_;
  std::vector<Change> changes_;
  std::vector<double> numbers_;
  CommonOptions common_;
  std::shared_ptr<onepass::Group> core_;
};

void register_torch_group(py::module_& m);

}  // namespace onepass::python
