// Every rule, dtype and table compared with the baseline kernels on one element at a time, whose bits test_golden.cpp
// checks: equal bits, and nothing read or written beyond the arrays.
#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "check.hpp"
#include "core/float_mode.hpp"
#include "kernels/power.hpp"
#include "support.hpp"

namespace {

using test::Memory;
using test::Random;

constexpr std::size_t two_vectors_and_a_tail = 2 * 64 / sizeof(float) + 9;

template <class T>
struct Arrays {
  std::vector<Memory> memory;
  onepass::Operands operands = {};

  // A parameter, a gradient, state and an average, each wherever it likes.
  Arrays(const onepass::RuleEntry& rule, std::size_t count, test::Values values, Random& random) {
    const auto array = [&](bool positive) {
      memory.emplace_back(count * sizeof(T), sizeof(T), test::any_place(random));
      T* const data = static_cast<T*>(memory.back().data());
      for (std::size_t i = 0; i < count; ++i) {
        const T x = test::draw<T>(values, random);
        data[i] = positive ? std::fabs(x) : x;
      }
      return data;
    };
    operands.param = array(false);
    operands.grad = array(false);
    for (std::size_t k = 0; k < rule.state_count; ++k) operands.state[k] = array(k != 0);
    operands.average = array(false);
  }

  std::vector<T*> all(const onepass::RuleEntry& rule) const {
    std::vector<T*> found{static_cast<T*>(operands.param), static_cast<T*>(operands.average)};
    for (std::size_t k = 0; k < rule.state_count; ++k) found.push_back(static_cast<T*>(operands.state[k]));
    return found;
  }
};

template <class T>
void one_case(const onepass::Kernels& table, const onepass::RuleEntry& rule, std::size_t count, test::Values values,
              bool flush, Random& random) {
  const std::vector<double> options = test::any_options(rule, random);
  const onepass::CommonOptions common = test::any_common(random);
  const onepass::StepContext step{common.lr,
                                  random.pick<std::int64_t>({1, 2, 3, 10, 1000, 1000000, std::int64_t{1} << 40}),
                                  random.pick({1.0, 1.0, -1.0, 0.25, 1e-3, 1e10}),
                                  {{random.uniform(), random.uniform()}}};
  const std::string context =
      test::words(table.instruction_set, rule.name, sizeof(T), name_of(values), "count", count, "t", step.t, "lr",
                  common.lr, "decay", common.weight_decay, common.decoupled, "flush", flush);

  onepass::PackedCoefficients packed = {};
  onepass::StepContext ours = step;
  onepass::StepContext theirs = step;
  const auto dtype = sizeof(T) == sizeof(float) ? onepass::float32 : onepass::float64;
  const bool fits = rule.coefficients[dtype](options.data(), common, ours, packed);
  onepass::PackedCoefficients baseline = {};
  CHECK_EQUAL(fits, test::baseline_rule(rule.name).coefficients[dtype](options.data(), common, theirs, baseline),
              context);
  for (std::size_t k = 0; k < onepass::max_scalars; ++k) {
    CHECK_BITS(ours.scalars.values[k], theirs.scalars.values[k], context);
  }
  if (!fits) return;

  const Arrays<T> actual(rule, count, values, random);
  Random again(random);  // only for where the copies lie
  const Arrays<T> expected(rule, count, test::Values::ordinary, again);
  const auto from = actual.all(rule);
  const auto to = expected.all(rule);
  for (std::size_t k = 0; k < from.size(); ++k) std::copy(from[k], from[k] + count, to[k]);
  onepass::Operands x = expected.operands;
  x.grad = actual.operands.grad;
  if (!common.averaged) x.average = nullptr;

  // All of it, or a part in its midst.
  const std::size_t begin = random.chance(4) ? random.below(count + 1) : 0;
  const std::size_t end = random.chance(4) ? begin + random.below(count - begin + 1) : count;
  const auto sweep = test::baseline_rule(rule.name).sweeps[dtype][baseline.extras];
  test::update_singly(sweep, baseline, x, begin, end, flush);
  {
    const onepass::FloatMode mode(flush);
    rule.sweeps[dtype][packed.extras](packed, actual.operands, begin, end);
  }
  for (std::size_t k = 0; k < from.size(); ++k) CHECK_ARRAYS(from[k], to[k], count, context, "array", k);
  for (const Memory& memory : actual.memory) CHECK(memory.untouched_around(), context);
}

template <class T>
void all_cases(Random& random) {
  for (const onepass::Kernels* table : test::tables()) {
    for (std::size_t r = 0; r < table->rule_count; ++r) {
      const onepass::RuleEntry& rule = table->rules[r];
      for (const bool flush : test::flush_modes()) {
        for (const test::Values values : test::all_values) {
          for (std::size_t count = 0; count <= two_vectors_and_a_tail; ++count) {
            one_case<T>(*table, rule, count, values, flush, random);
          }
          // From 4,096 on a sweep begins at a cache line; sixteen options for each rule.
          for (const std::size_t count : {100U, 500U, 1023U, 4095U, 4096U, 4111U, 8200U}) {
            one_case<T>(*table, rule, count, values, flush, random);
          }
          for (int i = 0; i < 16; ++i) one_case<T>(*table, rule, 67, values, flush, random);
        }
      }
    }
  }
}

}  // namespace

