// Builtins of the compiler that the kernels use. Files compiled with instruction-set flags must not use the standard
// library: the linker could share its inline functions with files compiled without these flags.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(_MSC_VER) && !defined(__clang__)
// The functions are declared here because <math.h> and <string.h> have inline functions. OpenMP pragmas are not used:
// they would compile loops as with /fp:fast, which sums in any order.
extern "C" double __cdecl sqrt(double);
extern "C" float __cdecl sqrtf(float);
extern "C" void* __cdecl memcpy(void*, const void*, std::size_t);
#pragma intrinsic(sqrt, sqrtf, memcpy)
#define ONEPASS_SIMD __pragma(loop(ivdep))
#define ONEPASS_SIMD_SUM(variable)
#define ONEPASS_SQRT sqrt
#define ONEPASS_SQRTF sqrtf
#define ONEPASS_MEMCPY memcpy
#define ONEPASS_INLINE __forceinline
#define ONEPASS_NOINLINE __declspec(noinline)
#define ONEPASS_PREFETCH(address) (static_cast<void>(address))
#else
#define ONEPASS_PRAGMA(text) _Pragma(#text)
#define ONEPASS_SIMD ONEPASS_PRAGMA(omp simd)
#define ONEPASS_SIMD_SUM(variable) \
  ONEPASS_PRAGMA(omp simd reduction(+ : variable))  // NOLINT(bugprone-macro-parentheses)
#define ONEPASS_SQRT __builtin_sqrt
#define ONEPASS_SQRTF __builtin_sqrtf
#define ONEPASS_FABS __builtin_fabs
#define ONEPASS_FABSF __builtin_fabsf
#define ONEPASS_MEMCPY __builtin_memcpy
#define ONEPASS_INLINE __attribute__((always_inline)) inline
#define ONEPASS_NOINLINE __attribute__((noinline))
#define ONEPASS_PREFETCH(address) __builtin_prefetch(address)
#endif

// CMakeLists.txt undoes such flags of CXXFLAGS or a build type. This check fails where it could not.
#if defined(__FAST_MATH__) || (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__) || \
    defined(__ASSOCIATIVE_MATH__) || defined(__RECIPROCAL_MATH__) || defined(__NO_SIGNED_ZEROS__)
#error "these flags change what arithmetic gives: onepass promises the same bits everywhere"
#endif

namespace onepass {
namespace {

inline float square_root(float x) noexcept { return ONEPASS_SQRTF(x); }
inline double square_root(double x) noexcept { return ONEPASS_SQRT(x); }

#if defined(ONEPASS_FABS)
inline float absolute(float x) noexcept { return ONEPASS_FABSF(x); }
inline double absolute(double x) noexcept { return ONEPASS_FABS(x); }
#else
// Microsoft's fabsf is an inline function by way of double, which flushes subnormal numbers.
template <class T, class Bits>
T without_sign(T x, Bits mask) noexcept {
  Bits bits;
  ONEPASS_MEMCPY(&bits, &x, sizeof bits);
  bits &= mask;
  ONEPASS_MEMCPY(&x, &bits, sizeof bits);
  return x;
}
inline float absolute(float x) noexcept { return without_sign(x, ~(std::uint32_t{1} << 31)); }
inline double absolute(double x) noexcept { return without_sign(x, ~(std::uint64_t{1} << 63)); }
#endif

// Return the larger number. As in numpy.maximum, the result is NaN if one of the numbers is.
template <class T>
T maximum(T a, T b) noexcept {
  return a > b || a != a ? a : b;
}

// sign(0) = 0, sign(NaN) = NaN.
template <class T>
T sign(T x) noexcept {
  const T one = x < 0 ? T(-1) : T(1);
  const T other = x == 0 ? T(0) : x;
  return absolute(x) > 0 ? one : other;
}

// Return false for infinity and NaN: their difference from themselves is NaN.
template <class T>
bool is_finite(T x) noexcept {
  return x - x == 0;
}

inline void copy_bytes(void* to, const void* from, std::size_t count) noexcept { ONEPASS_MEMCPY(to, from, count); }

}  // namespace
}  // namespace onepass
