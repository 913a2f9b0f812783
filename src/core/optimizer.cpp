#include "core/optimizer.hpp"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>
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
void* behind(void* data, std::size_t bytes) noexcept {
  return data == nullptr ? nullptr : static_cast<unsigned char*>(data) + bytes;
}

const void* behind(const void* data, std::size_t bytes) noexcept {
  return static_cast<const unsigned char*>(data) + bytes;
}

// A compiler may move arithmetic to where another FloatMode holds, but not what is volatile.
double norm_of(double squares, double grad_scale) noexcept {
  const volatile double sum = squares;
  const volatile double norm = std::fabs(grad_scale) * std::sqrt(sum);
  return norm;
}

// In order, so that the sum has the same bits however many threads or processes there were. count(i): the blocks of
// parameter i.
template <class Count>
Measured total_of(const Block* block, std::size_t parameters, Count count, double grad_scale, bool finite) noexcept {
  const FloatMode mode(false);
  Measured found;
  double squares = 0;
  for (std::size_t i = 0; i < parameters; ++i) {
    bool good = true;
    for (const Block* const end = block + count(i); block != end; ++block) {
      squares += block->squares;
      good = good && block->finite != 0;
    }
    good = good && (!finite || std::isfinite(squares));
    if (!good && found.first_nonfinite == Measured::none) found.first_nonfinite = i;
  }
  found.norm = norm_of(squares, grad_scale);
  return found;
}

double product(double grad_scale, double clip_norm, double norm) noexcept {
  const volatile double measured = norm;
  const volatile double scale = grad_scale * (clip_norm / measured);
  return scale;
}

}  // namespace

Group::Group(const Rule& rule, std::vector<double> options, const CommonOptions& common) : rule_(rule) {
  set(std::move(options), common);
}

void Group::set(std::vector<double> options, const CommonOptions& common) {
  if (options.size() != rule_.option_count) throw std::invalid_argument("wrong number of options for this rule");
  const std::scoped_lock lock(mutex_);
  options_ = std::move(options);
  common_ = common;
}

void Group::set_lr(double lr, bool scheduled) {
  const std::scoped_lock lock(mutex_);
  common_.lr = lr;
  common_.scheduled = scheduled;
}

void Optimizer::add_group(std::shared_ptr<Group> group, const std::vector<Parameter>& parameters) {
  const std::size_t count = parameters_.size() + parameters.size();
  // Whatever may fail comes first. A plan finds all its room here.
  parameters_.reserve(count);
  folds_.reserve(count);
  sweeps_.reserve(count);
  some_.reserve(count);
  planned_.reserve(count);
  std::size_t blocks = blocks_.size();
  for (const Parameter& parameter : parameters) blocks += blocks_of(parameter.size);
  blocks_.resize(blocks);
  Taken taken{std::vector<double>(group->rule_.option_count), {}};
  taken_.reserve(groups_.size() + 1);
  groups_.reserve(groups_.size() + 1);
  taken_.push_back(std::move(taken));
  groups_.push_back(std::move(group));
  for (const Parameter& parameter : parameters) {
    parameters_.push_back(parameter);
    parameters_.back().group = groups_.size() - 1;
  }
}

void Optimizer::restore(std::int64_t step_count, const std::vector<std::int64_t>& steps,
                        const std::vector<double>& mu_products) noexcept {
  step_count_ = step_count;
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    parameters_[i].step = steps[i];
    parameters_[i].mu_product = mu_products[i];
  }
}

// What the threads that measure share.
struct Optimizer::Measuring {
  Optimizer& optimizer;
  const Gradient* gradients;
  double grad_scale;
  bool norm;
  bool finite;

  // Looks at those of all blocks, counted through the gradients, that lie in [begin, end).
  void part(std::size_t begin, std::size_t end) const noexcept {
    const FloatMode mode(false);
    const Kernels& table = kernels();
    std::size_t before = 0;
    for (std::size_t i = 0; i < optimizer.parameters_.size() && before < end; ++i) {
      const Parameter& parameter = optimizer.parameters_[i];
      const std::size_t size = size_of(parameter, gradients[i]);
      const std::size_t own = blocks_of(size);
      const bool squared = optimizer.groups_[parameter.group]->rule_.squares_gradient;
      for (std::size_t k = std::max(begin, before); k < std::min(end, before + own); ++k) {
        const std::size_t from = (k - before) * norm_block;
        const std::size_t to = std::min(size, from + norm_block);
        const void* const data = gradients[i].data;
        Block& block = optimizer.blocks_[k];
        block.squares = norm ? table.squares[parameter.dtype](data, from, to) : 0;
        block.finite = !finite || table.finite[parameter.dtype](data, grad_scale, squared, from, to) ? 1 : 0;
      }
      before += own;
    }
  }
};

