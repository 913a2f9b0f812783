// Threads that carry out a step.
#pragma once

#include <cstddef>

#include "core/openmp.hpp"
#include "core/thread_count.hpp"
#include "core/work_queue.hpp"

namespace onepass {

// The calling thread, and with it either helpers of this process's pool or the calling thread's OpenMP team. The bits
// of a result do not depend on which.
struct Executor {
  std::size_t threads;   // at most this many work, the calling thread among them
  const OpenMP* openmp;  // null: the pool
};

// The pool, with get_num_threads() threads.
Executor pool_executor() noexcept;

// Calls part(context, begin, end) for parts that cover [0, count), on as many threads as work of that many bytes is
// worth.
void run_parts(const Executor& executor, Part part, const void* context, std::size_t count, std::size_t bytes) noexcept;

// The least work that is worth a second thread.
constexpr std::size_t parallel_from_bytes = std::size_t{1} << 22;

}  // namespace onepass
