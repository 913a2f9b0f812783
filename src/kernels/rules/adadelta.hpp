// Adadelta: Zeiler, "ADADELTA: An Adaptive Learning Rate Method" (2012), algorithm 1, with a learning rate.
#pragma once

#include "kernels/rules/rule.hpp"

namespace onepass {
namespace {

struct AdadeltaOptions {
  double rho;  // decay of both averages
  double eps;  // added under the roots
  static constexpr const char* names[] = {"rho", "eps"};
};

template <class T>
struct Adadelta {
  using Options = AdadeltaOptions;
  static constexpr const char* name = "adadelta";
  static constexpr StateEntry states[] = {{"square_avg", StateKind::divisor}, {"acc_delta", StateKind::divisor}};
  static constexpr bool squares_gradient = true;

  T rho;
  T one_minus_rho;
  T eps;
  T lr;

  static Adadelta coefficients(const Options& options, StepContext& step) {
    return {
        static_cast<T>(options.rho),
        static_cast<T>(1 - options.rho),
        static_cast<T>(options.eps),
        static_cast<T>(step.lr),
    };
  }

  void operator()(T& p, T g, T& s, T& acc) const noexcept {
    // mean square of the gradient
    s = rho * s + one_minus_rho * (g * g);
    // update: the gradient scaled to the size of the updates so far
    const T x = (square_root(acc + eps) / square_root(s + eps)) * g;
    // mean square of the updates
    acc = rho * acc + one_minus_rho * (x * x);
    // parameter
    p = p - lr * x;
  }
};

}  // namespace
}  // namespace onepass
