// What one instruction set offers: the update rules, each as functions on untyped buffers.
//
// These types cross from files compiled with instruction-set flags to files compiled without: data and pointers only,
// so that there is no function of theirs for the linker to share.
#pragma once

#include <cstddef>
#include <cstdint>

namespace onepass {

enum DType : unsigned char { float32, float64, dtype_count };

constexpr std::size_t max_states = 3;

// The arrays of one parameter: contiguous, of one dtype and length, none overlapping another.
struct Operands {
  void* param;
  const void* grad;
  void* state[max_states];
};

// The options that every rule shares.
struct CommonOptions {
  double lr;
  double weight_decay;
  bool decoupled;     // weight decay shrinks the parameter itself instead of adding to the gradient
  double grad_scale;  // multiplies the gradient; negative to step along it
};

// Room for the numbers of any rule, folded.
struct alignas(16) Numbers {
  unsigned char bytes[128];
};

// Updates elements [begin, end).
using SweepFunction = void (*)(const Numbers& numbers, const Operands& operands, std::size_t begin, std::size_t end);

// Folds the options at step t = 1, 2, ... into numbers, and returns the sweep that they need;
// null when one of them overflows the dtype.
using FoldFunction = SweepFunction (*)(const double* options, const CommonOptions& common, std::int64_t t,
                                       Numbers& numbers);

struct Rule {
  const char* name;
  const char* const* options;  // the names of the numbers that fold() takes, in their order
  std::size_t option_count;
  const char* const* states;  // the names of the state buffers, in their order
  std::size_t state_count;
  FoldFunction fold[dtype_count];
};

// The same streams as Adam's with trivial arithmetic, m += g; v += g; p += g: what benchmarks measure a sweep against.
using StreamFunction = void (*)(const Operands& operands, std::size_t begin, std::size_t end);

struct Kernels {
  const char* instruction_set;
  const Rule* rules;
  std::size_t rule_count;
  StreamFunction stream_limit[dtype_count];
};

}  // namespace onepass
