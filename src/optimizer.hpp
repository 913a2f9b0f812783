// Parameters, their state and step counts: turns a step into one list of sweeps.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <vector>

#include "kernels.hpp"
#include "parallel.hpp"

namespace onepass {

// The options of some of the parameters. Options may change between steps, from any thread.
class Group {
 public:
  Group(const Rule& rule, std::vector<double> options, CommonOptions common);

  void set(std::vector<double> options, CommonOptions common);
  void set_lr(double lr);

 private:
  friend class Optimizer;
  std::size_t option_count_;
  std::mutex mutex_;
  std::vector<double> options_;  // in the order of Rule::options
  CommonOptions common_ = {};
};

struct Parameter {
  DType dtype;
  std::size_t size;   // elements
  Operands operands;  // the gradient comes with each step
  std::size_t group;
  std::int64_t step;  // how often it was updated
};

// A folded number that is not finite in the dtype of the parameters.
class Overflow : public std::invalid_argument {
 public:
  Overflow(std::size_t parameter, std::int64_t step)
      : std::invalid_argument("a coefficient of the step overflows"), parameter(parameter), step(step) {}
  std::size_t parameter;  // the first that it concerns
  std::int64_t step;
};

// Not thread-safe: the caller lets one thread in at a time.
class Optimizer {
 public:
  Optimizer(const Rule& rule, bool flush_denormals) : rule_(rule), flush_denormals_(flush_denormals) {}

  const std::vector<Parameter>& parameters() const { return parameters_; }
  std::int64_t step_count() const { return step_count_; }

  // Takes the parameters in; all of them or, when it throws, none.
  void add_group(std::shared_ptr<Group> group, const std::vector<Parameter>& parameters);

  // Prepares the step along these gradients, one for each parameter in the order in which they were added; null leaves
  // its parameter as it is. Changes nothing that shows. Throws Overflow. Allocates nothing.
  void plan(const void* const* grads, double grad_scale);

  // How many elements the planned step will update.
  std::size_t planned_elements() const { return planned_elements_; }

  // Carries out the planned step.
  void apply() noexcept;

 private:
  struct Fold {
    std::size_t group;
    DType dtype;
    std::int64_t step;
    SweepFunction function;
    Numbers numbers;
  };
  const Fold& fold(std::size_t index, double grad_scale);

  const Rule& rule_;
  bool flush_denormals_;
  std::int64_t step_count_ = 0;
  std::vector<std::shared_ptr<Group>> groups_;
  std::vector<Parameter> parameters_;
  // The plan: one fold for each distinct group, dtype and step count, one sweep for each gradient.
  std::vector<Fold> folds_;
  std::vector<Sweep> sweeps_;
  std::vector<std::size_t> swept_;  // the parameter of each sweep
  std::size_t planned_elements_ = 0;
};

// One sweep over arrays that the caller keeps, as an optimizer's step t = 1, 2, ... would do it.
// Returns false, and has done nothing, when a coefficient overflows the dtype.
bool step_once(const Rule& rule, const double* options, const CommonOptions& common, const Parameter& parameter,
               bool flush_denormals) noexcept;

}  // namespace onepass
