#include "core/thread_pool.hpp"

#include <algorithm>
#include <atomic>
#include <exception>
#include <initializer_list>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#include <signal.h>
#endif

#include "core/fork_count.hpp"

namespace onepass {

ThreadPool* ThreadPool::of_this_process() noexcept {
  static std::atomic<ThreadPool*> current{nullptr};
  if (!forks_are_counted()) return nullptr;
  const unsigned fork = fork_count();
  ThreadPool* pool = current.load(std::memory_order_acquire);
  if (pool != nullptr && pool->fork_ == fork) return pool;
  try {
    auto* const made = new ThreadPool(fork);  // NOLINT(cppcoreguidelines-owning-memory)
    if (current.compare_exchange_strong(pool, made, std::memory_order_acq_rel)) return made;
    delete made;  // NOLINT(cppcoreguidelines-owning-memory): another thread was first
    return pool;
  } catch (const std::exception&) {
    return nullptr;  // out of memory
  }
}

bool ThreadPool::run(WorkQueue& queue, std::size_t helpers) noexcept {
  if (in_use_.test_and_set(std::memory_order_acquire)) return false;
  helpers = grow(helpers);
  {
    const std::scoped_lock lock(mutex_);
    queue_ = &queue;
    helpers_ = wanted_ = helpers;
  }
  if (threads_.size() == 1) {
    wake_.notify_one();
  } else if (helpers != 0) {
    wake_.notify_all();
  }
  queue.work(0);
  {
    // All chunks are taken: do not wait for helpers that have not joined yet.
    std::unique_lock<std::mutex> lock(mutex_);
    wanted_ = 0;
    done_.wait(lock, [this] { return working_ == 0; });
  }
  in_use_.clear(std::memory_order_release);
  return true;
}

// Starts helpers until there are as many as wanted, or until the system refuses. Returns the number of usable helpers.
std::size_t ThreadPool::grow(std::size_t wanted) noexcept {
  if (threads_.size() >= wanted) return wanted;
#if defined(__unix__) || defined(__APPLE__)
  // New threads inherit the mask. They block signals, which are for the program's own threads, except for the signals
  // that a thread causes itself.
  sigset_t helpers_mask;
  sigset_t callers_mask;
  sigfillset(&helpers_mask);
  for (const int signal : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT}) sigdelset(&helpers_mask, signal);
  pthread_sigmask(SIG_SETMASK, &helpers_mask, &callers_mask);
#endif
  try {
    threads_.reserve(wanted);
    while (threads_.size() < wanted) {
      threads_.emplace_back([this, worker = threads_.size() + 1] { wait_for_work(worker); });
    }
  } catch (const std::exception&) {  // NOLINT(bugprone-empty-catch): fewer threads are enough
  }
#if defined(__unix__) || defined(__APPLE__)
  pthread_sigmask(SIG_SETMASK, &callers_mask, nullptr);
#endif
  return std::min(wanted, threads_.size());
}

void ThreadPool::wait_for_work(std::size_t worker) noexcept {
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    wake_.wait(lock, [this, worker] { return wanted_ != 0 && worker <= helpers_; });
    --wanted_;
    ++working_;
    WorkQueue& queue = *queue_;
    lock.unlock();
    queue.work(worker);
    lock.lock();
    if (--working_ == 0) done_.notify_one();
  }
}

}  // namespace onepass
