// Forks of a process with threads: each child creates its own pool.
#include <atomic>
#include <filesystem>
#include <iterator>
#include <system_error>
#include <thread>
#include <vector>

#include "check.hpp"
#include "child.hpp"
#include "core/executor.hpp"
#include "core/fork_count.hpp"

using test::in_a_child;
using test::Large;

namespace {

// Number of threads in this process if the system reports it, otherwise the expected number.
std::size_t thread_count(std::size_t expected) {
  std::error_code none;
  const std::filesystem::directory_iterator tasks("/proc/self/task", none);
  return none ? expected : static_cast<std::size_t>(std::distance(begin(tasks), end(tasks)));
}

}  // namespace

TEST(forked_children_step_with_their_own_threads) {
  onepass::set_num_threads(3);
  Large large;
  large.step();  // the threads are there
  for (int i = 0; i < 20; ++i) {
    CHECK(in_a_child([&] {
      const unsigned forks = onepass::fork_count();
      large.step();
      const bool has_threads = thread_count(3) == 3;
      // Children of children.
      const bool grandchild = in_a_child([&] {
        large.step();
        return large.is(-2) && onepass::fork_count() == forks + 1;
      });
      return large.is(-1) && has_threads && grandchild;
    }));
  }
  large.step();
  CHECK(large.is(-1));
}

TEST(children_forked_while_other_threads_step_do_not_deadlock) {
  onepass::set_num_threads(2);
  std::atomic<bool> stop{false};
  std::vector<std::thread> workers;
  for (int i = 0; i < 2; ++i) {
    workers.emplace_back([&stop] {
      Large own;
      while (!stop) own.step();
    });
  }
  // The child uses nothing that may be locked in its parent: its arrays exist before the fork.
  Large large;
  for (int i = 0; i < 20; ++i) {
    CHECK(in_a_child([&] {
      large.step();
      return large.is(0);
    }));
  }
  stop = true;
  for (std::thread& worker : workers) worker.join();
}
