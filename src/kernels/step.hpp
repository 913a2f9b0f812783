// One step of one parameter, as the coefficients of its rule depend on it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace onepass {

constexpr std::size_t max_scalars = 2;

// The numbers in double that a rule keeps for each parameter from step to step, in the order of its scalars[].
struct Scalars {
  double values[max_scalars];
};

// The name of a scalar and its value before the first step.
struct ScalarEntry {
  const char* name;
  double initial;
};

struct StepContext {
  double lr;
  std::int64_t t;     // 1, 2, ...: the parameter's own count
  double grad_scale;  // multiplies the gradient
  Scalars scalars;    // before the step; computing the coefficients replaces them by those after it
};

}  // namespace onepass
