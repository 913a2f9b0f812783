#include "twin.hpp"

#include <algorithm>
#include <cmath>
#include <utility>

#include "check.hpp"
#include "core/float_mode.hpp"

namespace test {
namespace {

template <class T>
void fill(void* data, std::size_t count, Values values, bool positive, Random& random) {
  for (std::size_t i = 0; i < count; ++i) {
    const T x = draw<T>(values, random);
    static_cast<T*>(data)[i] = positive ? std::fabs(x) : x;
  }
}

void fill(onepass::DType dtype, void* data, std::size_t count, Values values, bool positive, Random& random) {
  if (dtype == onepass::float32) {
    fill<float>(data, count, values, positive, random);
  } else {
    fill<double>(data, count, values, positive, random);
  }
}

}  // namespace

void Twin::add_group(const std::string& rule_name, const std::vector<double>& options,
                     const onepass::CommonOptions& common, const std::vector<Shape>& shapes, Values values,
                     Random& random) {
  const onepass::RuleEntry& rule = baseline_rule(rule_name);
  Group group{&rule, options, common, std::make_shared<onepass::Group>(rule_named(rule_name), options, common)};
  std::vector<onepass::Parameter> described;
  for (const Shape& shape : shapes) {
    Parameter parameter{shape, groups_.size(), {}};
    for (std::size_t k = 0; k < rule.scalar_count; ++k) parameter.scalars.values[k] = rule.scalars[k].initial;
    const std::size_t item = onepass::bytes_of(shape.dtype);
    const std::size_t bytes = parameter.size() * item;
    const std::size_t arrays = 1 + rule.state_count + (common.averaged ? 1 : 0);
    for (std::size_t k = 0; k < arrays; ++k) {
      auto memory = std::make_unique<Memory>(bytes, item, any_place(random));
      const bool positive = k > 0 && k <= rule.state_count;
      fill(shape.dtype, memory->data(), parameter.size(), values, positive, random);
      const auto* const data = static_cast<const unsigned char*>(memory->data());
      Bytes copy(data, data + bytes);
      parameter.arrays.push_back({std::move(memory), std::move(copy)});
    }
    onepass::Parameter one{shape.dtype, parameter.size(), shape.row_size, {}, 0, 0, {}};
    one.operands.param = parameter.arrays[0].core->data();
    for (std::size_t k = 0; k < rule.state_count; ++k) one.operands.state[k] = parameter.arrays[1 + k].core->data();
    if (common.averaged) one.operands.average = parameter.arrays.back().core->data();
    described.push_back(one);
    parameters_.push_back(std::move(parameter));
  }
  core_.add_group(group.core, described);
  groups_.push_back(std::move(group));
}

void Twin::set(std::size_t group, const std::vector<double>& options, const onepass::CommonOptions& common) {
  groups_[group].options = options;
  groups_[group].common = common;
  onepass::CommonOptions others = common;
  others.lr += 1;
  others.scheduled = !others.scheduled;
  groups_[group].core->set(options, others);
  groups_[group].core->set_lr(common.lr, common.scheduled);
}

void Twin::restore(std::int64_t step_count, const std::vector<std::int64_t>& steps,
                   const std::vector<onepass::Scalars>& scalars) {
  core_.restore(step_count, steps, scalars);
  step_count_ = step_count;
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    parameters_[i].step = steps[i];
    parameters_[i].scalars = scalars[i];
  }
}

Given Twin::gradient(std::size_t i, Values values, Random& random, unsigned one_row_in) const {
  const Parameter& parameter = parameters_[i];
  Given given;
  std::size_t size = parameter.size();
  if (one_row_in != 0) {
    std::vector<std::int64_t> rows;
    for (std::size_t r = 0; r < parameter.shape.rows; ++r) {
      if (random.chance(one_row_in)) rows.push_back(static_cast<std::int64_t>(r));
    }
    given.rows = std::vector<std::int64_t>(rows.begin(), rows.end());  // as small as possible
    given.some_rows = !rows.empty();
    if (rows.empty()) return given;
    size = rows.size() * parameter.shape.row_size;
  }
  const std::size_t item = onepass::bytes_of(parameter.shape.dtype);
  given.memory = std::make_unique<Memory>(size * item, item, any_place(random));
  fill(parameter.shape.dtype, given.memory->data(), size, values, false, random);
  return given;
}

std::vector<onepass::Gradient> Twin::seen(const std::vector<Given>& gradients) {
  std::vector<onepass::Gradient> found;
  for (const Given& given : gradients) found.push_back(given.seen());
  return found;
}

onepass::GradientStats Twin::measure(const std::vector<Given>& gradients, double grad_scale, bool norm, bool finite) {
  const auto all = seen(gradients);
  const std::uint64_t before = float_mode();
  const onepass::GradientStats measured = core_.measure(all.data(), grad_scale, norm, finite);
  CHECK_EQUAL(float_mode(), before);

  const onepass::FloatMode mode(false);
  const onepass::Kernels& table = *tables()[0];
  double squares = 0;
  std::size_t first = onepass::GradientStats::none;
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    if (all[i].data == nullptr) continue;
    const auto& [dtype, rows, row_size] = parameters_[i].shape;
    const std::size_t size = (all[i].rows == nullptr ? rows : all[i].row_count) * row_size;
    const bool squared = groups_[parameters_[i].group].rule->squares_gradient;
    bool good = true;
    for (std::size_t from = 0; norm && from < size; from += 4096) {
      squares = squares + table.squares[dtype](all[i].data, from, std::min<std::size_t>(size, from + 4096));
    }
    for (std::size_t k = 0; finite && k < size; ++k) {
      good = good && table.finite[dtype](all[i].data, grad_scale, squared, k, k + 1);
    }
    if (finite && (!good || !std::isfinite(squares)) && first == onepass::GradientStats::none) first = i;
  }
  const double expected = std::fabs(grad_scale) * std::sqrt(squares);
  CHECK_BITS(measured.norm, expected);
  CHECK_EQUAL(measured.first_nonfinite, first);
  return measured;
}

