#include "parallel.hpp"

#include "float_mode.hpp"

namespace onepass {

void run(const Sweep* sweeps, std::size_t count, bool flush_denormals) noexcept {
  const FloatMode mode(flush_denormals);
  for (const Sweep* sweep = sweeps; sweep != sweeps + count; ++sweep) {
    sweep->function(*sweep->numbers, sweep->operands, 0, sweep->size);
  }
}

}  // namespace onepass
