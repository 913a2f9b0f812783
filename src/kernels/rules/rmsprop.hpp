// RMSprop: Tieleman and Hinton, lecture 6.5 of "Neural Networks for Machine Learning" (2012).
// Centered: Graves, "Generating Sequences With Recurrent Neural Networks" (2013).
#pragma once

#include "kernels/rules/rule.hpp"

namespace onepass {
namespace {

struct RMSpropOptions {
  double alpha;     // decay of the averages
  double eps;       // added to the root
  double momentum;  // decay of the sum of scaled gradients
  static constexpr const char* names[] = {"alpha", "eps", "momentum"};
};

// centered: scaled by the standard deviation of the gradient; with_momentum: stepping along a sum of scaled gradients.
template <class T, bool centered, bool with_momentum>
struct RMSprop {
  using Options = RMSpropOptions;
  static constexpr const char* variants[4] = {"rmsprop", "rmsprop_momentum", "rmsprop_centered",
                                              "rmsprop_centered_momentum"};
  static constexpr const char* name = variants[(centered ? 2 : 0) + (with_momentum ? 1 : 0)];
  static constexpr StateEntry mean = {"grad_avg", StateKind::moment};
  static constexpr StateEntry buffer = with_momentum ? StateEntry{"momentum_buffer", StateKind::moment} : no_state;
  static constexpr StateEntry states[] = {
      {"square_avg", StateKind::divisor}, centered ? mean : buffer, centered ? buffer : no_state};
  static constexpr bool squares_gradient = true;

  T alpha;
  T one_minus_alpha;
  T eps;
  T momentum;
  T lr;

  static RMSprop coefficients(const Options& options, StepContext& step) {
    return {
        static_cast<T>(options.alpha),    static_cast<T>(1 - options.alpha), static_cast<T>(options.eps),
        static_cast<T>(options.momentum), static_cast<T>(step.lr),
    };
  }

  void operator()(T& p, T g, T& v) const noexcept {
    T none = 0;
    update(p, g, v, none, none);
  }
  void operator()(T& p, T g, T& v, T& s_or_b) const noexcept {
    T none = 0;
    update(p, g, v, centered ? s_or_b : none, centered ? none : s_or_b);
  }
  void operator()(T& p, T g, T& v, T& s, T& b) const noexcept { update(p, g, v, s, b); }

  void update(T& p, T g, T& v, T& s, T& b) const noexcept {
    // mean square of the gradient
    v = alpha * v + one_minus_alpha * (g * g);
    T variance = v;
    if constexpr (centered) {
      // mean of the gradient
      s = alpha * s + one_minus_alpha * g;
      // variance, which rounding could make negative
      variance = maximum(v - s * s, T(0));
    }
    // scaled gradient
    T x = g / (square_root(variance) + eps);
    // momentum
    if constexpr (with_momentum) x = b = momentum * b + x;
    // parameter
    p = p - lr * x;
  }
};

template <class T>
using RMSpropPlain = RMSprop<T, false, false>;
template <class T>
using RMSpropMomentum = RMSprop<T, false, true>;
template <class T>
using RMSpropCentered = RMSprop<T, true, false>;
template <class T>
using RMSpropCenteredMomentum = RMSprop<T, true, true>;

}  // namespace
}  // namespace onepass
