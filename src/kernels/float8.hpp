// float8: e4m3fn codes, with one scale for each group of elements.
//
// Below 2^-6, codes are subnormal: multiples of 2^-9. Adding 2^-6 moves such a code to the bits that hold the code of a
// larger number, with the offset subnormal_codes. The valid result is always the larger of the two (in decoding, the
// smaller), so no element needs a branch.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/builtins.hpp"
#include "kernels/rounding.hpp"
#include "kernels/table.hpp"
#if defined(__AVX512BW__)
#include "kernels/float8_avx512.hpp"
#endif

namespace onepass {
namespace {

#if !defined(__AVX512BW__)
// The plain loops below do all of the work.
template <bool divisor, class Rounding>
std::size_t encode_float8_blocks(const float*, std::size_t, Rounding, float, std::uint8_t*) noexcept {
  return 0;
}
template <bool with_sign>
std::size_t decode_float8_blocks(const std::uint8_t*, float, std::size_t, float*) noexcept {
  return 0;
}
#endif

// Computes the codes, with signs, of finite numbers. divisor: a rule divides by the numbers or takes their roots, so no
// normal number gets the code 0, and none is negative.
template <bool divisor, class Rounding>
void float8_codes(const float* x, std::size_t count, const Rounding rounding, float inverse,
                  std::uint8_t* out) noexcept {
  alignas(64) std::uint32_t codes[scale_group];  // GCC 12 cannot vectorise a loop that narrows them, too
  // Signed numbers, since every instruction set can compare signed numbers.
  const auto integer = [](std::uint32_t bits) noexcept { return static_cast<std::int32_t>(bits); };
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
  ONEPASS_SIMD
  for (std::size_t i = 0; i < count; ++i) out[i] = static_cast<std::uint8_t>(codes[i]);
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
  const float inverse = 1 / s;
  const std::size_t done = encode_float8_blocks<divisor>(finite, count, rounding, inverse, out);
  float8_codes<divisor>(finite + done, count - done, advanced(rounding, done), inverse, out + done);
  if (!is_ordinary) {
    for (std::size_t i = 0; i < count; ++i) {
      const std::uint32_t bits = bits_of(x[i]);
      const unsigned nan = (bits & ~sign_bit) >= infinity_bits ? nan_code : 0;
      out[i] = static_cast<std::uint8_t>(out[i] | nan | (bits >> 24 & 128));
    }
  }
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
  const std::size_t done = decode_float8_blocks<with_sign>(in, scale, count, x);
  ONEPASS_SIMD
  for (std::size_t i = done; i < count; ++i) {
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
    if ((in[i] & 127U) == nan_code) x[i] = float_of(quiet_nan_bits | (in[i] & 128U) << 24);
  }
}

}  // namespace
}  // namespace onepass
