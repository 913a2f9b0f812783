// Steps of whole optimizers compared with a model: groups, missing gradients, rows, overflow, norms, counts.
#include <cmath>
#include <limits>
#include <new>
#include <vector>

#include "check.hpp"
#include "core/dispatch.hpp"
#include "twin.hpp"

namespace {

using onepass::float32;
using onepass::float64;
using test::Given;
using test::Random;
using test::Twin;
using test::Values;

std::vector<Given> gradients(const Twin& twin, Random& random, Values values, unsigned missing_one_in,
                             unsigned some_rows_one_in) {
  std::vector<Given> all;
  for (std::size_t i = 0; i < twin.parameter_count(); ++i) {
    if (missing_one_in != 0 && random.chance(missing_one_in)) {
      all.emplace_back();
    } else {
      const bool some_rows = some_rows_one_in != 0 && random.chance(some_rows_one_in);
      all.push_back(twin.gradient(i, values, random, some_rows ? 2 : 0));
    }
  }
  return all;
}

std::vector<Twin::Shape> shapes(Random& random) {
  std::vector<Twin::Shape> all;
  for (std::size_t i = 0, count = 1 + random.below(4); i < count; ++i) {
    const auto dtype = random.chance(2) ? float32 : float64;
    all.push_back({dtype, random.pick<std::size_t>({0, 1, 3, 17, 60}), random.pick<std::size_t>({0, 1, 5, 16, 33})});
  }
  return all;
}

onepass::CommonOptions plain(double lr) {
  return {lr, 0, std::numeric_limits<double>::infinity(), 0, false, false, false, false, false};
}

}  // namespace

TEST(groups_rows_and_missing_gradients_match_single_elements_with_every_rule) {
  Random random(10);
  for (const bool flush : test::flush_modes()) {
    for (const Values values : test::all_values) {
      for (std::size_t first = 0; first < onepass::kernels().rule_count; ++first) {
        Twin twin(flush);
        for (int g = 0; g < 3; ++g) {
          const std::size_t rules = onepass::kernels().rule_count;
          const onepass::RuleEntry& rule = onepass::kernels().rules[g == 0 ? first : random.below(rules)];
          twin.add_group(rule.name, test::any_options(rule, random), test::any_common(random), shapes(random), values,
                         random);
        }
        for (int step = 0; step < 12; ++step) {
          const auto given = gradients(twin, random, values, 4, 3);
          const double scale = random.pick({1.0, 1.0, 0.5, -3e-3});
          twin.measure(given, scale, random.chance(2), random.chance(2));
          twin.step(given, scale);
          twin.compare();
        }
      }
    }
  }
}

TEST(changed_options_are_used_from_the_next_plan) {
  Random random(11);
  Twin twin(false);
  const onepass::RuleEntry& rule = test::rule_named("adam");
  onepass::CommonOptions common = test::any_common(random);
  twin.add_group("adam", test::any_options(rule, random), common, {{float32, 9, 7}}, Values::ordinary, random);
  for (int step = 0; step < 50; ++step) {
    const auto given = gradients(twin, random, Values::ordinary, 0, 0);
    const bool good = twin.plan(given, 1);
    const bool averaged = common.averaged;
    common = test::any_common(random);
    common.averaged = averaged;  // fixed: which arrays there are depends on it
    twin.set(0, test::any_options(rule, random), common);
    if (good) twin.apply();
    twin.compare();
  }
}

TEST(a_step_whose_coefficients_overflow_is_refused_and_changes_nothing) {
  Random random(12);
  Twin twin(false);
  const std::vector<double> options{0, 0, 0};  // momentum, dampening, nesterov
  twin.add_group("sgd", options, plain(0.1), {{float64, 3, 2}}, Values::ordinary, random);
  twin.add_group("sgd_momentum", options, plain(1e39), {{float64, 3, 2}, {float32, 4, 1}, {float32, 5, 1}},
                 Values::ordinary, random);
  twin.restore(7, {0, 4, 5, 6}, std::vector<onepass::Scalars>(4));
  CHECK(!twin.step(gradients(twin, random, Values::ordinary, 0, 0)));
  // Without gradients for the float32 parameters nothing overflows.
  auto given = gradients(twin, random, Values::ordinary, 0, 0);
  given[2] = {};
  given[3] = {};
  CHECK(twin.step(given));
  twin.compare();
  // Each number of the step may be the one.
  const double infinity = std::numeric_limits<double>::infinity();
  for (const onepass::CommonOptions& common : {
           onepass::CommonOptions{1, 1e39, infinity, 0, false, false, false, false, false},
           onepass::CommonOptions{1e30, 1e30, infinity, 0, true, false, false, false, false},
           onepass::CommonOptions{1, 0, 1e39, 0, false, false, false, false, false},
       }) {
    twin.set(1, options, common);
    CHECK(!twin.step(gradients(twin, random, Values::ordinary, 0, 0)));
  }
  twin.set(1, options, plain(1));
  CHECK(!twin.step(gradients(twin, random, Values::ordinary, 0, 0), 1e39));
  CHECK(twin.step(gradients(twin, random, Values::ordinary, 0, 0), std::numeric_limits<double>::quiet_NaN()));
  twin.compare();
}