void Optimizer::look(const Gradient* gradients, double grad_scale, bool norm, bool finite,
                     const Executor& executor) noexcept {
  std::size_t blocks = 0;
  std::size_t bytes = 0;
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    const std::size_t size = size_of(parameters_[i], gradients[i]);
    blocks += blocks_of(size);
    bytes += size * sizeof(float);
  }
  const Measuring measuring{*this, gradients, grad_scale, norm, finite};
  run_parts(
      executor,
      [](const void* context, std::size_t begin, std::size_t end) {
        static_cast<const Measuring*>(context)->part(begin, end);
      },
      &measuring, blocks, bytes);
}

Measured Optimizer::measure(const Gradient* gradients, double grad_scale, bool norm, bool finite,
                            const Executor& executor) noexcept {
  look(gradients, grad_scale, norm, finite, executor);
  const auto count = [&](std::size_t i) { return blocks_of(size_of(parameters_[i], gradients[i])); };
  return total_of(blocks_.data(), parameters_.size(), count, grad_scale, finite);
}

void Optimizer::measure_blocks(const Gradient* gradients, double grad_scale, bool norm, bool finite,
                               Block* blocks) noexcept {
  look(gradients, grad_scale, norm, finite, pool_executor());
  const Block* found = blocks_.data();
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    const std::size_t own = blocks_of(size_of(parameters_[i], gradients[i]));
    const std::size_t all = blocks_of(parameters_[i].size);
    std::copy(found, found + own, blocks);
    std::fill(blocks + own, blocks + all, Block{0, 1});
    found += own;
    blocks += all;
  }
}

Measured total(const Block* blocks, const std::size_t* counts, std::size_t parameters, double grad_scale,
               bool finite) noexcept {
  return total_of(blocks, parameters, [&](std::size_t i) { return counts[i]; }, grad_scale, finite);
}

void Optimizer::take_options() noexcept {
  for (std::size_t g = 0; g < groups_.size(); ++g) {
    const Group& group = *groups_[g];
    Taken& taken = taken_[g];
    const std::scoped_lock lock(group.mutex_);
    std::copy(group.options_.begin(), group.options_.end(), taken.options.begin());
    taken.common = group.common_;
  }
}

inline bool Optimizer::Fold::serves(const Parameter& parameter) const noexcept {
  return step == parameter.step + 1 && group == parameter.group && dtype == parameter.dtype &&
         mu_product == parameter.mu_product;
}

const Optimizer::Fold& Optimizer::fold(std::size_t index, double grad_scale) {
  const Parameter& parameter = parameters_[index];
  const std::int64_t t = parameter.step + 1;
  for (const Fold& known : folds_) {
    if (known.serves(parameter)) return known;
  }
  folds_.push_back({parameter.group, parameter.dtype, t, parameter.mu_product, 0, nullptr, {}});
  Fold& made = folds_.back();
  const Rule& rule = groups_[parameter.group]->rule_;
  const Taken& taken = taken_[parameter.group];
  StepNumbers step{t, grad_scale, parameter.mu_product};
  made.function = rule.fold[parameter.dtype](taken.options.data(), taken.common, step, made.numbers);
  made.next_mu_product = step.mu_product;
  if (made.function == nullptr) throw Overflow(index, t);
  return made;
}

