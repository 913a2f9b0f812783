// Codecs: narrow storage of float32 numbers. Decoding is exact. Encoding rounds to nearest, or stochastically with the
// 16 random bits of each element. Integer tests throughout: the processor may treat subnormal numbers as zero.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/builtins.hpp"
#include "kernels/table.hpp"

namespace onepass {
namespace {

inline std::uint32_t bits_of(float x) noexcept {
  std::uint32_t bits;
  copy_bytes(&bits, &x, sizeof bits);
  return bits;
}

inline float float_of(std::uint32_t bits) noexcept {
  float x;
  copy_bytes(&x, &bits, sizeof x);
  return x;
}

constexpr std::uint32_t sign_bit = 0x80000000;
constexpr std::uint32_t infinity_bits = 0x7F800000;
constexpr std::uint32_t quiet_nan_bits = 0x7FC00000;
constexpr std::uint32_t smallest_normal_bits = 0x00800000;

// The random bits of a slot: one 32-bit number serves an even slot and the odd slot after it. Null: nearest.
struct Rounding {
  const std::uint32_t* random;
  unsigned shift;
  std::uint32_t bits(std::size_t i) const noexcept { return (random[i] >> shift) & 0xFFFF; }
};

// ---- bfloat16: the upper half of a float32 ----

// Adds to the magnitude, so that cutting off the lower bits rounds. Random bits round no finite number to infinity.
template <bool stochastic>
std::uint32_t round_bfloat16(std::uint32_t bits, std::uint32_t added) noexcept {
  constexpr std::uint32_t largest_finite = 0x7F7FFFFF;
  const std::uint32_t magnitude = bits & ~sign_bit;
  const std::uint32_t rounded = magnitude + added;
  const std::uint32_t finite = stochastic && rounded > largest_finite ? largest_finite : rounded;
  const std::uint32_t special = magnitude > infinity_bits ? quiet_nan_bits : magnitude;
  return (bits & sign_bit) | (magnitude >= infinity_bits ? special : finite);
}

template <bool stochastic>
void encode_bfloat16(const float* x, std::size_t count, const Rounding rounding, std::uint16_t* out) noexcept {
  ONEPASS_SIMD
  for (std::size_t i = 0; i < count; ++i) {
    const std::uint32_t bits = bits_of(x[i]);
    const std::uint32_t added = stochastic ? rounding.bits(i) : 0x7FFF + ((bits >> 16) & 1);
    out[i] = static_cast<std::uint16_t>(round_bfloat16<stochastic>(bits, added) >> 16);
  }
}

inline void decode_bfloat16(const std::uint16_t* in, std::size_t count, float* x) noexcept {
  ONEPASS_SIMD
  for (std::size_t i = 0; i < count; ++i) x[i] = float_of(static_cast<std::uint32_t>(in[i]) << 16);
}

// ---- float16, of gradients ----

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

// The magnitude's bits; 0 for subnormal numbers, infinity and NaN.
inline std::int32_t magnitude_for_scale(float x) noexcept {
  const auto magnitude = static_cast<std::int32_t>(bits_of(x) & ~sign_bit);
  const std::int32_t normal = magnitude < static_cast<std::int32_t>(smallest_normal_bits) ? 0 : magnitude;
  return normal < static_cast<std::int32_t>(infinity_bits) ? normal : 0;
}

// Encodes one group. divisor: a rule divides by these elements or takes their root, so that none becomes 0. One loop for
// all would be narrowed to bytes by GCC 12, which then could not vectorise it.
template <bool stochastic>
void encode_float8_group(const float* x, std::size_t count, const Rounding rounding, bool divisor, std::uint8_t* out,
                         float* scale) noexcept {
  std::int32_t magnitudes[scale_group];
  ONEPASS_SIMD
  for (std::size_t i = 0; i < count; ++i) magnitudes[i] = magnitude_for_scale(x[i]);
  std::int32_t largest = 0;
  for (std::size_t i = 0; i < count; ++i) largest = magnitudes[i] > largest ? magnitudes[i] : largest;
  constexpr float smallest_scale = 0x1p-117F;
  const float exact = float_of(static_cast<std::uint32_t>(largest)) / 448;
  const float s = exact > smallest_scale ? exact : smallest_scale;
  const float inverse = 1 / s;

  std::int32_t codes[scale_group];
  const std::int32_t smallest_code = divisor ? 1 : 0;
  ONEPASS_SIMD
  for (std::size_t i = 0; i < count; ++i) {
    const float z = float_of(static_cast<std::uint32_t>(magnitudes[i])) * inverse;
    const bool low = z < 0x1p-6F;  // a subnormal code
    const std::uint32_t w = bits_of(low ? z + 0x1p-6F : z);
    const std::uint32_t added = stochastic ? rounding.bits(i) << 4 | 8 : 0x7FFFF + ((w >> 20) & 1);
    const std::int32_t code = static_cast<std::int32_t>((w + added) >> 20) - (low ? 968 : 960);
    const std::int32_t bounded = code < 126 ? code : 126;
    const std::int32_t least = magnitudes[i] > 0 ? smallest_code : 0;
    codes[i] = bounded < least ? least : bounded;
  }
  ONEPASS_SIMD
  for (std::size_t i = 0; i < count; ++i) {
    const std::uint32_t bits = bits_of(x[i]);
    const std::uint32_t code = (bits & ~sign_bit) >= infinity_bits ? 127 : static_cast<std::uint32_t>(codes[i]);
    out[i] = static_cast<std::uint8_t>(code | bits >> 31 << 7);
  }
  *scale = s;
}

template <bool stochastic>
void encode_float8(const float* x, std::size_t count, const Rounding rounding, bool divisor, std::uint8_t* out,
                   float* scales) noexcept {
  for (std::size_t i = 0; i < count; i += scale_group) {
    const std::size_t group = count - i < scale_group ? count - i : scale_group;
    const Rounding own = {stochastic ? rounding.random + i : nullptr, rounding.shift};
    encode_float8_group<stochastic>(x + i, group, own, divisor, out + i, scales + i / scale_group);
  }
}

inline void decode_float8(const std::uint8_t* in, const float* scales, std::size_t count, float* x) noexcept {
  for (std::size_t begin = 0; begin < count; begin += scale_group) {
    const float scale = scales[begin / scale_group];
    const std::size_t end = count - begin < scale_group ? count : begin + scale_group;
    ONEPASS_SIMD
    for (std::size_t i = begin; i < end; ++i) {
      const std::uint32_t code = in[i];
      const std::uint32_t magnitude = code & 127;
      const bool low = magnitude < 8;
      const float value = float_of((magnitude + (low ? 968 : 960)) << 20) - (low ? 0x1p-6F : 0);
      const std::uint32_t result = magnitude == 127 ? quiet_nan_bits : bits_of(value * scale);
      x[i] = float_of(result | (code & 128) << 24);
    }
  }
}

// ---- bfloat16 parameters whose lower half is kept in the state ----

// All 32 bits: the weight rounded to nearest, ties away from zero, and the lower 16 bits.
inline void split(const float* x, std::size_t count, std::uint16_t* high, std::int16_t* low) noexcept {
  ONEPASS_SIMD
  for (std::size_t i = 0; i < count; ++i) {
    const std::uint32_t given = bits_of(x[i]);
    const std::uint32_t bits = (given & ~sign_bit) > infinity_bits ? quiet_nan_bits : given;
    high[i] = static_cast<std::uint16_t>((bits + 0x8000) >> 16);
    low[i] = static_cast<std::int16_t>(static_cast<std::uint16_t>(bits));
  }
}

// 24 bits, rounded as for bfloat16.
template <bool stochastic>
void split24(const float* x, std::size_t count, const Rounding rounding, std::uint16_t* high,
             std::int8_t* low) noexcept {
  ONEPASS_SIMD
  for (std::size_t i = 0; i < count; ++i) {
    const std::uint32_t added = stochastic ? rounding.bits(i) >> 8 : 0x80;
    const std::uint32_t kept = round_bfloat16<stochastic>(bits_of(x[i]), added) & 0xFFFFFF00;
    high[i] = static_cast<std::uint16_t>((kept + 0x8000) >> 16);
    low[i] = static_cast<std::int8_t>(static_cast<std::uint8_t>(kept >> 8));
  }
}

// The lower part in units of its last bit, shift: 0 or 8. A negative one beside a zero counts as 0: only a user who
// wrote the zero leaves such a pair.
template <unsigned shift, class Low>
void join(const std::uint16_t* high, const Low* low, std::size_t count, float* x) noexcept {
  ONEPASS_SIMD
  for (std::size_t i = 0; i < count; ++i) {
    const std::uint32_t upper = high[i];
    const std::int32_t signed_low = low[i];
    const bool ignored = (upper & 0x7FFF) == 0 && signed_low < 0;
    const std::uint32_t lower = ignored ? 0 : static_cast<std::uint32_t>(signed_low) << shift;
    x[i] = float_of((upper << 16) + lower);
  }
}

}  // namespace
}  // namespace onepass
