#include "core/fork_count.hpp"

#include <atomic>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace onepass {
namespace {

std::atomic<unsigned> count{0};

}  // namespace

bool forks_are_counted() noexcept {
#if defined(__unix__) || defined(__APPLE__)
  static const int failed = pthread_atfork(nullptr, nullptr, [] { ++count; });
  return failed == 0;
#else
  return true;  // this system has no fork
#endif
}

unsigned fork_count() noexcept {
  forks_are_counted();
  return count.load(std::memory_order_relaxed);
}

}  // namespace onepass
