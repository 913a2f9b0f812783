#include "kernels/table.inl"

namespace onepass {

extern const Kernels kernels_avx2;
const Kernels kernels_avx2 = table("avx2");

}  // namespace onepass
