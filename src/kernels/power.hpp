// Powers for folding.
#pragma once

#include <cstdint>

namespace onepass {

// The double nearest to base^exponent, for 0 <= base < 1 and exponent >= 0. Before it is rounded, once, it is wrong by
// less than exponent * 2^-124 of itself.
//
// C libraries' pow() differ from each other in the last bit, and a running product drifts; this gives every machine the
// same bits. Results below 2^-1022 are 0: the bias corrections 1 - beta^t that it serves cannot tell the difference.
double power(double base, std::int64_t exponent) noexcept;

// base^exponent as the C library has it, which may differ from another's in the last bit: for NAdam alone.
double real_power(double base, double exponent) noexcept;

}  // namespace onepass
