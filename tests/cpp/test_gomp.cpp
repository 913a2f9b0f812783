// Steps on the threads of GNU's OpenMP runtime. ThreadSanitizer does not see how the runtime orders memory, so it would
// report a step that relied on that.
#include <vector>

#include "check.hpp"
#include "child.hpp"
#include "core/executor.hpp"
#include "core/openmp.hpp"

TEST(steps_on_a_team_of_the_runtime_are_correct) {
  const onepass::OpenMP* const runtime = onepass::torch_openmp();
  CHECK(runtime != nullptr);
  if (runtime == nullptr) return;
  CHECK(runtime->path.find("gomp") != std::string::npos, runtime->path);
  test::Large large;
  for (int i = 1; i <= 20; ++i) {
    for (double& g : large.grad) g = 2;  // written by this thread, read by the team
    large.step({static_cast<std::size_t>(i % 4 + 1), runtime});
    CHECK(large.is(1 - i));  // written by the team, read by this thread
  }
}
