// Carries out the sweeps of a step.
#pragma once

#include <cstddef>

#include "kernels.hpp"

namespace onepass {

struct Sweep {
  SweepFunction function;
  const Numbers* numbers;
  Operands operands;
  std::size_t size;  // elements
};

// Carries out the sweeps, in any order, with this treatment of subnormal numbers.
void run(const Sweep* sweeps, std::size_t count, bool flush_denormals) noexcept;

}  // namespace onepass
