// RMSprop: Tieleman and Hinton, lecture 6.5 of "Neural Networks for Machine Learning" (2012).
// Centered: Graves, "Generating Sequences With Recurrent Neural Networks" (2013).
#pragma once

#include "kernels/rules/rule.hpp"

namespace onepass {
namespace {

struct RMSpropOptions {
  double alpha;     // decay of the averages
  double eps;       // added to the root
  double momentum;  // of the scaled gradients
  static constexpr const char* names[] = {"alpha", "eps", "momentum"};
};

template <class T>
struct RMSprop {
  using Options = RMSpropOptions;
  static constexpr const char* name = "rmsprop";
  static constexpr const char* states[] = {"square_avg"};
  static constexpr bool squares_gradient = true;

  T alpha;
  T one_minus_alpha;
  T eps;
  T momentum;
  T lr;

  static RMSprop fold(const Options& options, Moment& now) {
    return {
        static_cast<T>(options.alpha), static_cast<T>(1 - options.alpha),
        static_cast<T>(options.eps),   static_cast<T>(options.momentum),
        static_cast<T>(now.lr),
    };
  }

  void operator()(T& p, T g, T& v) const noexcept { p = p - lr * scaled(g, v); }

  // the gradient, divided by the root of its mean square
  T scaled(T g, T& v) const noexcept {
    v = alpha * v + one_minus_alpha * (g * g);
    return g / (square_root(v) + eps);
  }

  // the gradient, divided by its standard deviation
  T scaled(T g, T& v, T& s) const noexcept {
    v = alpha * v + one_minus_alpha * (g * g);
    s = alpha * s + one_minus_alpha * g;
    return g / (square_root(maximum(v - s * s, T(0))) + eps);
  }

  void move(T& p, T x, T& b) const noexcept {
    b = momentum * b + x;
    p = p - lr * b;
  }
};

template <class T>
struct RMSpropMomentum : RMSprop<T> {
  static constexpr const char* name = "rmsprop_momentum";
  static constexpr const char* states[] = {"square_avg", "momentum_buffer"};

  static RMSpropMomentum fold(const RMSpropOptions& options, Moment& now) { return {RMSprop<T>::fold(options, now)}; }

  void operator()(T& p, T g, T& v, T& b) const noexcept { this->move(p, this->scaled(g, v), b); }
};

template <class T>
struct RMSpropCentered : RMSprop<T> {
  static constexpr const char* name = "rmsprop_centered";
  static constexpr const char* states[] = {"square_avg", "grad_avg"};

  static RMSpropCentered fold(const RMSpropOptions& options, Moment& now) { return {RMSprop<T>::fold(options, now)}; }

  void operator()(T& p, T g, T& v, T& s) const noexcept { p = p - this->lr * this->scaled(g, v, s); }
};

template <class T>
struct RMSpropCenteredMomentum : RMSprop<T> {
  static constexpr const char* name = "rmsprop_centered_momentum";
  static constexpr const char* states[] = {"square_avg", "grad_avg", "momentum_buffer"};

  static RMSpropCenteredMomentum fold(const RMSpropOptions& options, Moment& now) {
    return {RMSprop<T>::fold(options, now)};
  }

  void operator()(T& p, T g, T& v, T& s, T& b) const noexcept { this->move(p, this->scaled(g, v, s), b); }
};

}  // namespace
}  // namespace onepass
