// NAdam: Dozat, "Incorporating Nesterov Momentum into Adam" (2016), with the momentum schedule that PyTorch has.
#pragma once

#include "kernels/rules/rule.hpp"

namespace onepass {
namespace {

struct NAdamOptions {
  double beta1;           // decay of the first moment
  double beta2;           // decay of the second moment
  double eps;             // added to the root of the second moment
  double momentum_decay;  // how fast the momentum rises to beta1
  static constexpr const char* names[] = {"beta1", "beta2", "eps", "momentum_decay"};
};

template <class T>
struct NAdam {
  using Options = NAdamOptions;
  static constexpr const char* name = "nadam";
  static constexpr const char* states[] = {"exp_avg", "exp_avg_sq"};
  static constexpr bool squares_gradient = true;

  T beta1;
  T one_minus_beta1;
  T beta2;
  T one_minus_beta2;
  T gradient_step;  // A: the step size of the gradient
  T momentum_step;  // B: the step size of the first moment
  T correct_v;      // r: what corrects the root of the second moment
  T eps;

  static double momentum(const Options& options, std::int64_t t) {
    return options.beta1 * (1 - 0.5 * real_power(0.96, static_cast<double>(t) * options.momentum_decay));
  }

  static NAdam fold(const Options& options, Moment& now) {
    const double mu = momentum(options, now.t);
    const double next_mu = momentum(options, now.t + 1);
    now.mu_product = now.mu_product * mu;
    return {
        static_cast<T>(options.beta1),
        static_cast<T>(1 - options.beta1),
        static_cast<T>(options.beta2),
        static_cast<T>(1 - options.beta2),
        static_cast<T>(now.lr * (1 - mu) / (1 - now.mu_product)),
        static_cast<T>(now.lr * next_mu / (1 - now.mu_product * next_mu)),
        static_cast<T>(1 / square_root(1 - power(options.beta2, now.t))),
        static_cast<T>(options.eps),
    };
  }

  void operator()(T& p, T g, T& m, T& v) const noexcept {
    // update the first moment (momentum)
    m = beta1 * m + one_minus_beta1 * g;
    // update the second moment (RMSprop)
    v = beta2 * v + one_minus_beta2 * (g * g);
    // step along the gradient, and along the moment as the next step will see it
    const T d = square_root(v) * correct_v + eps;
    p = (p - gradient_step * (g / d)) - momentum_step * (m / d);
  }
};

}  // namespace
}  // namespace onepass
