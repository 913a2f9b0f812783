// Adadelta: Zeiler, "ADADELTA: An Adaptive Learning Rate Method" (2012).
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
  static constexpr const char* states[] = {"square_avg", "acc_delta"};
  static constexpr bool squares_gradient = true;

  T rho;
  T one_minus_rho;
  T eps;
  T lr;

  static Adadelta fold(const Options& options, Moment& now) {
    return {
        static_cast<T>(options.rho),
        static_cast<T>(1 - options.rho),
        static_cast<T>(options.eps),
        static_cast<T>(now.lr),
    };
  }

  void operator()(T& p, T g, T& s, T& acc) const noexcept {
    // update the mean square of the gradients
    s = rho * s + one_minus_rho * (g * g);
    // give the gradient the size of the steps so far
    const T x = (square_root(acc + eps) / square_root(s + eps)) * g;
    // update the mean square of the steps
    acc = rho * acc + one_minus_rho * (x * x);
    p = p - lr * x;
  }
};

}  // namespace
}  // namespace onepass
