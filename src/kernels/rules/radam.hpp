// RAdam: Liu et al., "On the Variance of the Adaptive Learning Rate and Beyond" (2020), algorithm 2, with epsilon
// placed as in PyTorch.
#pragma once

#include "kernels/rules/rule.hpp"

namespace onepass {
namespace {

struct RAdamOptions {
  double beta1;  // decay of the first moment
  double beta2;  // decay of the second moment
  double eps;    // added to the root of the second moment
  static constexpr const char* names[] = {"beta1", "beta2", "eps"};
};

template <class T>
struct RAdam {
  using Options = RAdamOptions;
  static constexpr const char* name = "radam";
  static constexpr StateEntry states[] = {{"exp_avg", StateKind::moment}, {"exp_avg_sq", StateKind::divisor}};
  static constexpr bool squares_gradient = true;

  T beta1;
  T one_minus_beta1;
  T beta2;
  T one_minus_beta2;
  T step_size;  // a: the learning rate with the bias corrections, rectified
  T adaptive;   // 1: the second moment scales the step; 0: its variance is not known yet
  T eps;

  static RAdam coefficients(const Options& options, StepContext& step) {
    const double decayed = power(options.beta2, step.t);
    const double c1 = 1 - power(options.beta1, step.t);
    const double c2 = 1 - decayed;
    // length of the moving average that the second moment amounts to, in steps
    const double longest = 2 / (1 - options.beta2) - 1;
    const double length = longest - 2 * static_cast<double>(step.t) * decayed / c2;
    const bool is_known = length > 5;
    const double variance =
        is_known ? (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length) : 1;
    return {
        static_cast<T>(options.beta1),
        static_cast<T>(1 - options.beta1),
        static_cast<T>(options.beta2),
        static_cast<T>(1 - options.beta2),
        static_cast<T>(is_known ? step.lr * square_root(variance) * square_root(c2) / c1 : step.lr / c1),
        static_cast<T>(is_known ? 1 : 0),
        static_cast<T>(options.eps),
    };
  }

  void operator()(T& p, T g, T& m, T& v) const noexcept {
    // first moment (momentum)
    m = beta1 * m + one_minus_beta1 * g;
    // second moment (RMSprop)
    v = beta2 * v + one_minus_beta2 * (g * g);
    // root of the second moment; a division by 1 changes no bit
    const T d = adaptive != 0 ? square_root(v) + eps : T(1);
    // parameter
    p = p - step_size * (m / d);
  }
};

}  // namespace
}  // namespace onepass
