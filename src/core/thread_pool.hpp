// Threads of this process that wait for work.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <mutex>
#include <thread>
#include <vector>

#include "core/work_queue.hpp"

namespace onepass {

// Helpers that sleep until there is work. Used by one caller at a time.
class ThreadPool {
 public:
  // Returns the pool of this process, created at first use and never destroyed; null if it cannot be created. A forked
  // child has none of its parent's threads. It creates a new pool and does not touch the old pool, whose lock may be
  // held forever.
  static ThreadPool* of_this_process() noexcept;

  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  // Empties the queue on this thread and up to this many helpers, fewer if the system refuses threads. Returns false,
  // and does nothing, if the pool is in use by another caller.
  bool run(WorkQueue& queue, std::size_t helpers) noexcept;

 private:
  explicit ThreadPool(unsigned fork) : fork_(fork) {}
  ~ThreadPool() = default;  // runs only for a pool that never started a thread
  std::size_t grow(std::size_t wanted) noexcept;
  void wait_for_work(std::size_t worker) noexcept;

  const unsigned fork_;  // fork_count() of the process that owns the pool
  // By a caller of run(). GCC before 13 needs a library for exchange() of std::atomic<bool> on RISC-V.
  std::atomic_flag in_use_ = ATOMIC_FLAG_INIT;
  std::vector<std::thread> threads_;
  std::mutex mutex_;  // guards the members below
  std::condition_variable wake_;
  std::condition_variable done_;
  WorkQueue* queue_ = nullptr;
  std::size_t helpers_ = 0;  // helpers with a number up to this take part
  std::size_t wanted_ = 0;   // helpers that may still join
  std::size_t working_ = 0;  // helpers that have joined and not finished
};

}  // namespace onepass
