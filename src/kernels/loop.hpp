// The fused loop: carries a rule over contiguous buffers in one pass, with the extras of every rule (scale and
// clamping of the gradient, weight decay, the running average). A rule sees one element's gradient, parameter and
// state.
#pragma once

#include <cstddef>

#include "kernels/builtins.hpp"
#include "kernels/coefficients.hpp"
#include "kernels/storage.hpp"
#include "kernels/table.hpp"

namespace onepass {
namespace {

// Coefficients are passed by value: reading them through memory took longer than a hundred elements.
template <Extras extras, class T, class Rule, class Param, class Grad, class Average, class... State>
ONEPASS_INLINE void loop(const Coefficients<T, Rule> k, std::size_t count, const Param param, const Grad grad,
                         const Average average, const State... state) {
  ONEPASS_SIMD
  for (std::size_t i = 0; i < count; ++i) {
    T p = param.load(i);
    T g = grad.load(i);
    if ((extras & scale_gradient) != 0) g = g * k.scale;
    if ((extras & clip_gradient) != 0) {
      // Not a minimum and a maximum, which flush subnormal numbers where a selection copies them.
      const T limit = g < 0 ? -k.clip_value : k.clip_value;
      g = absolute(g) > k.clip_value ? limit : g;
    }
    if ((extras & decay_weights) != 0) g = g + k.weight_decay * p;
    p = p * k.shrink;
    k.rule(p, g, state.ref(i)...);
    param.store(i, p);
    if ((extras & average_weights) != 0) {
      const T e = average.load(i);
      // At weight 1, copy p: the difference p - e may overflow, and the sum loses the sign of a zero.
      average.store(i, k.ema_weight == 1 ? p : e + k.ema_weight * (p - e));
    }
  }
}

// A list of states ends early at a null name.
template <std::size_t count>
constexpr std::size_t count_states(const StateEntry (&states)[count]) {
  std::size_t named = 0;
  while (named < count && states[named].name != nullptr) ++named;
  return named;
}

template <Extras extras, class Format, class Rule>
ONEPASS_NOINLINE void run_loop(const PackedCoefficients& packed, const Operands& x, std::size_t begin,
                               std::size_t end) {
  Coefficients<typename Format::Value, Rule> k = {};
  copy_bytes(&k, packed.bytes, sizeof k);
  const std::size_t count = end - begin;
  const typename Format::Param param(x.param, begin);
  const typename Format::Grad grad(x.grad, begin);
  constexpr bool averages = (extras & average_weights) != 0;
  const typename Format::Average average(averages ? x.average : nullptr, averages ? begin : 0);
  using State0 = typename Format::template State<0>;
  using State1 = typename Format::template State<1>;
  using State2 = typename Format::template State<2>;
  constexpr std::size_t states = count_states(Rule::states);
  static_assert(states <= 3 && max_states == 3, "one case for each number of states");
  if constexpr (states == 0) loop<extras>(k, count, param, grad, average);
  if constexpr (states == 1) loop<extras>(k, count, param, grad, average, State0(x.state[0], begin));
  if constexpr (states == 2) {
    loop<extras>(k, count, param, grad, average, State0(x.state[0], begin), State1(x.state[1], begin));
  }
  if constexpr (states == 3) {
    loop<extras>(k, count, param, grad, average, State0(x.state[0], begin), State1(x.state[1], begin),
                 State2(x.state[2], begin));
  }
}

template <Extras extras, class Format, class Rule>
void sweep(const PackedCoefficients& packed, const Operands& operands, std::size_t begin, std::size_t end) {
  // One alignment for all arrays: state is allocated at the same distance from a cache line as its parameter.
  const std::size_t aligned = begin + typename Format::Param(operands.param, begin).until_cache_line(end - begin);
  if (aligned != begin) run_loop<extras, Format, Rule>(packed, operands, begin, aligned);
  run_loop<extras, Format, Rule>(packed, operands, aligned, end);
}

template <class Format, class Rule, Extras... sets>
constexpr void add_sweeps(SweepFunction (&sweeps)[extras_count]) {
  ((sweeps[sets] = &sweep<sets, Format, Rule>), ...);
}

template <template <class> class R, class Format>
constexpr void add_format(RuleEntry& entry, DType dtype) {
  using Rule = R<typename Format::Value>;
  entry.coefficients[dtype] = &coefficients<typename Format::Value, Rule>;
  constexpr Extras clip = scale_gradient | clip_gradient;
  constexpr Extras decay = clip | decay_weights;
  constexpr Extras average = average_weights;
  add_sweeps<Format, Rule, 0, clip, decay, clip | average, decay | average>(entry.sweeps[dtype]);
  if constexpr (copies_gradient<Rule>) {
    add_sweeps<Format, Rule, clip_gradient, clip_gradient | average>(entry.sweeps[dtype]);
  }
}

template <class Rule>
constexpr auto add_scalars(RuleEntry& entry, int) -> decltype(Rule::scalars[0], void()) {
  static_assert(sizeof(Rule::scalars) / sizeof(ScalarEntry) <= max_scalars,
                "Scalars has too little room for this rule");
  entry.scalars = Rule::scalars;
  entry.scalar_count = sizeof(Rule::scalars) / sizeof(ScalarEntry);
}
template <class Rule>
constexpr void add_scalars(RuleEntry&, long) {}  // a rule that declares none

template <template <class> class R>
constexpr RuleEntry make_entry() {
  using Rule = R<float>;
  using Options = typename Rule::Options;
  RuleEntry entry = {};
  entry.name = Rule::name;
  entry.options = Options::names;
  entry.option_count = sizeof(Options::names) / sizeof(Options::names[0]);
  entry.states = Rule::states;
  entry.state_count = count_states(Rule::states);
  add_scalars<Rule>(entry, 0);
  entry.squares_gradient = Rule::squares_gradient;
  add_format<R, PlainFormat<float>>(entry, float32);
  add_format<R, PlainFormat<double>>(entry, float64);
  return entry;
}

}  // namespace
}  // namespace onepass
