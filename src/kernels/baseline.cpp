#include "kernels/table.inl"

namespace onepass {

extern const Kernels kernels_baseline;
const Kernels kernels_baseline = table("baseline");

}  // namespace onepass
