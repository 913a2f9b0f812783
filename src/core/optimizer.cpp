#include "core/optimizer.hpp"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <iterator>
#include <limits>
#include <utility>

#include "core/dispatch.hpp"
#include "core/float_mode.hpp"

namespace onepass {

static_assert(std::numeric_limits<float>::is_iec559 && std::numeric_limits<double>::is_iec559,
              "the promise of equal bits rests on IEEE 754 arithmetic");
static_assert(FLT_EVAL_METHOD == 0,
              "intermediate results must have the precision of their type (on x86-32: -mfpmath=sse)");

namespace {

std::size_t size_of(const Parameter& parameter, const Gradient& gradient) noexcept {
  if (gradient.data == nullptr) return 0;
  return gradient.rows == nullptr ? parameter.size : gradient.row_count * parameter.row_size;
}

// Null stays null.
void* advance(void* data, std::size_t bytes) noexcept {
  return data == nullptr ? nullptr : static_cast<unsigned char*>(data) + bytes;
}

const void* advance(const void* data, std::size_t bytes) noexcept {
  return static_cast<const unsigned char*>(data) + bytes;
}

// A compiler may move arithmetic to where another FloatMode holds, but not what is volatile.
double norm_of(double squares, double grad_scale) noexcept {
  const volatile double sum = squares;
  const volatile double norm = std::fabs(grad_scale) * std::sqrt(sum);
  return norm;
}

// Adds in order, so that the sum has the same bits for any number of threads or processes. count(i): the number of
// blocks of parameter i.
template <class Count>
GradientStats total_of(const BlockStats* block, std::size_t parameters, Count count, double grad_scale,
                       bool finite) noexcept {
  const FloatMode mode(false);
  GradientStats stats;
  double squares = 0;
  for (std::size_t i = 0; i < parameters; ++i) {
    bool good = true;
    for (const BlockStats* const end = block + count(i); block != end; ++block) {
      squares += block->squares;
      good = good && block->finite != 0;
    }
    good = good && (!finite || std::isfinite(squares));
    if (!good && stats.first_nonfinite == GradientStats::none) stats.first_nonfinite = i;
  }
  stats.norm = norm_of(squares, grad_scale);
  return stats;
}

double product(double grad_scale, double clip_norm, double norm) noexcept {
  const volatile double measured = norm;
  const volatile double scale = grad_scale * (clip_norm / measured);
  return scale;
}

Scalars initial_scalars(const RuleEntry& rule) noexcept {
  Scalars scalars = {};
  for (std::size_t k = 0; k < rule.scalar_count; ++k) scalars.values[k] = rule.scalars[k].initial;
  return scalars;
}

bool equal(const Scalars& a, const Scalars& b) noexcept {
  return std::equal(std::begin(a.values), std::end(a.values), std::begin(b.values));
}

}  // namespace

Group::Group(const RuleEntry& rule, std::vector<double> options, const CommonOptions& common) : rule_(rule) {
  set(std::move(options), common);
}

void Group::set(std::vector<double> options, const CommonOptions& common) {
  if (options.size() != rule_.option_count) throw std::invalid_argument("wrong number of options for this rule");
  const std::scoped_lock lock(mutex_);
  current_ = {std::move(options), common};
}

void Group::set_lr(double lr, bool scheduled) {
  const std::scoped_lock lock(mutex_);
  current_.common.lr = lr;
  current_.common.scheduled = scheduled;
}

void Group::copy_options(OptionsSnapshot& snapshot) const noexcept {
  const std::scoped_lock lock(mutex_);
  std::copy(current_.options.begin(), current_.options.end(), snapshot.options.begin());
  snapshot.common = current_.common;
}

void Optimizer::add_group(std::shared_ptr<Group> group, const std::vector<Parameter>& parameters) {
  const std::size_t count = parameters_.size() + parameters.size();
  // All allocation comes first; plan() then allocates only for sparse gradients.
  parameters_.reserve(count);
  coefficients_.reserve(count);
  sweeps_.reserve(count);
  storages_.reserve(count);
  planned_.reserve(count);
  std::size_t blocks = blocks_.size();
  for (const Parameter& parameter : parameters) blocks += blocks_of(parameter.size);
  blocks_.resize(blocks);
  OptionsSnapshot options{std::vector<double>(group->rule().option_count), {}};
  const Scalars scalars = initial_scalars(group->rule());
  options_.reserve(groups_.size() + 1);
  groups_.reserve(groups_.size() + 1);
  options_.push_back(std::move(options));
  groups_.push_back(std::move(group));
  for (const Parameter& parameter : parameters) {
    parameters_.push_back(parameter);
    parameters_.back().group = groups_.size() - 1;
    parameters_.back().scalars = scalars;
  }
}

void Optimizer::set_memory(std::size_t i, const Parameter& memory) {
  blocks_.resize(blocks_.size() - blocks_of(parameters_[i].size) + blocks_of(memory.size));
  parameters_[i].dtype = memory.dtype;
  parameters_[i].size = memory.size;
  parameters_[i].row_size = memory.row_size;
  parameters_[i].operands = memory.operands;
  parameters_[i].storage = memory.storage;
  parameters_[i].is_narrow = memory.is_narrow;
}

void Optimizer::set_counts(std::size_t i, std::int64_t step, const Scalars& scalars) noexcept {
  parameters_[i].step = step;
  parameters_[i].scalars = scalars;
}

void Optimizer::restore(std::int64_t step_count, const std::vector<std::int64_t>& steps,
                        const std::vector<Scalars>& scalars) noexcept {
  step_count_ = step_count;
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    parameters_[i].step = steps[i];
    parameters_[i].scalars = scalars[i];
  }
}

