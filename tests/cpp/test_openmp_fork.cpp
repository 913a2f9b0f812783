// OpenMP's threads stay with the parent of a forked process.
#include "check.hpp"
#include "child.hpp"
#include "core/openmp.hpp"

TEST(a_forked_child_does_not_use_the_openmp_runtime) {
  CHECK(onepass::torch_openmp() != nullptr);
  CHECK(test::in_a_child([] { return onepass::torch_openmp() == nullptr; }));
  CHECK(onepass::torch_openmp() != nullptr);
}
