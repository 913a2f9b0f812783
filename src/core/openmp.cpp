#include "core/openmp.hpp"

#include <atomic>
#include <cstdlib>
#include <exception>

#if defined(__linux__)
#include <cstring>

#include "core/system_file.hpp"
#endif

#include "core/fork_count.hpp"
#include "core/loaded_library.hpp"

namespace onepass {
namespace {

#if defined(__linux__) || defined(__APPLE__)

// Return true in a process that was forked and has not executed a program since. On Linux the system has a flag for
// this, so that forks before the import of onepass count too.
bool is_forked() {
#if defined(__linux__)
  constexpr unsigned long forked_not_executed = 0x40;  // PF_FORKNOEXEC
  // "pid (name) state ppid pgrp session tty_nr tpgid flags": the name may hold anything, a parenthesis too.
  const SystemText text = read_system_file("/proc/self/stat");
  const char* at = std::strrchr(text.data(), ')');
  for (int field = 0; at != nullptr && field < 7; ++field) at = std::strchr(at + 1, ' ');
  if (at == nullptr) return true;  // unknown: assume a fork, since steps without a team are only slower
  return (std::strtoul(at, nullptr, 10) & forked_not_executed) != 0;
#else
  return false;
#endif
}

// Find the runtime that PyTorch uses. If the process has several runtimes, it is the first one with a global symbol
// GOMP_parallel, because PyTorch's calls go there too; a file name would not be reliable. All functions come from one
// library.
const OpenMP* find() {
  const std::string torch = find_loaded_library("libtorch_cpu.");
  if (torch.empty()) return nullptr;
  void* parallel = find_function(torch, "GOMP_parallel");
#if defined(__linux__)
  void* const global = parallel == nullptr ? nullptr : find_function({}, "GOMP_parallel");
  if (global != nullptr) parallel = global;
#endif
  OpenMP found;
  found.path = parallel == nullptr ? "" : library_of(parallel);
  if (found.path.empty()) return nullptr;
  const auto get = [&](const char* name) { return find_function(found.path, name); };
  found.parallel = reinterpret_cast<decltype(found.parallel)>(parallel);
  found.max_threads = reinterpret_cast<decltype(found.max_threads)>(get("omp_get_max_threads"));
  found.thread_number = reinterpret_cast<decltype(found.thread_number)>(get("omp_get_thread_num"));
  found.in_parallel = reinterpret_cast<decltype(found.in_parallel)>(get("omp_in_parallel"));
  const bool complete = found.max_threads != nullptr && found.thread_number != nullptr && found.in_parallel != nullptr;
  return complete ? new OpenMP(found) : nullptr;  // never destroyed: threads may step until the process ends
}

#endif

// Data shared by the members of one region.
struct Region {
  WorkQueue& queue;
  const OpenMP& runtime;
  std::size_t workers;
  std::atomic<std::size_t> arrived{0};
  // Synchronization; the values do not matter. Each member sees the caller's writes, and the caller sees each member's
  // writes. The runtime guarantees this too, but race detectors cannot see how.
  std::atomic<bool> begun{false};
  std::atomic<std::size_t> finished{0};
};

void work(void* data) noexcept {
  auto& region = *static_cast<Region*>(data);
  static_cast<void>(region.begun.load(std::memory_order_acquire));
  if (region.arrived.fetch_add(1, std::memory_order_relaxed) < region.workers) {
    region.queue.work(static_cast<std::size_t>(region.runtime.thread_number()));
  }
  region.finished.fetch_add(1, std::memory_order_release);
}

std::atomic_flag region_runs = ATOMIC_FLAG_INIT;  // in any thread of this process

}  // namespace

const OpenMP* torch_openmp() noexcept {
#if defined(__linux__) || defined(__APPLE__)
  try {
    static const unsigned first_fork = fork_count();
    static const bool forked = is_forked();
    if (forked || !forks_are_counted() || fork_count() != first_fork) return nullptr;
    static std::atomic<const OpenMP*> runtime{nullptr};
    const OpenMP* known = runtime.load(std::memory_order_acquire);
    if (known == nullptr) {
      if (const OpenMP* const found = find()) {
        if (runtime.compare_exchange_strong(known, found, std::memory_order_acq_rel)) return found;
        delete found;
      }
    }
    return known;
  } catch (const std::exception&) {
    return nullptr;  // out of memory
  }
#else
  return nullptr;
#endif
}

bool run_region(const OpenMP& runtime, WorkQueue& queue, std::size_t workers) noexcept {
  if (runtime.in_parallel() != 0) return false;
  const int team = runtime.max_threads();
  if (team < 2) return false;
  if (region_runs.test_and_set()) return false;
  Region region{queue, runtime, workers};
  region.begun.store(true, std::memory_order_release);
  runtime.parallel(&work, &region, static_cast<unsigned>(team), 0);
  static_cast<void>(region.finished.load(std::memory_order_acquire));
  region_runs.clear();
  return true;
}

}  // namespace onepass