// One measurement, shared by its threads.
struct Optimizer::MeasureTask {
  Optimizer& optimizer;
  const Gradient* gradients;
  double grad_scale;
  bool norm;
  bool finite;

  BlockStats measured(DType dtype, Storage storage, const void* data, std::size_t from, std::size_t to,
                      bool squared) const noexcept {
    const Kernels& table = kernels();
    float widened[norm_block];
    if (storage != Storage::plain) {
      table.decode(storage, data, nullptr, from, to, widened);
      data = widened;
      to -= from;
      from = 0;
    }
    return {norm ? table.squares[dtype](data, from, to) : 0,
            !finite || table.finite[dtype](data, grad_scale, squared, from, to) ? 1.0 : 0.0};
  }

  // Measures blocks [begin, end), counted through all gradients.
  void run(std::size_t begin, std::size_t end) const noexcept {
    const FloatMode mode(false);
    std::size_t before = 0;
    for (std::size_t i = 0; i < optimizer.parameters_.size() && before < end; ++i) {
      const Parameter& parameter = optimizer.parameters_[i];
      const std::size_t size = size_of(parameter, gradients[i]);
      const std::size_t own = blocks_of(size);
      const bool squared = optimizer.groups_[parameter.group]->rule().squares_gradient;
      for (std::size_t k = std::max(begin, before); k < std::min(end, before + own); ++k) {
        const std::size_t from = (k - before) * norm_block;
        const std::size_t to = std::min(size, from + norm_block);
        const void* const data = gradients[i].data;
        BlockStats& block = optimizer.blocks_[k];
        block = measured(parameter.dtype, gradients[i].storage, data, from, to, squared);
      }
      before += own;
    }
  }
};

void Optimizer::reduce_blocks(const Gradient* gradients, double grad_scale, bool norm, bool finite,
                              const Executor& executor) noexcept {
  std::size_t blocks = 0;
  std::size_t bytes = 0;
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    const std::size_t size = size_of(parameters_[i], gradients[i]);
    blocks += blocks_of(size);
    bytes += size * sizeof(float);
  }
  const MeasureTask task{*this, gradients, grad_scale, norm, finite};
  const auto run = [](const void* context, std::size_t begin, std::size_t end) noexcept {
    static_cast<const MeasureTask*>(context)->run(begin, end);
  };
  run_parts(executor, run, &task, blocks, bytes);
}

GradientStats Optimizer::measure(const Gradient* gradients, double grad_scale, bool norm, bool finite,
                                 const Executor& executor) noexcept {
  reduce_blocks(gradients, grad_scale, norm, finite, executor);
  const auto count = [&](std::size_t i) { return blocks_of(size_of(parameters_[i], gradients[i])); };
  return total_of(blocks_.data(), parameters_.size(), count, grad_scale, finite);
}

