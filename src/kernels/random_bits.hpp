// Random bits for stochastic rounding: a function of seed, step, parameter and element, so the results of a
// step do not depend on the instruction set, threads, slices or interruptions.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/builtins.hpp"
#include "kernels/table.hpp"

namespace onepass {
namespace {

// The output step of splitmix64: Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators" (2014).
inline std::uint64_t mix(std::uint64_t x) noexcept {
  x += 0x9E3779B97F4A7C15;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
  return x ^ (x >> 31);
}

// Writes 32 random bits for each of the elements first, first + 1, ... of a parameter. All indices must have the same
// upper half. Each use serves two slots.
inline void random_bits(const RandomKey& key, unsigned use, std::uint64_t first, std::size_t count,
                        std::uint32_t* out) noexcept {
  std::uint64_t k = mix(key.seed);
  k = mix(k ^ key.step);
  k = mix(k ^ (key.parameter << 8 | use));
  k = mix(k ^ (first >> 32));
  const auto k0 = static_cast<std::uint32_t>(k);
  const auto k1 = static_cast<std::uint32_t>(k >> 32);
  constexpr std::uint32_t stride = 0x9E3779B1;
  std::uint32_t counter = static_cast<std::uint32_t>(first) * stride + k0;  // added to, since AVX-512 multiplies slowly
  for (std::size_t i = 0; i < count; ++i, counter += stride) {
    std::uint32_t x = counter ^ counter >> 16;
    x *= 0x7FEB352D;
    x ^= k1;
    x ^= x >> 15;
    x *= 0x846CA68B;
    out[i] = x ^ (x >> 16);
  }
}

}  // namespace
}  // namespace onepass
