// A fuzzer of whole optimizers: bytes become groups, options, gradients and calls, in any order that the contract
// allows; a model does the same one element at a time, and both must stay equal. Run by libFuzzer (make fuzz-step), or
// by replay.cpp on the files of the corpus.
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <vector>

#include "check.hpp"
#include "core/dispatch.hpp"
#include "core/executor.hpp"
#include "twin.hpp"

namespace {

using test::Given;
using test::Random;
using test::Twin;
using test::Values;

// The rest of the input. An exhausted input yields zeros.
class Input {
 public:
  Input(const std::uint8_t* data, std::size_t size) : data_(data), size_(size) {}

  bool empty() const { return size_ == 0; }
  std::uint8_t byte() {
    if (size_ == 0) return 0;
    --size_;
    return *data_++;
  }
  std::size_t below(std::size_t count) { return byte() % count; }
  bool flag() { return (byte() & 1) != 0; }
  std::uint64_t word() {
    std::uint64_t bits = 0;
    for (int i = 0; i < 8; ++i) bits = bits << 8 | byte();
    return bits;
  }

  // A double: usually a special value, otherwise any pattern of bits.
  double number() {
    constexpr double known[] = {0, 1, 0.5, 0.9, 0.999, 1e-8, 1e-3, 0.1, 3, 1e10, 1e-40, 1e39, 1e300, 5e-324};
    const std::size_t which = below(sizeof known / sizeof known[0] + 2);
    if (which < sizeof known / sizeof known[0]) return known[which];
    if (which == sizeof known / sizeof known[0]) return static_cast<double>(byte()) / 256;
    const std::uint64_t bits = word();
    double any = 0;
    std::memcpy(&any, &bits, sizeof any);
    return any;
  }
  // An option that the classes accept: finite and not negative; a beta is below 1.
  double option() {
    const double any = number();
    return any - any == 0 ? (any < 0 ? -any : any) : 1;
  }
  double beta() {
    const double any = option();
    return any < 1 ? any : 1 - 0x1p-53;
  }

 private:
  const std::uint8_t* data_;
  std::size_t size_;
};

std::vector<double> options(const onepass::RuleEntry& rule, Input& input) {
  std::vector<double> values;
  for (std::size_t i = 0; i < rule.option_count; ++i) {
    const std::string name = rule.options[i];
    if (name == "bias_correction" || name == "hat" || name == "nesterov") {
      values.push_back(input.flag() ? 1 : 0);
    } else if (name == "beta1" || name == "beta2" || name == "alpha" || name == "rho") {
      values.push_back(input.beta());
    } else {
      values.push_back(input.option());
    }
  }
  return values;
}

onepass::CommonOptions common(Input& input, bool averaged) {
  onepass::CommonOptions made = {};
  made.lr = input.option();
  made.weight_decay = input.flag() ? input.option() : 0;
  made.clip_value = std::numeric_limits<double>::infinity();
  if (input.flag()) made.clip_value = input.option();
  made.averaged = averaged;
  made.ema_decay = averaged ? input.beta() : 0;
  made.decoupled = input.flag();
  made.maximize = input.flag();
  return made;
}

Values values(Input& input) { return test::all_values[input.below(3)]; }

// Source of the numbers in the arrays, which do not come from the input.
class Machine {
 public:
  Machine(Input& input, bool flush) : input_(input), random_(input.word()), twin_(flush) {}

  void run() {
    add_group();
    while (!input_.empty() && calls_++ < (large_ ? 3 : 16)) {
      switch (input_.below(12)) {
        case 0:
          add_group();
          break;
        case 1:
          set();
          break;
        case 2:
          restore();
          break;
        case 3:
          onepass::set_num_threads(static_cast<int>(input_.below(5)));
          break;
        case 4:
          measure();
          break;
        case 5:
          plan();
          break;
        default:
          step();
      }
      twin_.compare();
    }
  }

