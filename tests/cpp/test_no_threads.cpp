// Threads that the system refuses. The linker hands the core's calls of std::thread's constructor to the function
// below (--wrap), which works under every tool.
#include <atomic>
#include <cerrno>
#include <memory>
#include <new>
#include <system_error>
#include <thread>

#include "check.hpp"
#include "child.hpp"
#include "core/executor.hpp"

namespace {

std::atomic<int> threads_left{1000};  // until std::thread throws
std::atomic<bool> out_of_memory{false};

using State = std::unique_ptr<std::thread::_State>;

}  // namespace

extern "C" {
// std::thread::_M_start_thread(std::unique_ptr<_State>, void (*)()): this, the state, and a function that means
// nothing.
void __real__ZNSt6thread15_M_start_threadESt10unique_ptrINS_6_StateESt14default_deleteIS1_EEPFvvE(std::thread*, State*,
                                                                                                  void (*)());
void __wrap__ZNSt6thread15_M_start_threadESt10unique_ptrINS_6_StateESt14default_deleteIS1_EEPFvvE(std::thread* self,
                                                                                                  State* state,
                                                                                                  void (*depend)()) {
  if (--threads_left < 0) {
    if (out_of_memory) throw std::bad_alloc();
    throw std::system_error(EAGAIN, std::generic_category());
  }
  __real__ZNSt6thread15_M_start_threadESt10unique_ptrINS_6_StateESt14default_deleteIS1_EEPFvvE(self, state, depend);
}
}

TEST(a_step_works_without_threads_that_cannot_be_created) {
  onepass::set_num_threads(4);
  for (const bool memory : {false, true}) {
    for (const int possible : {0, 1, 2}) {
      // A new child has no threads yet.
      CHECK(test::in_a_child([&] {
              out_of_memory = memory;
              threads_left = possible;
              test::Large large;
              large.step();
              large.step();
              return large.is(-1) && threads_left < 0;
            }),
            "possible", possible);
    }
  }
}

TEST(threads_are_created_once_the_system_allows_them) {
  onepass::set_num_threads(3);
  CHECK(test::in_a_child([] {
    threads_left = 0;
    test::Large large;
    large.step();
    threads_left = 100;
    large.step();
    return large.is(-1) && threads_left == 98;
  }));
}