TEST(every_rule_and_table_matches_single_elements_in_float32) {
  Random random(1);
  all_cases<float>(random);
}

TEST(every_rule_and_table_matches_single_elements_in_float64) {
  Random random(2);
  all_cases<double>(random);
}

namespace {

// The names of a rule, of its options and of its states.
std::string names_of(const onepass::RuleEntry& rule) {
  std::string names = rule.name;
  for (std::size_t i = 0; i < rule.option_count; ++i) names = names + ' ' + rule.options[i];
  for (std::size_t k = 0; k < rule.state_count; ++k) names = names + ' ' + rule.states[k].name;
  return names;
}

}  // namespace

TEST(all_tables_offer_the_same_rules) {
  const auto tables = test::tables();
  for (const onepass::Kernels* table : tables) {
    CHECK_EQUAL(table->rule_count, tables[0]->rule_count);
    for (std::size_t r = 0; r < table->rule_count; ++r) {
      CHECK_EQUAL(names_of(table->rules[r]), names_of(tables[0]->rules[r]));
    }
  }
}

namespace {

template <class T>
bool all_finite(const T* grad, std::size_t count, double scale, bool squared) {
  for (std::size_t i = 0; i < count; ++i) {
    const T g = grad[i] * static_cast<T>(scale);
    if (!std::isfinite(g) || (squared && !std::isfinite(g * g))) return false;
  }
  return true;
}

template <class T>
void squares_and_finite(Random& random) {
  const auto dtype = sizeof(T) == sizeof(float) ? onepass::float32 : onepass::float64;
  for (const onepass::Kernels* table : test::tables()) {
    for (std::size_t count = 0; count <= 4096; count += count < 70 ? 1 : 575) {
      for (const test::Values values : test::all_values) {
        const Memory memory(count * sizeof(T), sizeof(T), test::any_place(random));
        T* const data = static_cast<T*>(memory.data());
        for (std::size_t i = 0; i < count; ++i) data[i] = test::draw<T>(values, random);
        if (values == test::Values::hostile) {  // otherwise hardly one would be finite
          for (std::size_t i = 0; i < count; ++i) data[i] = std::isfinite(data[i] * 4) ? data[i] : T(1);
        }
        const std::string context = test::words(table->instruction_set, sizeof(T), name_of(values), "count", count);
        const auto baseline = test::tables()[0]->squares[dtype];
        CHECK_BITS(table->squares[dtype](data, 0, count), baseline(data, 0, count), context);
        const std::size_t begin = count / 3;
        CHECK_BITS(table->squares[dtype](data, begin, count), baseline(data + begin, 0, count - begin), context, "from",
                   begin);
        // One that is not finite is found wherever it lies, and one that only its square or its scale makes so.
        for (const bool squared : {false, true}) {
          for (const double scale : {1.0, 1e-3, -4.0}) {
            CHECK_EQUAL(table->finite[dtype](data, scale, squared, 0, count), all_finite(data, count, scale, squared),
                        context);
            if (count == 0) continue;
            const std::size_t at = random.below(count);
            const T before = data[at];
            const T infinity = std::numeric_limits<T>::infinity();
            const T largest = std::numeric_limits<T>::max();
            for (const T bad : {infinity, -infinity, std::numeric_limits<T>::quiet_NaN(), largest, -largest}) {
              data[at] = bad;
              CHECK_EQUAL(table->finite[dtype](data, scale, squared, 0, count), all_finite(data, count, scale, squared),
                          context, "at", at, bad);
              CHECK_EQUAL(table->finite[dtype](data, scale, squared, at, count),
                          all_finite(data + at, count - at, scale, squared), context, "from", at, bad);
            }
            data[at] = before;
          }
        }
      }
    }
  }
}

}  // namespace

