// Parameters, their state and step counts; turns a step into one list of sweeps.
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

struct OptionsSnapshot {
  std::vector<double> options;  // in the order of RuleEntry::options
  CommonOptions common;
};

// The rule and the options of some of the parameters. Options may change at any time, from any thread.
class Group {
 public:
  Group(const RuleEntry& rule, std::vector<double> options, const CommonOptions& common);

  void set(std::vector<double> options, const CommonOptions& common);
  void set_lr(double lr, bool scheduled);  // and nothing else

  const RuleEntry& rule() const noexcept { return rule_; }
  void copy_options(OptionsSnapshot& snapshot) const noexcept;  // whose vector has room for them

 private:
  const RuleEntry& rule_;
  mutable std::mutex mutex_;
  OptionsSnapshot current_ = {};
};

constexpr std::size_t bytes_of(DType dtype) { return dtype == float32 ? sizeof(float) : sizeof(double); }

// Bytes of a stored element; dtype: of the arithmetic.
constexpr std::size_t bytes_of(Storage storage, DType dtype) {
  if (storage == Storage::plain) return bytes_of(dtype);
  return storage == Storage::float8 ? 1 : 2;
}

struct Parameter {
  DType dtype = float32;
  std::size_t size = 0;      // elements
  std::size_t row_size = 0;  // elements of each of its rows
  Operands operands = {};    // the gradient comes with each step
  std::size_t group = 0;
  std::int64_t step = 0;  // number of its updates
  Scalars scalars = {};
  bool is_narrow = false;  // an array is narrower than the dtype of the arithmetic
  NarrowStorage storage = {};
  // Index of the larger parameter, in another optimizer, that this parameter is a part of: in the key of random bits it
  // replaces the parameter's own index.
  std::optional<std::size_t> part_of = std::nullopt;
};

// The gradient of one parameter: nothing (null), or as many elements as the parameter has, or some of its rows.
struct Gradient {
  const void* data = nullptr;
  const std::int64_t* rows = nullptr;  // ascending; null: all rows
  std::size_t row_count = 0;
  Storage storage = Storage::plain;  // of the data: plain is the parameter's dtype
};

// A coefficient that is not finite in the dtype of the parameters.
class Overflow : public std::invalid_argument {
 public:
  Overflow(std::size_t parameter, std::int64_t step)
      : std::invalid_argument("a coefficient of the step overflows"), parameter(parameter), step(step) {}
  std::size_t parameter;  // the first that it concerns
  std::int64_t step;
};

// Statistics of all gradients of a step.
struct GradientStats {
  static constexpr std::size_t none = SIZE_MAX;
  double norm = 0;                     // the global L2 norm, where requested
  std::size_t first_nonfinite = none;  // the first parameter whose gradient is not finite, where requested
};

// Statistics of norm_block elements of a gradient, or of fewer at its end, in the form that processes exchange.
struct BlockStats {
  double squares;  // their sum; 0 where the norm is not requested
  double finite;   // 0: an element is not finite, where that is requested; otherwise 1
};
constexpr std::size_t blocks_of(std::size_t size) noexcept { return (size + norm_block - 1) / norm_block; }

// Combines the blocks of all gradients, in the order of the parameters; counts: the number of blocks of each.
GradientStats total(const BlockStats* blocks, const std::size_t* counts, std::size_t parameters, double grad_scale,
                    bool finite) noexcept;

// Not thread-safe: one thread at a time may call it.
class Optimizer {
 public:
  explicit Optimizer(bool flush_denormals) : flush_denormals_(flush_denormals) {}

  const std::vector<Parameter>& parameters() const { return parameters_; }
  std::int64_t step_count() const { return step_count_; }

  // Adds the parameters, with their rule's initial scalars; all of them or, when it throws, none.
  void add_group(std::shared_ptr<Group> group, const std::vector<Parameter>& parameters);

  // For owners whose arrays can move and that keep the counts themselves: replaces the memory of a parameter (dtype,
  // size, row size and operands), and its counts. set_memory may allocate.
  void set_memory(std::size_t i, const Parameter& memory);
  void set_counts(std::size_t i, std::int64_t step, const Scalars& scalars) noexcept;

