// Powers for coefficients.
#pragma once

#include <cstdint>

namespace onepass {

// The double nearest to base^exponent, for 0 <= base < 1 and exponent >= 0. Before it is rounded, once, its relative
// error is below exponent * 2^-124.
//
// C libraries' pow() differ from each other in the last bit, and a running product drifts; this gives every machine the
// same bits. Results below 2^-1022 are 0, which the bias corrections 1 - beta^t do not notice.
double power(double base, std::int64_t exponent) noexcept;

// base^exponent by the C library, whose last bit may differ from another library's: for real exponents only.
double libm_pow(double base, double exponent) noexcept;

// The exponential function and the natural logarithm by the C library, likewise; the logarithm of 0 is -infinity.
double libm_exp(double x) noexcept;
double libm_log(double x) noexcept;

// base^exponent: a product for the exponent 2, otherwise by the C library, which is exact for the exponents 0 and 1.
double real_power(double base, double exponent) noexcept;

}  // namespace onepass
