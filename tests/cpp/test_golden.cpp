// Steps, sums of squares and powers have the bits of the executable specification, python/onepass/_reference/, from
// which golden.py writes the golden files.
#include <cmath>
#include <fstream>
#include <iterator>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "check.hpp"
#include "core/float_mode.hpp"
#include "core/optimizer.hpp"
#include "kernels/power.hpp"
#include "support.hpp"

namespace {

using test::Memory;
using test::Random;

// Reader of the numbers in a golden file.
class Golden {
 public:
  explicit Golden(const std::string& name) : name_(name) {
    std::ifstream file(std::string(ONEPASS_GOLDEN) + '/' + name + ".bin", std::ios::binary);
    bytes_.assign(std::istreambuf_iterator<char>(file), {});
    if (bytes_.empty()) throw std::runtime_error("no golden file " + name + ".bin: make golden");
  }

  bool empty() const { return at_ == bytes_.size(); }

  template <class Bits>
  Bits next_bits() {
    if (bytes_.size() - at_ < sizeof(Bits)) throw std::runtime_error(name_ + ".bin ends early: make golden");
    std::uint64_t bits = 0;
    for (std::size_t i = 0; i < sizeof(Bits); ++i) bits |= static_cast<std::uint64_t>(bytes_[at_++]) << 8 * i;
    return static_cast<Bits>(bits);
  }

  template <class T = double>
  T next() {
    const auto bits = next_bits<typename test::Format<T>::Bits>();
    T value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
  }
  bool flag() { return next() != 0; }

 private:
  std::string name_;
  std::vector<unsigned char> bytes_;
  std::size_t at_ = 0;
};

// True where the bits are those of the specification even if subnormal numbers count as zero. Processors other than x86
// decide before rounding which results are subnormal.
bool flushes_as_specified() {
#if defined(ONEPASS_MXCSR)
  return test::flush_modes().size() == 2;
#else
  return false;
#endif
}

// Some steps of an optimizer with one parameter: `case` of golden.py.
template <class T>
void steps(const onepass::Kernels& table, const onepass::RuleEntry& rule, onepass::DType dtype, Golden& golden) {
  constexpr std::size_t size = 25;
  const auto seed = static_cast<std::uint64_t>(golden.next());
  const bool flush = golden.flag();
  onepass::CommonOptions common = {};
  common.averaged = golden.flag();
  const auto number = static_cast<int>(golden.next());
  auto step = static_cast<std::int64_t>(golden.next());
  onepass::Scalars scalars = {};
  for (std::size_t k = 0; k < rule.scalar_count; ++k) scalars.values[k] = golden.next();
  const std::string context = test::words(table.instruction_set, rule.name, sizeof(T), "seed", seed);
  Random random(seed);
  Random places(seed);
  std::vector<Memory> memory;
  const auto array = [&](bool positive) {
    memory.emplace_back(size * sizeof(T), sizeof(T), test::any_place(places));
    T* const data = static_cast<T*>(memory.back().data());
    for (std::size_t i = 0; i < size; ++i) {
      const T x = test::draw<T>(test::all_values[i % 3], random);
      data[i] = positive ? std::fabs(x) : x;
    }
    return data;
  };
  std::vector<T*> results{array(false)};
  onepass::Parameter parameter{dtype, size, 1, {}, 0, 0, {}};
  parameter.operands.param = results[0];
  T* const average = array(false);
  if (common.averaged) {
    parameter.operands.average = average;
    results.push_back(average);
  }
  for (std::size_t k = 0; k < rule.state_count; ++k) {
    results.push_back(array(true));
    parameter.operands.state[k] = results.back();
  }

  onepass::Optimizer optimizer(flush);
  std::vector<double> options(rule.option_count);
  const auto group = std::make_shared<onepass::Group>(rule, options, common);
  optimizer.add_group(group, {parameter});
  optimizer.restore(0, {step}, {scalars});
  for (int i = 0; i < number; ++i) {
    common.lr = golden.next();
    common.weight_decay = golden.next();
    common.clip_value = golden.next();
    common.ema_decay = golden.next();
    common.decoupled = golden.flag();
    common.maximize = golden.flag();
    common.keep_subnormals = golden.flag();
    const double grad_scale = golden.next();
    for (double& option : options) option = golden.next();
    group->set(options, common);
    const onepass::Gradient gradient{array(false), nullptr, 0};
    optimizer.take_options();
    bool fits = true;
    try {
      optimizer.plan(&gradient, grad_scale);
      optimizer.apply();
    } catch (const onepass::Overflow&) {
      fits = false;
    }
    CHECK_EQUAL(fits, golden.flag(), context, "step", i);
    step += fits ? 1 : 0;
    const bool usable = optimizer.measure(&gradient, grad_scale, false, true).first_nonfinite != 0;
    CHECK_EQUAL(usable, golden.flag(), context, "step", i);
  }

  for (std::size_t k = 0; k < results.size(); ++k) {
    std::vector<T> expected(size);
    for (T& x : expected) x = golden.next<T>();
    if (flush && !flushes_as_specified()) continue;
    CHECK_ARRAYS(results[k], expected.data(), size, context, "array", k);
  }
  CHECK_EQUAL(optimizer.parameters()[0].step, step, context);
  for (std::size_t k = 0; k < rule.scalar_count; ++k) {
    CHECK_BITS(optimizer.parameters()[0].scalars.values[k], golden.next(), context);
  }
  for (const Memory& own : memory) CHECK(own.untouched_around(), context);
}

}  // namespace