 private:
  void add_group() {
    if (twin_.group_count() == 4) return;
    const onepass::Kernels& table = onepass::kernels();
    const onepass::RuleEntry& rule = table.rules[input_.below(table.rule_count)];
    averaged_.push_back(input_.flag());
    const auto numbers = options(rule, input_);
    const auto all = common(input_, averaged_.back());
    std::vector<Twin::Shape> shapes;
    for (std::size_t i = 0, count = input_.below(4); i < count; ++i) {
      const auto dtype = input_.flag() ? onepass::float32 : onepass::float64;
      // Sometimes a size that is worth a second thread.
      const bool large = input_.byte() == 255 && !large_;
      large_ = large_ || large;
      shapes.push_back({dtype, large ? 3000 : input_.below(24), large ? 101 : input_.below(24)});
    }
    twin_.add_group(rule.name, numbers, all, shapes, values(input_), random_);
  }

  void set() {
    const std::size_t group = input_.below(twin_.group_count());
    const auto numbers = options(twin_.rule(group), input_);
    twin_.set(group, numbers, common(input_, averaged_[group]));
  }

  void restore() {
    std::vector<std::int64_t> steps;
    std::vector<onepass::Scalars> scalars;
    for (std::size_t i = 0; i < twin_.parameter_count(); ++i) {
      // At most 2^62, as in checkpoints.
      const std::uint64_t step = input_.flag() ? input_.below(4) : input_.word() >> (2 + input_.below(62));
      steps.push_back(static_cast<std::int64_t>(step));
      scalars.push_back({{input_.flag() ? 1 : input_.number()}});
    }
    twin_.restore(static_cast<std::int64_t>(input_.below(9)), steps, scalars);
  }

  std::vector<Given> gradients() {
    std::vector<Given> all;
    const Values kind = values(input_);
    for (std::size_t i = 0; i < twin_.parameter_count(); ++i) {
      const std::size_t form = input_.below(6);
      if (form == 0) {
        all.emplace_back();
      } else {
        all.push_back(twin_.gradient(i, kind, random_, form < 3 ? static_cast<unsigned>(1 + form) : 0));
      }
    }
    return all;
  }

  double scale() { return input_.flag() ? 1 : input_.number(); }

  void measure() {
    const auto given = gradients();
    const bool norm = input_.flag();
    twin_.measure(given, scale(), norm, input_.flag());
  }

  void plan() { twin_.plan(gradients(), scale()); }

  // Same order as in the Python module: plan, measure, clip, apply or skip.
  void step() {
    const auto given = gradients();
    const double own = scale();
    const bool clips = input_.flag();
    const bool skips = input_.flag();
    if (!twin_.plan(given, own)) return;
    const onepass::GradientStats measured = twin_.measure(given, own, clips, skips);
    if (skips && measured.first_nonfinite != onepass::GradientStats::none) return;
    if (clips) {
      const double clip_norm = input_.option();
      if (!(measured.norm <= clip_norm)) {
        const double factor = onepass::clipped_scale(own, clip_norm, measured.norm);
        CHECK_BITS(factor, own * (clip_norm / measured.norm));
        if (!twin_.plan(given, factor)) return;
      }
    }
    twin_.apply();
  }

  Input& input_;
  Random random_;
  Twin twin_;
  std::vector<bool> averaged_;
  bool large_ = false;
  int calls_ = 0;
};

}  // namespace

// A failed check must end the fuzzer.
void test::fail(const char* file, int line, const std::string& what) {
  std::fprintf(stderr, "%s:%d: %s\n", file, line, what.c_str());
  std::abort();
}

// NOLINTNEXTLINE(readability-identifier-naming): libFuzzer's name
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Input input(data, size);
  const auto modes = test::flush_modes();
  const bool flush = modes[input.below(modes.size())];
  onepass::set_num_threads(2);
  Machine(input, flush).run();
  return 0;
}
