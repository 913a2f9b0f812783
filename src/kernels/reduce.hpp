// Reductions over gradients before a step: sum of squares, all-finite test.
#pragma once

#include <cstddef>

#include "kernels/builtins.hpp"
#include "kernels/table.hpp"

namespace onepass {
namespace {

// Sum of squares in sixteen interleaved sums that are added in a fixed tree: bit-identical for every vector width.
template <class T>
double squares(const void* grad, std::size_t begin, std::size_t end) {
  constexpr std::size_t lanes = 16;
  const T* const g = static_cast<const T*>(grad) + begin;
  const std::size_t count = end - begin;
  double sums[lanes] = {};
  std::size_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    ONEPASS_SIMD
    for (std::size_t lane = 0; lane < lanes; ++lane) {
      const auto x = static_cast<double>(g[i + lane]);
      sums[lane] = sums[lane] + x * x;
    }
  }
  for (std::size_t lane = 0; i < count; ++i, ++lane) {
    const auto x = static_cast<double>(g[i]);
    sums[lane] = sums[lane] + x * x;
  }
  for (std::size_t half = lanes / 2; half != 0; half /= 2) {
    for (std::size_t lane = 0; lane < half; ++lane) sums[lane] = sums[lane] + sums[lane + half];
  }
  return sums[0];
}

template <bool squared, class T>
bool all_finite(const T* grad, T scale, std::size_t count) {
  T zero = 0;  // stays zero while all are finite: infinity - infinity is NaN
  ONEPASS_SIMD_SUM(zero)
  for (std::size_t i = 0; i < count; ++i) {
    const T g = grad[i] * scale;
    const T x = squared ? g * g : g;
    zero += x - x;
  }
  return zero == 0;
}

template <class T>
bool finite(const void* grad, double scale, bool squared, std::size_t begin, std::size_t end) {
  const T* const g = static_cast<const T*>(grad) + begin;
  const T s = static_cast<T>(scale);
  return squared ? all_finite<true>(g, s, end - begin) : all_finite<false>(g, s, end - begin);
}

}  // namespace
}  // namespace onepass
