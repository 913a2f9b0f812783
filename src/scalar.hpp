// The compiler's own spelling of what the kernels need: files that are compiled with instruction-set flags must not call
// functions of the standard library, whose inline copies the linker could share with files compiled without those flags.
#pragma once

#if defined(_MSC_VER) && !defined(__clang__)
#include <math.h>
#define ONEPASS_SIMD __pragma(omp simd)
#define ONEPASS_SQRT sqrt
#define ONEPASS_SQRTF sqrtf
#else
#define ONEPASS_SIMD _Pragma("omp simd")
#define ONEPASS_SQRT __builtin_sqrt
#define ONEPASS_SQRTF __builtin_sqrtf
#endif

namespace onepass {
namespace {

inline float square_root(float x) { return ONEPASS_SQRTF(x); }
inline double square_root(double x) { return ONEPASS_SQRT(x); }

// NaN if either is NaN, as numpy.maximum.
template <class T>
inline T maximum(T a, T b) {
  return a > b || a != a ? a : b;
}

template <class T>
inline bool is_finite(T x) {
  return x - x == 0;
}

}  // namespace
}  // namespace onepass
