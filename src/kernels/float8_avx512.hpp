// Blocks of float8 codes with AVX-512 intrinsics, with the bits of the plain loops in float8.hpp. A step with float8
// state takes 0.86 times as long as with the plain loops in the cache, and 0.89 times as long in memory (Xeon, Granite
// Rapids): a pack takes one operation, a conversion to bytes takes two, and bfloat16 holds the value of a code in half
// the width of float32.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "kernels/rounding.hpp"

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12, in its own header: bug 105593
#endif

namespace onepass {
namespace {

constexpr std::size_t float8_block = 64;  // elements

inline __m512i load_ints(const void* from) noexcept { return _mm512_loadu_si512(from); }
inline __m512i ints(std::uint32_t value) noexcept { return _mm512_set1_epi32(static_cast<std::int32_t>(value)); }

// Returns (a & mask) | b.
inline __m512i masked_or(__m512i a, __m512i mask, __m512i b) noexcept {
  return _mm512_ternarylogic_epi32(a, mask, b, 0xEA);
}

inline __m512i float8_rounding(Nearest, __m512i bits, std::size_t) noexcept {
  const __m512i parity = _mm512_and_si512(_mm512_srli_epi32(bits, code_shift), ints(1));
  return _mm512_add_epi32(parity, ints(0x7FFFF - smallest_code));
}
template <bool odd>
__m512i float8_rounding(Stochastic<odd> rounding, __m512i, std::size_t i) noexcept {
  const __m512i random = load_ints(rounding.random + i);
  const __m512i shifted = odd ? _mm512_srli_epi32(random, 12) : _mm512_slli_epi32(random, 4);
  return masked_or(shifted, ints(0xFFFF0), ints(8 - smallest_code));
}

template <bool divisor, class Rounding>
__m512i float8_codes_of_16(const float* x, std::size_t i, const Rounding rounding, __m512 inverse) noexcept {
  const __m512 given = _mm512_loadu_ps(x + i);
  const __m512 z = _mm512_mul_ps(divisor ? given : _mm512_abs_ps(given), inverse);
  const __m512i above = _mm512_castps_si512(_mm512_add_ps(z, _mm512_set1_ps(0x1p-6F)));
  const __m512i subnormal = _mm512_sub_epi32(above, ints(subnormal_codes));
  __m512i bits = _mm512_max_epi32(_mm512_castps_si512(z), subnormal);
  if (divisor) {
    const __mmask16 nonzero = _mm512_cmpge_epi32_mask(_mm512_castps_si512(given), _mm512_set1_epi32(smallest_normal));
    bits = _mm512_mask_max_epi32(bits, nonzero, bits, ints(smallest_code + (1U << code_shift)));
  }
  return _mm512_srli_epi32(_mm512_add_epi32(bits, float8_rounding(rounding, bits, i)), code_shift);
}

// Encodes all whole blocks, and returns the number of their elements.
template <bool divisor, class Rounding>
std::size_t encode_float8_blocks(const float* x, std::size_t count, const Rounding rounding, float inverse,
                                 std::uint8_t* out) noexcept {
  const __m512 factor = _mm512_set1_ps(inverse);
  // The order of the groups of four bytes after two packs.
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  std::size_t i = 0;
  for (; i + float8_block <= count; i += float8_block) {
    const auto codes = [&](std::size_t j) noexcept { return float8_codes_of_16<divisor>(x, i + j, rounding, factor); };
    const auto given = [&](std::size_t j) noexcept { return load_ints(x + i + j); };
    __m512i bytes =
        _mm512_packus_epi16(_mm512_packus_epi32(codes(0), codes(16)), _mm512_packus_epi32(codes(32), codes(48)));
    if (!divisor) {
      // A pack with saturation keeps the signs.
      const __m512i signs =
          _mm512_packs_epi16(_mm512_packs_epi32(given(0), given(16)), _mm512_packs_epi32(given(32), given(48)));
      bytes = masked_or(signs, ints(0x80808080), bytes);
    }
    _mm512_storeu_si512(out + i, _mm512_permutexvar_epi32(order, bytes));
  }
  return i;
}

// Decodes all whole blocks, and returns the number of their elements.
template <bool with_sign>
std::size_t decode_float8_blocks(const std::uint8_t* in, float scale, std::size_t count, float* x) noexcept {
  const __m512 factor = _mm512_set1_ps(scale);
  const __m512i zero = _mm512_setzero_si512();
  // The bfloat16 values of the codes 0 to 7: multiples of 2^-9.
  const __m512i subnormals =
      _mm512_zextsi128_si512(_mm_setr_epi16(0, 0x3B00, 0x3B80, 0x3BC0, 0x3C00, 0x3C20, 0x3C40, 0x3C60));
  // The order of the groups of four codes that the unpacking of halves of 128-bit lanes undoes.
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  std::size_t i = 0;
  for (; i + 32 <= count; i += 32) {
    const __m256i given = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(in + i));
    const __m512i code = _mm512_cvtepu8_epi16(_mm256_permutevar8x32_epi32(given, order));
    const __m512i magnitude = with_sign ? _mm512_and_si512(code, _mm512_set1_epi16(127)) : code;
    const __mmask32 is_subnormal = _mm512_cmplt_epu16_mask(magnitude, _mm512_set1_epi16(8));
    __m512i value = _mm512_add_epi16(_mm512_slli_epi16(magnitude, 4), _mm512_set1_epi16(smallest_code >> 16));
    value = _mm512_mask_permutexvar_epi16(value, is_subnormal, magnitude, subnormals);
    if (with_sign) value = masked_or(_mm512_slli_epi16(code, 8), ints(0x80008000), value);
    const __m512 first = _mm512_castsi512_ps(_mm512_unpacklo_epi16(zero, value));
    const __m512 second = _mm512_castsi512_ps(_mm512_unpackhi_epi16(zero, value));
    _mm512_storeu_ps(x + i, _mm512_mul_ps(first, factor));
    _mm512_storeu_ps(x + i + 16, _mm512_mul_ps(second, factor));
  }
  return i;
}

}  // namespace
}  // namespace onepass

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif
