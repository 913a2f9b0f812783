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
  // The pool of this process, made at first need; null where there is none to be had. It stays until the process ends.
  // A forked child, which has none of its parent's threads, makes a pool of its own and leaves the parent's as it is,
  // since a lock in it may be held forever.
  static ThreadPool* of_this_process() noexcept;

  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  // Has this thread and helpers, as many as the system gives, empty the queue. Returns false, and has done nothing,
  // when another caller has the pool.
  bool run(WorkQueue& queue, std::size_t helpers) noexcept;

 private:
  explicit ThreadPool(unsigned fork) : fork_(fork) {}
  ~ThreadPool() = default;  // runs only for a pool that never started a thread
  std::size_t grow(std::size_t wanted) noexcept;
  void wait_for_work(std::size_t worker) noexcept;

  const unsigned fork_;              // fork_count() of the process whose pool it is
  std::atomic<bool> in_use_{false};  // by the caller whose work this is
  std::vector<std::thread> threads_;
  std::mutex mutex_;  // guards the members below
  std::condition_variable wake_;
  std::condition_variable done_;
  WorkQueue* queue_ = nullptr;
  std::size_t helpers_ = 0;  // the first of them take part
  std::size_t wanted_ = 0;   // helpers that may still join
  std::size_t working_ = 0;  // helpers that have joined and not finished
};

}  // namespace onepass
