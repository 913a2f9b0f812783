// Steps of the core without Python, for callgrind to count: steps TENSORS STEPS COUNTS (distinct step counts).
#include <cstdlib>
#include <limits>
#include <memory>
#include <vector>

#include "core/dispatch.hpp"
#include "core/optimizer.hpp"

int main(int, char** arguments) {
  const auto tensors = static_cast<std::size_t>(std::atoi(arguments[1]));
  const int steps = std::atoi(arguments[2]);
  const auto counts = static_cast<std::size_t>(std::atoi(arguments[3]));
  std::vector<float> param(tensors, 1), grad(tensors, 1), exp_avg(tensors), exp_avg_sq(tensors);
  onepass::CommonOptions common = {};
  common.lr = 1e-3;
  common.clip_value = std::numeric_limits<double>::infinity();
  const std::vector<double> options = {0.9, 0.999, 1e-8, 1, 0};
  std::vector<onepass::Parameter> parameters;
  std::vector<onepass::Gradient> gradients;
  for (std::size_t i = 0; i < tensors; ++i) {
    const auto step = static_cast<std::int64_t>(i % counts);
    parameters.push_back(
        {onepass::float32, 1, 1, {&param[i], nullptr, {&exp_avg[i], &exp_avg_sq[i]}, nullptr}, 0, step, {}});
    gradients.push_back({&grad[i], nullptr, 0});
  }
  onepass::Optimizer optimizer(true);
  optimizer.add_group(std::make_shared<onepass::Group>(onepass::find_rule("adam"), options, common), parameters);
  for (int i = 0; i < steps; ++i) {
    optimizer.take_options();
    optimizer.plan(gradients.data(), 1);
    optimizer.apply();
  }
  return param[0] < 1 ? EXIT_SUCCESS : EXIT_FAILURE;
}
