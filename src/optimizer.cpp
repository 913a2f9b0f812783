#include "optimizer.hpp"

#include <cfloat>
#include <limits>
#include <utility>

#include "float_mode.hpp"

namespace onepass {

static_assert(std::numeric_limits<float>::is_iec559 && std::numeric_limits<double>::is_iec559,
              "the promise of equal bits rests on IEEE 754 arithmetic");
static_assert(FLT_EVAL_METHOD == 0,
              "intermediate results must have the precision of their type (on x86-32: -mfpmath=sse)");

Group::Group(const Rule& rule, std::vector<double> options, CommonOptions common) : option_count_(rule.option_count) {
  set(std::move(options), common);
}

void Group::set(std::vector<double> options, CommonOptions common) {
  if (options.size() != option_count_) throw std::invalid_argument("wrong number of options for this rule");
  const std::scoped_lock lock(mutex_);
  options_ = std::move(options);
  common_ = common;
}

void Group::set_lr(double lr) {
  const std::scoped_lock lock(mutex_);
  common_.lr = lr;
}

void Optimizer::add_group(std::shared_ptr<Group> group, const std::vector<Parameter>& parameters) {
  const std::size_t count = parameters_.size() + parameters.size();
  // Whatever may fail comes first. A plan finds all its room here.
  parameters_.reserve(count);
  folds_.reserve(count);
  sweeps_.reserve(count);
  swept_.reserve(count);
  groups_.push_back(std::move(group));
  for (const Parameter& parameter : parameters) {
    parameters_.push_back(parameter);
    parameters_.back().group = groups_.size() - 1;
  }
}

const Optimizer::Fold& Optimizer::fold(std::size_t index, double grad_scale) {
  const Parameter& parameter = parameters_[index];
  const std::int64_t step = parameter.step + 1;
  // Neighbours mostly share their numbers.
  for (std::size_t i = folds_.size(); i-- > 0;) {
    const Fold& known = folds_[i];
    if (known.step == step && known.group == parameter.group && known.dtype == parameter.dtype) return known;
  }
  folds_.push_back({parameter.group, parameter.dtype, step, nullptr, {}});
  Fold& made = folds_.back();
  Group& group = *groups_[parameter.group];
  const std::scoped_lock lock(group.mutex_);
  CommonOptions common = group.common_;
  common.grad_scale *= grad_scale;
  made.function = rule_.fold[parameter.dtype](group.options_.data(), common, step, made.numbers);
  if (made.function == nullptr) throw Overflow(index, step);
  return made;
}

void Optimizer::plan(const void* const* grads, double grad_scale) {
  const FloatMode mode(false);
  folds_.clear();
  sweeps_.clear();
  swept_.clear();
  planned_elements_ = 0;
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    if (grads[i] == nullptr) continue;
    const Parameter& parameter = parameters_[i];
    const Fold& numbers = fold(i, grad_scale);
    sweeps_.push_back({numbers.function, &numbers.numbers, parameter.operands, parameter.size});
    sweeps_.back().operands.grad = grads[i];
    swept_.push_back(i);
    planned_elements_ += parameter.size;
  }
}

void Optimizer::apply() noexcept {
  run(sweeps_.data(), sweeps_.size(), flush_denormals_);
  for (const std::size_t i : swept_) ++parameters_[i].step;
  ++step_count_;
}

bool step_once(const Rule& rule, const double* options, const CommonOptions& common, const Parameter& parameter,
               bool flush_denormals) noexcept {
  Numbers numbers = {};
  SweepFunction function = nullptr;
  {
    const FloatMode mode(false);
    function = rule.fold[parameter.dtype](options, common, parameter.step, numbers);
  }
  if (function == nullptr) return false;
  const Sweep sweep{function, &numbers, parameter.operands, parameter.size};
  run(&sweep, 1, flush_denormals);
  return true;
}

}  // namespace onepass
