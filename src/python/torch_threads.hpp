// Threads of a step in a PyTorch program.
#pragma once

#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "core/executor.hpp"
#include "python/gil.hpp"

namespace onepass::python {

namespace py = pybind11;

// The calling thread's OpenMP team where PyTorch has one, else the pool; in either case as many threads as PyTorch uses
// (get_num_threads is PyTorch's function), or fewer if the user has set a lower limit in onepass. May run Python code.
inline Executor torch_executor(const py::object& get_num_threads) {
  const auto torch_threads = [&] { return call(get_num_threads, py::tuple()).cast<int>(); };
  const int requested = requested_threads();
  const auto limited = [requested](int threads) {
    return static_cast<std::size_t>(std::max(1, requested == 0 ? threads : std::min(threads, requested)));
  };
  if (const OpenMP* const runtime = torch_openmp()) {
    // The first call of get_num_threads in a thread sets the runtime's number for that thread. A runtime that then has
    // a different number is not the runtime that PyTorch uses.
    enum class Match : unsigned char { unknown, yes, no };
    thread_local Match match = Match::unknown;
    if (match == Match::unknown) match = torch_threads() == runtime->max_threads() ? Match::yes : Match::no;
    if (match == Match::yes) return {limited(runtime->max_threads()), runtime};
  }
  return {limited(torch_threads()), nullptr};
}

}  // namespace onepass::python
