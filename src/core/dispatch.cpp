#include "core/dispatch.hpp"

#include <cstdlib>
#include <stdexcept>

#if defined(ONEPASS_X86_64) && defined(_MSC_VER)
#include <immintrin.h>
#include <intrin.h>
#endif

namespace onepass {

extern const Kernels kernels_baseline;
#if defined(ONEPASS_X86_64)
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
#endif

namespace {

bool always() noexcept { return true; }

#if defined(ONEPASS_X86_64) && defined(_MSC_VER)
// True if the processor reports these bits of leaf 7's EBX and the system saves these registers.
bool has(unsigned features, unsigned long long registers) noexcept {
  int leaf[4];
  __cpuid(leaf, 0);
  if (leaf[0] < 7) return false;
  __cpuid(leaf, 1);
  if ((static_cast<unsigned>(leaf[2]) >> 27 & 1) == 0) return false;  // OSXSAVE
  if ((_xgetbv(0) & registers) != registers) return false;
  __cpuidex(leaf, 7, 0);
  return (static_cast<unsigned>(leaf[1]) & features) == features;
}
bool has_avx2() noexcept { return has(1U << 5, 0x6); }
bool has_avx512() noexcept { return has(1U << 16 | 1U << 17 | 1U << 28 | 1U << 30 | 1U << 31, 0xe6); }
#elif defined(ONEPASS_X86_64)
bool has_avx2() noexcept { return __builtin_cpu_supports("avx2") != 0; }
bool has_avx512() noexcept {
  return __builtin_cpu_supports("avx512f") != 0 && __builtin_cpu_supports("avx512bw") != 0 &&
         __builtin_cpu_supports("avx512cd") != 0 && __builtin_cpu_supports("avx512dq") != 0 &&
         __builtin_cpu_supports("avx512vl") != 0;
}
#endif

struct Candidate {
  const Kernels* kernels;
  bool (*usable)() noexcept;
};

constexpr Candidate candidates[] = {
    {&kernels_baseline, &always},
#if defined(ONEPASS_X86_64)
    {&kernels_avx2, &has_avx2},
    {&kernels_avx512, &has_avx512},
#endif
};

const Kernels& choose() {
  const char* const variable = std::getenv("ONEPASS_ISA");
  const std::string forced = variable == nullptr ? "" : variable;
  const Kernels* chosen = nullptr;
  std::string usable;
  for (const Candidate& candidate : candidates) {
    if (!candidate.usable()) continue;
    const std::string name = candidate.kernels->instruction_set;
    usable += (usable.empty() ? "" : ", ") + name;
    if (forced.empty() || name == forced) chosen = candidate.kernels;
  }
  if (chosen == nullptr) {
    throw std::invalid_argument("ONEPASS_ISA=" + forced +
                                " is unknown or not supported by this processor; these would work: " + usable);
  }
  return *chosen;
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

std::vector<std::string> built_instruction_sets() {
  std::vector<std::string> names;
  for (const Candidate& candidate : candidates) names.emplace_back(candidate.kernels->instruction_set);
  return names;
}

std::vector<std::string> usable_instruction_sets() {
  std::vector<std::string> names;
  for (const Candidate& candidate : candidates) {
    if (candidate.usable()) names.emplace_back(candidate.kernels->instruction_set);
  }
  return names;
}

const RuleEntry& find_rule(const std::string& name) {
  const Kernels& table = kernels();
  for (std::size_t i = 0; i < table.rule_count; ++i) {
    if (name == table.rules[i].name) return table.rules[i];
  }
  throw std::invalid_argument("there is no rule named " + name);
}

}  // namespace onepass
