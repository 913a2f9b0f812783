// The bound Optimizer: turns arrays into pointers and steps along them.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "core/executor.hpp"
#include "core/fork_count.hpp"
#include "core/optimizer.hpp"
#include "python/arrays.hpp"
#include "python/gil.hpp"
#include "python/group.hpp"
#include "python/step_lock.hpp"

namespace onepass::python {

// Holds the arrays of an optimizer and takes gradients. Invalid input is detected here; error messages are built in
// Python. The Python subclass supplies hooks for all that the fast path does not take: _arrange (another container of
// gradients), _convert (another form of a gradient), _number (another type of grad_scale), _scheduled (schedules), and
// errors: _overflow, _nonfinite_gradient, _parameter_changed.
class Optimizer {
 public:
  enum class Form : unsigned char { array, sequence, mapping };
  enum class Nonfinite : unsigned char { propagate, skip, raise };
  static constexpr double no_clip_norm = -1;

  // in_files: state is in files, whose pages forked processes share.
  Optimizer(bool flush_denormals, bool in_files, py::object record)
      : core_(flush_denormals), record_(std::move(record)), in_files_(in_files) {}

  // Register parameters, each with its state and its running average or None. Gradients of all parameters then come in
  // this form. The record, which Python keeps of all parameters, takes the place of the one before: observers and
  // signal handlers see both changes or neither.
  void add_group(Form form, const Group* group, const std::vector<py::object>& keys,
                 const std::vector<py::array>& params, const std::vector<std::vector<py::array>>& states,
                 const std::vector<std::optional<py::array>>& averages, py::object record);
  py::object record() const;

  // Replace state: copy pairs of arrays (to, from) of equal size and layout, and set the options of groups, the options
  // of the optimizer and the counts. Returns false, and changes nothing, if a group holds another mapping than the
  // expected one.
  using Options = std::tuple<Group*, py::object, py::object, std::vector<double>, CommonOptions>;  // as of Group::swap
  bool restore(const std::vector<std::pair<py::array, py::array>>& copies, const std::vector<Options>& options,
               double clip_norm, Nonfinite nonfinite, std::int64_t step_count, std::int64_t skipped,
               const std::vector<std::int64_t>& steps, const std::vector<double>& mu_products);

  // Call a function while no thread steps. The function may add groups and restore.
  py::object locked(const py::function& function);

  void step(py::handle grads, py::handle grad_scale);

  // Step in parts, along gradients that other processes deliver meanwhile (onepass.integrations.mpi). Calls
  // exchange._agree(digest, whole) when all is prepared and nothing has changed; exchange._measured(blocks), if the
  // whole gradient is needed first, which must then be complete; and exchange._ready(k) before the k-th part, a list of
  // parameters, is read and updated.
  void step_in_parts(py::handle grads, double scale, const std::vector<std::vector<std::size_t>>& parts,
                     const py::object& exchange);

  // The gradients of one step: holds the lock, and drops its references on every exit path.
  class ScopedGradients {
   public:
    explicit ScopedGradients(Optimizer& optimizer);
    ~ScopedGradients();
    ScopedGradients(const ScopedGradients&) = delete;
    ScopedGradients& operator=(const ScopedGradients&) = delete;

    // Add the gradient of the next parameter: its memory, null if there is none, and the owner of that memory. Returns
    // false if the memory overlaps that of a parameter or of state.
    bool add(py::object owner, const void* data);

    // Step along the gradients, one for each parameter.
    void apply() { optimizer_.finish(1); }

   private:
    Optimizer& optimizer_;
    std::scoped_lock<StepLock> lock_;
  };

  // The tensors that the step updated. Within ScopedGradients.
  py::tuple updated(const py::tuple& tensors) const;
  const std::vector<Parameter>& parameters() const { return core_.parameters(); }

  // True if the core can read this object as the gradient of parameter i without a conversion.
  bool fits(std::size_t i, PyObject* gradient);

  std::size_t parameter_count();
  std::int64_t step_count();
  std::int64_t parameter_step(std::size_t i);
  double mu_product(std::size_t i);
  std::int64_t skipped() const { return skipped_; }
  // The norm of the last step's gradients, if clip_norm was set.
  std::optional<double> grad_norm() const { return measured_ ? std::optional<double>(grad_norm_) : std::nullopt; }

  double clip_norm() const { return clip_norm_; }
  void set_clip_norm(double clip_norm) { clip_norm_ = clip_norm; }
  Nonfinite nonfinite() const { return nonfinite_; }
  void set_nonfinite(Nonfinite nonfinite) { nonfinite_ = nonfinite; }

  // Have steps run on PyTorch's threads from now on: see torch_executor().
  void use_torch_threads(py::object get_num_threads) { torch_threads_ = std::move(get_num_threads); }

  StepLock& lock() { return lock_; }

  // For the garbage collector.
  int traverse(visitproc visit, void* argument) const;
  void clear();

 private:
  struct InParts {
    const std::vector<std::vector<std::size_t>>& parts;
    const py::object& exchange;
  };

  py::object self() { return py::cast(this, py::return_value_policy::reference); }

  // Call a method of the Python subclass.
  template <class... Arguments>
  py::object call_hook(const char* method, Arguments&&... arguments) {
    return call(self().attr(method), py::make_tuple(std::forward<Arguments>(arguments)...));
  }

  std::unique_lock<StepLock> lock_for_change();
  std::unique_lock<StepLock> lock_for_reading();
  void check_process() const;
  double as_number(py::handle grad_scale);
  void collect(py::handle grads);
  bool collect_sequence(py::handle grads);
  bool collect_mapping(py::handle grads);
  void take_pointers();
  Gradient sparse_rows(std::size_t i, const py::tuple& pair) const;
  bool is_disjoint(std::size_t i, const void* data);
  void check_parameter(std::size_t i);
  void check_again();
  Executor choose_executor() const;
  void finish(double scale, const InParts* in_parts = nullptr);
  void take_options();
  void plan(double scale);
  GradientStats measure_with_others(double scale, bool norm, bool finite, bool large, const py::object& exchange);
  void remember(const GradientStats& measured, double clip_norm);

  onepass::Optimizer core_;
  std::vector<ParameterRecord> records_;
  mutable std::mutex record_mutex_;  // no Python code runs while it is locked
  py::object record_;
  MemoryRanges ranges_;
  py::object torch_threads_;  // PyTorch's function, for its adapter; null: the pool's threads
  std::size_t elements_ = 0;  // of all parameters
  Form form_ = Form::array;
  std::atomic<double> clip_norm_{no_clip_norm};
  std::atomic<Nonfinite> nonfinite_{Nonfinite::propagate};
  std::atomic<std::int64_t> skipped_{0};
  std::atomic<double> grad_norm_{0};
  std::atomic<bool> measured_{false};
  // Room for the gradients of a step.
  std::vector<py::object> gradients_;
  std::vector<Gradient> pointers_;
  StepLock lock_;
  bool is_locked_ = false;  // locked() holds the lock
  bool in_files_;
  unsigned made_forks_ = onepass::fork_count();  // the process that made the optimizer
};

// The C++ object of an instance. Throws TypeError before its __init__ was called.
Optimizer& core_of(py::handle self);

// The same for any object. Throws TypeError where it is no optimizer.
Optimizer& require_optimizer(const py::object& self);

void register_optimizer(py::module_& m);

}  // namespace onepass::python
