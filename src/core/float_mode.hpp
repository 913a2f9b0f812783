// The processor's floating-point mode while sweeps run.
#pragma once

#include <cstdint>

#if defined(__SSE2__) || defined(_M_X64)
#define ONEPASS_MXCSR 1
#include <xmmintrin.h>
#elif defined(__aarch64__) && (defined(__GNUC__) || defined(__clang__))
#define ONEPASS_FPCR 1
#endif

namespace onepass {

// Guard that makes this thread round to nearest, without traps and, on request, with subnormal inputs and results
// flushed to zero. The destructor restores the caller's mode.
class FloatMode {
 public:
#if defined(ONEPASS_MXCSR)
  static constexpr bool can_flush = true;
  using Register = std::uint32_t;
#elif defined(ONEPASS_FPCR)
  static constexpr bool can_flush = true;
  using Register = std::uint64_t;
#else
  static constexpr bool can_flush = false;
  using Register = std::uint32_t;
#endif

  explicit FloatMode(bool flush_denormals) noexcept : before_(read()) {
    const Register wanted = flush_denormals ? flushing : gradual;
    if (before_ != wanted) write(wanted);
  }
  ~FloatMode() {
    if (read() != before_) write(before_);
  }
  FloatMode(const FloatMode&) = delete;
  FloatMode& operator=(const FloatMode&) = delete;

 private:
#if defined(ONEPASS_MXCSR)
  static constexpr Register gradual = 0x1f80;             // every exception masked, to nearest
  static constexpr Register flushing = gradual | 0x8040;  // flush-to-zero, denormals-are-zero
  static Register read() noexcept { return _mm_getcsr(); }
  static void write(Register mode) noexcept { _mm_setcsr(mode); }
#elif defined(ONEPASS_FPCR)
  static constexpr Register gradual = 0;
  static constexpr Register flushing = Register{1} << 24;  // FZ
  static Register read() noexcept {
    Register mode;
    asm volatile("mrs %0, fpcr" : "=r"(mode)::"memory");
    return mode;
  }
  static void write(Register mode) noexcept { asm volatile("msr fpcr, %0" ::"r"(mode) : "memory"); }
#else
  static constexpr Register gradual = 0;
  static constexpr Register flushing = 0;
  static Register read() noexcept { return 0; }
  static void write(Register) noexcept {}
#endif

  Register before_;
};

}  // namespace onepass