bool Twin::plan(const std::vector<Given>& gradients, double grad_scale) {
  const auto all = seen(gradients);
  core_.take_options();
  const std::uint64_t before = float_mode();
  bool good = true;
  std::size_t parameter = 0;
  std::int64_t step = 0;
  try {
    core_.plan(all.data(), grad_scale);
  } catch (const onepass::Overflow& overflow) {
    good = false;
    parameter = overflow.parameter;
    step = overflow.step;
  }
  CHECK_EQUAL(float_mode(), before);

  planned_.clear();
  std::size_t elements = 0;
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    if (all[i].data == nullptr) continue;
    const Parameter& own = parameters_[i];
    const Group& group = groups_[own.group];
    onepass::StepContext context{group.common.lr, own.step + 1, grad_scale, own.scalars};
    Planned planned{i, {}, all[i].data, gradients[i].rows, {}};
    const auto coefficients = group.rule->coefficients[own.shape.dtype];
    const bool fits = coefficients(group.options.data(), group.common, context, planned.packed);
    if (!fits) {
      CHECK(!good, "parameter", i, "overflows at step", own.step + 1, group.rule->name);
      CHECK_EQUAL(parameter, i);
      CHECK_EQUAL(step, own.step + 1);
      compare("after an overflow");
      return false;
    }
    planned.scalars = context.scalars;
    for (std::size_t r = 0; all[i].rows == nullptr && r < own.shape.rows; ++r) {
      planned.rows.push_back(static_cast<std::int64_t>(r));
    }
    elements += planned.rows.size() * own.shape.row_size;
    planned_.push_back(std::move(planned));
  }
  CHECK(good, "overflow of parameter", parameter, "at step", step, "where nothing overflows");
  CHECK_EQUAL(core_.planned_elements(), elements);
  return good;
}

void Twin::apply() {
  const std::uint64_t before = float_mode();
  core_.apply();
  CHECK_EQUAL(float_mode(), before);
  for (const Planned& planned : planned_) {
    Parameter& own = parameters_[planned.parameter];
    const Group& group = groups_[own.group];
    const onepass::SweepFunction sweep = group.rule->sweeps[own.shape.dtype][planned.packed.extras];
    const std::size_t row_bytes = own.shape.row_size * onepass::bytes_of(own.shape.dtype);
    for (std::size_t k = 0; own.step == 0 && k < group.rule->state_count; ++k) {
      if (group.rule->states[k].kind == onepass::StateKind::weight) own.arrays[1 + k].model = own.arrays[0].model;
    }
    for (std::size_t r = 0; r < planned.rows.size(); ++r) {
      const std::size_t at = static_cast<std::size_t>(planned.rows[r]) * row_bytes;
      onepass::Operands x = {};
      x.param = own.arrays[0].model.data() + at;
      x.grad = static_cast<const unsigned char*>(planned.grad) + r * row_bytes;
      for (std::size_t k = 0; k < group.rule->state_count; ++k) x.state[k] = own.arrays[1 + k].model.data() + at;
      if (group.common.averaged) x.average = own.arrays.back().model.data() + at;
      update_singly(sweep, planned.packed, x, 0, own.shape.row_size, flush_);
    }
    ++own.step;
    own.scalars = planned.scalars;
  }
  ++step_count_;
}

bool Twin::step(const std::vector<Given>& gradients, double grad_scale) {
  if (!plan(gradients, grad_scale)) return false;
  apply();
  return true;
}

void Twin::compare(const std::string& context) const {
  CHECK_EQUAL(core_.step_count(), step_count_, context);
  CHECK_EQUAL(core_.parameters().size(), parameters_.size(), context);
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    const Parameter& own = parameters_[i];
    const onepass::Parameter& other = core_.parameters()[i];
    CHECK_EQUAL(other.step, own.step, context);
    for (std::size_t k = 0; k < onepass::max_scalars; ++k) {
      CHECK_BITS(other.scalars.values[k], own.scalars.values[k], context);
    }
    for (std::size_t k = 0; k < own.arrays.size(); ++k) {
      const Array& array = own.arrays[k];
      const std::string where =
          words(context, groups_[own.group].rule->name, "parameter", i, "array", k, "step", own.step);
      CHECK(array.core->untouched_around(), where);
      if (own.shape.dtype == onepass::float32) {
        CHECK_ARRAYS(static_cast<const float*>(array.core->data()), reinterpret_cast<const float*>(array.model.data()),
                     own.size(), where);
      } else {
        CHECK_ARRAYS(static_cast<const double*>(array.core->data()),
                     reinterpret_cast<const double*>(array.model.data()), own.size(), where);
      }
    }
  }
}

#if defined(ONEPASS_MXCSR)
std::uint64_t float_mode() { return _mm_getcsr(); }
void set_float_mode(std::uint64_t mode) { _mm_setcsr(static_cast<unsigned>(mode)); }
#elif defined(ONEPASS_FPCR)
std::uint64_t float_mode() {
  std::uint64_t mode = 0;
  asm volatile("mrs %0, fpcr" : "=r"(mode)::"memory");
  return mode;
}
void set_float_mode(std::uint64_t mode) { asm volatile("msr fpcr, %0" ::"r"(mode) : "memory"); }
#else
std::uint64_t float_mode() { return 0; }
void set_float_mode(std::uint64_t) {}
#endif

}  // namespace test
