#include "kernels.inl"

namespace onepass {

extern const Kernels kernels_baseline;
constexpr Kernels kernels_baseline = table("baseline");

}  // namespace onepass
