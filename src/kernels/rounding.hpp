// Rounding of float32 numbers to fewer bits: to nearest, or stochastically with 16 random bits per element. All tests
// are on integers, since the processor may treat subnormal numbers as zero.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/builtins.hpp"

namespace onepass {
namespace {

inline std::uint32_t bits_of(float x) noexcept {
  std::uint32_t bits = 0;
  copy_bytes(&bits, &x, sizeof bits);
  return bits;
}

inline float float_of(std::uint32_t bits) noexcept {
  float x = 0;
  copy_bytes(&x, &bits, sizeof x);
  return x;
}

constexpr std::uint32_t sign_bit = 0x80000000;
constexpr std::uint32_t infinity_bits = 0x7F800000;
constexpr std::uint32_t quiet_nan_bits = 0x7FC00000;
constexpr std::int32_t smallest_normal = 0x00800000;

// Returns the largest bits of an element; the bits of negative numbers are the largest.
template <std::uint32_t mask = 0xFFFFFFFF>
std::uint32_t largest_bits(const float* x, std::size_t count) noexcept {
  std::uint32_t largest = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const std::uint32_t bits = bits_of(x[i]) & mask;
    largest = bits > largest ? bits : largest;
  }
  return largest;
}

inline std::uint32_t largest_magnitude(const float* x, std::size_t count) noexcept {
  return largest_bits<~sign_bit>(x, count);
}

// float8: a float32 from 2^-6 to 448 has its code in bits 20 to 26, after subtraction of smallest_code.
constexpr std::uint32_t code_shift = 20;
constexpr std::uint32_t smallest_code = 960U << code_shift;  // the bits of 2^-7
constexpr std::uint32_t subnormal_codes = 8U << code_shift;
constexpr std::uint8_t nan_code = 127;

// Rounding to nearest: the number to add to the bits of an element before the lower bits are cut off. The number for
// float8 also subtracts smallest_code.
struct Nearest {
  static constexpr bool may_reach_infinity = true;
  static std::uint32_t for_bfloat16(std::uint32_t bits, std::size_t) noexcept { return 0x7FFF + ((bits >> 16) & 1); }
  static std::uint32_t for_24_bits(std::size_t) noexcept { return 0x80; }
  static std::uint32_t for_float8(std::uint32_t bits, std::size_t) noexcept {
    return (0x7FFFF - smallest_code) + ((bits >> code_shift) & 1);
  }
};

// Stochastic rounding: likewise, with 16 of each element's 32 random bits. Even slots use the lower half, odd slots the
// upper half.
template <bool odd>
struct Stochastic {
  static constexpr bool may_reach_infinity = false;
  const std::uint32_t* random;
  std::uint32_t for_bfloat16(std::uint32_t, std::size_t i) const noexcept {
    return odd ? random[i] >> 16 : random[i] & 0xFFFF;
  }
  std::uint32_t for_24_bits(std::size_t i) const noexcept { return (odd ? random[i] >> 24 : random[i] >> 8) & 0xFF; }
  std::uint32_t for_float8(std::uint32_t, std::size_t i) const noexcept {
    return ((odd ? random[i] >> 12 : random[i] << 4) & 0xFFFF0) | (8 - smallest_code);
  }
};

inline Nearest advanced(Nearest rounding, std::size_t) noexcept { return rounding; }
template <bool odd>
Stochastic<odd> advanced(Stochastic<odd> rounding, std::size_t elements) noexcept {
  return {rounding.random + elements};
}

}  // namespace
}  // namespace onepass
