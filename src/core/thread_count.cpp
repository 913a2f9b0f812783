#include "core/thread_count.hpp"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <thread>

#if defined(__linux__)
#include <sched.h>

#include "core/system_file.hpp"
#elif defined(_WIN32)
#if !defined(NOMINMAX)
#define NOMINMAX
#endif
#include <windows.h>

#include <bitset>
#endif

#include "core/spinning_blas.hpp"

namespace onepass {
namespace {

// Return a number of threads from the environment, or 0 if the variable is not set to a valid number.
int from_environment(const char* name) noexcept {
  const char* const text = std::getenv(name);
  if (text == nullptr || *text == '\0') return 0;
  char* end = nullptr;
  errno = 0;
  const long number = std::strtol(text, &end, 10);  // OMP_NUM_THREADS may be a list: its first number counts
  if (end == text || errno != 0 || number < 1 || number > 4096 || (*end != '\0' && *end != ',')) return 0;
  return static_cast<int>(number);
}

#if defined(__linux__)
// Return the number of processors that the system lets this process run on, or 0 if unknown.
int allowed_by_affinity() noexcept {
  cpu_set_t mine;
  return sched_getaffinity(0, sizeof mine, &mine) == 0 ? CPU_COUNT(&mine) : 0;
}

// Return the number of processors that a container's quota allows, or 0 without a quota. The file contains
// "quota period" in microseconds, and "max" in place of the quota if there is none.
int allowed_by_quota() noexcept {
  const SystemText text = read_system_file("/sys/fs/cgroup/cpu.max");
  char* end = nullptr;
  const double quota = std::strtod(text.data(), &end);
  const double period = std::strtod(end, nullptr);
  if (!(quota > 0) || !(period > 0)) return 0;
  return static_cast<int>(std::clamp(quota / period, 1.0, 4096.0));
}
#elif defined(_WIN32)
// Return the number of processors of `start /affinity` and the like, of one group of 64: before Windows 11, threads
// stay in one. 0 if the process has been assigned to several groups.
int allowed_by_affinity() noexcept {
  DWORD_PTR mine = 0;
  DWORD_PTR all = 0;
  if (GetProcessAffinityMask(GetCurrentProcess(), &mine, &all) == 0) return 0;
  return static_cast<int>(std::bitset<64>(mine).count());
}

int allowed_by_quota() noexcept { return 0; }
#else
int allowed_by_affinity() noexcept { return 0; }
int allowed_by_quota() noexcept { return 0; }
#endif

struct ThreadCount {
  const int requested_at_first = from_environment("ONEPASS_NUM_THREADS");
  const int at_first = requested_at_first != 0 ? requested_at_first : default_count();
  std::atomic<int> requested{requested_at_first};

  static int default_count() noexcept {
    if (const int count = from_environment("OMP_NUM_THREADS"); count != 0) return count;
    return spinning_blas() != nullptr ? 1 : processor_count();
  }
};

ThreadCount& thread_count() noexcept {
  static ThreadCount count;
  return count;
}

}  // namespace

int processor_count() noexcept {
  const int allowed = allowed_by_affinity();
  int count = allowed != 0 ? allowed : static_cast<int>(std::thread::hardware_concurrency());
  if (const int quota = allowed_by_quota(); quota != 0) count = std::min(count, quota);
  return std::max(1, count);
}

int requested_threads() noexcept { return thread_count().requested.load(std::memory_order_relaxed); }

int get_num_threads() noexcept {
  const int requested = requested_threads();
  return requested != 0 ? requested : thread_count().at_first;
}

void set_num_threads(int count) noexcept {
  thread_count().requested.store(std::max(1, count), std::memory_order_relaxed);
}

void reset_num_threads() noexcept {
  thread_count().requested.store(thread_count().requested_at_first, std::memory_order_relaxed);
}

}  // namespace onepass
