// Parameters, their state and step counts: turns a step into one list of sweeps.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <vector>

#include "core/executor.hpp"
#include "core/sweeps.hpp"
#include "kernels/table.hpp"

namespace onepass {

// The rule and the options of some of the parameters. Options may change at any time, from any thread.
class Group {
 public:
  Group(const Rule& rule, std::vector<double> options, const CommonOptions& common);

  void set(std::vector<double> options, const CommonOptions& common);
  void set_lr(double lr, bool scheduled);  // and nothing else

 private:
  friend class Optimizer;
  const Rule& rule_;
  mutable std::mutex mutex_;
  std::vector<double> options_;  // in the order of Rule::options
  CommonOptions common_ = {};
};

constexpr std::size_t bytes_of(DType dtype) { return dtype == float32 ? sizeof(float) : sizeof(double); }

struct Parameter {
  DType dtype;
  std::size_t size;      // elements
  std::size_t row_size;  // elements of each of its rows
  Operands operands;     // the gradient comes with each step
  std::size_t group;
  std::int64_t step;  // how often it was updated
  double mu_product;  // NAdam's product of momenta
};

// Of one parameter: nothing (null), or as many elements as it has, or some of its rows.
struct Gradient {
  const void* data = nullptr;
  const std::int64_t* rows = nullptr;  // ascending; null: all rows
  std::size_t row_count = 0;
};

// A folded number that is not finite in the dtype of the parameters.
class Overflow : public std::invalid_argument {
 public:
  Overflow(std::size_t parameter, std::int64_t step)
      : std::invalid_argument("a coefficient of the step overflows"), parameter(parameter), step(step) {}
  std::size_t parameter;  // the first that it concerns
  std::int64_t step;
};

// What the gradients of a step were found to be.
struct Measured {
  static constexpr std::size_t none = SIZE_MAX;
  double norm = 0;                     // the global L2 norm, where it was asked for
  std::size_t first_nonfinite = none;  // the first parameter whose gradient is not finite, where it was asked for
};

// What is found of norm_block elements of a gradient, or of fewer at its end; as processes tell it each other.
struct Block {
  double squares;  // their sum; 0 where the norm was not asked for
  double finite;   // 1: all are, as far as that was asked for; or 0
};
constexpr std::size_t blocks_of(std::size_t size) noexcept { return (size + norm_block - 1) / norm_block; }

// What the blocks of all gradients, those of one parameter after the other's, say together.
Measured total(const Block* blocks, const std::size_t* counts, std::size_t parameters, double grad_scale,
               bool finite) noexcept;

// Not thread-safe: the caller lets one thread in at a time.
class Optimizer {
 public:
  explicit Optimizer(bool flush_denormals) : flush_denormals_(flush_denormals) {}

  const std::vector<Parameter>& parameters() const { return parameters_; }
  std::int64_t step_count() const { return step_count_; }

  // Takes the parameters in; all of them or, when it throws, none.
  void add_group(std::shared_ptr<Group> group, const std::vector<Parameter>& parameters);

  // Lets go of all parameters.
  void clear() noexcept { parameters_.clear(); }

  // Puts other counts in place: of the optimizer, and a step and a product of momenta for each parameter.
  void restore(std::int64_t step_count, const std::vector<std::int64_t>& steps,
               const std::vector<double>& mu_products) noexcept;

  // Looks at gradients, one for each parameter in the order in which they were added.
  Measured measure(const Gradient* gradients, double grad_scale, bool norm, bool finite,
                   const Executor& executor = pool_executor()) noexcept;

  // The same for who has but a part of the gradients: all blocks of all parameters, where a missing gradient's say
  // nothing, into room for so many.
  void measure_blocks(const Gradient* gradients, double grad_scale, bool norm, bool finite, Block* blocks) noexcept;

  // Takes the options of each group for the coming step.
  void take_options() noexcept;

  // Of the options taken last: whether a group has schedules, and what they say of this step.
  std::size_t group_count() const noexcept { return groups_.size(); }
  bool scheduled(std::size_t group) const noexcept { return taken_[group].common.scheduled; }
  void schedule(std::size_t group, double lr, double ema_decay) noexcept {
    taken_[group].common.lr = lr;
    taken_[group].common.ema_decay = ema_decay;
  }

  // Prepares the step along these gradients, with the options taken last. Changes nothing that shows. Throws Overflow.
  // Allocates nothing, but for gradients of some rows alone.
  void plan(const Gradient* gradients, double grad_scale);

  // How many elements the planned step will update.
  std::size_t planned_elements() const noexcept { return planned_elements_; }

  // Carries out the planned step.
  void apply(const Executor& executor = pool_executor()) noexcept;

  // The same in parts: those of these parameters, in ascending order, that the plan is for; at the end, the counts.
  void apply_some(const std::vector<std::size_t>& parameters) noexcept;
  void count_step() noexcept;

  // A number that differs, as good as surely, where the options taken last or the count of steps do.
  std::uint64_t digest() const noexcept;

 private:
  struct Fold {
    std::size_t group;
    DType dtype;
    std::int64_t step;
    double mu_product;  // before the step
    double next_mu_product;
    SweepFunction function;
    Numbers numbers;
    bool serves(const Parameter& parameter) const noexcept;
  };
  struct Measuring;
  struct Planned {
    std::size_t parameter;
    double mu_product;  // after the step
  };
  struct Taken {
    std::vector<double> options;
    CommonOptions common;
  };
  const Fold& fold(std::size_t index, double grad_scale);
  void look(const Gradient* gradients, double grad_scale, bool norm, bool finite, const Executor& executor) noexcept;
  void add_rows(const Sweep& sweep, const Parameter& parameter, const Gradient& gradient);

  bool flush_denormals_;
  std::int64_t step_count_ = 0;
  std::vector<std::shared_ptr<Group>> groups_;
  std::vector<Taken> taken_;  // of each group
  std::vector<Parameter> parameters_;
  // The plan: one fold for each distinct group, dtype and step count, one sweep for each gradient.
  std::vector<Fold> folds_;
  std::vector<Sweep> sweeps_;
  std::vector<Planned> planned_;
  std::size_t planned_elements_ = 0;
  std::vector<Block> blocks_;  // room for what measuring finds of each block of all gradients
  std::vector<Sweep> some_;    // room for a part of the sweeps
};

// The scale of gradients of this norm under clip_norm.
double clipped_scale(double grad_scale, double clip_norm, double norm) noexcept;

// One sweep over arrays that the caller keeps, as an optimizer's step t = 1, 2, ... would do it.
// Returns false, and has done nothing, when a coefficient overflows the dtype.
bool step_once(const Rule& rule, const double* options, const CommonOptions& common, double grad_scale,
               const Parameter& parameter, bool flush_denormals, const Executor& executor = pool_executor()) noexcept;

// The L2 norm of one array, with the same bits as Optimizer::measure finds for one gradient.
double norm(DType dtype, const void* data, std::size_t size) noexcept;

}  // namespace onepass
