// Lion: Chen et al., "Symbolic Discovery of Optimization Algorithms" (2023), algorithm 2.
#pragma once

#include "kernels/rules/rule.hpp"

namespace onepass {
namespace {

struct LionOptions {
  double beta1;  // share of the momentum in the step
  double beta2;  // decay of the momentum
  static constexpr const char* names[] = {"beta1", "beta2"};
};

template <class T>
struct Lion {
  using Options = LionOptions;
  static constexpr const char* name = "lion";
  static constexpr StateEntry states[] = {{"exp_avg", StateKind::moment}};
  static constexpr bool squares_gradient = false;

  T beta1;
  T one_minus_beta1;
  T beta2;
  T one_minus_beta2;
  T lr;

  static Lion coefficients(const Options& options, StepContext& step) {
    return {
        static_cast<T>(options.beta1),     static_cast<T>(1 - options.beta1), static_cast<T>(options.beta2),
        static_cast<T>(1 - options.beta2), static_cast<T>(step.lr),
    };
  }

  void operator()(T& p, T g, T& m) const noexcept {
    // parameter: along the sign of the momentum mixed with the new gradient
    p = p - lr * sign(beta1 * m + one_minus_beta1 * g);
    // momentum
    m = beta2 * m + one_minus_beta2 * g;
  }
};

}  // namespace
}  // namespace onepass
