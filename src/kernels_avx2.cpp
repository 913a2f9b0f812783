#include "kernels.inl"

namespace onepass {

extern const Kernels kernels_avx2;
constexpr Kernels kernels_avx2 = table("avx2");

}  // namespace onepass
