// AdEMAMix: Pagliardini, Ablin and Grangier, "The AdEMAMix Optimizer: Better, Faster, Older" (2024), algorithm 1.
#pragma once

#include "kernels/rules/rule.hpp"

namespace onepass {
namespace {

struct AdEMAMixOptions {
  double beta1;         // decay of the fast first moment
  double beta2;         // decay of the second moment
  double beta3;         // decay of the slow first moment
  double alpha;         // weight of the slow first moment
  double alpha_warmup;  // steps in which alpha rises from 0; 0: none
  double beta3_warmup;  // steps in which the slow decay rises from beta1 to beta3; 0: none
  double eps;           // added to the root of the second moment
  static constexpr const char* names[] = {"beta1", "beta2", "beta3", "alpha", "alpha_warmup", "beta3_warmup", "eps"};
};

template <class T>
struct AdEMAMix {
  using Options = AdEMAMixOptions;
  static constexpr const char* name = "ademamix";
  static constexpr StateEntry states[] = {
      {"exp_avg", StateKind::moment}, {"exp_avg_sq", StateKind::divisor}, {"exp_avg_slow", StateKind::slow_moment}};
  static constexpr bool squares_gradient = true;

  T beta1;
  T one_minus_beta1;
  T beta2;
  T one_minus_beta2;
  T beta3;  // of this step
  T one_minus_beta3;
  T fast_step;     // k1: the learning rate over the bias correction of the fast moment
  T slow_step;     // k2: the learning rate times this step's alpha
  T v_correction;  // r: one over the root of the second bias correction
  T eps;

  // The half-life of the slow moment rises linearly.
  static double slow_decay(const Options& options, double t) {
    if (t >= options.beta3_warmup) return options.beta3;
    const double x = t / options.beta3_warmup;
    const double decay = libm_exp(1 / ((1 - x) / libm_log(options.beta1) + x / libm_log(options.beta3)));
    return decay < options.beta3 ? decay : options.beta3;
  }

  static AdEMAMix coefficients(const Options& options, StepContext& step) {
    const auto t = static_cast<double>(step.t);
    const double decay = slow_decay(options, t);
    const double alpha = t < options.alpha_warmup ? options.alpha * (t / options.alpha_warmup) : options.alpha;
    return {
        static_cast<T>(options.beta1),
        static_cast<T>(1 - options.beta1),
        static_cast<T>(options.beta2),
        static_cast<T>(1 - options.beta2),
        static_cast<T>(decay),
        static_cast<T>(1 - decay),
        static_cast<T>(step.lr / (1 - power(options.beta1, step.t))),
        static_cast<T>(step.lr * alpha),
        static_cast<T>(1 / square_root(1 - power(options.beta2, step.t))),
        static_cast<T>(options.eps),
    };
  }

  void operator()(T& p, T g, T& m, T& v, T& slow) const noexcept {
    // fast first moment
    m = beta1 * m + one_minus_beta1 * g;
    // second moment
    v = beta2 * v + one_minus_beta2 * (g * g);
    // slow first moment, without a bias correction
    slow = beta3 * slow + one_minus_beta3 * g;
    // corrected root of the second moment
    const T d = square_root(v) * v_correction + eps;
    // parameter
    p = p - (fast_step * m + slow_step * slow) / d;
  }
};

}  // namespace
}  // namespace onepass
