// Codecs: narrow storage of float32 numbers. Decoding is exact. Encoding rounds to nearest, or stochastically with
// 16 random bits per element. All tests are on integers, since the processor may treat subnormal numbers as zero.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/builtins.hpp"
#include "kernels/table.hpp"

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

// ---- bfloat16: the upper half of a float32 ----

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

// ---- float8: e4m3fn codes, one scale for each group of elements ----
//
// Below 2^-6 the codes are subnormal, multiples of 2^-9: the sum with 2^-6 has them in the bits where larger numbers
// have theirs, subnormal_codes further up. Each of the two formulas wins the maximum (or, in decoding, the minimum)
// where it holds, so no element needs a test.

// Computes the codes, with signs, of finite numbers. divisor: a rule divides by the numbers or takes their roots, so no
// normal number gets the code 0, and none is negative. Codes have 32 bits here: GCC 12 narrows a loop that writes
// bytes, and then cannot vectorise it.
template <bool divisor, class Rounding>
void float8_codes(const float* x, std::size_t count, const Rounding rounding, float inverse,
                  std::uint32_t* codes) noexcept {
  // Signed numbers, since every instruction set can compare signed numbers.
  const auto integer = [](std::uint32_t bits) { return static_cast<std::int32_t>(bits); };
  ONEPASS_SIMD
  for (std::size_t i = 0; i < count; ++i) {
    const float z = (divisor ? x[i] : absolute(x[i])) * inverse;
    const std::int32_t normal = integer(bits_of(z));
    const std::int32_t subnormal = integer(bits_of(z + 0x1p-6F) - subnormal_codes);
    const std::int32_t rounded = normal > subnormal ? normal : subnormal;
    const std::int32_t least =
        integer(bits_of(x[i])) < smallest_normal ? 0 : integer(smallest_code + (1 << code_shift));
    const auto bits = static_cast<std::uint32_t>(divisor && rounded < least ? least : rounded);
    const std::uint32_t code = (bits + rounding.for_float8(bits, i)) >> code_shift;
    codes[i] = divisor ? code : code | (bits_of(x[i]) >> 24 & 128);
  }
}

// Encodes one group of elements. Most groups have a scale far above the subnormal numbers, and no infinity or NaN. No
// code exceeds 126: z is at most three units in the last place above 448, and stochastic rounding never adds the last
// seven.
template <bool divisor, class Rounding>
void encode_float8_group(const float* x, std::size_t count, const Rounding rounding, std::uint8_t* out,
                         float* scale) noexcept {
  constexpr std::uint32_t ordinary = 0x13E00000;  // 448 times 2^-96: subnormal numbers are encoded as 0 without a test
  float magnitudes[scale_group];
  const float* finite = x;
  std::uint32_t largest = divisor ? largest_bits(x, count) : largest_magnitude(x, count);
  const bool is_ordinary = largest >= ordinary && largest < infinity_bits;
  if (!is_ordinary) {
    for (std::size_t i = 0; i < count; ++i) {
      const std::uint32_t magnitude = bits_of(x[i]) & ~sign_bit;
      magnitudes[i] = float_of(magnitude >= smallest_normal && magnitude < infinity_bits ? magnitude : 0);
    }
    finite = magnitudes;
    largest = largest_magnitude(finite, count);
  }
  const float exact = float_of(largest) / 448;
  const float s = exact > 0x1p-117F ? exact : 0x1p-117F;
  alignas(64) std::uint32_t codes[scale_group];
  float8_codes<divisor>(finite, count, rounding, 1 / s, codes);
  if (!is_ordinary) {
    for (std::size_t i = 0; i < count; ++i) {
      const std::uint32_t bits = bits_of(x[i]);
      codes[i] |= ((bits & ~sign_bit) >= infinity_bits ? nan_code : 0U) | (bits >> 24 & 128);
    }
  }
  ONEPASS_SIMD
  for (std::size_t i = 0; i < count; ++i) out[i] = static_cast<std::uint8_t>(codes[i]);
  *scale = s;
}

template <bool divisor, class Rounding>
void encode_float8(const float* x, std::size_t count, Rounding rounding, std::uint8_t* out, float* scales) noexcept {
  for (std::size_t i = 0; i < count; i += scale_group) {
    const std::size_t group = count - i < scale_group ? count - i : scale_group;
    encode_float8_group<divisor>(x + i, group, advanced(rounding, i), out + i, scales + i / scale_group);
  }
}

// Decodes the codes of numbers, not NaN. with_sign: some may be negative.
template <bool with_sign>
void decode_float8_group(const std::uint8_t* in, float scale, std::size_t count, float* x) noexcept {
  ONEPASS_SIMD
  for (std::size_t i = 0; i < count; ++i) {
    const std::uint32_t code = in[i];
    const float normal = float_of(((with_sign ? code & 127 : code) << code_shift) + smallest_code);
    const float subnormal = normal * 2 - 0x1p-6F;
    const float value = (normal < subnormal ? normal : subnormal) * scale;
    x[i] = with_sign ? float_of(bits_of(value) | (code & 128) << 24) : value;
  }
}

inline std::uint8_t largest_code(const std::uint8_t* in, std::size_t count, unsigned mask) noexcept {
  std::uint8_t largest = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const auto code = static_cast<std::uint8_t>(in[i] & mask);
    largest = code > largest ? code : largest;
  }
  return largest;
}

inline void decode_float8(const std::uint8_t* in, const float* scales, std::size_t count, float* x) noexcept {
  const bool positive = largest_code(in, count, 255) < nan_code;
  for (std::size_t i = 0; i < count; i += scale_group) {
    const std::size_t group = count - i < scale_group ? count - i : scale_group;
    const auto decode = positive ? decode_float8_group<false> : decode_float8_group<true>;
    decode(in + i, scales[i / scale_group], group, x + i);
  }
  if (positive || largest_code(in, count, 127) < nan_code) return;
  for (std::size_t i = 0; i < count; ++i) {
    if ((in[i] & 127) == nan_code) x[i] = float_of(quiet_nan_bits | (in[i] & 128U) << 24);
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
  const auto store = [&](std::size_t i, std::uint32_t bits) {
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