void Optimizer::plan(const Gradient* gradients, double grad_scale) {
  const FloatMode mode(false);
  folds_.clear();
  sweeps_.clear();
  planned_.clear();
  planned_elements_ = 0;
  const Fold* last = nullptr;
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    const Gradient& gradient = gradients[i];
    if (gradient.data == nullptr) continue;
    const Parameter& parameter = parameters_[i];
    if (last == nullptr || !last->serves(parameter)) last = &fold(i, grad_scale);  // neighbours mostly share theirs
    const Fold& numbers = *last;
    // Made in place: copying what was just written field by field takes as long as all the rest.
    Sweep& sweep = sweeps_.emplace_back();
    sweep.function = numbers.function;
    sweep.numbers = &numbers.numbers;
    sweep.operands = parameter.operands;
    sweep.operands.grad = gradient.data;
    sweep.size = parameter.size;
    if (gradient.rows != nullptr) {
      const Sweep whole = sweep;
      sweeps_.pop_back();
      add_rows(whole, parameter, gradient);
    }
    Planned& planned = planned_.emplace_back();
    planned.parameter = i;
    planned.mu_product = numbers.next_mu_product;
    planned_elements_ += size_of(parameter, gradient);
  }
}

// A sweep for each run of rows that follow each other.
void Optimizer::add_rows(const Sweep& sweep, const Parameter& parameter, const Gradient& gradient) {
  const std::size_t row_bytes = parameter.row_size * bytes_of(parameter.dtype);
  for (std::size_t begin = 0, end = 0; begin < gradient.row_count; begin = end) {
    do ++end;
    while (end < gradient.row_count && gradient.rows[end] == gradient.rows[end - 1] + 1);
    Sweep part = sweep;
    part.size = (end - begin) * parameter.row_size;
    const std::size_t offset = static_cast<std::size_t>(gradient.rows[begin]) * row_bytes;
    part.operands.param = behind(part.operands.param, offset);
    part.operands.grad = behind(part.operands.grad, begin * row_bytes);
    for (void*& state : part.operands.state) state = behind(state, offset);
    part.operands.average = behind(part.operands.average, offset);
    sweeps_.push_back(part);
  }
}

void Optimizer::apply(const Executor& executor) noexcept {
  run_sweeps(executor, sweeps_.data(), sweeps_.size(), flush_denormals_);
  count_step();
}

void Optimizer::apply_some(const std::vector<std::size_t>& parameters) noexcept {
  some_.clear();  // there is room for all: see add_group
  auto planned = planned_.begin();
  for (const std::size_t parameter : parameters) {
    planned = std::lower_bound(planned, planned_.end(), parameter,
                               [](const Planned& one, std::size_t other) { return one.parameter < other; });
    if (planned == planned_.end()) break;
    if (planned->parameter == parameter) some_.push_back(sweeps_[static_cast<std::size_t>(planned - planned_.begin())]);
  }
  run_sweeps(pool_executor(), some_.data(), some_.size(), flush_denormals_);
}

void Optimizer::count_step() noexcept {
  for (const Planned& planned : planned_) {
    Parameter& parameter = parameters_[planned.parameter];
    ++parameter.step;
    parameter.mu_product = planned.mu_product;
  }
  ++step_count_;
}

// Fowler, Noll and Vo's hash (FNV-1a) of the numbers' bytes.
std::uint64_t Optimizer::digest() const noexcept {
  std::uint64_t hash = 0xcbf29ce484222325;
  const auto add = [&hash](double number) {
    unsigned char bytes[sizeof number];
    std::memcpy(bytes, &number, sizeof number);
    for (const unsigned char byte : bytes) hash = (hash ^ byte) * 0x100000001b3;
  };
  add(static_cast<double>(step_count_));
  for (const Taken& taken : taken_) {
    for (const double option : taken.options) add(option);
    const CommonOptions& common = taken.common;
    for (const double option : {common.lr, common.weight_decay, common.clip_value, common.ema_decay}) add(option);
    for (const bool option : {common.decoupled, common.maximize, common.averaged}) add(option ? 1 : 0);
  }
  return hash;
}

bool step_once(const Rule& rule, const double* options, const CommonOptions& common, double grad_scale,
               const Parameter& parameter, bool flush_denormals, const Executor& executor) noexcept {
  Numbers numbers = {};
  SweepFunction function = nullptr;
  {
    const FloatMode mode(false);
    StepNumbers step{parameter.step, grad_scale, parameter.mu_product};
    function = rule.fold[parameter.dtype](options, common, step, numbers);
  }
  if (function == nullptr) return false;
  Sweep sweep{function, &numbers, parameter.operands, parameter.size, 0};
  run_sweeps(executor, &sweep, 1, flush_denormals);
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
