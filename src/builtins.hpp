// What the kernels need of the compiler, in its own spelling: files that are compiled with instruction-set flags must
// not use the standard library, whose inline functions the linker could share with files that are compiled without.
#pragma once

#include <cstddef>

#if defined(_MSC_VER) && !defined(__clang__)
#include <math.h>
#include <string.h>
#define ONEPASS_SIMD __pragma(omp simd)
#define ONEPASS_SQRT sqrt
#define ONEPASS_SQRTF sqrtf
#define ONEPASS_MEMCPY memcpy
#else
#define ONEPASS_SIMD _Pragma("omp simd")
#define ONEPASS_SQRT __builtin_sqrt
#define ONEPASS_SQRTF __builtin_sqrtf
#define ONEPASS_MEMCPY __builtin_memcpy
#endif

namespace onepass {
namespace {

inline float square_root(float x) noexcept { return ONEPASS_SQRTF(x); }
inline double square_root(double x) noexcept { return ONEPASS_SQRT(x); }

inline void copy_bytes(void* to, const void* from, std::size_t count) noexcept { ONEPASS_MEMCPY(to, from, count); }

}  // namespace
}  // namespace onepass