TEST(squares_match_the_baseline_and_nonfinite_numbers_are_found_in_float32) {
  Random random(3);
  squares_and_finite<float>(random);
}

TEST(squares_match_the_baseline_and_nonfinite_numbers_are_found_in_float64) {
  Random random(4);
  squares_and_finite<double>(random);
}

TEST(the_stream_baseline_adds_the_gradient_to_three_arrays_only) {
  Random random(5);
  for (const onepass::Kernels* table : test::tables()) {
    for (std::size_t count : {0U, 1U, 7U, 16U, 33U, 4096U, 5003U}) {
      std::vector<Memory> memory;
      for (int k = 0; k < 4; ++k) {
        memory.emplace_back(count * sizeof(float), sizeof(float), test::any_place(random));
        for (std::size_t i = 0; i < count; ++i) {
          static_cast<float*>(memory.back().data())[i] = static_cast<float>(k + 1) + static_cast<float>(i);
        }
      }
      onepass::Operands x = {memory[0].data(), memory[3].data(), {memory[1].data(), memory[2].data()}, nullptr};
      table->stream_baseline[onepass::float32](x, 0, count);
      for (std::size_t k = 0; k < 4; ++k) {
        for (std::size_t i = 0; i < count; ++i) {
          const auto first = static_cast<float>(k + 1) + static_cast<float>(i);
          const float sum = k == 3 ? first : first + (4 + static_cast<float>(i));
          CHECK_EQUAL(static_cast<const float*>(memory[k].data())[i], sum, table->instruction_set, count);
        }
        CHECK(memory[k].untouched_around());
      }
    }
  }
}

TEST(powers_are_correct_at_the_ends_of_the_range) {
  CHECK_EQUAL(onepass::power(0, 0), 1.0);
  CHECK_EQUAL(onepass::power(0, 1), 0.0);
  CHECK_EQUAL(onepass::power(0x1p-1074, 0), 1.0);
  CHECK_EQUAL(onepass::power(0x1p-1074, 1), 0.0);
  CHECK_EQUAL(onepass::power(0.5, 1022), 0x1p-1022);
  CHECK_EQUAL(onepass::power(0.5, 1023), 0.0);
  CHECK_EQUAL(onepass::power(0.999, std::int64_t{1} << 62), 0.0);
  CHECK_EQUAL(onepass::power(0x1.fffffffffffffp-1, 1), 0x1.fffffffffffffp-1);
  CHECK_EQUAL(onepass::power(0x1.fffffffffffffp-1, INT64_MAX), 0.0);
}
