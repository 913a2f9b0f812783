// Schedule-Free AdamW: Defazio et al., "The Road Less Scheduled" (2024), algorithm 1, in the form of the authors'
// package. The parameter is y, where gradients are taken.
#pragma once

#include "kernels/rules/rule.hpp"

namespace onepass {
namespace {

struct ScheduleFreeAdamWOptions {
  double beta1;            // interpolation between z and the average x, of which y consists
  double beta2;            // decay of the second moment
  double eps;              // added to the root of the second moment
  double weight_decay;     // of y, decoupled from the moment
  double warmup_steps;     // steps in which the learning rate rises linearly
  double r;                // power of the step in a step's weight in the average
  double weight_lr_power;  // power of the learning rate in it
  static constexpr const char* names[] = {"beta1", "beta2",          "eps", "weight_decay", "warmup_steps",
                                          "r",     "weight_lr_power"};
};

template <class T>
struct ScheduleFreeAdamW {
  using Options = ScheduleFreeAdamWOptions;
  static constexpr const char* name = "schedule_free_adamw";
  static constexpr StateEntry states[] = {{"exp_avg_sq", StateKind::divisor}, {"z", StateKind::weight}};
  static constexpr ScalarEntry scalars[] = {{"lr_max", 0}, {"weight_sum", 0}};
  static constexpr bool squares_gradient = true;

  T beta2;
  T one_minus_beta2;
  T v_correction;  // r2: one over the root of the second bias correction
  T eps;
  T weight_decay;
  T mix;       // c: the weight of this step in the average
  T y_step;    // A: the step size of y
  T z_step;    // the learning rate of this step
  T is_first;  // 1 at the first step, else 0: z starts as a copy of the parameter's current values. The core copies
               // rows without a gradient

  static ScheduleFreeAdamW coefficients(const Options& options, StepContext& step) {
    const auto t = static_cast<double>(step.t);
    const double lr = step.lr * (t < options.warmup_steps ? t / options.warmup_steps : 1);
    double& lr_max = step.scalars.values[0];
    double& weight_sum = step.scalars.values[1];
    lr_max = maximum(lr_max, lr);
    const double weight = real_power(t, options.r) * real_power(lr_max, options.weight_lr_power);
    weight_sum = weight_sum + weight;
    const double c = weight_sum == 0 ? 0 : weight / weight_sum;
    return {
        static_cast<T>(options.beta2),
        static_cast<T>(1 - options.beta2),
        static_cast<T>(1 / square_root(1 - power(options.beta2, step.t))),
        static_cast<T>(options.eps),
        static_cast<T>(options.weight_decay),
        static_cast<T>(c),
        static_cast<T>(lr * (1 - options.beta1 * (1 - c))),
        static_cast<T>(lr),
        static_cast<T>(step.t == 1 ? 1 : 0),
    };
  }

  void operator()(T& y, T g, T& v, T& z) const noexcept {
    const T start = is_first == 1 ? y : z;
    // second moment (RMSprop)
    v = beta2 * v + one_minus_beta2 * (g * g);
    // update: the normalized gradient, and weight decay
    const T u = g / (square_root(v) * v_correction + eps) + weight_decay * y;
    // parameter: towards z, by the weight of this step in the average x; at weight 1 a copy
    y = (mix == 1 ? start : y + mix * (start - y)) - y_step * u;
    // sequence of plain steps
    z = start - z_step * u;
  }
};

}  // namespace
}  // namespace onepass
