#include "support.hpp"

#if defined(_WIN32)
#include <windows.h>
#else
#include <sys/mman.h>
#include <unistd.h>
#endif

#include <algorithm>
#include <cstdlib>
#include <map>
#include <mutex>
#include <new>
#include <stdexcept>
#include <utility>

#include "core/dispatch.hpp"
#include "core/float_mode.hpp"

namespace onepass {
extern const Kernels kernels_baseline;
#if defined(ONEPASS_X86_64)
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
#endif
}  // namespace onepass

namespace test {
namespace {

constexpr std::size_t line = 64;
constexpr unsigned char canary = 0xa5;

#if defined(_WIN32)
std::size_t page() { return 4096; }

// Return fresh memory, or null. Access is allowed only within [begin, end).
void* map(std::size_t bytes, std::size_t begin, std::size_t end) {
  void* const block = VirtualAlloc(nullptr, bytes, MEM_RESERVE | MEM_COMMIT, PAGE_NOACCESS);
  DWORD before = 0;
  const bool usable = block != nullptr && (begin == end || VirtualProtect(static_cast<unsigned char*>(block) + begin,
                                                                          end - begin, PAGE_READWRITE, &before) != 0);
  return usable ? block : nullptr;
}

void unmap(void* block, std::size_t) { VirtualFree(block, 0, MEM_RELEASE); }
#else
std::size_t page() {
  static const auto size = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  return size;
}

// Return fresh memory, or null. Access is allowed only within [begin, end).
void* map(std::size_t bytes, std::size_t begin, std::size_t end) {
  void* const block = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  const bool usable = block != MAP_FAILED && (begin == end || mprotect(static_cast<unsigned char*>(block) + begin,
                                                                       end - begin, PROT_READ | PROT_WRITE) == 0);
  return usable ? block : nullptr;
}

void unmap(void* block, std::size_t bytes) { munmap(block, bytes); }
#endif

// Unused blocks between guarded pages, kept for reuse because mapping new blocks is slow.
struct Mapped {
  std::mutex mutex;
  std::multimap<std::size_t, void*> blocks;
};

Mapped& waiting() {
  static auto* const mapped = new Mapped;  // some arrays live as long as the program
  return *mapped;
}

void* map_between_guards(std::size_t bytes) {
  {
    const std::scoped_lock lock(waiting().mutex);
    auto& blocks = waiting().blocks;
    if (const auto found = blocks.find(bytes); found != blocks.end()) {
      void* const block = found->second;
      blocks.erase(found);
      return block;
    }
  }
  void* const block = map(bytes, page(), bytes - page());
  if (block == nullptr) throw std::bad_alloc();
  return block;
}

void give_back(void* block, std::size_t bytes) {
  constexpr std::size_t worth_keeping = 1 << 18;
  const std::scoped_lock lock(waiting().mutex);
  if (bytes <= worth_keeping && waiting().blocks.size() < 100) {
    waiting().blocks.emplace(bytes, block);
  } else {
    unmap(block, bytes);
  }
}

}  // namespace

const char* name_of(Values values) {
  switch (values) {
    case Values::ordinary:
      return "ordinary";
    case Values::hostile:
      return "hostile";
    default:
      return "small";
  }
}

Place any_place(Random& random) {
  switch (random.below(3)) {
    case 0:
      return {Place::before_guard};
    case 1:
      return {Place::after_guard};
    default:
      return {Place::heap, random.below(line / sizeof(float))};
  }
}

Memory::Memory(std::size_t bytes, std::size_t item, Place place) {
  mapped_ = place.kind != Place::heap;
  if (!mapped_) {
    const std::size_t before = place.offset * item % line;
    block_bytes_ = before + bytes;
    block_ = ::operator new(block_bytes_, std::align_val_t{line});
    data_ = static_cast<unsigned char*>(block_) + before;
    std::memset(block_, canary, before);
    return;
  }
  const std::size_t inside = (bytes + page() - 1) / page() * page();
  block_bytes_ = inside + 2 * page();
  block_ = map_between_guards(block_bytes_);
  unsigned char* const begin = static_cast<unsigned char*>(block_) + page();
  data_ = place.kind == Place::before_guard ? begin + inside - bytes : begin;
  std::memset(begin, canary, inside);
}

Memory::Memory(Memory&& other) noexcept
    : block_(std::exchange(other.block_, nullptr)),
      block_bytes_(other.block_bytes_),
      mapped_(other.mapped_),
      data_(other.data_) {}

Memory::~Memory() {
  if (block_ == nullptr) return;
  if (mapped_) {
    give_back(block_, block_bytes_);
  } else {
    ::operator delete(block_, std::align_val_t{line});
  }
}

bool Memory::untouched_around() const {
  const auto* const first = static_cast<const unsigned char*>(block_) + (mapped_ ? page() : 0);
  for (const unsigned char* at = first; at != data_; ++at) {
    if (*at != canary) return false;
  }
  return true;
}

std::vector<const onepass::Kernels*> tables() {
  std::vector<const onepass::Kernels*> found;
  for (const std::string& name : onepass::usable_instruction_sets()) {
    const onepass::Kernels* table = &onepass::kernels_baseline;
#if defined(ONEPASS_X86_64)
    if (name == "avx2") table = &onepass::kernels_avx2;
    if (name == "avx512") table = &onepass::kernels_avx512;
#endif
    if (name != table->instruction_set) throw std::logic_error("no table for " + name);
    found.push_back(table);
  }
  return found;
}

const onepass::RuleEntry& rule_named(const std::string& name) { return onepass::find_rule(name); }

const onepass::RuleEntry& baseline_rule(const std::string& name) {
  const onepass::Kernels& table = onepass::kernels_baseline;
  return *std::find_if(table.rules, table.rules + table.rule_count,
                       [&](const auto& rule) { return rule.name == name; });
}

std::vector<bool> flush_modes() {
  const char* const wish = std::getenv("ONEPASS_TEST_FLUSH");
  const bool wanted = wish == nullptr || std::string(wish) != "0";
  if (onepass::FloatMode::can_flush && wanted) return {false, true};
  return {false};
}

void update_singly(onepass::SweepFunction sweep, const onepass::PackedCoefficients& packed, const onepass::Operands& x,
                   std::size_t begin, std::size_t end, bool flush) {
  const onepass::FloatMode mode(flush);
  for (std::size_t i = begin; i < end; ++i) sweep(packed, x, i, i + 1);
}

std::vector<double> any_options(const onepass::RuleEntry& rule, Random& random) {
  std::vector<double> values;
  for (std::size_t i = 0; i < rule.option_count; ++i) {
    const std::string name = rule.options[i];
    const bool flag = name == "bias_correction" || name == "hat" || name == "nesterov";
    if (flag) {
      values.push_back(random.chance(2) ? 1 : 0);
    } else if (name == "eps") {
      values.push_back(random.pick({0.0, 1e-8, 1e-6, 0.1, 1e-40, 1e-310}));
    } else if (name == "warmup_steps") {
      values.push_back(random.pick({0.0, 3.0, 1000.0}));
    } else if (name == "lr_decay" || name == "momentum_decay") {
      values.push_back(random.pick({0.0, 0.004, 0.1, 3.0}));
    } else {
      values.push_back(random.pick({0.0, 0.5, 0.9, 0.99, 0.999, 0x1.fffffffffffffp-1, random.uniform()}));
    }
  }
  return values;
}

onepass::CommonOptions any_common(Random& random) {
  onepass::CommonOptions common = {};
  common.lr = random.pick({0.0, 1e-3, 0.1, 1.0, 1e-30, 1e6, random.uniform()});
  common.weight_decay = random.pick({0.0, 0.0, 0.01, 0.5, 1e-42, 1e3});
  common.clip_value = random.pick(
      {std::numeric_limits<double>::infinity(), std::numeric_limits<double>::infinity(), 0.5, 1e-39, 1e-3, 1e30});
  common.averaged = random.chance(2);
  common.ema_decay = random.pick({0.0, 0.9, 0.999});
  common.decoupled = random.chance(2);
  common.maximize = random.chance(3);
  return common;
}

}  // namespace test
