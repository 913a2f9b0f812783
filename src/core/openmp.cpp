#include "core/openmp.hpp"

#include <atomic>
#include <cstdlib>
#include <exception>

#if defined(__linux__)
#include <fstream>
#include <iterator>
#endif

#include "core/fork_count.hpp"
#include "core/loaded_library.hpp"

namespace onepass {
namespace {

#if defined(__linux__) || defined(__APPLE__)

// True in a process that was forked and has not executed a program since: the system's own flag on Linux, so that forks
// before onepass was imported count too.
bool is_forked() {
#if defined(__linux__)
  constexpr unsigned long forked_not_executed = 0x40;  // PF_FORKNOEXEC
  std::ifstream file("/proc/self/stat");
  std::string text{std::istreambuf_iterator<char>(file), {}};
  // "pid (name) state ppid pgrp session tty_nr tpgid flags": the name may hold anything, a parenthesis too.
  const std::size_t name_end = text.rfind(')');
  if (name_end == std::string::npos) return false;
  std::size_t at = name_end + 1;
  for (int field = 0; field < 7; ++field) {
    at = text.find(' ', at);
    if (at == std::string::npos) return false;
    if (field < 6) ++at;
  }
  return (std::strtoul(text.c_str() + at, nullptr, 10) & forked_not_executed) != 0;
#else
  return false;
#endif
}

// All functions come from one library: the first that offers GOMP_parallel to everybody, which is the one that PyTorch
// was linked to (PyTorch loads it so), else the one that PyTorch's library sees. Never by the runtime's file name: a
// process may have loaded several.
OpenMP find() {
  std::string path;
  void* parallel = nullptr;
#if defined(__linux__)
  parallel = find_function({}, "GOMP_parallel");
#endif
  if (parallel == nullptr) {
    path = find_loaded_library("libtorch_cpu.");
    if (path.empty()) return {};
    parallel = find_function(path, "GOMP_parallel");
  }
  if (parallel == nullptr) return {};
  OpenMP found;
  found.path = library_of(parallel);
  const auto get = [&](const char* name) { return find_function(found.path, name); };
  found.parallel = reinterpret_cast<decltype(found.parallel)>(parallel);
  found.max_threads = reinterpret_cast<decltype(found.max_threads)>(get("omp_get_max_threads"));
  found.thread_number = reinterpret_cast<decltype(found.thread_number)>(get("omp_get_thread_num"));
  found.in_parallel = reinterpret_cast<decltype(found.in_parallel)>(get("omp_in_parallel"));
  const bool complete = found.max_threads != nullptr && found.thread_number != nullptr && found.in_parallel != nullptr;
  return complete ? found : OpenMP();
}

#endif

// One region: what its members share.
struct Region {
  WorkQueue& queue;
  const OpenMP& runtime;
  std::size_t workers;
  std::atomic<std::size_t> arrived{0};
  // The runtime orders memory before and after a region, but tools that watch for races do not see how. These do it
  // for them and for us: each member sees what the caller wrote, and the caller what each member wrote.
  std::atomic<bool> begun{false};
  std::atomic<std::size_t> finished{0};
};

void work(void* data) {
  auto& region = *static_cast<Region*>(data);
  region.begun.load(std::memory_order_acquire);
  if (region.arrived.fetch_add(1, std::memory_order_relaxed) < region.workers) {
    region.queue.work(static_cast<std::size_t>(region.runtime.thread_number()));
  }
  region.finished.fetch_add(1, std::memory_order_release);
}

std::atomic<bool> region_runs{false};  // in any thread of this process

}  // namespace

const OpenMP* torch_openmp() noexcept {
#if defined(__linux__) || defined(__APPLE__)
  try {
    static const unsigned first_fork = fork_count();
    static const bool forked = is_forked();
    if (forked || !forks_are_counted() || fork_count() != first_fork) return nullptr;
    static const OpenMP runtime = find();
    return runtime.parallel == nullptr ? nullptr : &runtime;
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
  if (region_runs.exchange(true)) return false;
  Region region{queue, runtime, workers};
  region.begun.store(true, std::memory_order_release);
  runtime.parallel(&work, &region, static_cast<unsigned>(team), 0);
  region.finished.load(std::memory_order_acquire);
  region_runs.store(false);
  return true;
}

}  // namespace onepass
