// The fast path of PyTorch's optimizers: a step that calls no Python code except to read gradients.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstddef>
#include <optional>
#include <utility>
#include <vector>

#include "core/optimizer.hpp"
#include "python/dlpack.hpp"

namespace onepass::python {

namespace py = pybind11;

// A float32 or float64 array that mirrors counts of the core for PyTorch.
class MirroredCounts {
 public:
  explicit MirroredCounts(py::array array);

  bool matches(std::size_t i, double value) const;
  void set(std::size_t i, double value);
  std::size_t size() const { return static_cast<std::size_t>(array_.size()); }

 private:
  py::array array_;
  void* data_;
  bool single_;
};

// A dict or list and the exact objects that it held: a dict's keys and then its values, a list's items. Compared by
// identity: tensors of one number may be equal.
class Snapshot {
 public:
  using Parts = std::pair<py::object, py::tuple>;
  explicit Snapshot(const Parts& parts);

  // True if this is the dict or list.
  bool is_of(PyObject* container) const { return container == container_.ptr(); }
  // True if it holds the same objects in the same order.
  bool is_unchanged() const;
  int traverse(visitproc visit, void* argument) const;

 private:
  py::object container_;
  py::tuple items_;
};

// The dict of a parameter group, and the list of tensors in it.
struct GroupSnapshot {
  using Parts = std::pair<Snapshot::Parts, Snapshot::Parts>;
  Snapshot dict;
  Snapshot params;
};

// Steps without Python code as long as groups, state, tensors and gradients are as they were when this was made.
class TorchFastPath {
 public:
  // published: whether PyTorch has the state of each tensor. state: the dict of all state, then the dicts in it.
  // steps, mu_products: mirrors of the tensors' counts. changed: called with the tensors that a step has changed.
  // exchange: PyTorch's DLPackExchangeAPI; every step is refused if it is missing or unknown, and if a tensor has no
  // view.
  TorchFastPath(py::object optimizer, py::tuple tensors, std::vector<bool> published,
                const std::vector<GroupSnapshot::Parts>& groups, const std::vector<Snapshot::Parts>& state,
                py::array steps, py::array mu_products, py::object changed, const py::object& exchange);

  // Replace a group whose options have changed, once the optimizer has them.
  void update_group(std::size_t g, const GroupSnapshot::Parts& parts);

  // Step along the tensors' gradients. Returns false, and changes nothing, if anything is not as it was.
  bool step(PyObject* groups, PyObject* state);

  // For the garbage collector.
  int traverse(visitproc visit, void* argument) const;
  void clear();

 private:
  // The memory of a gradient; null if there is none.
  struct Found {
    py::object gradient;
    const void* data = nullptr;
  };

  bool is_unchanged(PyObject* groups, PyObject* state) const;
  std::optional<Found> find_gradient(std::size_t i, const Parameter& parameter);
  void publish_counts(const std::vector<Parameter>& parameters);

  py::object optimizer_;
  py::tuple tensors_;
  std::vector<bool> published_;
  std::vector<GroupSnapshot> groups_;
  std::vector<Snapshot> state_;
  py::object grad_name_;  // interned
  MirroredCounts steps_;
  MirroredCounts mu_products_;
  py::object changed_;
  std::vector<TensorLayout> layouts_;
  std::vector<const void*> neg_checked_at_;  // the address of each gradient that was found not to be lazily negated
  DLPackExchange::ViewTensor view_tensor_ = nullptr;
};

void register_torch(py::module_& m);

}  // namespace onepass::python
