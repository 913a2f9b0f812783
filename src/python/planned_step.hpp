// Last part of a step: plan, measure, clip or skip. Shared by the bound optimizer and the PyTorch adapter.
#pragma once

#include <pybind11/pybind11.h>

#include <array>
#include <cmath>
#include <optional>
#include <stdexcept>

#include "core/executor.hpp"
#include "core/optimizer.hpp"
#include "python/gil.hpp"
#include "python/named_enum.hpp"

namespace onepass::python {

namespace py = pybind11;

enum class Nonfinite : unsigned char { propagate, skip, raise };
constexpr std::array<const char*, 3> names(Nonfinite) { return {"propagate", "skip", "raise"}; }

constexpr double no_clip_norm = -1;
constexpr double not_measured = -1;  // in place of a norm

// Inputs of a step other than gradients.
struct StepInputs {
  double scale;
  Executor executor;
  double clip_norm;
  Nonfinite nonfinite;
  bool wants_norm() const { return clip_norm != no_clip_norm; }
  bool wants_finite() const { return nonfinite != Nonfinite::propagate; }
};

inline bool is_large(const onepass::Optimizer& core) { return core.planned_elements() >= release_gil_from; }

// Plan the step along these gradients. explain() returns the Python function that raises the error of a step.
template <class Explain>
void plan(onepass::Optimizer& core, const Gradient* gradients, double scale, Explain explain) {
  try {
    core.plan(gradients, scale);
  } catch (const onepass::Overflow& overflow) {
    call(explain(), py::make_tuple("overflow", overflow.parameter, overflow.step, scale));
    throw;
  }
}

// Measure the planned step's gradients if the inputs require the norm or a check for finite values.
inline GradientStats measure(onepass::Optimizer& core, const Gradient* gradients, const StepInputs& inputs) {
  GradientStats measured;
  if (inputs.wants_norm() || inputs.wants_finite()) {
    without_gil_if(is_large(core), [&] {
      measured = core.measure(gradients, inputs.scale, inputs.wants_norm(), inputs.wants_finite(), inputs.executor);
    });
  }
  return measured;
}

// Return the scale of the step for gradients with these statistics, or nothing if the step must be skipped. Throw if
// gradients that are not finite are an error.
template <class Explain>
std::optional<double> scale_after(const StepInputs& inputs, const GradientStats& measured, Explain explain) {
  if (measured.first_nonfinite != GradientStats::none) {
    if (inputs.nonfinite != Nonfinite::raise) return std::nullopt;
    call(explain(), py::make_tuple("nonfinite_gradient", measured.first_nonfinite));
    throw std::runtime_error("a gradient is not finite");
  }
  // An infinite clip_norm only measures, even where the norm is NaN.
  if (!inputs.wants_norm() || !std::isfinite(inputs.clip_norm) || measured.norm <= inputs.clip_norm) {
    return inputs.scale;
  }
  return onepass::clipped_scale(inputs.scale, inputs.clip_norm, measured.norm);
}

}  // namespace onepass::python

template <>
struct pybind11::detail::type_caster<onepass::python::Nonfinite>
    : onepass::python::NamedEnum<onepass::python::Nonfinite> {};
