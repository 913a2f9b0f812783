// Fills the table of one instruction set. Compiled once for each, with its flags: see kernels_*.cpp.
#include "kernels.hpp"
#include "rules/adam.hpp"
#include "sweep.hpp"

namespace onepass {
namespace {

constexpr Rule rules[] = {
    rule<Adam>(),
    rule<AMSGrad>(),
};

constexpr Kernels table(const char* instruction_set) {
  return {instruction_set, rules, sizeof rules / sizeof rules[0], {&stream<float>, &stream<double>}};
}

}  // namespace
}  // namespace onepass
