// Threads that carry out a step.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/openmp.hpp"
#include "core/thread_count.hpp"
#include "core/work_queue.hpp"

namespace onepass {

// Threads that share a step: the calling thread plus pool helpers, or the calling thread's OpenMP team. Results are
// bit-identical either way.
struct Executor {
  std::size_t threads;   // at most this many work, the calling thread among them
  const OpenMP* openmp;  // null: the pool
};

// The pool, with get_num_threads() threads.
Executor pool_executor() noexcept;

// Calls part(context, begin, end) for parts that cover [0, count). The number of threads depends on the bytes of
// memory that the work moves.
void run_parts(const Executor& executor, Part part, const void* context, std::size_t count,
               std::uint64_t bytes) noexcept;

// The number of bytes from which a second thread pays off.
constexpr std::uint64_t parallel_from_bytes = std::uint64_t{1} << 22;

}  // namespace onepass
