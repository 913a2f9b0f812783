#include "core/dispatch.hpp"

#include <cstdlib>
#include <stdexcept>

#if defined(ONEPASS_X86_64) && defined(_MSC_VER)
#include <immintrin.h>
#include <intrin.h>
#elif defined(ONEPASS_X86_64)
#include <cpuid.h>
#endif

namespace onepass {

extern const Kernels kernels_baseline;
#if defined(ONEPASS_X86_64)
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
#endif

namespace {

bool always() noexcept { return true; }

#if defined(ONEPASS_X86_64)
struct Registers {
  unsigned eax, ebx, ecx, edx;
};

#if defined(_MSC_VER)
Registers cpuid(unsigned leaf) noexcept {
  int found[4];
  __cpuidex(found, static_cast<int>(leaf), 0);
  return {static_cast<unsigned>(found[0]), static_cast<unsigned>(found[1]), static_cast<unsigned>(found[2]),
          static_cast<unsigned>(found[3])};
}
unsigned long long xgetbv() noexcept { return _xgetbv(0); }
#else
Registers cpuid(unsigned leaf) noexcept {
  Registers found = {};
  __cpuid_count(leaf, 0, found.eax, found.ebx, found.ecx, found.edx);
  return found;
}
unsigned long long xgetbv() noexcept {
  unsigned low = 0;
  unsigned high = 0;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return static_cast<unsigned long long>(high) << 32 | low;
}
#endif

// True if the processor reports these bits of leaf 7's EBX and the system saves these registers. Not
// __builtin_cpu_supports: it is always false in modules that Zig compiled.
bool has(unsigned features, unsigned long long registers) noexcept {
  constexpr unsigned osxsave = 1U << 27;
  return cpuid(0).eax >= 7 && (cpuid(1).ecx & osxsave) != 0 && (xgetbv() & registers) == registers &&
         (cpuid(7).ebx & features) == features;
}

bool has_avx2() noexcept { return has(1U << 5, 0x6); }
bool has_avx512() noexcept {
#if defined(__APPLE__)
  // macOS saves the wider registers too, but reports this only after their first use.
  constexpr unsigned long long registers = 0x6;
#else
  constexpr unsigned long long registers = 0xe6;
#endif
  return has(1U << 16 | 1U << 17 | 1U << 28 | 1U << 30 | 1U << 31, registers);
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
