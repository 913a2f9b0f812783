// Lists of loops over memory, carried out on several threads.
#pragma once

#include <cstddef>

#include "core/executor.hpp"
#include "kernels/table.hpp"

namespace onepass {

// Loop over the arrays of one parameter, or over some of its rows.
struct Sweep {
  SweepFunction function;
  const PackedCoefficients* coefficients;
  Operands operands;
  const NarrowStorage* storage;  // null: all arrays are of the dtype of the arithmetic
  std::size_t size;              // elements
  bool flush_denormals;
  std::size_t begin;  // start in the whole list, in grains; set by run_sweeps()
};

// Carries out the sweeps, in any order. The list is cut between cache lines as if it were one long array.
void run_sweeps(const Executor& executor, Sweep* sweeps, std::size_t count) noexcept;

}  // namespace onepass
