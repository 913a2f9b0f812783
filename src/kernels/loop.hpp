// Carries a rule over contiguous buffers in one pass. What surrounds every rule (scale and clamping of the gradient,
// weight decay, the running average) happens here, in the same pass; a rule sees one element's gradient, parameter and
// state.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/builtins.hpp"
#include "kernels/rules/rule.hpp"
#include "kernels/table.hpp"

namespace onepass {
namespace {

// One element of state, read when made and written back when the rule has had it. How state is stored is known here
// alone: a narrower storage format is another Slot.
template <class T>
class Slot {
 public:
  explicit Slot(T* where) noexcept : where_(where), value_(*where) {}
  ~Slot() { *where_ = value_; }
  Slot(const Slot&) = delete;
  Slot& operator=(const Slot&) = delete;
  operator T&() noexcept { return value_; }  // NOLINT(google-explicit-constructor): a rule takes a plain T&

 private:
  T* where_;
  T value_;
};

// The numbers that a sweep needs, all of the parameters' dtype.
template <class T, template <class> class Rule>
struct Folded {
  T clip_value;     // of the gradient; infinity: not clamped
  T scale;          // of the gradient; 1: not scaled
  T weight_decay;   // added to the gradient, times the parameter
  T shrink;         // of the parameter: 1, or less for decoupled weight decay
  T ema_decay;      // of the running average
  T one_minus_ema;  // 1 - ema_decay
  Rule<T> rule;
};

// What surrounds the rule. Each holds what those before it do; the last three are for parameters with a running
// average.
enum class Around : unsigned char {
  nothing,
  clamped,
  scaled,
  decayed,
  clamped_averaged,
  scaled_averaged,
  decayed_averaged
};

// In registers, the numbers cost nothing: handed over in memory, they took longer than a hundred elements.
template <Around around, class T, template <class> class Rule, class... Stored>
ONEPASS_INLINE void loop(const Folded<T, Rule> k, std::size_t count, T* param, const T* grad, T* average,
                         Stored*... state) {
  constexpr bool clamped = around != Around::nothing;
  constexpr bool scaled = clamped && around != Around::clamped && around != Around::clamped_averaged;
  constexpr bool decayed = around == Around::decayed || around == Around::decayed_averaged;
  constexpr bool averaged = around >= Around::clamped_averaged;
  ONEPASS_SIMD
  for (std::size_t i = 0; i < count; ++i) {
    T p = param[i];
    T g = grad[i];
    if (scaled) g = g * k.scale;
    if (clamped) {
      // Not a minimum and a maximum, which flush subnormal numbers where a selection copies them.
      const T limit = g < 0 ? -k.clip_value : k.clip_value;
      g = absolute(g) > k.clip_value ? limit : g;
    }
    if (decayed) g = g + k.weight_decay * p;
    p = p * k.shrink;
    k.rule(p, g, Slot<Stored>(state + i)...);
    param[i] = p;
    if (averaged) average[i] = k.ema_decay * average[i] + k.one_minus_ema * p;
  }
}

template <std::size_t... index>
struct Indices {};

template <std::size_t count, std::size_t... index>
struct MakeIndices : MakeIndices<count - 1, count - 1, index...> {};

template <std::size_t... index>
struct MakeIndices<0, index...> {
  using Type = Indices<index...>;
};

template <Around around, class T, template <class> class Rule, std::size_t... index>
ONEPASS_NOINLINE void unpack(const Numbers& numbers, const Operands& x, std::size_t begin, std::size_t end,
                             Indices<index...>) {
  Folded<T, Rule> folded = {};
  copy_bytes(&folded, numbers.bytes, sizeof folded);
  const bool averaged = around >= Around::clamped_averaged;
  T* const average = averaged ? static_cast<T*>(x.average) + begin : nullptr;
  loop<around>(folded, end - begin, static_cast<T*>(x.param) + begin, static_cast<const T*>(x.grad) + begin, average,
               static_cast<T*>(x.state[index]) + begin...);
}

// A rule without state has one empty name: C++ knows no empty arrays.
template <std::size_t count>
constexpr std::size_t named(const char* const (&states)[count]) {
  return states[0][0] == '\0' ? 0 : count;
}

template <class T, template <class> class Rule>
constexpr std::size_t state_count = named(Rule<T>::states);

// How many of these elements come before the first that starts a cache line, if there are enough of them for it to
// matter. Vectors stored across two lines made a sweep of a million elements 1.8 times as slow, and one of eight
// million 1.2 times (AVX-512, Zen 5); in the nearest cache they cost nothing that shows. What suits the parameter suits
// its state, which is allocated at the same distance from a line.
template <class T>
std::size_t until_cache_line(const T* data, std::size_t count) {
  constexpr std::size_t line = 64;
  constexpr std::size_t worth_aligning = 4096;
  const std::size_t past = reinterpret_cast<std::uintptr_t>(data) % line;
  return count < worth_aligning || past == 0 ? 0 : (line - past) / sizeof(T);
}

template <Around around, class T, template <class> class Rule>
void sweep(const Numbers& numbers, const Operands& operands, std::size_t begin, std::size_t end) {
  typename MakeIndices<state_count<T, Rule>>::Type indices;
  const std::size_t aligned = begin + until_cache_line(static_cast<const T*>(operands.param) + begin, end - begin);
  if (aligned != begin) unpack<around, T, Rule>(numbers, operands, begin, aligned, indices);
  unpack<around, T, Rule>(numbers, operands, aligned, end, indices);
}

template <class T, template <class> class Rule>
SweepFunction fold(const double* values, const CommonOptions& common, StepNumbers& step, Numbers& numbers) {
  typename Rule<T>::Options options = {};
  static_assert(sizeof options == sizeof(double) * (sizeof options.names / sizeof options.names[0]),
                "one name for each option");
  copy_bytes(&options, values, sizeof options);

  const double scale = common.maximize ? -step.grad_scale : step.grad_scale;
  const double decoupled = common.decoupled ? common.weight_decay : 0;
  const double coupled = common.decoupled ? 0 : common.weight_decay;
  const double ema_decay = common.averaged ? common.ema_decay : 0;
  Moment now = {common.lr, step.t, step.mu_product};
  const Folded<T, Rule> folded = {
      static_cast<T>(common.clip_value), static_cast<T>(scale),
      static_cast<T>(coupled),           static_cast<T>(1 - common.lr * decoupled),
      static_cast<T>(ema_decay),         static_cast<T>(1 - ema_decay),
      Rule<T>::fold(options, now),
  };
  step.mu_product = now.mu_product;
  static_assert(sizeof folded <= sizeof numbers.bytes, "Numbers has too little room for this rule");
  copy_bytes(numbers.bytes, &folded, sizeof folded);

  T all[sizeof folded / sizeof(T)];
  copy_bytes(all, &folded, sizeof folded);
  // No clip value is infinity. The norm of gradients that hold a NaN is one, and so is the scale.
  all[0] = is_finite(common.clip_value) ? all[0] : T(0);
  all[1] = scale != scale ? T(0) : all[1];
  for (const T number : all) {
    if (!is_finite(number)) return nullptr;
  }
  if (coupled != 0)
    return common.averaged ? &sweep<Around::decayed_averaged, T, Rule> : &sweep<Around::decayed, T, Rule>;
  if constexpr (copies_gradient<Rule>) {  // a selection in the loop would not do: Clang makes it a product with 1
    if (folded.scale == 1 && common.averaged) return &sweep<Around::clamped_averaged, T, Rule>;
    if (folded.scale == 1 && is_finite(common.clip_value)) return &sweep<Around::clamped, T, Rule>;
  }
  if (common.averaged) return &sweep<Around::scaled_averaged, T, Rule>;
  if (folded.scale != 1 || is_finite(common.clip_value)) return &sweep<Around::scaled, T, Rule>;
  return &sweep<Around::nothing, T, Rule>;
}

template <template <class> class Of>
constexpr Rule rule() {
  using Options = typename Of<float>::Options;
  return {
      Of<float>::name,
      Options::names,
      sizeof(Options::names) / sizeof(Options::names[0]),
      Of<float>::states,
      state_count<float, Of>,
      Of<float>::squares_gradient,
      {&fold<float, Of>, &fold<double, Of>},
  };
}

template <class T>
void stream_loop(std::size_t count, T* param, const T* grad, T* exp_avg, T* exp_avg_sq) {
  ONEPASS_SIMD
  for (std::size_t i = 0; i < count; ++i) {
    exp_avg[i] += grad[i];
    exp_avg_sq[i] += grad[i];
    param[i] += grad[i];
  }
}

template <class T>
void stream(const Operands& x, std::size_t begin, std::size_t end) {
  const auto part = [&x](std::size_t from, std::size_t to) {
    stream_loop(to - from, static_cast<T*>(x.param) + from, static_cast<const T*>(x.grad) + from,
                static_cast<T*>(x.state[0]) + from, static_cast<T*>(x.state[1]) + from);
  };
  const std::size_t aligned = begin + until_cache_line(static_cast<const T*>(x.param) + begin, end - begin);
  part(begin, aligned);
  part(aligned, end);
}

}  // namespace
}  // namespace onepass
