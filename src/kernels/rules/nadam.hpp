// NAdam: Dozat, "Incorporating Nesterov Momentum into Adam" (2016), with PyTorch's momentum schedule.
#pragma once

#include "kernels/rules/rule.hpp"

namespace onepass {
namespace {

struct NAdamOptions {
  double beta1;           // decay of the first moment
  double beta2;           // decay of the second moment
  double eps;             // added to the root of the second moment
  double momentum_decay;  // speed at which the momentum rises to beta1
  static constexpr const char* names[] = {"beta1", "beta2", "eps", "momentum_decay"};
};

template <class T>
struct NAdam {
  using Options = NAdamOptions;
  static constexpr const char* name = "nadam";
  static constexpr StateEntry states[] = {{"exp_avg", StateKind::moment}, {"exp_avg_sq", StateKind::divisor}};
  static constexpr ScalarEntry scalars[] = {{"mu_product", 1}};
  static constexpr bool squares_gradient = true;

  T beta1;
  T one_minus_beta1;
  T beta2;
  T one_minus_beta2;
  T gradient_step;  // A: the step size of the gradient
  T momentum_step;  // B: the step size of the first moment
  T v_correction;   // r: one over the root of the second bias correction
  T eps;

  static double momentum(const Options& options, std::int64_t t) {
    return options.beta1 * (1 - 0.5 * libm_pow(0.96, static_cast<double>(t) * options.momentum_decay));
  }

  static NAdam coefficients(const Options& options, StepContext& step) {
    const double mu = momentum(options, step.t);
    const double next_mu = momentum(options, step.t + 1);
    // the momenta of all steps multiplied, this one's included
    double& mu_product = step.scalars.values[0];
    mu_product = mu_product * mu;
    return {
        static_cast<T>(options.beta1),
        static_cast<T>(1 - options.beta1),
        static_cast<T>(options.beta2),
        static_cast<T>(1 - options.beta2),
        static_cast<T>(step.lr * (1 - mu) / (1 - mu_product)),
        static_cast<T>(step.lr * next_mu / (1 - mu_product * next_mu)),
        static_cast<T>(1 / square_root(1 - power(options.beta2, step.t))),
        static_cast<T>(options.eps),
    };
  }

  void operator()(T& p, T g, T& m, T& v) const noexcept {
    // first moment (momentum)
    m = beta1 * m + one_minus_beta1 * g;
    // second moment (RMSprop)
    v = beta2 * v + one_minus_beta2 * (g * g);
    // corrected root of the second moment
    const T d = square_root(v) * v_correction + eps;
    // parameter: along the gradient, and along the moment as the next step will see it
    p = (p - gradient_step * (g / d)) - momentum_step * (m / d);
  }
};

}  // namespace
}  // namespace onepass
