// Fills the table of one instruction set. Compiled once for each, with its flags: see kernels_*.cpp.
#include "kernels.hpp"
#include "measure.hpp"
#include "rules/adadelta.hpp"
#include "rules/adagrad.hpp"
#include "rules/adam.hpp"
#include "rules/adamax.hpp"
#include "rules/lion.hpp"
#include "rules/nadam.hpp"
#include "rules/rmsprop.hpp"
#include "rules/sgd.hpp"
#include "sweep.hpp"

namespace onepass {
namespace {

constexpr Rule rules[] = {
    rule<Adam>(),
    rule<AMSGrad>(),
    rule<Adamax>(),
    rule<NAdam>(),
    rule<RMSprop>(),
    rule<RMSpropMomentum>(),
    rule<RMSpropCentered>(),
    rule<RMSpropCenteredMomentum>(),
    rule<Adagrad>(),
    rule<Adadelta>(),
    rule<SGD>(),
    rule<SGDMomentum>(),
    rule<Lion>(),
};

constexpr Kernels table(const char* instruction_set) noexcept {
  return {
      instruction_set,
      rules,
      sizeof rules / sizeof rules[0],
      {&squares<float>, &squares<double>},
      {&finite<float>, &finite<double>},
      {&stream<float>, &stream<double>},
  };
}

}  // namespace
}  // namespace onepass
