// Fills the table of one instruction set. Compiled once for each, with its flags, by baseline.cpp, avx2.cpp,
// avx512.cpp.
#include "kernels/loop.hpp"
#include "kernels/narrow.hpp"
#include "kernels/reduce.hpp"
#include "kernels/rules/adadelta.hpp"
#include "kernels/rules/adagrad.hpp"
#include "kernels/rules/adam.hpp"
#include "kernels/rules/adamax.hpp"
#include "kernels/rules/ademamix.hpp"
#include "kernels/rules/lion.hpp"
#include "kernels/rules/nadam.hpp"
#include "kernels/rules/radam.hpp"
#include "kernels/rules/rmsprop.hpp"
#include "kernels/rules/schedule_free_adamw.hpp"
#include "kernels/rules/sgd.hpp"
#include "kernels/stream_baseline.hpp"
#include "kernels/table.hpp"

namespace onepass {
namespace {

constexpr RuleEntry rules[] = {
    make_entry<Adam>(),
    make_entry<AMSGrad>(),
    make_entry<Adamax>(),
    make_entry<NAdam>(),
    make_entry<RAdam>(),
    make_entry<RMSpropPlain>(),
    make_entry<RMSpropMomentum>(),
    make_entry<RMSpropCentered>(),
    make_entry<RMSpropCenteredMomentum>(),
    make_entry<Adagrad>(),
    make_entry<Adadelta>(),
    make_entry<SGD>(),
    make_entry<SGDMomentum>(),
    make_entry<Lion>(),
    make_entry<AdEMAMix>(),
    make_entry<ScheduleFreeAdamW>(),
};

constexpr Kernels table(const char* instruction_set) noexcept {
  return {
      instruction_set,
      rules,
      sizeof rules / sizeof rules[0],
      {&squares<float>, &squares<double>},
      {&finite<float>, &finite<double>},
      {&stream_baseline<float>, &stream_baseline<double>},
      &narrow_sweep,
      &decode,
      &encode,
  };
}

}  // namespace
}  // namespace onepass
