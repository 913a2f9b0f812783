// Test numbers, memory that detects accesses out of bounds, and the kernel tables of this machine.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "kernels/table.hpp"

namespace test {

// Sebastiano Vigna's splitmix64: the same numbers on every machine, and as `words` in python/onepass/__main__.py.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_((seed << 32) * step) {}

  std::uint64_t next() {
    std::uint64_t z = (state_ += step);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9U;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebU;
    return z ^ (z >> 31);
  }
  std::size_t below(std::size_t count) { return static_cast<std::size_t>(next() % count); }
  bool chance(unsigned one_in) { return below(one_in) == 0; }

  // In [0, 1); a product of an integer and a power of two, exact everywhere.
  double uniform() { return static_cast<double>(next() >> 11) * 0x1p-53; }
  double between(double low, double high) { return low + (high - low) * uniform(); }

  template <class T>
  T pick(std::initializer_list<T> values) {
    return values.begin()[below(values.size())];
  }

 private:
  static constexpr std::uint64_t step = 0x9e3779b97f4a7c15U;
  std::uint64_t state_;
};

template <class T>
struct Format;
template <>
struct Format<float> {
  using Bits = std::uint32_t;
  static constexpr int mantissa = 23;
  static constexpr int exponents = 255;  // the exponent's bits of infinities and NaNs
};
template <>
struct Format<double> {
  using Bits = std::uint64_t;
  static constexpr int mantissa = 52;
  static constexpr int exponents = 2047;
};

// The number with this sign and exponent (0: zero and subnormal numbers; the largest: infinity and NaN).
template <class T>
T from_bits(bool negative, int exponent, std::uint64_t mantissa) {
  using F = Format<T>;
  using Bits = typename F::Bits;
  const auto below = static_cast<Bits>(mantissa & ((std::uint64_t{1} << F::mantissa) - 1));
  const auto sign = static_cast<Bits>(static_cast<Bits>(negative) << (8 * sizeof(T) - 1));
  const Bits bits = sign | static_cast<Bits>(static_cast<Bits>(exponent) << F::mantissa) | below;
  T value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

enum class Values : unsigned char { ordinary, hostile, small };
constexpr Values all_values[] = {Values::ordinary, Values::hostile, Values::small};
const char* name_of(Values values);

// One number: as they occur in training; or over the whole exponent range, with zeros of both signs, subnormal numbers,
// infinities and NaNs among them; or such that squares and small multiples straddle the smallest normal number. Made
// from two words, as `draw` in golden.py makes it.
template <class T>
T draw(Values values, Random& random) {
  using F = Format<T>;
  const std::uint64_t choice = random.next();
  const std::uint64_t bits = random.next();
  if (values == Values::ordinary) return static_cast<T>(static_cast<double>(bits >> 11) * 0x1p-51 - 2);
  const bool negative = bits >> 63 != 0;
  if (values == Values::small) {
    const int exponents[] = {0, 0, 1, 2, 3, 6, F::exponents / 4, F::exponents / 4 + 1};
    return from_bits<T>(negative, exponents[choice % 8], bits);
  }
  switch (choice % 50) {
    case 0:
    case 1:
    case 2:
    case 3:
      return from_bits<T>(negative, 0, 0);
    case 4:
      return from_bits<T>(negative, F::exponents, 0);
    case 5:
      return from_bits<T>(negative, F::exponents, std::uint64_t{1} << (F::mantissa - 1));
    case 6:
    case 7:
      return from_bits<T>(negative, 0, bits);
    case 8:
      return from_bits<T>(negative, F::exponents - 1, ~std::uint64_t{0});
    default:
      return from_bits<T>(negative, static_cast<int>((choice >> 32) % F::exponents), bits);
  }
}

// Position of an array in memory: directly before or after a protected page, or on the heap in a block of exactly its
// size, this many elements after the start of a cache line.
struct Place {
  enum Kind : unsigned char { before_guard, after_guard, heap } kind;
  std::size_t offset = 0;
};

Place any_place(Random& random);

// Memory for one array. Next to a guarded page, an access out of bounds ends the program, with or without tools. On the
// heap, tools detect it, and check() detects writes in front of the array.
class Memory {
 public:
  Memory(std::size_t bytes, std::size_t item, Place place);
  ~Memory();
  Memory(Memory&& other) noexcept;
  Memory& operator=(Memory&&) = delete;
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  void* data() const { return data_; }
  bool untouched_around() const;

 private:
  void* block_;
  std::size_t block_bytes_;
  bool mapped_;
  unsigned char* data_;
};

// Every table that this processor can use; the first is the baseline.
std::vector<const onepass::Kernels*> tables();
const onepass::RuleEntry& rule_named(const std::string& name);
const onepass::RuleEntry& baseline_rule(const std::string& name);

// Both treatments of subnormal numbers: gradual underflow, and zero in their place. Only the first where the processor
// has no other, or where ONEPASS_TEST_FLUSH=0 (valgrind has no other).
std::vector<bool> flush_modes();

// Updates elements [begin, end) with one sweep for each element: no vectors, no cache lines, no threads.
void update_singly(onepass::SweepFunction sweep, const onepass::PackedCoefficients& packed, const onepass::Operands& x,
                   std::size_t begin, std::size_t end, bool flush);

// Typical and extreme options of a rule and of all rules.
std::vector<double> any_options(const onepass::RuleEntry& rule, Random& random);
onepass::CommonOptions any_common(Random& random);

}  // namespace test
