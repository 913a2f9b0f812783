// Worker threads, and how work is cut.
#pragma once

#include <cstddef>

#include "kernels/table.hpp"

namespace onepass {

struct Sweep {
  SweepFunction function;
  const Numbers* numbers;
  Operands operands;
  std::size_t size;  // elements
};

// How many threads a step may use: at first those that the environment asks for, or as many as there are processors for
// this process. At least 1.
int get_num_threads() noexcept;
void set_num_threads(int count) noexcept;

// How often this process became a forked child, counted from the first call: threads from before are not in it.
unsigned forks() noexcept;

// Carries out the sweeps, in any order, with this treatment of subnormal numbers. As one long array they are cut at
// cache lines into a part for each thread.
void run(const Sweep* sweeps, std::size_t count, bool flush_denormals) noexcept;

// Calls part(context, begin, end) for parts that cover [0, count), on as many threads as work of that many bytes is
// worth.
using Part = void (*)(const void* context, std::size_t begin, std::size_t end);
void run_parts(Part part, const void* context, std::size_t count, std::size_t bytes) noexcept;

}  // namespace onepass
