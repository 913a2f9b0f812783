#include "power.hpp"

#include <cmath>

namespace onepass {
namespace {

// A positive number (hi * 2^64 + lo) * 2^exponent whose leading bit is set. Integers are exact where they are exact on
// every machine and in every floating-point mode.
struct Wide {
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
Wide multiply(const Wide& a, const Wide& b) noexcept {
  Product top = multiply(a.hi, b.hi);
  const std::uint64_t cross1 = multiply(a.hi, b.lo).hi;
  const std::uint64_t cross2 = multiply(a.lo, b.hi).hi;
  top.lo += cross1;
  top.hi += top.lo < cross1 ? 1U : 0U;
  top.lo += cross2;
  top.hi += top.lo < cross2 ? 1U : 0U;
  std::int64_t exponent = a.exponent + b.exponent + 128;
  if (top.hi >> 63 == 0) {
    top.hi = top.hi << 1 | top.lo >> 63;
    top.lo <<= 1;
    --exponent;
  }
  return {top.hi, top.lo, exponent};
}

constexpr std::int64_t underflow = -1022 - 127;  // below this exponent a Wide is below 2^-1022

}  // namespace

double power(double base, std::int64_t exponent) noexcept {
  if (exponent == 0) return 1;
  if (base == 0) return 0;
  int binary_exponent = 0;
  const double mantissa = std::frexp(base, &binary_exponent);  // in [0.5, 1)
  Wide square{static_cast<std::uint64_t>(std::ldexp(mantissa, 64)), 0, binary_exponent - 128};
  Wide result{std::uint64_t{1} << 63, 0, -127};  // 1
  for (;;) {
    if ((exponent & 1) != 0) result = multiply(result, square);
    exponent >>= 1;
    if (exponent == 0) break;
    square = multiply(square, square);
    if (square.exponent < underflow) return 0;  // the highest bit of the exponent is still to come
  }
  if (result.exponent < underflow) return 0;

  // Round the 128 bits to the nearest double, ties to even.
  constexpr int dropped = 64 - 53;
  constexpr std::uint64_t half = std::uint64_t{1} << (dropped - 1);
  std::uint64_t rounded = result.hi >> dropped;
  const std::uint64_t rest = result.hi & (2 * half - 1);
  if (rest > half || (rest == half && (result.lo != 0 || (rounded & 1) != 0))) ++rounded;
  return std::ldexp(static_cast<double>(rounded), static_cast<int>(result.exponent) + 64 + dropped);
}

}  // namespace onepass
