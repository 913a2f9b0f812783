// Stochastic gradient descent; momentum: Polyak (1964); Nesterov's: Sutskever et al., "On the importance of
// initialization and momentum in deep learning" (2013), in PyTorch's form.
#pragma once

#include "kernels/rules/rule.hpp"

namespace onepass {
namespace {

struct SGDOptions {
  double momentum;   // decay of the momentum
  double dampening;  // what share of the gradient does not enter the momentum
  double nesterov;   // 1: step from where the momentum leads
  static constexpr const char* names[] = {"momentum", "dampening", "nesterov"};
};

template <class T>
struct SGD {
  using Options = SGDOptions;
  static constexpr const char* name = "sgd";
  static constexpr const char* states[] = {""};  // none
  static constexpr bool squares_gradient = false;

  T lr;

  static SGD fold(const Options&, Moment& now) { return {static_cast<T>(now.lr)}; }

  void operator()(T& p, T g) const noexcept { p = p - lr * g; }
};

template <class T>
struct SGDMomentum {
  using Options = SGDOptions;
  static constexpr const char* name = "sgd_momentum";
  static constexpr const char* states[] = {"momentum_buffer"};
  static constexpr bool squares_gradient = false;

  T lr;
  T momentum;
  T one_minus_dampening;
  T first;     // 1: there is no momentum yet
  T nesterov;  // 1 or 0

  static SGDMomentum fold(const Options& options, Moment& now) {
    return {
        static_cast<T>(now.lr),
        static_cast<T>(options.momentum),
        static_cast<T>(1 - options.dampening),
        static_cast<T>(now.t == 1 ? 1 : 0),
        static_cast<T>(options.nesterov),
    };
  }

  void operator()(T& p, T g, T& b) const noexcept {
    // update the momentum, which starts as the first gradient
    b = first != 0 ? g : momentum * b + one_minus_dampening * g;
    // Nesterov's: step along the gradient and the momentum after it
    const T x = nesterov != 0 ? g + momentum * b : b;
    p = p - lr * x;
  }
};

template <>
constexpr bool copies_gradient<SGDMomentum> = true;

}  // namespace
}  // namespace onepass