void Optimizer::measure_blocks(const Gradient* gradients, double grad_scale, bool norm, bool finite,
                               const Executor& executor, BlockStats* blocks) noexcept {
  reduce_blocks(gradients, grad_scale, norm, finite, executor);
  const BlockStats* measured = blocks_.data();
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    const std::size_t own = blocks_of(size_of(parameters_[i], gradients[i]));
    const std::size_t all = blocks_of(parameters_[i].size);
    std::copy(measured, measured + own, blocks);
    std::fill(blocks + own, blocks + all, BlockStats{0, 1});
    measured += own;
    blocks += all;
  }
}

GradientStats total(const BlockStats* blocks, const std::size_t* counts, std::size_t parameters, double grad_scale,
                    bool finite) noexcept {
  return total_of(blocks, parameters, [&](std::size_t i) { return counts[i]; }, grad_scale, finite);
}

void Optimizer::take_options() noexcept {
  for (std::size_t g = 0; g < groups_.size(); ++g) groups_[g]->copy_options(options_[g]);
}

std::vector<std::size_t> Optimizer::scheduled_groups() const {
  std::vector<std::size_t> result;
  for (std::size_t g = 0; g < options_.size(); ++g) {
    if (options_[g].common.scheduled) result.push_back(g);
  }
  return result;
}

std::vector<double> Optimizer::plan_inputs() const {
  std::vector<double> result = {static_cast<double>(step_count_)};
  for (const OptionsSnapshot& group : options_) {
    const CommonOptions& common = group.common;
    result.insert(result.end(), group.options.begin(), group.options.end());
    result.insert(result.end(),
                  {common.lr, common.weight_decay, common.clip_value, common.ema_decay, common.decoupled ? 1.0 : 0.0,
                   common.maximize ? 1.0 : 0.0, common.averaged ? 1.0 : 0.0, common.keep_subnormals ? 1.0 : 0.0});
  }
  return result;
}

inline bool Optimizer::StepCoefficients::matches(const Parameter& parameter) const noexcept {
  return step == parameter.step + 1 && group == parameter.group && dtype == parameter.dtype &&
         equal(scalars, parameter.scalars);
}

const Optimizer::StepCoefficients& Optimizer::coefficients(std::size_t index, double grad_scale) {
  const Parameter& parameter = parameters_[index];
  // Compare only the newest coefficients: a step is then linear in the number of parameters even if all step counts
  // differ, and more than eight comparisons cost as much as computing the coefficients.
  constexpr std::size_t compared = 8;
  for (std::size_t k = coefficients_.size(), end = k - std::min(k, compared); k != end; --k) {
    if (coefficients_[k - 1].matches(parameter)) return coefficients_[k - 1];
  }
  const RuleEntry& rule = groups_[parameter.group]->rule();
  const OptionsSnapshot& options = options_[parameter.group];
  StepContext step{options.common.lr, parameter.step + 1, grad_scale, parameter.scalars};
  StepCoefficients& made = coefficients_.emplace_back();
  made.group = parameter.group;
  made.dtype = parameter.dtype;
  made.step = step.t;
  made.scalars = parameter.scalars;
  if (!rule.coefficients[parameter.dtype](options.options.data(), options.common, step, made.packed)) {
    throw Overflow(index, step.t);
  }
  made.next_scalars = step.scalars;
  made.flush_denormals = flush_denormals_ && !options.common.keep_subnormals;
  made.function = rule.sweeps[parameter.dtype][made.packed.extras];
  return made;
}

