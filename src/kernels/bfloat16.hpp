// bfloat16, the upper half of a float32: of states, and of parameters whose lower half is kept in the state. Also
// float16, only for gradients.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/rounding.hpp"

namespace onepass {
namespace {

// Rounding carries only finite numbers above this magnitude into the bits of infinity.
constexpr std::uint32_t may_overflow = 0x7F7F0000;

template <class Rounding>
std::uint32_t round_bfloat16(std::uint32_t bits, std::uint32_t added) noexcept {
  constexpr std::uint32_t largest_finite = 0x7F7FFFFF;
  const std::uint32_t magnitude = bits & ~sign_bit;
  const std::uint32_t rounded = magnitude + added;
  const std::uint32_t limited = rounded < largest_finite ? rounded : largest_finite;
  const std::uint32_t finite = Rounding::may_reach_infinity ? rounded : limited;
  const std::uint32_t special = magnitude > infinity_bits ? quiet_nan_bits : magnitude;
  return (bits & sign_bit) | (magnitude >= infinity_bits ? special : finite);
}

template <class Rounding>
void encode_bfloat16(const float* x, std::size_t count, const Rounding rounding, std::uint16_t* out) noexcept {
  if (largest_magnitude(x, count) < may_overflow) {  // nearly always: no test of each element
    ONEPASS_SIMD
    for (std::size_t i = 0; i < count; ++i) {
      const std::uint32_t bits = bits_of(x[i]);
      out[i] = static_cast<std::uint16_t>((bits + rounding.for_bfloat16(bits, i)) >> 16);
    }
    return;
  }
  for (std::size_t i = 0; i < count; ++i) {
    const std::uint32_t bits = bits_of(x[i]);
    out[i] = static_cast<std::uint16_t>(round_bfloat16<Rounding>(bits, rounding.for_bfloat16(bits, i)) >> 16);
  }
}

inline void decode_bfloat16(const std::uint16_t* in, std::size_t count, float* x) noexcept {
  ONEPASS_SIMD
  for (std::size_t i = 0; i < count; ++i) x[i] = float_of(static_cast<std::uint32_t>(in[i]) << 16);
}

// ---- float16, only for gradients ----

inline void decode_float16(const std::uint16_t* in, std::size_t count, float* x) noexcept {
  ONEPASS_SIMD
  for (std::size_t i = 0; i < count; ++i) {
    const std::uint32_t half = in[i];
    const std::uint32_t magnitude = half & 0x7FFF;
    const std::uint32_t widened = (magnitude << 13) + (magnitude >= 0x7C00 ? 0x70000000 : 0x38000000);
    // A subnormal float16 is an integer times 2^-24, a normal float32.
    const float small = static_cast<float>(static_cast<std::int32_t>(magnitude)) * 0x1p-24F;
    const std::uint32_t result = magnitude < 0x0400 ? bits_of(small) : widened;
    x[i] = float_of(result | (half & 0x8000) << 16);
  }
}

// ---- bfloat16 parameters whose lower half is kept in the state ----

// Stores all 32 bits: the weight rounded to nearest, ties away from zero, and the lower 16 bits.
inline void split(const float* x, std::size_t count, std::uint16_t* high, std::int16_t* low) noexcept {
  ONEPASS_SIMD
  for (std::size_t i = 0; i < count; ++i) {
    const std::uint32_t given = bits_of(x[i]);
    const std::uint32_t bits = (given & ~sign_bit) > infinity_bits ? quiet_nan_bits : given;
    high[i] = static_cast<std::uint16_t>((bits + 0x8000) >> 16);
    low[i] = static_cast<std::int16_t>(static_cast<std::uint16_t>(bits));
  }
}

// Stores 24 bits, rounded like bfloat16.
template <class Rounding>
void split24(const float* x, std::size_t count, const Rounding rounding, std::uint16_t* high,
             std::int8_t* low) noexcept {
  const auto store = [&](std::size_t i, std::uint32_t bits) noexcept {
    high[i] = static_cast<std::uint16_t>(((bits & 0xFFFFFF00) + 0x8000) >> 16);
    low[i] = static_cast<std::int8_t>(static_cast<std::uint8_t>(bits >> 8));
  };
  if (largest_magnitude(x, count) < may_overflow) {
    ONEPASS_SIMD
    for (std::size_t i = 0; i < count; ++i) store(i, bits_of(x[i]) + rounding.for_24_bits(i));
    return;
  }
  for (std::size_t i = 0; i < count; ++i) store(i, round_bfloat16<Rounding>(bits_of(x[i]), rounding.for_24_bits(i)));
}

// Adds the lower part, shifted left by 0 or 8 bits, to the upper half. If the upper half is zero, a negative lower part
// counts as 0: this occurs only after a user has written the zero.
template <unsigned shift, class Low>
void join(const std::uint16_t* high, const Low* low, std::size_t count, float* x) noexcept {
  ONEPASS_SIMD
  for (std::size_t i = 0; i < count; ++i) {
    const std::uint32_t upper = high[i];
    const std::int32_t signed_low = low[i];  // NOLINT(bugprone-signed-char-misuse): a number, of 8 bits or 16
    const bool ignored = (upper & 0x7FFF) == 0 && signed_low < 0;
    const std::uint32_t lower = ignored ? 0 : static_cast<std::uint32_t>(signed_low) << shift;
    x[i] = float_of((upper << 16) + lower);
  }
}

}  // namespace
}  // namespace onepass
