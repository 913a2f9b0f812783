// An optimizer of the core together with a model of it: both must stay equal under every operation. The model takes
// its arithmetic from the baseline kernels, which golden files check, and updates one element at a time. It implements
// separately what the optimizer does: rows, counts, groups, the order of sums.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/optimizer.hpp"
#include "support.hpp"

namespace test {

// A gradient of a parameter, in separate memory.
struct Given {
  std::unique_ptr<Memory> memory;  // none: no gradient
  bool some_rows = false;
  std::vector<std::int64_t> rows;

  onepass::Gradient seen() const {
    if (memory == nullptr) return {};
    return {memory->data(), some_rows ? rows.data() : nullptr, rows.size()};
  }
};

class Twin {
 public:
  struct Shape {
    onepass::DType dtype;
    std::size_t rows;
    std::size_t row_size;
  };

  explicit Twin(bool flush) : core_(flush), flush_(flush) {}

  // Parameters, state and averages start as numbers of this kind; no state is below zero, as rules take roots.
  void add_group(const std::string& rule, const std::vector<double>& options, const onepass::CommonOptions& common,
                 const std::vector<Shape>& shapes, Values values, Random& random);
  void set(std::size_t group, const std::vector<double>& options, const onepass::CommonOptions& common);
  void restore(std::int64_t step_count, const std::vector<std::int64_t>& steps,
               const std::vector<onepass::Scalars>& scalars);

  std::size_t group_count() const { return groups_.size(); }
  std::size_t parameter_count() const { return parameters_.size(); }
  const onepass::RuleEntry& rule(std::size_t group) const { return *groups_[group].rule; }

  // A gradient for parameter i: of all elements, or of the rows of which about one in so many is there.
  Given gradient(std::size_t i, Values values, Random& random, unsigned one_row_in = 0) const;

  // The steps of a step, done by both. Each checks what the core answers and that the caller's floating-point mode is
  // as it was; plan() returns false for an overflow, and checks that nothing has changed.
  onepass::GradientStats measure(const std::vector<Given>& gradients, double grad_scale, bool norm, bool finite);
  bool plan(const std::vector<Given>& gradients, double grad_scale);
  void apply();

  // Takes a whole step. Returns false if it overflows.
  bool step(const std::vector<Given>& gradients, double grad_scale = 1);

  // Checks that parameters, state, averages and counts are equal and that nothing around them was touched.
  void compare(const std::string& context = "") const;

  onepass::Optimizer& core() { return core_; }

 private:
  using Bytes = std::vector<unsigned char>;
  struct Array {
    std::unique_ptr<Memory> core;
    Bytes model;
  };
  struct Parameter {
    Shape shape;
    std::size_t group;
    std::vector<Array> arrays;  // the parameter, its state, and its average if there is one
    std::int64_t step = 0;
    onepass::Scalars scalars = {};
    std::size_t size() const { return shape.rows * shape.row_size; }
  };
  struct Group {
    const onepass::RuleEntry* rule;  // of the baseline
    std::vector<double> options;
    onepass::CommonOptions common;
    std::shared_ptr<onepass::Group> core;
  };
  struct Planned {
    std::size_t parameter;
    onepass::Scalars scalars;  // after the step
    const void* grad;
    std::vector<std::int64_t> rows;
    onepass::PackedCoefficients packed;
  };

  static std::vector<onepass::Gradient> seen(const std::vector<Given>& gradients);

  onepass::Optimizer core_;
  bool flush_;
  std::int64_t step_count_ = 0;
  std::vector<Group> groups_;
  std::vector<Parameter> parameters_;
  std::vector<Planned> planned_;
};

// The processor's floating-point mode and flags, on supported processors.
std::uint64_t float_mode();
void set_float_mode(std::uint64_t mode);

}  // namespace test
