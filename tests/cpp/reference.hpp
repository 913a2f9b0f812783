// The specification of a step: scalar arithmetic, an element at a time, written line by line from the rules' formulas.
// Nothing of src/kernels/rules or src/kernels/loop.hpp is used, so that a mistake there is not repeated here.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

#include "kernels/table.hpp"

namespace test {

// The update of one element: its parameter, gradient, state and running average, in a dtype.
template <class T>
using Element = std::function<void(T& p, T g, T* s, T* average)>;

// The update with the coefficients of these options and this step; an empty function where a coefficient overflows.
// Replaces step.scalars by those after the step.
template <class T>
Element<T> make_element(const onepass::RuleEntry& rule, const double* options, const onepass::CommonOptions& common,
                        onepass::StepContext& step);

// Updates elements [begin, end), with this treatment of subnormal numbers.
template <class T>
void update(const Element<T>& element, const onepass::Operands& x, std::size_t begin, std::size_t end, bool flush);

// The sum of squares of a whole gradient, in blocks of 4,096 elements with 16 sums each.
template <class T>
double squares(const T* grad, std::size_t count);

// Returns true when every element, scaled, is finite, and with squared its square.
template <class T>
bool finite(const T* grad, std::size_t count, double scale, bool squared);

}  // namespace test
