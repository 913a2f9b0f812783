#include "core/sweeps.hpp"

#include <algorithm>

#include "core/dispatch.hpp"
#include "core/float_mode.hpp"

namespace onepass {
namespace {

// The unit in which sweeps are cut, in elements: whole cache lines, and whole groups that share a scale.
constexpr std::size_t grain = scale_group;

std::size_t grains(const Sweep& sweep) noexcept { return (sweep.size + grain - 1) / grain; }

struct Sweeps {
  const Sweep* first;
  const Sweep* last;
};

void run_sweep(const Sweep& sweep, std::size_t begin, std::size_t end) noexcept {
  if (sweep.storage == nullptr) {
    sweep.function(*sweep.coefficients, sweep.operands, begin, end);
  } else {
    kernels().narrow_sweep(sweep.function, *sweep.coefficients, sweep.operands, *sweep.storage, begin, end);
  }
}

// Carries out grains [begin, end) of the whole list.
void run_part(const void* context, std::size_t begin, std::size_t end) noexcept {
  const auto& all = *static_cast<const Sweeps*>(context);
  const Sweep* sweep = all.first;
  if (begin != 0) {
    const auto begins_after = [](std::size_t grain, const Sweep& other) { return grain < other.begin; };
    sweep = std::upper_bound(all.first, all.last, begin, begins_after) - 1;
  }
  const FloatMode mode(sweep->flush_denormals);
  for (; sweep != all.last && sweep->begin < end; ++sweep) {
    const std::size_t from = std::max(begin, sweep->begin) - sweep->begin;
    const std::size_t to = std::min(end - sweep->begin, grains(*sweep));
    if (from < to) run_sweep(*sweep, from * grain, std::min(sweep->size, to * grain));
  }
}

// Carries out sweeps that treat subnormal numbers alike.
void run_alike(const Executor& executor, Sweep* sweeps, std::size_t count) noexcept {
  std::size_t total = 0;
  std::uint64_t elements = 0;
  for (Sweep* sweep = sweeps; sweep != sweeps + count; ++sweep) {
    sweep->begin = total;
    total += grains(*sweep);
    elements += sweep->size;
  }
  const Sweeps all{sweeps, sweeps + count};
  constexpr std::uint64_t bytes_per_element = 7 * sizeof(float);  // Adam's streams
  run_parts(executor, &run_part, &all, total, elements * bytes_per_element);
}

}  // namespace

void run_sweeps(const Executor& executor, Sweep* sweeps, std::size_t count) noexcept {
  if (count == 0) return;
  const auto flushes = [](const Sweep& sweep) { return sweep.flush_denormals; };
  Sweep* const end = sweeps + count;
  if (std::all_of(sweeps, end, flushes) || std::none_of(sweeps, end, flushes)) {
    run_alike(executor, sweeps, count);
    return;
  }
  Sweep* const kept = std::partition(sweeps, end, flushes);  // the order does not matter
  run_alike(executor, sweeps, static_cast<std::size_t>(kept - sweeps));
  run_alike(executor, kept, static_cast<std::size_t>(end - kept));
}

}  // namespace onepass
