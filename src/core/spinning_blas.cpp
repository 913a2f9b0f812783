#include "core/spinning_blas.hpp"

#include <cstdlib>
#include <exception>
#include <initializer_list>
#include <string>

#include "core/loaded_library.hpp"

namespace onepass {
namespace {

#if defined(__linux__) || defined(__APPLE__)

constexpr int missing = -1;

// Call an OpenBLAS function without arguments. Builds of OpenBLAS give it different prefixes and suffixes.
int call_if_present(const std::string& library, const std::string& function) {
  for (const char* const prefix : {"", "scipy_"}) {
    for (const char* const suffix : {"", "64_", "_64_", "_"}) {
      void* const found = find_function(library, (prefix + function + suffix).c_str());
      if (found != nullptr) return reinterpret_cast<int (*)()>(found)();
    }
  }
  return missing;
}

// Return the base-2 logarithm of the cycles for which OpenBLAS' threads spin: the value that OpenBLAS read when it was
// loaded, or the current value in the environment for versions without a function that returns it.
int spin_exponent(const std::string& library) {
  int exponent = call_if_present(library, "openblas_thread_timeout");
  const char* const text = std::getenv("OPENBLAS_THREAD_TIMEOUT");
  if (exponent == missing && text != nullptr) exponent = static_cast<int>(std::strtol(text, nullptr, 10));
  constexpr int by_default = 26;  // 28 ms at 2.4 GHz
  return exponent > 0 ? exponent : by_default;
}

std::string find() {
  constexpr int own_threads = 1;     // openblas_get_parallel() for builds with threads but without OpenMP
  constexpr int longest_quiet = 20;  // 2^20 cycles are less than half a millisecond
  // Look the functions up in NumPy's extension module, which finds NumPy's BLAS under any file name, and no other BLAS.
  const std::string numpy = find_loaded_library("_multiarray_umath");
  const bool spins = !numpy.empty() && call_if_present(numpy, "openblas_get_parallel") == own_threads &&
                     call_if_present(numpy, "openblas_get_num_threads") > 1 && spin_exponent(numpy) > longest_quiet;
  if (!spins) return {};
  const std::string library = find_loaded_library("openblas");
  return library.empty() ? numpy : library;
}

#else

std::string find() { return {}; }  // on Windows, OpenBLAS' threads wait for events

#endif

}  // namespace

const char* spinning_blas() noexcept {
  try {
    static const std::string& path = *new std::string(find());  // never destroyed: threads may step during exit
    return path.empty() ? nullptr : path.c_str();
  } catch (const std::exception&) {
    return nullptr;  // out of memory
  }
}

}  // namespace onepass