TEST(restored_step_counts_continue) {
  Random random(13);
  for (const char* name : {"adam", "nadam", "adagrad", "adamax"}) {
    const onepass::RuleEntry& rule = test::rule_named(name);
    for (const std::int64_t t : {std::int64_t{0}, std::int64_t{5}, std::int64_t{100000}, std::int64_t{1} << 62}) {
      Twin twin(false);
      std::vector<double> options = test::any_options(rule, random);
      twin.add_group(name, options, plain(0.01), {{float32, 7, 3}, {float64, 7, 3}, {float64, 2, 2}}, Values::ordinary,
                     random);
      twin.restore(t, {t, t / 2, 0}, {{{random.uniform()}}, {{random.uniform()}}, {{1}}});
      for (int step = 0; step < 3; ++step) {
        twin.step(gradients(twin, random, Values::ordinary, 3, 0));
        twin.compare(name);
      }
    }
  }
}

TEST(parameters_with_many_step_counts_in_any_order_match_single_elements) {
  Random random(19);
  Twin twin(false);
  for (const char* const rule : {"adam", "nadam"}) {
    const std::vector<Twin::Shape> shapes(40, {float32, 2, 1});
    twin.add_group(rule, test::any_options(test::rule_named(rule), random), plain(0.1), shapes, Values::ordinary,
                   random);
  }
  std::vector<std::int64_t> steps;
  std::vector<onepass::Scalars> scalars;
  for (std::size_t i = 0; i < twin.parameter_count(); ++i) {
    steps.push_back(static_cast<std::int64_t>(random.below(i % 3 == 0 ? 3 : 30)));
    scalars.push_back({{random.pick({0.25, 0.5}), 0}});
  }
  twin.restore(7, steps, scalars);
  for (int step = 0; step < 3; ++step) {
    const auto given = gradients(twin, random, Values::ordinary, 4, 3);
    CHECK(twin.step(given));
    twin.compare();
  }
}

TEST(the_norm_of_an_array_equals_the_norm_of_a_single_gradient) {
  Random random(14);
  for (const std::size_t size : {0U, 1U, 100U, 4095U, 4096U, 4097U, 20000U}) {
    Twin twin(false);
    twin.add_group("sgd", {0, 0, 0}, plain(0.1), {{float32, size, 1}}, Values::ordinary, random);
    const auto given = gradients(twin, random, Values::ordinary, 0, 0);
    const double norm = onepass::norm(float32, given[0].seen().data, size);
    CHECK_EQUAL(norm, twin.measure(given, 1, true, false).norm);
    CHECK_EQUAL(onepass::clipped_scale(2, 0.5, norm), 2 * (0.5 / norm));
  }
}

TEST(step_once_is_bit_identical_to_a_step_of_an_optimizer) {
  Random random(15);
  for (std::size_t r = 0; r < onepass::kernels().rule_count; ++r) {
    const onepass::RuleEntry& rule = onepass::kernels().rules[r];
    const auto options = test::any_options(rule, random);
    auto common = plain(0.1);
    for (const std::size_t size : {0U, 1U, 50U, 5000U}) {
      std::vector<std::vector<double>> arrays(2 + rule.state_count, std::vector<double>(size));
      for (auto& array : arrays) {
        for (double& x : array) x = random.uniform();
      }
      auto same = arrays;
      const auto describe = [&](std::vector<std::vector<double>>& a) {
        onepass::Parameter parameter{float64, size, 1, {}, 0, 0, {}};
        parameter.operands.param = a[0].data();
        for (std::size_t k = 0; k < rule.state_count; ++k) parameter.operands.state[k] = a[2 + k].data();
        return parameter;
      };
      onepass::Optimizer optimizer(false);
      optimizer.add_group(std::make_shared<onepass::Group>(rule, options, common), {describe(arrays)});
      const onepass::Gradient gradient{arrays[1].data(), nullptr, 0};
      optimizer.take_options();
      optimizer.plan(&gradient, 1);
      optimizer.apply();
      onepass::Parameter once = describe(same);
      once.operands.grad = same[1].data();
      once.step = 1;
      CHECK(onepass::step_once(rule, options.data(), common, 1, once, false));
      for (std::size_t k = 0; k < arrays.size(); ++k) CHECK_ARRAYS(same[k].data(), arrays[k].data(), size, rule.name);
      common.lr = std::numeric_limits<double>::infinity();
      CHECK(!onepass::step_once(rule, options.data(), common, 1, once, false));
      for (std::size_t k = 0; k < arrays.size(); ++k) CHECK_ARRAYS(same[k].data(), arrays[k].data(), size, rule.name);
      common = plain(0.1);
    }
  }
}

