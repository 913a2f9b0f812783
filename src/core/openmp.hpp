// Steps on the threads of another library's OpenMP runtime. The threads are already awake, and our own threads would
// compete with them for processors.
#pragma once

#include <cstddef>
#include <string>

#include "core/work_queue.hpp"

namespace onepass {

// Functions of one OpenMP runtime that this process has loaded. GNU's (libgomp) has them, and LLVM's (libomp) under the
// same names. onepass never links or loads a runtime.
struct OpenMP {
  void (*parallel)(void (*function)(void*), void* data, unsigned threads, unsigned flags) = nullptr;
  int (*max_threads)() = nullptr;
  int (*thread_number)() = nullptr;
  int (*in_parallel)() = nullptr;
  std::string path;
};

// The runtime that PyTorch uses. Null if PyTorch or its runtime is not loaded, on Windows, and in a forked process,
// where a region would wait forever for the parent's threads.
const OpenMP* torch_openmp() noexcept;

// Runs the queue on the calling thread's whole team, because a smaller region would make the runtime end the surplus
// threads.
// Only the first `workers` members to arrive work. Returns false, and does nothing, if the caller is inside a region or
// another thread's region is running. A thread that has no team yet gets one, as from PyTorch's own operations; where
// the system refuses the threads, the runtime ends the process.
bool run_region(const OpenMP& runtime, WorkQueue& queue, std::size_t workers) noexcept;

}  // namespace onepass
