// Inputs of a rule's coefficients at one step of one parameter, and declarations of a rule's state.
#pragma once

#include <cstddef>
#include <cstdint>

namespace onepass {

constexpr std::size_t max_scalars = 2;

// The numbers in double that a rule keeps for each parameter from step to step, in the order of its scalars[].
struct Scalars {
  double values[max_scalars];
};

// The kind of a state array decides how the array starts and in how few bits it may be stored.
enum class StateKind : unsigned char {
  moment,       // of either sign
  slow_moment,  // changes less per step than the noise of float8: bfloat16 is the narrowest storage
  divisor,      // the rule divides by it or takes its root: encoding makes no element 0
  weight,       // starts as a copy of the parameter and is never narrower than the arithmetic
};

// The name of a state array, which has the same kind in every rule.
struct StateEntry {
  const char* name;
  StateKind kind;
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
