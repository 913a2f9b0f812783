// Prints a digest of what every rule, and measuring, make of the same inputs: equal lines on two machines, compilers or
// instruction sets are equal bits. digest gradual: with gradual underflow; digest flush: subnormal numbers count as
// zero. With a file, compares with its lines instead, and says which differ.
#include <cstdio>
#include <cstring>
#include <fstream>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/dispatch.hpp"
#include "core/optimizer.hpp"
#include "kernels/power.hpp"
#include "support.hpp"

namespace {

using test::Random;
using test::Values;

// FNV-1a over the bytes of numbers, the lowest first on every machine; all NaNs are one.
class Digest {
 public:
  void add(std::uint64_t bits, unsigned bytes) {
    for (unsigned i = 0; i < bytes; ++i) value_ = (value_ ^ (bits >> 8 * i & 0xff)) * 0x100000001b3U;
  }
  template <class T>
  void add(const T* data, std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) {
      const T x = data[i] == data[i] ? data[i] : std::numeric_limits<T>::quiet_NaN();
      typename test::Format<T>::Bits bits = 0;
      std::memcpy(&bits, &x, sizeof x);
      add(bits, sizeof x);
    }
  }
  std::string line(const std::string& name) const {
    char digits[17];
    std::snprintf(digits, sizeof digits, "%016llx", static_cast<unsigned long long>(value_));
    return digits + (' ' + name);
  }

 private:
  std::uint64_t value_ = 0xcbf29ce484222325U;
};

using Lines = std::vector<std::string>;

template <class T>
std::vector<T> array(std::size_t count, Values values, bool positive, Random& random) {
  std::vector<T> made(count);
  for (T& x : made) {
    x = test::draw<T>(values, random);
    if (positive && x < 0) x = -x;
  }
  return made;
}

// Many steps of one rule: lengths around vectors and cache lines, options and step counts of all kinds.
template <class T>
void rule(Lines& lines, const onepass::RuleEntry& rule, Values values, bool flush, std::uint64_t seed) {
  const auto dtype = sizeof(T) == sizeof(float) ? onepass::float32 : onepass::float64;
  Random random(seed);
  Digest digest;
  std::vector<std::size_t> sizes{127, 1000, 4099};
  for (std::size_t size = 0; size < 68; ++size) sizes.push_back(size);
  if (values == Values::hostile) sizes.push_back(300001);
  for (const std::size_t size : sizes) {
    std::vector<std::vector<T>> states;
    auto param = array<T>(size, values, false, random);
    for (std::size_t k = 0; k < rule.state_count; ++k) states.push_back(array<T>(size, values, true, random));
    auto average = array<T>(size, values, false, random);
    onepass::Parameter parameter{dtype, size, 1, {}, 0, 0, {}};
    parameter.operands.param = param.data();
    for (std::size_t k = 0; k < rule.state_count; ++k) parameter.operands.state[k] = states[k].data();
    parameter.operands.average = average.data();
    const auto options = test::any_options(rule, random);
    const auto common = test::any_common(random);
    const auto group = std::make_shared<onepass::Group>(rule, options, common);
    onepass::Optimizer optimizer(flush);
    optimizer.add_group(group, {parameter});
    // Beyond this count a double has no room for the next integer, and the C library's pow nothing left to differ in.
    const auto t = random.pick<std::int64_t>({0, 0, 1, 10, 1000, 123456789, std::int64_t{1} << 62});
    optimizer.restore(t, {t}, {{{t == 0 ? 1 : random.uniform()}}});
    for (int step = 0; step < 3; ++step) {
      const auto grad = array<T>(size, values, false, random);
      const onepass::Gradient gradient{grad.data(), nullptr, 0};
      const double scale = random.pick({1.0, -0.125, 3e-3});
      const auto measured = optimizer.measure(&gradient, scale, true, true);
      digest.add(&measured.norm, 1);
      digest.add(measured.first_nonfinite == 0 ? 1 : 0, 1);
      optimizer.take_options();
      try {
        optimizer.plan(&gradient, scale);
        optimizer.apply();
      } catch (const onepass::Overflow& overflow) {
        digest.add(static_cast<std::uint64_t>(overflow.step), 8);
      }
    }
    digest.add(param.data(), size);
    digest.add(average.data(), size);
    for (const auto& state : states) digest.add(state.data(), size);
    digest.add(&optimizer.parameters()[0].scalars.values[0], 1);
  }
  lines.push_back(
      digest.line(std::string(rule.name) + (sizeof(T) == sizeof(float) ? " float32 " : " float64 ") + name_of(values)));
}

void powers(Lines& lines) {
  Random random(99);
  Digest digest;
  for (int i = 0; i < 100000; ++i) {
    const double base = random.chance(2) ? random.uniform() : 1 - random.uniform() * 0x1p-20;
    const auto exponent = static_cast<std::int64_t>(random.next() >> (2 + random.below(60)));
    const double power = onepass::power(base, exponent);
    digest.add(&power, 1);
  }
  lines.push_back(digest.line("powers"));
}

template <class T>
void norms(Lines& lines, Values values) {
  const auto dtype = sizeof(T) == sizeof(float) ? onepass::float32 : onepass::float64;
  Random random(7);
  Digest digest;
  for (std::size_t size = 0; size < 70000; size += size < 70 ? 1 : 4321) {
    auto data = array<T>(size, values, false, random);
    if (values == Values::hostile) {
      for (T& x : data) x = x - x == 0 ? x : T(1);  // otherwise the norm is hardly ever a number
    }
    const double norm = onepass::norm(dtype, data.data(), size);
    digest.add(&norm, 1);
  }
  lines.push_back(
      digest.line(std::string("norm ") + (sizeof(T) == sizeof(float) ? "float32 " : "float64 ") + name_of(values)));
}

}  // namespace

constexpr int skipped = 77;  // this processor lacks the instruction set

int main(int count, char** arguments) {
  const std::string mode = count > 1 ? arguments[1] : "";
  if (mode != "gradual" && mode != "flush") {
    std::fprintf(stderr, "digest gradual | flush [FILE]\n");
    return 2;
  }
  const bool flush = mode == "flush";
  onepass::set_num_threads(2);
  try {
    onepass::kernels();
  } catch (const std::invalid_argument& error) {
    std::puts(error.what());
    return skipped;
  }
  const onepass::Kernels& table = onepass::kernels();
  Lines lines;
  for (std::size_t r = 0; r < table.rule_count; ++r) {
    for (const Values values : test::all_values) {
      rule<float>(lines, table.rules[r], values, flush, 1000 + r);
      rule<double>(lines, table.rules[r], values, flush, 2000 + r);
    }
  }
  if (!flush) {
    for (const Values values : test::all_values) {
      norms<float>(lines, values);
      norms<double>(lines, values);
    }
    powers(lines);
  }
  if (count == 2) {
    for (const std::string& line : lines) std::puts(line.c_str());
    return 0;
  }
  std::ifstream file(arguments[2]);
  Lines expected;
  for (std::string line; std::getline(file, line);) expected.push_back(line);
  std::size_t equal = 0;
  for (std::size_t i = 0; i < lines.size(); ++i) {
    const bool same = i < expected.size() && lines[i] == expected[i];
    if (same) ++equal;
    if (!same) std::printf("differs: %s\n", lines[i].c_str());
  }
  std::printf("%s: %zu of %zu lines equal\n", table.instruction_set, equal, expected.size());
  return equal == expected.size() && lines.size() == expected.size() ? 0 : 1;
}
