// Stochastic gradient descent. Momentum: Polyak, "Some methods of speeding up the convergence of iteration methods"
// (1964). Nesterov's: Sutskever et al., "On the importance of initialization and momentum in deep learning" (2013), in
// PyTorch's form.
#pragma once

#include "kernels/rules/rule.hpp"

namespace onepass {
namespace {

struct SGDOptions {
  double momentum;   // decay of the momentum
  double dampening;  // share of the gradient that does not enter the momentum
  double nesterov;   // 1: Nesterov momentum
  static constexpr const char* names[] = {"momentum", "dampening", "nesterov"};
};

template <class T>
struct SGD {
  using Options = SGDOptions;
  static constexpr const char* name = "sgd";
  static constexpr StateEntry states[] = {no_state};
  static constexpr bool squares_gradient = false;

  T lr;

  static SGD coefficients(const Options&, StepContext& step) { return {static_cast<T>(step.lr)}; }

  void operator()(T& p, T g) const noexcept {
    // parameter
    p = p - lr * g;
  }
};

template <class T>
struct SGDMomentum {
  using Options = SGDOptions;
  static constexpr const char* name = "sgd_momentum";
  static constexpr StateEntry states[] = {{"momentum_buffer", StateKind::moment}};
  static constexpr bool squares_gradient = false;

  T lr;
  T momentum;
  T one_minus_dampening;
  T first;     // 1: there is no momentum yet
  T nesterov;  // 1 or 0

  static SGDMomentum coefficients(const Options& options, StepContext& step) {
    return {
        static_cast<T>(step.lr),
        static_cast<T>(options.momentum),
        static_cast<T>(1 - options.dampening),
        static_cast<T>(step.t == 1 ? 1 : 0),
        static_cast<T>(options.nesterov),
    };
  }

  void operator()(T& p, T g, T& b) const noexcept {
    // momentum, which starts as the first gradient
    b = first != 0 ? g : momentum * b + one_minus_dampening * g;
    // direction: the momentum, or Nesterov's look ahead
    const T x = nesterov != 0 ? g + momentum * b : b;
    // parameter
    p = p - lr * x;
  }
};

template <class T>
constexpr bool copies_gradient<SGDMomentum<T>> = true;

}  // namespace
}  // namespace onepass