TEST(every_rule_and_table_matches_the_specification_bit_for_bit) {
  for (const onepass::Kernels* table : test::tables()) {
    for (std::size_t r = 0; r < table->rule_count; ++r) {
      const onepass::RuleEntry& rule = table->rules[r];
      for (Golden golden(rule.name); !golden.empty();) {
        const auto dtype = golden.flag() ? onepass::float64 : onepass::float32;
        const auto run = dtype == onepass::float32 ? &steps<float> : &steps<double>;
        run(*table, rule, dtype, golden);
      }
    }
  }
}

namespace {

using onepass::Storage;

// A sweep that stores the gradient in the parameter and in two states.
void copy_gradient(const onepass::PackedCoefficients&, const onepass::Operands& x, std::size_t begin, std::size_t end) {
  for (std::size_t i = begin; i < end; ++i) {
    const float g = static_cast<const float*>(x.grad)[i];
    for (void* const to : {x.param, x.state[0], x.state[1]}) static_cast<float*>(to)[i] = g;
  }
}

template <class T>
void check_numbers(const Memory& memory, std::size_t count, Golden& golden, const std::string& context) {
  const T* const actual = static_cast<const T*>(memory.data());
  for (std::size_t i = 0; i < count; ++i) {
    CHECK_EQUAL(unsigned{actual[i]}, unsigned{golden.next_bits<T>()}, context, "element", i);
  }
  CHECK(memory.untouched_around(), context);
}

// One sweep over narrow storage: `narrow` of golden.py.
void narrow(const onepass::Kernels& table, bool flush, Golden& golden) {
  constexpr std::size_t size = 300;
  constexpr std::size_t scales = (size + onepass::scale_group - 1) / onepass::scale_group;
  const Storage state = golden.flag() ? Storage::float8 : Storage::bfloat16;
  const Storage grads[] = {Storage::plain, Storage::bfloat16, Storage::float16};
  onepass::NarrowStorage storage = {};
  storage.param = Storage::bfloat16;
  storage.grad = grads[static_cast<std::size_t>(golden.next())];
  storage.state[0] = storage.state[1] = state;
  storage.divisor[1] = true;
  storage.master_bits = static_cast<unsigned char>(golden.next());
  storage.stochastic = golden.flag();
  for (std::uint64_t* const number : {&storage.key.seed, &storage.key.step, &storage.key.parameter, &storage.first}) {
    *number = static_cast<std::uint64_t>(golden.next());
  }
  const std::string context = test::words(table.instruction_set, "narrow", storage.key.seed, "flush", flush);

  Random random(storage.key.seed);
  Random places(storage.key.seed);
  const auto array = [&](std::size_t count, std::size_t item) {
    return Memory(count * item, item, test::any_place(places));
  };
  const bool plain = storage.grad == Storage::plain;
  const Memory grad = array(size, plain ? sizeof(float) : sizeof(std::uint16_t));
  for (std::size_t i = 0; i < size; ++i) {
    if (plain) {
      static_cast<float*>(grad.data())[i] = test::draw<float>(test::all_values[i % 3], random);
    } else {
      static_cast<std::uint16_t*>(grad.data())[i] = static_cast<std::uint16_t>(random.next());
    }
  }
  const std::size_t item = state == Storage::float8 ? 1 : 2;
  const Memory states[] = {array(size, item), array(size, item)};
  const Memory all_scales[] = {array(scales, sizeof(float)), array(scales, sizeof(float))};
  const Memory param = array(size, sizeof(std::uint16_t));
  const Memory low = array(size, storage.master_bits == 32 ? 2 : 1);
  onepass::Operands operands = {param.data(), grad.data(), {states[0].data(), states[1].data()}, nullptr};
  storage.low = low.data();
  for (std::size_t k = 0; k < 2; ++k) storage.scale[k] = static_cast<float*>(all_scales[k].data());
  {
    const onepass::FloatMode mode(flush);
    table.narrow_sweep(&copy_gradient, {}, operands, storage, 0, 256);  // cut where threads may cut
    table.narrow_sweep(&copy_gradient, {}, operands, storage, 256, size);
  }
  for (std::size_t k = 0; k < 2; ++k) {
    if (state == Storage::float8) {
      check_numbers<std::uint8_t>(states[k], size, golden, context);
      for (std::size_t i = 0; i < scales; ++i) CHECK_BITS(storage.scale[k][i], golden.next<float>(), context);
    } else {
      check_numbers<std::uint16_t>(states[k], size, golden, context);
    }
    if (storage.master_bits != 16) continue;  // golden.py has the reason
    std::vector<float> decoded(size);
    table.decode(state, states[k].data(), storage.scale[k], 0, size, decoded.data());
    for (const float x : decoded) CHECK_BITS(x, golden.next<float>(), context);
  }
  check_numbers<std::uint16_t>(param, size, golden, context);
  if (storage.master_bits == 32) check_numbers<std::uint16_t>(low, size, golden, context);
  if (storage.master_bits == 24) check_numbers<std::uint8_t>(low, size, golden, context);
}

}  // namespace

