// Fills the table of one instruction set. Compiled once for each, with its flags: see baseline.cpp, avx2.cpp,
// avx512.cpp.
#include "kernels/loop.hpp"
#include "kernels/reduce.hpp"
#include "kernels/rules/adadelta.hpp"
#include "kernels/rules/adagrad.hpp"
#include "kernels/rules/adam.hpp"
#include "kernels/rules/adamax.hpp"
#include "kernels/rules/lion.hpp"
#include "kernels/rules/nadam.hpp"
#include "kernels/rules/rmsprop.hpp"
#include "kernels/rules/sgd.hpp"
#include "kernels/table.hpp"

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
