// Storage: how the elements of an array lie in memory. A storage is a small type, made from an array and the index of a
// sweep's first element in it, with
//
//   Value                    the dtype of the arithmetic
//   load(i), store(i, x)     element i of the sweep, decoded and encoded
//   ref(i)                   the same as a Value&, for as long as a rule is at work
//   until_cache_line(count)  the number of elements before the first cache line, which a sweep of count elements takes
//                            separately
//
// A Format names the storage of each array of a parameter. Storages that need several elements at once, such as 128
// elements with a common scale, are decoded into Plain<Value> buffers in the L1 cache by narrow_sweep(), which then
// calls the same loop() and encodes its results. Rules see neither.
#pragma once

#include <cstddef>
#include <cstdint>

namespace onepass {
namespace {

// One element of state as a plain T& for a rule: loaded by the constructor, stored by the destructor, which runs when
// the rule has returned. It holds a pointer, because with a storage as a member GCC 12 did not vectorise the loop.
template <class T>
class StateRef {
 public:
  explicit StateRef(T* where) noexcept : where_(where), value_(*where) {}
  ~StateRef() { *where_ = value_; }
  StateRef(const StateRef&) = delete;
  StateRef& operator=(const StateRef&) = delete;
  operator T&() noexcept { return value_; }  // NOLINT(google-explicit-constructor): a rule takes a plain T&

 private:
  T* where_;
  T value_;
};

// Elements stored in the dtype of the arithmetic. Stored: T, or const T for an array that is only read.
template <class T, class Stored = T>
class Plain {
 public:
  using Value = T;

  template <class Void>
  Plain(Void* array, std::size_t begin) noexcept : data_(static_cast<Stored*>(array) + begin) {}

  T load(std::size_t i) const noexcept { return data_[i]; }
  void store(std::size_t i, T x) const noexcept { data_[i] = x; }
  StateRef<T> ref(std::size_t i) const noexcept { return StateRef<T>(data_ + i); }

  // Storing vectors across two cache lines made a sweep of a million elements 1.8 times as slow, and a sweep of eight
  // million 1.2 times (AVX-512, Zen 5); in the L1 cache the effect was not measurable.
  std::size_t until_cache_line(std::size_t count) const noexcept {
    constexpr std::size_t line = 64;
    constexpr std::size_t worth_aligning = 4096;
    const std::size_t past = reinterpret_cast<std::uintptr_t>(data_) % line;
    return count < worth_aligning || past == 0 ? 0 : (line - past) / sizeof(T);
  }

 private:
  Stored* data_;
};

// Format with one dtype for all arrays.
template <class T>
struct PlainFormat {
  using Value = T;
  using Param = Plain<T>;
  using Grad = Plain<T, const T>;
  template <std::size_t slot>
  using State = Plain<T>;
  using Average = Plain<T>;
};

}  // namespace
}  // namespace onepass
