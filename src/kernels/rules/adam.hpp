// Adam: Kingma and Ba, "Adam: A Method for Stochastic Optimization" (2015), algorithm 1.
// AMSGrad: Reddi, Kale and Kumar, "On the Convergence of Adam and Beyond" (2018).
#pragma once

#include "kernels/rules/rule.hpp"

namespace onepass {
namespace {

struct AdamOptions {
  double beta1;            // decay of the first moment
  double beta2;            // decay of the second moment
  double eps;              // added to the root of the second moment
  double bias_correction;  // 0: the moments are used as they are
  double hat;              // 1: eps is the paper's epsilon-hat, added before the bias correction
  static constexpr const char* names[] = {"beta1", "beta2", "eps", "bias_correction", "hat"};
};

template <class T>
struct Adam {
  using Options = AdamOptions;
  static constexpr const char* name = "adam";
  static constexpr StateEntry states[] = {{"exp_avg", StateKind::moment}, {"exp_avg_sq", StateKind::divisor}};
  static constexpr bool squares_gradient = true;

  T beta1;
  T one_minus_beta1;
  T beta2;
  T one_minus_beta2;
  T step_size;     // a: the learning rate over the first bias correction
  T v_correction;  // r: one over the root of the second bias correction
  T eps;

  static Adam coefficients(const Options& options, StepContext& step) {
    const bool corrected = options.bias_correction != 0;
    const double c1 = corrected ? 1 - power(options.beta1, step.t) : 1;
    const double c2 = corrected ? 1 - power(options.beta2, step.t) : 1;
    const bool hat = options.hat != 0;
    return {
        static_cast<T>(options.beta1),
        static_cast<T>(1 - options.beta1),
        static_cast<T>(options.beta2),
        static_cast<T>(1 - options.beta2),
        static_cast<T>(hat ? step.lr * square_root(c2) / c1 : step.lr / c1),
        static_cast<T>(hat ? 1 : 1 / square_root(c2)),
        static_cast<T>(options.eps),
    };
  }

  void operator()(T& p, T g, T& m, T& v) const noexcept {
    update_moments(g, m, v);
    move(p, m, v);
  }

  void update_moments(T g, T& m, T& v) const noexcept {
    // first moment (momentum)
    m = beta1 * m + one_minus_beta1 * g;
    // second moment (RMSprop)
    v = beta2 * v + one_minus_beta2 * (g * g);
  }

  void move(T& p, T m, T u) const noexcept {
    // corrected root of the second moment
    const T d = square_root(u) * v_correction + eps;
    // parameter
    p = p - step_size * (m / d);
  }
};

template <class T>
struct AMSGrad : Adam<T> {
  using Options = AdamOptions;
  static constexpr const char* name = "amsgrad";
  static constexpr StateEntry states[] = {
      {"exp_avg", StateKind::moment}, {"exp_avg_sq", StateKind::divisor}, {"max_exp_avg_sq", StateKind::divisor}};

  static AMSGrad coefficients(const Options& options, StepContext& step) {
    return {Adam<T>::coefficients(options, step)};
  }

  void operator()(T& p, T g, T& m, T& v, T& u) const noexcept {
    this->update_moments(g, m, v);
    // largest second moment so far: the effective learning rate never grows
    u = maximum(u, v);
    this->move(p, m, u);
  }
};

}  // namespace
}  // namespace onepass
