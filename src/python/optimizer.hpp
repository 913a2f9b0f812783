// Bound Optimizer: converts arrays to pointers and steps along the gradients.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <array>
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
#include "python/named_enum.hpp"
#include "python/planned_step.hpp"
#include "python/step_lock.hpp"

namespace onepass::python {

// Forms in which parameters and gradients come.
enum class Form : unsigned char { array, sequence, mapping };
constexpr std::array<const char*, 3> names(Form) { return {"array", "sequence", "mapping"}; }

// Owner of an optimizer's arrays, which steps them along gradients. Invalid input is detected here; error messages are
// built in Python. The Python subclass supplies two hooks: _prepare, for all inputs that leave the fast path (other
// containers and forms of gradients, other types of grad_scale, schedules), and _explain, which raises the error of a
// step.
class Optimizer {
 public:
  // in_files: state is in files. Forked processes share the pages of these files.
  Optimizer(bool flush_denormals, bool in_files, py::object record)
      : core_(flush_denormals), record_(std::move(record)), in_files_(in_files) {}

  // Register parameters atomically, each with its state and its running average or None. Afterwards, step() expects the
  // gradients of all parameters in this form. The new record replaces Python's record of all parameters: observers and
  // signal handlers see both changes or neither.
  void add_group(Form form, const py::object& group, const std::vector<py::object>& keys,
                 const std::vector<py::array>& params, const std::vector<std::vector<py::array>>& states,
                 const std::vector<std::optional<py::array>>& averages,
                 const std::vector<std::optional<NarrowArrays>>& narrow, py::object record);
  py::object record() const;

  // Replace state: copy pairs of arrays (to, from) of equal size and layout, and set the options of groups, the options
  // of the optimizer and the counts. Return false, without changes, if a group's mapping is not the expected mapping.
  using Options = std::tuple<Group*, py::object, py::object, std::vector<double>, CommonOptions>;  // as of Group::swap
  bool restore(const std::vector<std::pair<py::array, py::array>>& copies, const std::vector<Options>& options,
               double clip_norm, Nonfinite nonfinite, std::uint64_t seed, std::int64_t step_count, std::int64_t skipped,
               const std::vector<std::int64_t>& steps, const std::vector<std::vector<double>>& scalars,
               py::object record, bool evaluates);

  // Swap the contents of pairs of arrays of equal size and layout, and replace Python's record. evaluates: the
  // parameters no longer are those that the optimizer trains, so that it refuses to step.
  using ArrayPairs = std::vector<std::pair<py::array, py::array>>;
  void swap_arrays(const ArrayPairs& pairs, py::object record, bool evaluates);

  // Call a function while no thread steps. The function may call add_group and restore.
  py::object locked(const py::function& function);

  void step(py::handle grads, py::handle grad_scale);

  // Throw the error of a step, in the words of the Python subclass. detail: the index of a parameter, or a number of
  // arguments.
  [[noreturn]] void explain(const char* kind, std::size_t detail);

  // One step in three calls, so that processes can exchange gradients and block sums in between
  // (onepass.integrations.mpi). Any other call that steps or changes state drops a prepared step.
  //
  // Prepare a step along these gradients, without visible changes. The values of the gradients may still change. Return
  // the step count and the options that the step will use.
  std::vector<double> prepare_step(py::handle grads, py::handle grad_scale);
  // Return the statistics of the blocks of the prepared gradients, from their present values: a row of
  // onepass::BlockStats for each block of each parameter.
  py::array_t<double> measure_step();
  // Carry out the prepared step with these statistics of all gradients. Return false if the step was skipped.
  bool commit_step(double norm, std::optional<std::size_t> first_nonfinite);

  // Return true if the core can read this object as the gradient of parameter i without a conversion. Throw if the
  // array of the parameter has changed.
  bool fits(std::size_t i, PyObject* gradient) { return readable_storage(i, gradient).has_value(); }

  std::size_t parameter_count() const { return records_.size(); }
  std::int64_t step_count();
  std::int64_t parameter_step(std::size_t i);
  std::uint64_t seed();
  void set_seed(std::uint64_t seed);
  py::dict parameter_scalars(std::size_t i);
  std::int64_t skipped() const { return skipped_; }
  // Norm of the last step's gradients, if clip_norm was set.
  std::optional<double> grad_norm() const {
    const double norm = grad_norm_;
    return norm == not_measured ? std::nullopt : std::optional(norm);
  }

  double clip_norm() const { return clip_norm_; }
  void set_clip_norm(double clip_norm) { clip_norm_ = clip_norm; }
  Nonfinite nonfinite() const { return nonfinite_; }
  void set_nonfinite(Nonfinite nonfinite) { nonfinite_ = nonfinite; }

  // For the garbage collector.
  int traverse(visitproc visit, void* argument) const;
  void clear();

 private:
  // Scope of a step: holds the lock, and drops the references to the gradients on every exit path.
  class ScopedGradients {
   public:
    explicit ScopedGradients(Optimizer& optimizer);
    ~ScopedGradients();
    ScopedGradients(const ScopedGradients&) = delete;
    ScopedGradients& operator=(const ScopedGradients&) = delete;

   private:
    Optimizer& optimizer_;
    std::scoped_lock<StepLock> lock_;
  };
  struct PreparedStep {
    StepInputs inputs;
    std::vector<py::object> gradients;
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
  void replace_record(py::object& record, bool evaluates);
  StepInputs prepare(py::handle grads, py::handle grad_scale);
  void evaluate_schedules(std::size_t g, std::int64_t t);
  bool collect(py::handle grads);
  bool collect_sequence(py::handle grads);
  bool collect_mapping(py::handle grads);
  bool take_pointers(bool prepared);
  std::optional<Storage> readable_storage(std::size_t i, PyObject* gradient);
  Gradient sparse_rows(std::size_t i, const py::tuple& pair) const;
  bool is_disjoint(std::size_t i, const void* data, std::size_t bytes);
  void check_parameter(std::size_t i);
  void plan(double scale);
  void finish(const StepInputs& inputs);
  bool commit(const StepInputs& inputs, const GradientStats& measured);
  const PreparedStep& prepared_step() const;

  onepass::Optimizer core_;
  std::vector<ParameterRecord> records_;
  std::vector<py::object> groups_;   // bound Groups
  mutable std::mutex record_mutex_;  // no Python code runs while the mutex is locked
  py::object record_;
  MemoryRanges ranges_;
  Form form_ = Form::array;
  std::atomic<double> clip_norm_{no_clip_norm};
  std::atomic<Nonfinite> nonfinite_{Nonfinite::propagate};
  std::atomic<std::int64_t> skipped_{0};
  std::atomic<double> grad_norm_{not_measured};
  // Gradients of the current step. The memory is reused.
  std::vector<py::object> gradients_;
  std::vector<Gradient> pointers_;
  std::optional<PreparedStep> prepared_;
  StepLock lock_;
  bool is_locked_ = false;  // true while locked() holds the lock
  bool evaluates_ = false;  // set with record_: steps are refused
  bool in_files_;
  unsigned made_forks_ = onepass::fork_count();  // fork count of the process that created the optimizer
};

// Return the C++ object of an instance. Throw TypeError if its __init__ was not called.
Optimizer& core_of(py::handle self);

// Return the C++ object of any Python object. Throw TypeError if the object is not an optimizer.
Optimizer& require_optimizer(const py::object& self);

void register_optimizer(py::module_& m);

}  // namespace onepass::python

template <>
struct pybind11::detail::type_caster<onepass::python::Form> : onepass::python::NamedEnum<onepass::python::Form> {};
