// A step large enough for four threads, and child processes that report success.
#pragma once

#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <limits>
#include <vector>

#include "core/optimizer.hpp"
#include "support.hpp"

namespace test {

struct Large {
  static constexpr std::size_t size = 650000;
  std::vector<double> param = std::vector<double>(size, 1), grad = std::vector<double>(size, 2);

  // Subtracts 1 from each element.
  void step(const onepass::Executor& executor = onepass::pool_executor()) {
    onepass::Parameter parameter{onepass::float64, size, 1, {}, 0, 1, {}};
    parameter.operands.param = param.data();
    parameter.operands.grad = grad.data();
    const double options[3] = {};
    const onepass::CommonOptions common{0.5,   0,    std::numeric_limits<double>::infinity(), 0, false, false, false,
                                        false, false};
    if (!onepass::step_once(rule_named("sgd"), options, common, 1, parameter, false, executor)) std::abort();
  }

  bool is(double expected) const {
    for (const double p : param) {
      if (p != expected) return false;
    }
    return true;
  }
};

// Runs a function in a forked child, which then exits. Returns the result of the function.
template <class Child>
bool in_a_child(Child child) {
  const pid_t id = fork();
  if (id == 0) {
    alarm(120);  // instead of waiting forever
    _exit(child() ? 0 : 1);
  }
  int status = 0;
  return waitpid(id, &status, 0) == id && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

}  // namespace test
