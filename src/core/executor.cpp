#include "core/executor.hpp"

#include <algorithm>

#include "core/thread_pool.hpp"

namespace onepass {
namespace {

// Chunks of this size take some microseconds: long enough that taking a chunk has negligible cost, short enough that a
// late or preempted thread delays the step little.
constexpr std::uint64_t chunk_bytes = std::uint64_t{1} << 17;

// Below this many bytes per thread, waking a thread of the pool costs more than it saves.
constexpr std::uint64_t pool_bytes_per_thread = parallel_from_bytes / 2;

}  // namespace

Executor pool_executor() noexcept { return {static_cast<std::size_t>(get_num_threads()), nullptr}; }

void run_parts(const Executor& executor, Part part, const void* context, std::size_t count,
               std::uint64_t bytes) noexcept {
  std::size_t threads = std::min(executor.threads, count);
  if (executor.openmp == nullptr && bytes / pool_bytes_per_thread < threads) {
    threads = static_cast<std::size_t>(bytes / pool_bytes_per_thread);
  }
  if (threads > 1 && bytes >= parallel_from_bytes) {
    const std::uint64_t chunks = bytes / chunk_bytes + 1;
    WorkQueue queue(part, context, count, static_cast<std::size_t>(count / chunks) + 1, threads);
    const auto run_on_pool = [&queue, threads] {
      ThreadPool* const pool = ThreadPool::of_this_process();
      return pool != nullptr && pool->run(queue, threads - 1);
    };
    if (executor.openmp != nullptr ? run_region(*executor.openmp, queue, threads) : run_on_pool()) return;
  }
  part(context, 0, count);
}

}  // namespace onepass