TEST(options_that_do_not_fit_a_rule_are_refused) {
  const onepass::RuleEntry& rule = test::rule_named("adam");
  const auto refused = [](auto attempt) {
    try {
      attempt();
    } catch (const std::invalid_argument&) {
      return true;
    }
    return false;
  };
  CHECK(refused([&] { onepass::Group(rule, {0.9, 0.99}, plain(1)); }));
  onepass::Group group(rule, {0.9, 0.99, 0, 1, 0}, plain(1));
  CHECK(refused([&] { group.set({}, plain(1)); }));
  CHECK(refused([&] { onepass::find_rule("no such rule"); }));
}

// Failure of each allocation in turn. Replaced operators also cover allocations inside libstdc++, unlike --wrap.
namespace {

thread_local long allocations_left = -1;  // negative: unlimited

struct Shortage {
  explicit Shortage(long allocations) { allocations_left = allocations; }
  ~Shortage() { allocations_left = -1; }
  Shortage(const Shortage&) = delete;
  Shortage& operator=(const Shortage&) = delete;
};

}  // namespace

void* operator new(std::size_t size) {
  if (allocations_left == 0) throw std::bad_alloc();
  if (allocations_left > 0) --allocations_left;
  void* const found = std::malloc(size == 0 ? 1 : size);
  if (found == nullptr) throw std::bad_alloc();
  return found;
}
void operator delete(void* data) noexcept { std::free(data); }
void operator delete(void* data, std::size_t) noexcept { std::free(data); }

TEST(running_out_of_memory_while_adding_parameters_changes_nothing) {
  Random random(16);
  const onepass::RuleEntry& rule = test::rule_named("adam");
  const auto options = test::any_options(rule, random);
  std::vector<float> memory(3);
  onepass::Parameter extra{float32, 1, 1, {}, 0, 0, {}};
  extra.operands = {memory.data(), nullptr, {memory.data() + 1, memory.data() + 2}, nullptr};
  const std::vector<onepass::Parameter> extras(100, extra);
  const auto group = std::make_shared<onepass::Group>(rule, options, plain(0.1));
  int failed = 0;
  for (;;) {
    Twin twin(false);
    twin.add_group("adam", options, plain(0.1), {{float32, 5, 1000}, {float64, 3, 3}}, Values::ordinary, random);
    try {
      const Shortage shortage(failed);
      twin.core().add_group(group, extras);
      break;
    } catch (const std::bad_alloc&) {
      ++failed;
    }
    CHECK_EQUAL(twin.core().parameters().size(), std::size_t{2}, failed);
    twin.compare("memory ran out");
    const auto given = gradients(twin, random, Values::ordinary, 0, 0);
    twin.measure(given, 1, true, true);
    CHECK(twin.step(given));
    twin.compare("after memory ran out");
  }
  CHECK(failed >= 7, failed, "about one for each array that grows");
}

TEST(running_out_of_memory_while_planning_rows_changes_nothing) {
  Random random(17);
  Twin twin(false);
  twin.add_group("adam", {0.9, 0.999, 1e-8, 1, 0}, plain(0.1), {{float32, 2000, 3}}, Values::ordinary, random);
  std::vector<Given> given;
  given.push_back(twin.gradient(0, Values::ordinary, random, 2));
  const onepass::Gradient gradient = given[0].seen();
  twin.core().take_options();
  bool failed = false;
  try {
    const Shortage shortage(0);
    twin.core().plan(&gradient, 1);
  } catch (const std::bad_alloc&) {
    failed = true;
  }
  CHECK(failed);
  twin.compare("memory ran out");
  CHECK(twin.step(given));
  twin.compare();
}

TEST(a_step_allocates_nothing) {
  Random random(18);
  Twin twin(false);
  const onepass::RuleEntry& rule = test::rule_named("adam");
  twin.add_group("adam", test::any_options(rule, random), plain(0.1), {{float32, 300, 7}, {float64, 20, 3}},
                 Values::ordinary, random);
  const auto given = gradients(twin, random, Values::ordinary, 0, 0);
  const std::vector<onepass::Gradient> all{given[0].seen(), given[1].seen()};
  const Shortage shortage(0);
  for (int i = 0; i < 3; ++i) {
    twin.core().take_options();
    twin.core().measure(all.data(), 1, true, true);
    twin.core().plan(all.data(), 1);
    twin.core().apply();
  }
  CHECK_EQUAL(twin.core().step_count(), std::int64_t{3});
}
