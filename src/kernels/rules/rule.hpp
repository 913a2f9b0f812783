// What every rule is folded from besides its own options.
#pragma once

#include <cstdint>

#include "kernels/builtins.hpp"
#include "kernels/power.hpp"

namespace onepass {

// One step of one parameter.
struct Moment {
  double lr;
  std::int64_t t;     // 1, 2, ...: the parameter's own count
  double mu_product;  // of the momenta of all steps before; NAdam multiplies it by its own
};

namespace {

// Whether a rule keeps a gradient as it is: what is copied does not flush, so that it must not be multiplied by 1.
template <template <class> class Rule>
constexpr bool copies_gradient = false;

}  // namespace

}  // namespace onepass
