// A step neither depends on the caller's floating-point mode nor changes it.
#include <cfenv>
#include <cmath>
#include <limits>
#include <vector>

#include "check.hpp"
#include "core/dispatch.hpp"
#include "core/float_mode.hpp"
#include "twin.hpp"

namespace {

using onepass::float32;
using onepass::float64;
using test::Given;
using test::Random;
using test::Twin;
using test::Values;

// Rounding in each direction, flushing, and on x86-64 every exception trapped and flags that somebody left set.
std::vector<std::uint64_t> odd_modes() {
#if defined(ONEPASS_MXCSR)
  return {0x1f80, 0x3f80, 0x5f80, 0x7f80, 0x9fc0, 0x8000, 0x0000, 0x1fbf, 0xffff & ~0x3fU, 0x1f80 | 0x40};
#elif defined(ONEPASS_FPCR)
  return {0, 1U << 22, 2U << 22, 3U << 22, 1U << 24, 1U << 25, 3U << 24 | 3U << 22};
#else
  return {0};
#endif
}

struct Mode {  // while the object exists
  explicit Mode(std::uint64_t mode) : before_(test::float_mode()) { test::set_float_mode(mode); }
  ~Mode() { test::set_float_mode(before_); }
  Mode(const Mode&) = delete;
  Mode& operator=(const Mode&) = delete;

 private:
  std::uint64_t before_;
};

// Runs each function of the core once in this mode, and returns the results.
std::vector<double> all_calls(std::uint64_t mode, bool flush, const char* name, Values values) {
  Random random(20);
  const onepass::RuleEntry& rule = test::rule_named(name);
  const std::size_t size = 700;
  std::vector<std::vector<double>> arrays(3 + rule.state_count, std::vector<double>(size));
  for (auto& array : arrays) {
    for (double& x : array) x = std::fabs(test::draw<double>(values, random));
  }
  onepass::Parameter parameter{float64, size, 1, {}, 0, 0, {}};
  parameter.operands.param = arrays[0].data();
  for (std::size_t k = 0; k < rule.state_count; ++k) parameter.operands.state[k] = arrays[3 + k].data();
  parameter.operands.average = arrays[2].data();
  std::vector<double> options = test::any_options(rule, random);
  onepass::CommonOptions common{0.1, 0.01, 0.5, 0.9, true, false, true, false, false};
  auto group = std::make_shared<onepass::Group>(rule, options, common);
  const onepass::Gradient gradient{arrays[1].data(), nullptr, 0};
  onepass::Parameter once = parameter;
  once.operands.grad = gradient.data;
  once.step = 3;

  onepass::Optimizer optimizer(flush);
  onepass::GradientStats measured;
  double norm = 0;
  double scale = 0;
  bool overflow = false;
  std::vector<std::uint64_t> after;
  {
    const Mode odd(mode);
    const auto look = [&] { after.push_back(test::float_mode()); };
    optimizer.add_group(group, {parameter});
    look();
    optimizer.take_options();
    look();
    measured = optimizer.measure(&gradient, 0.7, true, true);
    look();
    try {
      optimizer.plan(&gradient, std::numeric_limits<double>::infinity());
    } catch (const onepass::Overflow&) {
      overflow = true;
    }
    look();
    optimizer.plan(&gradient, 0.7);
    look();
    optimizer.apply();
    look();
    norm = onepass::norm(float64, arrays[1].data(), size);
    look();
    scale = onepass::clipped_scale(0.7, 0.3, norm);
    look();
    onepass::step_once(rule, options.data(), common, 0.7, once, flush);
    look();
  }
  for (std::size_t call = 0; call < after.size(); ++call) CHECK_EQUAL(after[call], mode, "after call", call, name);
  CHECK(overflow);
  std::vector<double> found{measured.norm, static_cast<double>(measured.first_nonfinite), norm, scale};
  for (const auto& array : arrays) found.insert(found.end(), array.begin(), array.end());
  return found;
}

}  // namespace

TEST(every_call_ignores_and_restores_the_callers_floating_point_mode) {
  const std::uint64_t usual = test::float_mode() & ~std::uint64_t{0x3f};
  for (const Values values : test::all_values) {
    for (std::size_t r = 0; r < onepass::kernels().rule_count; ++r) {
      const char* const name = onepass::kernels().rules[r].name;
      for (const bool flush : test::flush_modes()) {
        const auto expected = all_calls(usual, flush, name, values);
        for (const std::uint64_t mode : odd_modes()) {
          {
            const Mode tried(mode);
            if (test::float_mode() != mode) continue;  // this processor, or its emulator, has no such mode
          }
          const auto found = all_calls(mode, flush, name, values);
          CHECK_ARRAYS(found.data(), expected.data(), expected.size(), name, "flush", flush, "mode", mode);
        }
      }
    }
  }
}

TEST(only_steps_that_flush_treat_subnormal_numbers_as_zero) {
  const float subnormal = std::numeric_limits<float>::denorm_min() * 1000;
  for (const bool flush : test::flush_modes()) {
    for (const std::size_t size : {3U, 50U, 3000000U}) {  // by several threads too
      std::vector<float> param(size, 0), grad(size, subnormal);
      onepass::Parameter parameter{float32, size, 1, {}, 0, 1, {}};
      parameter.operands.param = param.data();
      parameter.operands.grad = grad.data();
      const double options[3] = {};
      const onepass::CommonOptions common{1,     0,    std::numeric_limits<double>::infinity(), 0, false, false, false,
                                          false, false};
      CHECK(onepass::step_once(test::rule_named("sgd"), options, common, 1, parameter, flush));
      bool good = true;
      for (const float p : param) good = good && p == (flush ? 0 : -subnormal);
      CHECK(good, "flush", flush, "size", size, param[0]);
      const volatile float half = subnormal;
      CHECK(half / 2 > 0, "the mode was not restored");
    }
  }
}

TEST(can_flush_is_true_only_on_sse2_and_arm64) {
#if defined(__SSE2__) || defined(__aarch64__)
  CHECK(onepass::FloatMode::can_flush);
#else
  CHECK(!onepass::FloatMode::can_flush);
#endif
}
