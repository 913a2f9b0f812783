// The parts of a rule, and what its file needs. A rule is a template over the dtype T of the arithmetic:
//
//   Options                      a struct of doubles, with their names; options cross the table as an array of double,
//                                so that flags are 0 or 1 here
//   name                         in the table
//   states[]                     names and kinds of the arrays that the rule keeps; the list ends early at no_state
//   scalars[]                    names and initial values of the doubles that it keeps for each parameter, if any
//   squares_gradient             the rule squares the gradient: one whose square overflows would freeze a parameter
//   coefficients(options, step)  the numbers of one step, computed in double and rounded to T once
//   operator()(p, g, states...)  the update of one element
#pragma once

#include <cstdint>

#include "kernels/builtins.hpp"
#include "kernels/power.hpp"
#include "kernels/step.hpp"

namespace onepass {
namespace {

constexpr StateEntry no_state = {nullptr, StateKind::moment};

// True for rules that store the gradient unchanged: a copy preserves subnormals, multiplying by 1 would flush them.
template <class Rule>
constexpr bool copies_gradient = false;

}  // namespace
}  // namespace onepass
