// The table of one instruction set: its update rules and reductions, each as functions on untyped buffers.
//
// These types cross from files compiled with instruction-set flags to files compiled without: data and pointers only,
// so that they have no functions that the linker could share.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/step.hpp"

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

// Storage of the elements of an array: the dtype of the arithmetic, or a dtype narrower than float32.
enum class Storage : unsigned char { plain, bfloat16, float16, float8 };

constexpr std::size_t scale_group = 128;  // elements of a float8 array that share a scale

// Key of the random bits of a step; they depend on it and on the element.
struct RandomKey {
  std::uint64_t seed;
  std::uint64_t step;       // the parameter's own count, this step included
  std::uint64_t parameter;  // its index in the optimizer
};

// The storage of one parameter's arrays; the arithmetic is in float32.
struct NarrowStorage {
  Storage param;  // plain or bfloat16
  Storage grad;   // not float8
  Storage state[max_states];
  bool divisor[max_states];   // a rule divides by this state or takes its root: encoding makes no element 0
  float* scale[max_states];   // of float8 state, one for each scale_group elements
  void* low;                  // the lower part of bfloat16 parameters: int16, int8, or null with 16 master bits
  unsigned char master_bits;  // of bfloat16 parameters: 32, 24, 16
  bool stochastic;            // rounding; otherwise to nearest
  std::uint64_t first;        // index of the arrays' first element in the whole parameter, a multiple of scale_group
  RandomKey key;
};

// The options that every rule shares.
struct CommonOptions {
  double lr;
  double weight_decay;
  double clip_value;     // infinity: gradients are not clamped
  double ema_decay;      // of the running average, where one is kept
  bool decoupled;        // weight decay shrinks the parameter itself instead of adding to the gradient
  bool maximize;         // step along the gradient
  bool averaged;         // a running average is kept
  bool keep_subnormals;  // whatever the optimizer does with them: flushing would change what a tiny eps does
  bool scheduled;        // lr or ema_decay come from functions of the step; the numbers here are those of the last one
};

// A set of the work that surrounds a rule, in bits.
using Extras = unsigned;
constexpr Extras scale_gradient = 1;
constexpr Extras clip_gradient = 2;
constexpr Extras decay_weights = 4;  // by adding to the gradient; decoupled decay costs nothing and is always there
constexpr Extras average_weights = 8;
constexpr std::size_t extras_count = 16;  // number of sets

// Coefficients of any rule and dtype, as bytes.
struct alignas(16) PackedCoefficients {
  unsigned char bytes[128];
  Extras extras;  // the work that they are for
};

// Updates elements [begin, end).
using SweepFunction = void (*)(const PackedCoefficients& packed, const Operands& operands, std::size_t begin,
                               std::size_t end);

// Computes the coefficients of a step, and the step's scalars; returns false when a coefficient overflows the dtype.
using CoefficientsFunction = bool (*)(const double* options, const CommonOptions& common, StepContext& step,
                                      PackedCoefficients& packed);

// Updates elements [begin, end) of narrow arrays with a sweep of float32; begin is a multiple of scale_group.
using NarrowSweepFunction = void (*)(SweepFunction sweep, const PackedCoefficients& packed, const Operands& operands,
                                     const NarrowStorage& storage, std::size_t begin, std::size_t end);

// Decodes elements [begin, end) of an array; scales: those of its first element and on, of float8.
using DecodeFunction = void (*)(Storage storage, const void* array, const float* scales, std::size_t begin,
                                std::size_t end, float* out);

// Encodes count elements to nearest.
using EncodeFunction = void (*)(Storage storage, const float* x, std::size_t count, bool divisor, void* array,
                                float* scales);

struct RuleEntry {
  const char* name;
  const char* const* options;  // names of the options, in the order in which coefficients take them
  std::size_t option_count;
  const StateEntry* states;  // in the order of Operands::state
  std::size_t state_count;
  const ScalarEntry* scalars;  // in the order of Scalars::values
  std::size_t scalar_count;
  bool squares_gradient;  // a gradient whose square overflows would freeze a parameter for good
  CoefficientsFunction coefficients[dtype_count];
  SweepFunction sweeps[dtype_count][extras_count];  // by PackedCoefficients::extras; null: never needed
};

// Returns the sum of the squares of elements [begin, end) of a gradient, at most norm_block of them, in double.
using SquaresFunction = double (*)(const void* grad, std::size_t begin, std::size_t end);
constexpr std::size_t norm_block = 4096;

// Returns true when elements [begin, end), times the scale, are all finite in the dtype, and with squared their
// squares.
using FiniteFunction = bool (*)(const void* grad, double scale, bool squared, std::size_t begin, std::size_t end);

// Moves Adam's streams with trivial arithmetic, m += g; v += g; p += g: the baseline that benchmarks measure against.
using StreamFunction = void (*)(const Operands& operands, std::size_t begin, std::size_t end);

struct Kernels {
  const char* instruction_set;
  const RuleEntry* rules;
  std::size_t rule_count;
  SquaresFunction squares[dtype_count];
  FiniteFunction finite[dtype_count];
  StreamFunction stream_baseline[dtype_count];
  NarrowSweepFunction narrow_sweep;
  DecodeFunction decode;
  EncodeFunction encode;
};

}  // namespace onepass
