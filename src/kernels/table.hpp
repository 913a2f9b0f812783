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
  void* average;  // the running average of the parameter; null: none is kept
};

// The options that every rule shares.
struct CommonOptions {
  double lr;
  double weight_decay;
  double clip_value;  // infinity: gradients are not clamped
  double ema_decay;   // of the running average, where one is kept
  bool decoupled;     // weight decay shrinks the parameter itself instead of adding to the gradient
  bool maximize;      // step along the gradient
  bool averaged;      // a running average is kept
  bool scheduled;     // functions of the step say lr or ema_decay; the numbers here are those of before
};

// What a step adds to the options.
struct StepNumbers {
  std::int64_t t;     // 1, 2, ...: the parameter's own count
  double grad_scale;  // multiplies the gradient
  double mu_product;  // NAdam's product of momenta: before the step; folding makes it that after
};

// Room for the numbers of any rule, folded.
struct alignas(16) Numbers {
  unsigned char bytes[128];
};

// Updates elements [begin, end).
using SweepFunction = void (*)(const Numbers& numbers, const Operands& operands, std::size_t begin, std::size_t end);

// Folds options and step into numbers, and returns the sweep that they need; null when one of them overflows the dtype.
using FoldFunction = SweepFunction (*)(const double* options, const CommonOptions& common, StepNumbers& step,
                                       Numbers& numbers);

struct Rule {
  const char* name;
  const char* const* options;  // the names of the numbers that fold() takes, in their order
  std::size_t option_count;
  const char* const* states;  // the names of the state buffers, in their order
  std::size_t state_count;
  bool squares_gradient;  // a gradient whose square overflows would freeze the parameter for good
  FoldFunction fold[dtype_count];
};

// The sum of the squares of elements [begin, end) of a gradient, at most norm_block of them, in double.
using SquaresFunction = double (*)(const void* grad, std::size_t begin, std::size_t end);
constexpr std::size_t norm_block = 4096;

// Whether elements [begin, end), times the scale, and their squares if asked for, are all finite in the dtype.
using FiniteFunction = bool (*)(const void* grad, double scale, bool squared, std::size_t begin, std::size_t end);

// The same streams as Adam's with trivial arithmetic, m += g; v += g; p += g: what benchmarks measure a sweep against.
using StreamFunction = void (*)(const Operands& operands, std::size_t begin, std::size_t end);

struct Kernels {
  const char* instruction_set;
  const Rule* rules;
  std::size_t rule_count;
  SquaresFunction squares[dtype_count];
  FiniteFunction finite[dtype_count];
  StreamFunction stream_limit[dtype_count];
};

}  // namespace onepass
