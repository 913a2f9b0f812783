// The loop that benchmarks measure a sweep against: Adam's streams with trivial arithmetic.
#pragma once

#include <cstddef>

#include "kernels/builtins.hpp"
#include "kernels/storage.hpp"
#include "kernels/table.hpp"

namespace onepass {
namespace {

template <class T>
void stream_loop(std::size_t count, T* param, const T* grad, T* exp_avg, T* exp_avg_sq) {
  ONEPASS_SIMD
  for (std::size_t i = 0; i < count; ++i) {
    exp_avg[i] += grad[i];
    exp_avg_sq[i] += grad[i];
    param[i] += grad[i];
  }
}

template <class T>
void stream_baseline(const Operands& x, std::size_t begin, std::size_t end) {
  const auto part = [&x](std::size_t from, std::size_t to) {
    stream_loop(to - from, static_cast<T*>(x.param) + from, static_cast<const T*>(x.grad) + from,
                static_cast<T*>(x.state[0]) + from, static_cast<T*>(x.state[1]) + from);
  };
  const std::size_t aligned = begin + Plain<T>(x.param, begin).until_cache_line(end - begin);
  part(begin, aligned);
  part(aligned, end);
}

}  // namespace
}  // namespace onepass
