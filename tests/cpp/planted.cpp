// Faults planted in a core like ours, so that a tool that would not see them is seen: planted read | write | freed |
// race | uninitialised | overflow. Most run through the same functions as a step.
#include <atomic>
#include <cstdio>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <thread>

#include "core/dispatch.hpp"
#include "core/optimizer.hpp"

namespace {

const onepass::CommonOptions common{0.1,   0,    std::numeric_limits<double>::infinity(), 0, false, false, false,
                                    false, false};
constexpr std::size_t size = 100;

onepass::Parameter parameter_of(float* param, const float* grad, std::size_t count) {
  onepass::Parameter parameter{onepass::float32, count, 1, {}, 0, 1, {}};
  parameter.operands.param = param;
  parameter.operands.grad = grad;
  return parameter;
}

void step(float* param, const float* grad, std::size_t count) {
  const double options[3] = {};
  onepass::step_once(onepass::find_rule("sgd"), options, common, 1, parameter_of(param, grad, count), false);
}

// Read fault: the gradient ends one element too early.
void read() {
  const auto param = std::make_unique<float[]>(size);
  const auto grad = std::make_unique<float[]>(size - 1);
  step(param.get(), grad.get(), size);
}

// Write fault: one element after the parameter is written. A step there would already be caught reading it.
void write() {
  const auto param = std::make_unique<float[]>(size);
  const volatile std::size_t behind = size;
  param[behind] = 1;
  const auto grad = std::make_unique<float[]>(size);
  step(param.get(), grad.get(), size);
}

// Use after free: a step along a gradient that was freed.
void freed() {
  const auto param = std::make_unique<float[]>(size);
  auto grad = std::make_unique<float[]>(size);
  const float* volatile stale = grad.get();  // otherwise the compiler detects the fault
  grad.reset();
  step(param.get(), stale, size);
}

// Two threads step the same parameter, at the same time: one after the other they would meet at the pool's locks.
void race() {
  const auto param = std::make_unique<float[]>(size);
  const auto grad = std::make_unique<float[]>(size);
  std::atomic<int> there{0};
  const auto work = [&] {
    for (++there; there != 2;) std::this_thread::yield();
    for (int i = 0; i < 20000; ++i) step(param.get(), grad.get(), size);
  };
  std::thread other(work);
  work();
  other.join();
}

// Uninitialised memory: a branch depends on a gradient that was never written.
void uninitialised() {
  const std::unique_ptr<float[]> param(new float[size]());
  const std::unique_ptr<float[]> grad(new float[size]);
  step(param.get(), grad.get(), size);
  if (param[size / 2] > 0) std::puts("positive");
}

// Overflow of a 64-bit step count.
void overflow() {
  float param = 0;
  const float grad = 0;
  onepass::Optimizer optimizer(false);
  const auto group = std::make_shared<onepass::Group>(onepass::find_rule("sgd"), std::vector<double>{0, 0, 0}, common);
  optimizer.add_group(group, {parameter_of(&param, nullptr, 1)});
  optimizer.restore(0, {std::numeric_limits<std::int64_t>::max()}, {{}});
  const onepass::Gradient gradient{&grad, nullptr, 0};
  optimizer.take_options();
  optimizer.plan(&gradient, 1);
}

}  // namespace

int main(int count, char** arguments) {
  const struct {
    const char* name;
    void (*fault)();
  } faults[] = {
      {"read", &read},        {"write", &write}, {"freed", &freed}, {"race", &race}, {"uninitialised", &uninitialised},
      {"overflow", &overflow}};
  for (const auto& [name, fault] : faults) {
    if (count == 2 && std::strcmp(name, arguments[1]) == 0) {
      fault();
      std::puts("nothing was noticed");
      return 0;
    }
  }
  std::puts("planted read | write | freed | race | uninitialised | overflow");
  return 2;
}