  // The seed of stochastic rounding.
  std::uint64_t seed() const noexcept { return seed_; }
  void set_seed(std::uint64_t seed) noexcept { seed_ = seed; }

  // Forgets all parameters.
  void clear() noexcept { parameters_.clear(); }

  // Replaces the optimizer's step count, and the step count and the scalars of each parameter.
  void restore(std::int64_t step_count, const std::vector<std::int64_t>& steps,
               const std::vector<Scalars>& scalars) noexcept;

  // Measures gradients, one for each parameter in the order in which they were added.
  GradientStats measure(const Gradient* gradients, double grad_scale, bool norm, bool finite,
                        const Executor& executor = pool_executor()) noexcept;

  // Measures the gradients of one process of several: fills the block_count() blocks of all parameters, with neutral
  // values for missing gradients.
  void measure_blocks(const Gradient* gradients, double grad_scale, bool norm, bool finite, const Executor& executor,
                      BlockStats* blocks) noexcept;
  std::size_t block_count() const noexcept { return blocks_.size(); }

  // Takes a snapshot of each group's options for the coming step.
  void take_options() noexcept;

  // The groups with schedules in the options taken last; and the values of a group's schedules at this step.
  std::vector<std::size_t> scheduled_groups() const;
  void schedule(std::size_t group, double lr, double ema_decay) noexcept {
    options_[group].common.lr = lr;
    options_[group].common.ema_decay = ema_decay;
  }

  // Prepares the step along these gradients, with the options taken last. Changes no visible state. Throws Overflow.
  // Allocates only for gradients of some rows.
  void plan(const Gradient* gradients, double grad_scale);

  // Number of elements that the planned step will update.
  std::size_t planned_elements() const noexcept { return planned_elements_; }

  // Carries out the planned step.
  void apply(const Executor& executor = pool_executor()) noexcept;

  // All inputs of a plan except the gradients: the step count and the last snapshot of the options.
  std::vector<double> plan_inputs() const;

 private:
  // The coefficients of one step, shared by parameters that match.
  struct StepCoefficients {
    std::size_t group;
    DType dtype;
    std::int64_t step;
    Scalars scalars;  // before the step
    Scalars next_scalars;
    SweepFunction function;
    bool flush_denormals;
    PackedCoefficients packed;
    bool matches(const Parameter& parameter) const noexcept;
  };
  struct MeasureTask;
  struct PlannedUpdate {
    std::size_t parameter;
    Scalars scalars;  // after the step
  };
  const StepCoefficients& coefficients(std::size_t index, double grad_scale);
  void reduce_blocks(const Gradient* gradients, double grad_scale, bool norm, bool finite,
                     const Executor& executor) noexcept;
  void add_rows(const Sweep& sweep, const Parameter& parameter, const Gradient& gradient);
  void start_weights(const Parameter& parameter) noexcept;

  bool flush_denormals_;
  std::uint64_t seed_ = 0;
  std::int64_t step_count_ = 0;
  std::vector<std::shared_ptr<Group>> groups_;
  std::vector<OptionsSnapshot> options_;  // of each group
  std::vector<Parameter> parameters_;
  // The plan: coefficients, shared by parameters that match, and one sweep for each gradient.
  std::vector<StepCoefficients> coefficients_;
  std::vector<Sweep> sweeps_;
  std::vector<NarrowStorage> storages_;  // of the sweeps over narrow arrays
  std::vector<PlannedUpdate> planned_;
  std::vector<std::size_t> started_by_rows_;  // parameters whose first gradient is given by rows
  std::size_t planned_elements_ = 0;
  std::vector<BlockStats> blocks_;  // of all gradients, one after the other
};

// The scale of gradients of this norm under clip_norm.
double clipped_scale(double grad_scale, double clip_norm, double norm) noexcept;

// Steps once over arrays that the caller keeps, as an optimizer's step t = parameter.step with initial scalars.
// Returns false, and has done nothing, when a coefficient overflows the dtype.
bool step_once(const RuleEntry& rule, const double* options, const CommonOptions& common, double grad_scale,
               const Parameter& parameter, bool flush_denormals, const Executor& executor = pool_executor()) noexcept;

// The L2 norm of one array, with the bits of Optimizer::measure for one gradient.
double norm(DType dtype, const void* data, std::size_t size) noexcept;

}  // namespace onepass
