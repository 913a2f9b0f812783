// Carries a rule over contiguous buffers in one pass. What surrounds every rule (the scale of the gradient, weight
// decay) happens here, in the same pass; a rule sees one element's gradient, parameter and state.
#pragma once

#include <cstddef>
#include <cstdint>

#include "builtins.hpp"
#include "kernels.hpp"

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

// The numbers that a sweep needs, all of the parameters' dtype: fold() checks them as one array.
template <class T, template <class> class Rule>
struct Folded {
  T scale;         // of the gradient
  T weight_decay;  // added to the gradient, times the parameter; 0: not added
  T shrink;        // of the parameter: 1, or less for decoupled weight decay
  Rule<T> rule;
};

// What the rule gets to see of the gradient: as it is, scaled, or scaled and with L2 weight decay added.
enum class Gradient : unsigned char { plain, scaled, decayed };

template <Gradient gradient, class T, template <class> class Rule, class... Stored>
void loop(const Folded<T, Rule> k, std::size_t count, T* param, const T* grad, Stored*... state) {
  ONEPASS_SIMD
  for (std::size_t i = 0; i < count; ++i) {
    T p = param[i];
    T g = grad[i];
    if (gradient != Gradient::plain) g = g * k.scale;
    if (gradient == Gradient::decayed) g = g + k.weight_decay * p;
    p = p * k.shrink;
    k.rule(p, g, Slot<Stored>(state + i)...);
    param[i] = p;
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

template <Gradient gradient, class T, template <class> class Rule, std::size_t... index>
void unpack(const Numbers& numbers, const Operands& x, std::size_t begin, std::size_t end, Indices<index...>) {
  Folded<T, Rule> folded = {};
  copy_bytes(&folded, numbers.bytes, sizeof folded);
  loop<gradient>(folded, end - begin, static_cast<T*>(x.param) + begin, static_cast<const T*>(x.grad) + begin,
                 static_cast<T*>(x.state[index]) + begin...);
}

template <class T, template <class> class Rule>
constexpr std::size_t state_count = sizeof(Rule<T>::states) / sizeof(Rule<T>::states[0]);

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

template <Gradient gradient, class T, template <class> class Rule>
void sweep(const Numbers& numbers, const Operands& operands, std::size_t begin, std::size_t end) {
  typename MakeIndices<state_count<T, Rule>>::Type indices;
  const std::size_t aligned = begin + until_cache_line(static_cast<const T*>(operands.param) + begin, end - begin);
  if (aligned != begin) unpack<gradient, T, Rule>(numbers, operands, begin, aligned, indices);
  unpack<gradient, T, Rule>(numbers, operands, aligned, end, indices);
}

template <class T>
bool is_finite(T x) noexcept {
  return x - x == 0;
}

template <class T, template <class> class Rule>
SweepFunction fold(const double* values, const CommonOptions& common, std::int64_t t, Numbers& numbers) {
  typename Rule<T>::Options options = {};
  static_assert(sizeof options == sizeof(double) * (sizeof options.names / sizeof options.names[0]),
                "one name for each option");
  copy_bytes(&options, values, sizeof options);

  const double decoupled = common.decoupled ? common.weight_decay : 0;
  const double coupled = common.decoupled ? 0 : common.weight_decay;
  const Folded<T, Rule> folded = {
      static_cast<T>(common.grad_scale),
      static_cast<T>(coupled),
      static_cast<T>(1 - common.lr * decoupled),
      Rule<T>::fold(options, common.lr, t),
  };
  static_assert(sizeof folded <= sizeof numbers.bytes, "Numbers has too little room for this rule");
  copy_bytes(numbers.bytes, &folded, sizeof folded);

  constexpr std::size_t count = sizeof folded / sizeof(T);
  T all[count];
  copy_bytes(all, &folded, sizeof folded);
  for (std::size_t i = 0; i < count; ++i) {
    if (!is_finite(all[i])) return nullptr;
  }
  if (coupled != 0) return &sweep<Gradient::decayed, T, Rule>;
  if (folded.scale != 1) return &sweep<Gradient::scaled, T, Rule>;
  return &sweep<Gradient::plain, T, Rule>;
}

template <template <class> class Of>
constexpr Rule rule() {
  using Options = typename Of<float>::Options;
  return {
      Of<float>::name,   Options::names,         sizeof(Options::names) / sizeof(Options::names[0]),
      Of<float>::states, state_count<float, Of>, {&fold<float, Of>, &fold<double, Of>},
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