TEST(narrow_storage_matches_the_specification_bit_for_bit) {
  for (const onepass::Kernels* table : test::tables()) {
    for (const bool flush : test::flush_modes()) {
      for (Golden golden("narrow"); !golden.empty();) narrow(*table, flush, golden);
    }
  }
}

namespace {

template <class T>
void one_sum(const onepass::Kernels& table, onepass::DType dtype, Golden& golden) {
  const test::Values values = test::all_values[static_cast<std::size_t>(golden.next())];
  std::vector<T> array(static_cast<std::size_t>(golden.next()));
  Random random(array.size());
  for (T& x : array) {
    x = test::draw<T>(values, random);
    if (!std::isfinite(x)) x = 1;
  }
  CHECK_BITS(table.squares[dtype](array.data(), 0, array.size()), golden.next(), table.instruction_set, sizeof(T),
             name_of(values), "count", array.size());
}

}  // namespace

TEST(sums_of_squares_match_the_specification_bit_for_bit) {
  for (const onepass::Kernels* table : test::tables()) {
    for (Golden golden("squares"); !golden.empty();) {
      const auto dtype = golden.flag() ? onepass::float64 : onepass::float32;
      const auto run = dtype == onepass::float32 ? &one_sum<float> : &one_sum<double>;
      run(*table, dtype, golden);
    }
  }
}

TEST(powers_match_the_specification) {
  Random random(0);
  for (Golden golden("powers"); !golden.empty();) {
    const std::uint64_t number = random.next();
    const std::uint64_t bits = random.next();
    const double fraction = static_cast<double>(number >> 11) * 0x1p-53;
    const bool large = (number & 1) != 0;
    const double base = large ? 1 - fraction * 0x1p-20 : fraction;
    const auto exponent = static_cast<std::int64_t>(bits >> (large ? 24 + bits % 40 : 54 + bits % 10));
    CHECK_BITS(onepass::power(base, exponent), golden.next(), "base", base, "exponent", exponent);
  }
}
