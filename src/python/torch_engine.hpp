// Step of the PyTorch adapter, in place in the memory of PyTorch's tensors.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <unordered_map>
#include <vector>

#include "core/optimizer.hpp"
#include "core/row_sums.hpp"
#include "python/arrays.hpp"
#include "python/planned_step.hpp"
#include "python/step_lock.hpp"
#include "python/tensor_view.hpp"
#include "python/torch_group.hpp"
#include "python/torch_storage.hpp"

namespace onepass::python {

namespace py = pybind11;

// Engine of a PyTorch optimizer's steps. The tensors and the numbers in the optimizer's groups are the only state:
// each step reads the addresses and layouts of the tensors, their step counts, and the options.
class TorchEngine {
 public:
  // groups: one TorchGroup for each parameter group. state: the optimizer's state dict. states: for each group, the
  // names of the state tensors in the order of the core's rule, followed by the name of the average, if there is one.
  // storages: for each group, how its state is stored.
  // scalars: names of the one-element tensors that the rule reads and writes, "step" first. rows_and_values: a function
  // that returns the two tensors of a sparse gradient of rows, or None for other gradients.
  TorchEngine(std::vector<py::object> groups, py::object state, std::vector<std::vector<py::object>> states,
              std::vector<TorchStorage> storages, std::vector<py::object> scalars, TensorViewer viewer,
              py::object get_num_threads, py::object count_changes, py::object explain, py::object rows_and_values,
              bool flush_denormals);

  // Step along the tensors' gradients. Return false, without changes, if the step needs the slow path in Python.
  //
  // only: the parameter to step, or every_parameter.
  // substitutes: None, or for each parameter None or arrays in place of its tensors: (param, gradient or pair of rows
  // and values, list of states, average or None, float64 array of scalars, NarrowArrays or None, the average's tensor
  // or None). The arrays have one layout; the bits of bfloat16 numbers are uint16. copies: None, or a list of pairs of
  // tensors, (to, from), to copy after a step that was not skipped. The engine copies because Ctrl-C could interrupt
  // Python code between the step and the copies.
  static constexpr std::size_t every_parameter = SIZE_MAX;
  bool step(PyObject* groups, PyObject* state, PyObject* substitutes, std::size_t only, PyObject* copies);

  // Return true if these are the engine's groups and state, and the core has taken the options of the groups.
  bool takes(const py::object& groups, const py::object& state);

  // TorchGroup::renew() for one of the groups, while no thread steps.
  void renew(std::size_t g, py::dict places, std::vector<double> options, const CommonOptions& common);

  // Set the gradients of all tensors to None. Return false, without changes, if the optimizer has other groups or
  // tensors.
  bool clear_gradients(const py::object& groups) const;

  void set_clip_norm(double clip_norm) { clip_norm_ = clip_norm; }
  void set_nonfinite(Nonfinite nonfinite) { nonfinite_ = nonfinite; }
  void set_seed(std::uint64_t seed) { core_.set_seed(seed); }
  // The number of steps that were taken.
  std::int64_t step_count() const { return step_count_; }
  std::int64_t skipped() const { return skipped_; }
  std::optional<double> grad_norm() const { return grad_norm_; }
  // Continue with the results of an earlier engine.
  void set_results(std::int64_t skipped, std::optional<double> grad_norm) {
    skipped_ = skipped;
    grad_norm_ = grad_norm;
  }

  // For the garbage collector.
  int traverse(visitproc visit, void* argument) const;
  void clear();

