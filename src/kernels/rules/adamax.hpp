// Adamax: Kingma and Ba, "Adam: A Method for Stochastic Optimization" (2015), section 7.1, with epsilon placed
// as in PyTorch.
#pragma once

#include "kernels/rules/rule.hpp"

namespace onepass {
namespace {

struct AdamaxOptions {
  double beta1;  // decay of the first moment
  double beta2;  // decay of the infinity norm
  double eps;    // added to the size of the gradient
  static constexpr const char* names[] = {"beta1", "beta2", "eps"};
};

template <class T>
struct Adamax {
  using Options = AdamaxOptions;
  static constexpr const char* name = "adamax";
  static constexpr StateEntry states[] = {{"exp_avg", StateKind::moment}, {"exp_inf", StateKind::divisor}};
  static constexpr bool squares_gradient = false;

  T beta1;
  T one_minus_beta1;
  T beta2;
  T eps;
  T step_size;  // a: the learning rate over the bias correction

  static Adamax coefficients(const Options& options, StepContext& step) {
    return {
        static_cast<T>(options.beta1),
        static_cast<T>(1 - options.beta1),
        static_cast<T>(options.beta2),
        static_cast<T>(options.eps),
        static_cast<T>(step.lr / (1 - power(options.beta1, step.t))),
    };
  }

  void operator()(T& p, T g, T& m, T& u) const noexcept {
    // first moment (momentum)
    m = beta1 * m + one_minus_beta1 * g;
    // infinity norm: the decaying maximum of the gradient's size
    u = maximum(beta2 * u, absolute(g) + eps);
    // parameter
    p = p - step_size * (m / u);
  }
};

}  // namespace
}  // namespace onepass