void Optimizer::plan(const Gradient* gradients, double grad_scale) {
  const FloatMode mode(false);
  coefficients_.clear();
  sweeps_.clear();
  storages_.clear();
  planned_.clear();
  started_by_rows_.clear();
  planned_elements_ = 0;
  const StepCoefficients* last = nullptr;
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    const Gradient& gradient = gradients[i];
    if (gradient.data == nullptr) continue;
    const Parameter& parameter = parameters_[i];
    // Adjacent parameters usually share coefficients.
    if (last == nullptr || !last->matches(parameter)) last = &coefficients(i, grad_scale);
    // Built in place: copying fields that were just written takes as long as everything else.
    Sweep& sweep = sweeps_.emplace_back();
    sweep.function = last->function;
    sweep.coefficients = &last->packed;
    sweep.operands = parameter.operands;
    sweep.operands.grad = gradient.data;
    sweep.storage = nullptr;
    sweep.size = parameter.size;
    sweep.flush_denormals = last->flush_denormals;
    if (parameter.is_narrow || gradient.storage != Storage::plain) {
      NarrowStorage& storage = storages_.emplace_back(parameter.storage);
      storage.grad = gradient.storage;
      storage.key = {seed_, static_cast<std::uint64_t>(last->step), parameter.part_of.value_or(i)};
      sweep.storage = &storage;
    }
    if (gradient.rows != nullptr) {
      const Sweep whole = sweep;
      sweeps_.pop_back();
      add_rows(whole, parameter, gradient);
      if (parameter.step == 0) started_by_rows_.push_back(i);
    }
    PlannedUpdate& planned = planned_.emplace_back();
    planned.parameter = i;
    planned.scalars = last->next_scalars;
    planned_elements_ += size_of(parameter, gradient);
  }
}

// Adds a sweep for each run of consecutive rows.
void Optimizer::add_rows(const Sweep& sweep, const Parameter& parameter, const Gradient& gradient) {
  const std::size_t row_bytes = parameter.row_size * bytes_of(parameter.dtype);
  for (std::size_t begin = 0, end = 0; begin < gradient.row_count; begin = end) {
    do ++end;
    while (end < gradient.row_count && gradient.rows[end] == gradient.rows[end - 1] + 1);
    Sweep part = sweep;
    part.size = (end - begin) * parameter.row_size;
    const std::size_t offset = static_cast<std::size_t>(gradient.rows[begin]) * row_bytes;
    part.operands.param = advance(part.operands.param, offset);
    part.operands.grad = advance(part.operands.grad, begin * row_bytes);
    for (void*& state : part.operands.state) state = advance(state, offset);
    part.operands.average = advance(part.operands.average, offset);
    sweeps_.push_back(part);
  }
}

// Copy a whole parameter into its weight states before its first step. A sweep copies only the elements that it
// updates. The gradient is given by rows, so no array is narrow.
void Optimizer::start_weights(const Parameter& parameter) noexcept {
  const RuleEntry& rule = groups_[parameter.group]->rule();
  const auto* const param = static_cast<const unsigned char*>(parameter.operands.param);
  const std::size_t bytes = parameter.size * bytes_of(parameter.dtype);
  for (std::size_t k = 0; k < rule.state_count; ++k) {
    if (rule.states[k].kind != StateKind::weight) continue;
    std::copy_n(param, bytes, static_cast<unsigned char*>(parameter.operands.state[k]));
  }
}

void Optimizer::apply(const Executor& executor) noexcept {
  for (const std::size_t i : started_by_rows_) start_weights(parameters_[i]);
  run_sweeps(executor, sweeps_.data(), sweeps_.size());
  for (const PlannedUpdate& planned : planned_) {
    Parameter& parameter = parameters_[planned.parameter];
    ++parameter.step;
    parameter.scalars = planned.scalars;
  }
  ++step_count_;
}

bool step_once(const RuleEntry& rule, const double* options, const CommonOptions& common, double grad_scale,
               const Parameter& parameter, bool flush_denormals, const Executor& executor) noexcept {
  PackedCoefficients packed = {};
  {
    const FloatMode mode(false);
    StepContext step{common.lr, parameter.step, grad_scale, initial_scalars(rule)};
    if (!rule.coefficients[parameter.dtype](options, common, step, packed)) return false;
  }
  const SweepFunction function = rule.sweeps[parameter.dtype][packed.extras];
  Sweep sweep{
      function, &packed, parameter.operands, nullptr, parameter.size, flush_denormals && !common.keep_subnormals, 0};
  run_sweeps(executor, &sweep, 1);
  return true;
}

double norm(DType dtype, const void* data, std::size_t size) noexcept {
  const FloatMode mode(false);
  double squares = 0;
  for (std::size_t from = 0; from < size; from += norm_block) {
    squares += kernels().squares[dtype](data, from, std::min(size, from + norm_block));
  }
  return norm_of(squares, 1);
}

double clipped_scale(double grad_scale, double clip_norm, double norm) noexcept {
  const FloatMode mode(false);
  return product(grad_scale, clip_norm, norm);
}

}  // namespace onepass
