// Threads that the system does not give, and processes that are forked. The linker hands the core's calls of
// std::thread's constructor to the function below (--wrap), which works under every tool.
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <limits>
#include <memory>
#include <new>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "check.hpp"
#include "parallel.hpp"
#include "twin.hpp"

namespace {

std::atomic<int> threads_left{1000};  // until std::thread throws
std::atomic<bool> out_of_memory{false};

using State = std::unique_ptr<std::thread::_State>;

}  // namespace

extern "C" {
// std::thread::_M_start_thread(std::unique_ptr<_State>, void (*)()): this, the state, and a function that means nothing.
void __real__ZNSt6thread15_M_start_threadESt10unique_ptrINS_6_StateESt14default_deleteIS1_EEPFvvE(std::thread*, State*,
                                                                                                   void (*)());
void __wrap__ZNSt6thread15_M_start_threadESt10unique_ptrINS_6_StateESt14default_deleteIS1_EEPFvvE(
    std::thread* self, State* state, void (*depend)()) {
  if (--threads_left < 0) {
    if (out_of_memory) throw std::bad_alloc();
    throw std::system_error(EAGAIN, std::generic_category());
  }
  __real__ZNSt6thread15_M_start_threadESt10unique_ptrINS_6_StateESt14default_deleteIS1_EEPFvvE(self, state, depend);
}
}

namespace {

constexpr std::size_t size = 650000;  // worth four threads

struct Large {
  std::vector<double> param = std::vector<double>(size, 1), grad = std::vector<double>(size, 2);

  // -1 further with each step, by as many threads as there may be.
  void step() {
    onepass::Parameter parameter{onepass::float64, size, 1, {}, 0, 1, 1};
    parameter.operands.param = param.data();
    parameter.operands.grad = grad.data();
    const double options[3] = {};
    const onepass::CommonOptions common{0.5,   0,     std::numeric_limits<double>::infinity(), 0, false, false,
                                        false, false};
    if (!onepass::step_once(test::rule_named("sgd"), options, common, 1, parameter, false)) std::abort();
  }

  bool is(double expected) const {
    for (const double p : param) {
      if (p != expected) return false;
    }
    return true;
  }
};

// Forks; whether the child, which ends here, found all well.
template <class Child>
bool in_a_child(Child child) {
  const pid_t id = fork();
  if (id == 0) {
    alarm(120);  // instead of waiting for ever
    _exit(child() ? 0 : 1);
  }
  int status = 0;
  return waitpid(id, &status, 0) == id && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

}  // namespace

TEST(threads_that_cannot_be_made_are_done_without) {
  onepass::set_num_threads(4);
  for (const bool memory : {false, true}) {
    for (const int possible : {0, 1, 2}) {
      // In a child there is no thread yet.
      CHECK(in_a_child([&] {
              out_of_memory = memory;
              threads_left = possible;
              Large large;
              large.step();
              large.step();
              return large.is(-1) && threads_left < 0;
            }),
            "possible", possible);
    }
  }
}

TEST(threads_come_once_the_system_gives_them) {
  onepass::set_num_threads(3);
  CHECK(in_a_child([] {
    threads_left = 0;
    Large large;
    large.step();
    threads_left = 100;
    large.step();
    return large.is(-1) && threads_left == 98;
  }));
}

TEST(forked_children_step_with_threads_of_their_own) {
  onepass::set_num_threads(3);
  Large large;
  large.step();  // the threads are there
  for (int i = 0; i < 20; ++i) {
    CHECK(in_a_child([&] {
      threads_left = 100;
      const unsigned forks = onepass::forks();
      large.step();
      // And their children again.
      const bool grandchild = in_a_child([&] {
        large.step();
        return large.is(-2) && onepass::forks() == forks + 1;
      });
      return large.is(-1) && threads_left == 98 && grandchild;
    }));
  }
  large.step();
  CHECK(large.is(-1));
}

TEST(children_forked_while_other_threads_step_do_not_wait_for_what_these_hold) {
  onepass::set_num_threads(2);
  std::atomic<bool> stop{false};
  std::vector<std::thread> workers;
  for (int i = 0; i < 2; ++i) {
    workers.emplace_back([&stop] {
      Large own;
      while (!stop) own.step();
    });
  }
  // The child touches nothing that may have been locked in its parent: its arrays are there already.
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