 private:
  static constexpr std::size_t max_tensors = onepass::max_states + 1;  // state tensors and the average
  struct Count {
    void* data = nullptr;  // null: the count has no tensor
    DType dtype = onepass::float32;
  };
  // Python objects of one parameter during one step.
  struct StepObjects {
    py::object gradient;
    py::object dict;
    std::array<py::object, max_tensors> tensors;
    std::array<py::object, onepass::max_scalars + 1> scalars;
    py::object substitute;
    py::object rows;  // row numbers of a sparse gradient
    py::object values;
    bool gradient_is_checked = false;
    std::array<Count, onepass::max_scalars + 1> counts = {};
  };
  // Python objects of one parameter whose arrays may be narrower than float32, during one step.
  struct NarrowObjects {
    std::array<py::object, onepass::max_states> scales;
    py::object low;
  };
  struct Entry {
    PyObject* tensor = nullptr;  // borrowed from the group's tuple
    std::size_t group = 0;
    std::size_t first = 0;  // index of the first parameter with the same tensor
    TensorLayout layout;
    const void* count = nullptr;     // the address of its count of steps, where it was when ranges_ was filled
    const void* gradient = nullptr;  // last gradient address known not to be lazily negated
    const void* disjoint = nullptr;  // last gradient address that overlaps no parameter and no state
    bool is_in_ranges = false;
    bool is_odd = false;     // its last step needed a substitute
    bool is_sparse = false;  // its last gradient was sparse
    bool is_narrow = false;  // it is bfloat16, or its group has narrow state; its layout then has no dtype
    onepass::RowSums sums;   // memory of its sparse gradients
  };
  struct Unchecked {
    py::object tensor;
    std::size_t parameter;
    const void* gradient;  // address of the tensor's memory if it is a gradient, otherwise null
  };
  enum class Found : unsigned char { ready, unchecked, odd };

  TorchGroup& group(std::size_t g) const { return *try_group(groups_[g]); }
  static TorchGroup* try_group(const py::object& object);
  const RuleEntry& rule(std::size_t g) const { return group(g).core()->rule(); }

  bool has_groups(PyObject* groups) const;
  bool take_options(bool is_renewed);
  bool step_locked(PyObject* groups, PyObject* state, PyObject* substitutes, std::size_t only);
  bool collect(PyObject* state, PyObject* substitutes, std::size_t only);
  bool collect_gradient(std::size_t i);
  bool collect_state(PyObject* state);
  bool collect_tensors(std::size_t i);
  void collect_storage(std::size_t i);
  Found locate();
  bool locate_tensors(std::size_t i);
  bool locate_memory(std::size_t i, const DLTensor& view, void*& place, const py::object& tensor, bool is_known);
  class Finder;
  bool locate_narrow(std::size_t i, const DLTensor& view);
  bool find_narrow(std::size_t i, Parameter& parameter, Finder& finder) const;
  bool locate_narrow_gradient(std::size_t i);
  bool locate_gradient(std::size_t i);
  bool take_gradient(std::size_t i, const DLTensor& view);
  bool locate_rows(std::size_t i, const DLTensor& param);
  bool locate_counts(std::size_t i);
  void use_substitute(std::size_t i);
  bool check_negated();
  bool are_gradients_disjoint();
  void forget();
  void update_ranges();
  void add_ranges(std::size_t i);
  bool is_disjoint(std::size_t i, const void* data, std::size_t bytes) const;
  bool finish(const Executor& executor);
  void apply_in_order(double scale, const Executor& executor);
  void read_counts(std::size_t i);
  void write_counts(std::size_t i);
  py::tuple updated() const;

  std::vector<py::object> groups_;
  py::object state_;
  std::vector<std::vector<py::object>> state_names_;
  std::vector<TorchStorage> storages_;
  std::vector<py::object> scalar_names_;
  TensorViewer viewer_;
  py::object get_num_threads_;
  py::object count_changes_;  // called with the tensors changed by a step
  py::object explain_;
  py::object rows_and_values_;
  py::object grad_name_;
  onepass::Optimizer core_;
  std::vector<Entry> entries_;
  py::tuple tensors_;                                 // the tensors of all entries
  std::unordered_map<PyObject*, std::size_t> index_;  // index of the first parameter with a tensor
  std::vector<StepObjects> objects_;
  std::vector<NarrowObjects> narrow_objects_;  // empty where no parameter is narrow
  std::vector<Unchecked> unchecked_;
  std::vector<Gradient> pointers_;
  struct Range {
    std::uintptr_t begin;
    std::uintptr_t end;
    std::size_t parameter;
  };
  std::vector<Range> ranges_;  // sorted memory ranges of the parameters and state of the last step
  bool has_moved_ = true;      // some memory is not in ranges_
  bool has_overlaps_ = false;  // parameters share memory and are stepped one after the other
  std::size_t elements_ = 0;
  double clip_norm_ = no_clip_norm;
  Nonfinite nonfinite_ = Nonfinite::propagate;
  std::int64_t step_count_ = 0;
  std::int64_t skipped_ = 0;
  std::optional<double> grad_norm_;
  StepLock lock_;
};

void register_torch(py::module_& m);

}  // namespace onepass::python
