// The OpenMP runtime of another library, whose threads are awake where ours would sleep or be queued behind them.
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

// The runtime that PyTorch uses. Null where there is none to be used: PyTorch or a runtime is not loaded, the system is
// Windows, or this process was forked: OpenMP's threads stayed with the parent, and a region would wait for them
// forever. Found once; call it when PyTorch has been imported.
const OpenMP* torch_openmp() noexcept;

// Has the calling thread's team empty the queue: all of it, since the runtime would end threads that a smaller region
// leaves out; of more than `workers` members the last to arrive return at once. The caller works alone where it is
// inside a region or another thread's region runs. Returns false, and has done nothing, where it cannot begin one.
bool run_region(const OpenMP& runtime, WorkQueue& queue, std::size_t workers) noexcept;

}  // namespace onepass
