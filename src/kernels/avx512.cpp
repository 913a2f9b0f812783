#include "kernels/table.inl"

namespace onepass {

extern const Kernels kernels_avx512;
const Kernels kernels_avx512 = table("avx512");

}  // namespace onepass
