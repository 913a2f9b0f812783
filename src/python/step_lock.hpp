// The lock of an optimizer's steps.
#pragma once

#include <atomic>
#include <mutex>

namespace onepass::python {

// Lets one thread at a time step; the others wait without the GIL. For std::scoped_lock and std::unique_lock.
class StepLock {
 public:
  // Throws std::runtime_error where this thread holds the lock already, and where a fork has left it locked forever.
  void lock();
  void unlock() noexcept;

  // True if this thread holds the lock.
  bool is_mine() const noexcept;

 private:
  std::mutex mutex_;
  // Written without order, which would take 5 ns each: only this thread's own number tells that it holds the lock.
  std::atomic<unsigned long> owner_{0};   // the thread that holds the lock, or 0
  std::atomic<unsigned> owner_forks_{0};  // onepass::forks() of the owner's process
};

}  // namespace onepass::python
