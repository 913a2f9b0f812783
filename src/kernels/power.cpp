#include "kernels/power.hpp"

#include <cmath>
#include <cstring>
#include <limits>
#include <new>

namespace onepass {
namespace {

// A positive number (hi * 2^64 + lo) * 2^exponent whose leading bit is set. Integer arithmetic gives the same bits on
// every machine and in every floating-point mode.
struct Float128 {
  std::uint64_t hi;
  std::uint64_t lo;
  std::int64_t exponent;
};

struct Product {
  std::uint64_t hi;
  std::uint64_t lo;
};

Product multiply(std::uint64_t a, std::uint64_t b) noexcept {
#if defined(__SIZEOF_INT128__)
  __extension__ using Uint128 = unsigned __int128;
  const Uint128 product = static_cast<Uint128>(a) * b;
  return {static_cast<std::uint64_t>(product >> 64), static_cast<std::uint64_t>(product)};
#else
  const std::uint64_t half = 0xffffffffU;
  const std::uint64_t low = (a & half) * (b & half);
  const std::uint64_t middle1 = (a >> 32) * (b & half) + (low >> 32);
  const std::uint64_t middle2 = (a & half) * (b >> 32) + (middle1 & half);
  return {(a >> 32) * (b >> 32) + (middle1 >> 32) + (middle2 >> 32), (middle2 << 32) | (low & half)};
#endif
}

// The product cut to 128 bits: too small by less than 2^-125 of itself, and exact where it fits.
Float128 multiply(const Float128& a, const Float128& b) noexcept {
  Product top = multiply(a.hi, b.hi);
  const std::uint64_t cross1 = multiply(a.hi, b.lo).hi;
  const std::uint64_t cross2 = multiply(a.lo, b.hi).hi;
  top.lo += cross1;
  top.hi += top.lo < cross1 ? 1U : 0U;
  top.lo += cross2;
  top.hi += top.lo < cross2 ? 1U : 0U;
  // Either the leading bit or the bit after it is set. Branch-free, because the branch would be unpredictable.
  const std::uint64_t shift = (top.hi >> 63) ^ 1U;
  return {top.hi << shift | (top.lo >> 63 & shift), top.lo << shift,
          a.exponent + b.exponent + 128 - static_cast<std::int64_t>(shift)};
}

// A double's bits: 52 of its mantissa below an exponent with this offset.
constexpr int mantissa_bits = 52;
constexpr std::int64_t exponent_offset = 1023;
constexpr std::uint64_t leading_bit = std::uint64_t{1} << mantissa_bits;

constexpr std::int64_t smallest_exponent = 1 - exponent_offset - 127;  // of a Float128 that is not below 2^-1022

constexpr Float128 one{std::uint64_t{1} << 63, 0, -127};

// Exponentiation by squaring. Below 2^-1022 it may be too large, but stays below.
Float128 power(Float128 base, std::int64_t exponent) noexcept {
  Float128 result = one;
  for (; exponent != 0 && result.exponent >= smallest_exponent; exponent >>= 1) {
    if ((exponent & 1) != 0) result = multiply(result, base);
    if (base.exponent >= smallest_exponent) base = multiply(base, base);
  }
  return result;
}

double round(const Float128& x) noexcept {
  if (x.exponent < smallest_exponent) return 0;
  // To the nearest double, ties to even. A carry out of the mantissa raises the exponent, as it should.
  constexpr std::uint64_t half = std::uint64_t{1} << 10;
  const std::uint64_t rest = x.hi & (2 * half - 1);
  std::uint64_t bits = (x.hi >> 11) - leading_bit;
  bits += static_cast<std::uint64_t>(x.exponent + 127 + exponent_offset) << mantissa_bits;
  if (rest > half || (rest == half && (x.lo != 0 || (bits & 1) != 0))) ++bits;
  double rounded = 0;
  std::memcpy(&rounded, &bits, sizeof rounded);
  return rounded;
}

// Cached factors of base^t = base^(16 q) * base^r with 0 <= r < 16. At consecutive steps, q rarely changes and base^r
// is in the cache, so a power takes one multiplication instead of a dozen. The result depends only on base and t.
struct PowerCache {
  static constexpr int low_bits = 4;
  std::uint64_t base = 0;  // its bits
  std::int64_t q = 0;
  Float128 high = one;                  // base^(16 q)
  Float128 low[1 << low_bits] = {one};  // base^r

  void reset(std::uint64_t bits) noexcept {
    base = bits;
    q = 0;
    high = one;
    low[1] = {((bits & (leading_bit - 1)) | leading_bit) << 11, 0,
              static_cast<std::int64_t>(bits >> mantissa_bits) - exponent_offset - 127};
    for (int r = 2; r < 1 << low_bits; ++r) low[r] = multiply(low[r - 1], low[1]);
  }

  double power_of(std::int64_t t) noexcept {
    const std::int64_t wanted = t >> low_bits;
    if (q != wanted) {
      q = wanted;
      high = power(multiply(low[(1 << low_bits) - 1], low[1]), q);
    }
    return round(multiply(high, low[t & ((1 << low_bits) - 1)]));
  }
};

// Returns the calling thread's factors of this base.
PowerCache& cache_of(std::uint64_t bits) noexcept {
  thread_local PowerCache caches[8];  // a place for each base, by a multiplicative hash
  // launder: otherwise GCC looks up the thread's memory again at each use of the cache.
  PowerCache& cache = *std::launder(&caches[bits * 0x9e3779b97f4a7c15U >> 61]);
  if (cache.base != bits) cache.reset(bits);
  return cache;
}

}  // namespace

double power(double base, std::int64_t exponent) noexcept {
  static_assert(sizeof(double) == sizeof(std::uint64_t) && std::numeric_limits<double>::is_iec559, "IEEE 754 doubles");
  std::uint64_t bits = 0;
  std::memcpy(&bits, &base, sizeof bits);
  if (bits < leading_bit) return exponent == 0 ? 1 : 0;  // zero or subnormal
  return cache_of(bits).power_of(exponent);
}

double libm_pow(double base, double exponent) noexcept { return std::pow(base, exponent); }
double libm_exp(double x) noexcept { return std::exp(x); }
double libm_log(double x) noexcept { return std::log(x); }

double real_power(double base, double exponent) noexcept {
  return exponent == 2 ? base * base : libm_pow(base, exponent);
}

}  // namespace onepass
