#include "python/step_lock.hpp"

#include <chrono>
#include <stdexcept>
#include <thread>

#include "core/fork_count.hpp"
#include "python/gil.hpp"

namespace onepass::python {

void StepLock::lock() {
  if (is_mine()) {
    throw std::runtime_error(
        "this optimizer is in use by this thread: a schedule, a gradient's own code or a signal handler called it "
        "again");
  }
  const unsigned forks = onepass::fork_count();
  if (!mutex_.try_lock()) {
    // An owner in this process is recorded just after it has locked; an owner from before a fork never unlocks.
    for (int tries = 0; owner_forks_ != forks && tries < 100; ++tries) {
      without_gil([] { std::this_thread::sleep_for(std::chrono::milliseconds(1)); });
    }
    if (owner_forks_ != forks) {
      throw std::runtime_error(
          "this process was forked while another thread was inside a step of this optimizer: its parameters and "
          "state may be partly updated (create a new optimizer, or fork between steps)");
    }
    without_gil([this] { mutex_.lock(); });
  }
  owner_forks_.store(forks, std::memory_order_relaxed);
  owner_.store(PyThread_get_thread_ident(), std::memory_order_relaxed);
}

void StepLock::unlock() noexcept {
  owner_.store(0, std::memory_order_relaxed);
  mutex_.unlock();
}

bool StepLock::is_mine() const noexcept { return owner_ == PyThread_get_thread_ident(); }

void register_step_lock(py::module_& m) {
  // No context manager: since Python 3.14, Ctrl-C may interrupt a with statement between its lock and its block.
  py::class_<StepLock>(m, "StepLock")
      .def(py::init<>())
      .def("call", [](StepLock& lock, const py::function& function, const py::args& arguments) {
        const std::scoped_lock guard(lock);
        return call(function, arguments);
      });
}

}  // namespace onepass::python
