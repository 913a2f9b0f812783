#include "core/spinning_blas.hpp"

#include <cstdlib>
#include <exception>
#include <initializer_list>
#include <string>

#include "core/loaded_library.hpp"

namespace onepass {
namespace {

#if defined(__linux__) || defined(__APPLE__)

// The exponent of two of the cycles for which OpenBLAS' threads spin, as it reads it from the environment; 26 is the
// default: 28 ms at 2.4 GHz.
int timeout_exponent() noexcept {
  for (const char* const name : {"OPENBLAS_THREAD_TIMEOUT", "GOTO_THREAD_TIMEOUT"}) {
    const char* const text = std::getenv(name);
    if (const int exponent = text == nullptr ? 0 : std::atoi(text); exponent > 0) return exponent;
  }
  return 26;
}

// The value that a function of OpenBLAS' without arguments returns, under whichever of the names that builds give it;
// -1 where there is none.
int ask(const std::string& library, const std::string& function) {
  for (const char* const prefix : {"", "scipy_"}) {
    for (const char* const suffix : {"", "64_", "_64_", "_"}) {
      void* const found = find_function(library, (prefix + function + suffix).c_str());
      if (found != nullptr) return reinterpret_cast<int (*)()>(found)();
    }
  }
  return -1;
}

std::string find() {
  constexpr int longest = 20;     // 2^20 cycles are less than half a millisecond
  constexpr int own_threads = 1;  // what openblas_get_parallel() returns of a build with neither OpenMP nor one thread
  if (timeout_exponent() <= longest) return {};
  const std::string library = find_loaded_library("openblas");
  const bool spins = !library.empty() && ask(library, "openblas_get_parallel") == own_threads &&
                     ask(library, "openblas_get_num_threads") > 1;
  return spins ? library : std::string();
}

#else

std::string find() { return {}; }  // on Windows its threads wait for events

#endif

}  // namespace

const char* spinning_blas() noexcept {
  try {
    static const std::string path = find();
    return path.empty() ? nullptr : path.c_str();
  } catch (const std::exception&) {
    return nullptr;  // out of memory
  }
}

}  // namespace onepass
