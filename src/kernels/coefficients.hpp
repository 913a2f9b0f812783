// Coefficients: the numbers that a sweep needs, from options and step.
#pragma once

#include "kernels/builtins.hpp"
#include "kernels/rules/rule.hpp"
#include "kernels/table.hpp"

namespace onepass {
namespace {

// Coefficients of one sweep, in the dtype of the arithmetic.
template <class T, class Rule>
struct Coefficients {
  T clip_value;    // of the gradient; infinity: not clamped
  T scale;         // of the gradient; 1: not scaled
  T weight_decay;  // added to the gradient, times the parameter
  T shrink;        // of the parameter: 1, or less for decoupled weight decay
  T ema_weight;    // of the parameter in the running average: 1 - ema_decay
  Rule rule;
};

// Return the smallest suitable set of extras among the sets for which make_entry() has sweeps.
template <class Rule>
Extras extras_for(bool scales, bool clips, bool decays, bool averages) {
  // The loop cannot select instead: Clang turns the selection into a product with 1.
  const Extras clip = copies_gradient<Rule> && !scales ? clip_gradient : scale_gradient | clip_gradient;
  const Extras average = averages ? average_weights : 0;
  if (decays) return scale_gradient | clip_gradient | decay_weights | average;
  return scales || clips || averages ? clip | average : 0;
}

template <class T, class Rule>
bool all_finite(const Coefficients<T, Rule>& k) {
  T all[sizeof k / sizeof(T)];
  copy_bytes(all, &k, sizeof k);
  for (const T number : all) {
    if (!is_finite(number)) return false;
  }
  return true;
}

template <class T, class Rule>
bool coefficients(const double* values, const CommonOptions& common, StepContext& step, PackedCoefficients& packed) {
  typename Rule::Options options = {};
  static_assert(sizeof options == sizeof(double) * (sizeof options.names / sizeof options.names[0]),
                "one name for each option");
  copy_bytes(&options, values, sizeof options);

  const double scale = common.maximize ? -step.grad_scale : step.grad_scale;
  const double decoupled = common.decoupled ? common.weight_decay : 0;
  const double coupled = common.decoupled ? 0 : common.weight_decay;
  const double ema_weight = common.averaged ? 1 - common.ema_decay : 0;
  const Coefficients<T, Rule> k = {
      static_cast<T>(common.clip_value),       static_cast<T>(scale),      static_cast<T>(coupled),
      static_cast<T>(1 - step.lr * decoupled), static_cast<T>(ema_weight), Rule::coefficients(options, step),
  };
  static_assert(sizeof k <= sizeof packed.bytes, "PackedCoefficients has too little room for this rule");
  copy_bytes(packed.bytes, &k, sizeof k);
  packed.extras = extras_for<Rule>(k.scale != 1, is_finite(common.clip_value), coupled != 0, common.averaged);

  Coefficients<T, Rule> bounded = k;
  // clip_value is infinite without clipping, and scale is NaN if a gradient holds a NaN; neither is an overflow.
  if (!is_finite(common.clip_value)) bounded.clip_value = 0;
  if (scale != scale) bounded.scale = 0;
  return all_finite(bounded);
}

}  // namespace
}  // namespace onepass
