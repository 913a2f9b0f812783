// The lock of an optimizer's steps.
#pragma once

#include <pybind11/pybind11.h>

#include <atomic>
#include <mutex>

namespace onepass::python {

// Mutex that lets one thread step at a time; waiting threads release the GIL. For std::scoped_lock and
// std::unique_lock.
class StepLock {
 public:
  // Throws std::runtime_error if this thread already holds the lock, or if a fork has left it locked forever.
  void lock();
  void unlock() noexcept;

  // True if this thread holds the lock.
  bool is_mine() const noexcept;

 private:
  std::mutex mutex_;
  // Written with relaxed memory order, because stronger orders would cost 5 ns per write: is_mine() only has to find
  // the calling thread's own identifier, which no other thread writes.
  std::atomic<unsigned long> owner_{0};   // the thread that holds the lock, or 0
  std::atomic<unsigned> owner_forks_{0};  // fork_count() of the owner's process
};

void register_step_lock(pybind11::module_& m);

}  // namespace onepass::python
