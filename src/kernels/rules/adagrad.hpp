// Adagrad: Duchi, Hazan and Singer, "Adaptive Subgradient Methods for Online Learning and Stochastic Optimization"
// (2011).
#pragma once

#include "kernels/rules/rule.hpp"

namespace onepass {
namespace {

struct AdagradOptions {
  double lr_decay;  // speed at which the learning rate falls
  double eps;       // added to the root of the sum
  static constexpr const char* names[] = {"lr_decay", "eps"};
};

template <class T>
struct Adagrad {
  using Options = AdagradOptions;
  static constexpr const char* name = "adagrad";
  static constexpr StateEntry states[] = {{"sum", StateKind::divisor}};
  static constexpr bool squares_gradient = true;

  T step_size;  // a: the decayed learning rate
  T eps;

  static Adagrad coefficients(const Options& options, StepContext& step) {
    return {
        static_cast<T>(step.lr / (1 + static_cast<double>(step.t - 1) * options.lr_decay)),
        static_cast<T>(options.eps),
    };
  }

  void operator()(T& p, T g, T& s) const noexcept {
    // sum of all squared gradients
    s = s + g * g;
    // parameter
    p = p - step_size * (g / (square_root(s) + eps));
  }
};

}  // namespace
}  // namespace onepass
