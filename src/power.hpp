// Integer powers, correctly rounded.
#pragma once

#include <cstdint>

namespace onepass {

// The double nearest to base^exponent, for 0 <= base < 1 and exponent >= 0.
//
// C libraries' pow() differ from each other in the last bit, and a running product drifts; this gives every machine the
// same bits. Results below 2^-1022 are 0: the bias corrections 1 - beta^t that it serves cannot tell the difference.
double power(double base, std::int64_t exponent) noexcept;

}  // namespace onepass
