#include "python/optimizer.hpp"

#include <pybind11/critical_section.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <utility>

#include "python/instance.hpp"
#include "python/torch_threads.hpp"

namespace onepass::python {
namespace {

// A value of a dict; null where the key is missing.
py::object find(py::handle dict, py::handle key) {
#if PY_VERSION_HEX >= 0x030D0000
  PyObject* value = nullptr;
  const bool failed = PyDict_GetItemRef(dict.ptr(), key.ptr(), &value) < 0;
  auto result = py::reinterpret_steal<py::object>(value);
#else
  auto result = py::reinterpret_borrow<py::object>(PyDict_GetItemWithError(dict.ptr(), key.ptr()));
  const bool failed = !result && PyErr_Occurred() != nullptr;
#endif
  if (failed) throw py::error_already_set();
  return result;
}

}  // namespace

Optimizer& core_of(py::handle self) {
  auto* const optimizer = try_get<Optimizer>(self.ptr());
  if (optimizer == nullptr) throw py::type_error("the optimizer's __init__ was not called");
  return *optimizer;
}

Optimizer& require_optimizer(const py::object& self) {
  if (!py::isinstance<Optimizer>(self)) throw py::type_error("not an optimizer");
  return core_of(self);
}

void Optimizer::step(py::handle grads, py::handle grad_scale) {
  const ScopedGradients gradients(*this);
  const double scale = as_number(grad_scale);
  collect(grads);
  take_pointers();
  finish(scale);
}

void Optimizer::step_in_parts(py::handle grads, double scale, const std::vector<std::vector<std::size_t>>& parts,
                              const py::object& exchange) {
  const ScopedGradients gradients(*this);
  collect(grads);
  take_pointers();
  if (std::any_of(pointers_.begin(), pointers_.end(), [](const Gradient& each) { return each.rows != nullptr; })) {
    throw py::type_error("gradients of some rows cannot be applied in parts");
  }
  const InParts in_parts{parts, exchange};
  finish(scale, &in_parts);
}

// The threads of the coming step.
Executor Optimizer::choose_executor() const {
  return torch_threads_ && elements_ >= release_gil_from ? torch_executor(torch_threads_) : onepass::pool_executor();
}

Optimizer::ScopedGradients::ScopedGradients(Optimizer& optimizer) : optimizer_(optimizer), lock_(optimizer.lock_) {
  optimizer.check_process();
}

Optimizer::ScopedGradients::~ScopedGradients() { optimizer_.gradients_.clear(); }

bool Optimizer::ScopedGradients::add(py::object owner, const void* data) {
  const std::size_t i = optimizer_.gradients_.size();
  optimizer_.gradients_.push_back(std::move(owner));
  optimizer_.pointers_[i] = {};
  optimizer_.pointers_[i].data = data;
  return data == nullptr || optimizer_.is_disjoint(i, data);
}

py::tuple Optimizer::updated(const py::tuple& tensors) const {
  const auto missing = [](const Gradient& gradient) { return gradient.data == nullptr; };
  if (std::none_of(pointers_.begin(), pointers_.end(), missing)) return tensors;
  py::list result;
  for (std::size_t i = 0; i < pointers_.size(); ++i) {
    if (!missing(pointers_[i])) result.append(tensors[i]);
  }
  return py::tuple(result);
}

double Optimizer::as_number(py::handle grad_scale) {
  if (!grad_scale) return 1;
  if (PyFloat_CheckExact(grad_scale.ptr()) && std::isfinite(PyFloat_AS_DOUBLE(grad_scale.ptr()))) {
    return PyFloat_AS_DOUBLE(grad_scale.ptr());
  }
  return call_hook("_number", "grad_scale", grad_scale).cast<double>();
}

// Fill gradients_ with one object for each parameter.
void Optimizer::collect(py::handle grads) {
  if (form_ == Form::array) {
    gradients_.push_back(py::reinterpret_borrow<py::object>(grads));
    return;
  }
  if (form_ == Form::sequence ? collect_sequence(grads) : collect_mapping(grads)) return;
  gradients_.clear();
  const py::list arranged = call_hook("_arrange", grads);
  if (!collect_sequence(arranged)) throw py::value_error("wrong number of gradients");
}

bool Optimizer::collect_sequence(py::handle grads) {
  PyObject* const items = grads.ptr();
  if (!PyList_CheckExact(items) && !PyTuple_CheckExact(items)) return false;
  const py::scoped_critical_section section(grads);
  if (static_cast<std::size_t>(PySequence_Fast_GET_SIZE(items)) != records_.size()) return false;
  for (std::size_t i = 0; i < records_.size(); ++i) {
    gradients_.push_back(
        py::reinterpret_borrow<py::object>(PySequence_Fast_GET_ITEM(items, static_cast<Py_ssize_t>(i))));
  }
  return true;
}

bool Optimizer::collect_mapping(py::handle grads) {
  if (!PyDict_CheckExact(grads.ptr()) || static_cast<std::size_t>(PyDict_Size(grads.ptr())) != records_.size()) {
    return false;
  }
  for (const ParameterRecord& record : records_) {
    gradients_.push_back(find(grads, record.key));
    if (!gradients_.back()) return false;
  }
  return true;
}

// Fill pointers_ from gradients_, converted where the core could not read them.
void Optimizer::take_pointers() {
  bool converted = false;
  for (std::size_t i = 0; i < records_.size(); ++i) {
    py::object& gradient = gradients_[i];
    pointers_[i] = {};
    if (gradient.is_none()) continue;
    check_parameter(i);
    if (!fits(i, gradient.ptr())) {
      converted = true;
      gradient = call_hook("_convert", i, gradient);
    }
    if (PyTuple_CheckExact(gradient.ptr())) {
      pointers_[i] = sparse_rows(i, gradient);
    } else if (converted && !fits(i, gradient.ptr())) {
      throw py::value_error("a converted gradient does not fit its parameter");
    } else {
      pointers_[i].data = data_of(gradient);
    }
  }
  if (converted) check_again();
}

bool Optimizer::fits(std::size_t i, PyObject* gradient) {
  if (!PyArray_CheckExact(gradient)) return false;
  PyArrayObject* const array = as_array(gradient);
  const ParameterRecord& record = records_.at(i);
  if ((PyArray_FLAGS(array) & record.order) == 0 || (PyArray_FLAGS(array) & NPY_ARRAY_ALIGNED) == 0) return false;
  if (!record.has_shape(array) || dtype_of(gradient) != core_.parameters()[i].dtype) return false;
  return is_disjoint(i, PyArray_DATA(array));
}

// True if a gradient of parameter i at this address overlaps no parameter and no state.
bool Optimizer::is_disjoint(std::size_t i, const void* data) {
  if (data == records_[i].disjoint) return true;
  const Parameter& parameter = core_.parameters()[i];
  if (ranges_.overlap(data, parameter.size * onepass::bytes_of(parameter.dtype))) return false;
  records_[i].disjoint = data;  // for good: the arrays stay where they are
  return true;
}

// The gradient in a pair of arrays, rows and values, that _convert has returned.
Gradient Optimizer::sparse_rows(std::size_t i, const py::tuple& pair) const {
  const auto rows = pair[0].cast<py::array_t<std::int64_t, py::array::c_style>>();
  const auto values = pair[1].cast<py::array>();
  const Parameter& parameter = core_.parameters()[i];
  const auto count = static_cast<std::size_t>(rows.size());
  const std::int64_t* const first = rows.data();
  const std::int64_t all = records_[i].shape[0];
  bool good = rows.is(pair[0]) && dtype_of(values) == parameter.dtype &&
              static_cast<std::size_t>(values.size()) == count * parameter.row_size &&
              (records_[i].order & PyArray_FLAGS(as_array(values)) & NPY_ARRAY_C_CONTIGUOUS) != 0;
  for (std::size_t r = 0; good && r < count; ++r) {
    good = first[r] < all && first[r] > (r == 0 ? -1 : first[r - 1]);
  }
  if (!good) throw py::value_error("converted rows do not fit their parameter");
  return {data_of(values), first, count};
}

// Throw unless a parameter's array is as it was: users can change its memory, shape and dtype in place.
void Optimizer::check_parameter(std::size_t i) {
  const ParameterRecord& record = records_[i];
  const Parameter& parameter = core_.parameters()[i];
  PyArrayObject* const array = as_array(record.param);
  const bool same = PyArray_DATA(array) == parameter.operands.param && record.has_shape(array) &&
                    (PyArray_FLAGS(array) & any_order) == record.order && dtype_of(record.param) == parameter.dtype;
  if (!same || (PyArray_FLAGS(array) & NPY_ARRAY_WRITEABLE) == 0) call_hook("_parameter_changed", i, same);
}

// Throw unless parameters and gradients are as they were before Python code ran.
void Optimizer::check_again() {
  for (std::size_t i = 0; i < records_.size(); ++i) {
    const Gradient& gradient = pointers_[i];
    if (gradient.data == nullptr) continue;
    check_parameter(i);
    PyObject* const array = gradients_[i].ptr();
    if (gradient.rows == nullptr && (!fits(i, array) || data_of(array) != gradient.data)) {
      throw py::value_error("a gradient was changed while the step was prepared");
    }
  }
}

// Step along pointers_.
void Optimizer::finish(double scale, const InParts* in_parts) {
  const double clip_norm = clip_norm_;
  const Nonfinite nonfinite = nonfinite_;
  take_options();
  const Executor executor = choose_executor();  // after user code, which may fork or set a number of threads
  plan(scale);
  const bool large = core_.planned_elements() >= release_gil_from;
  onepass::GradientStats measured;
  const bool norm = clip_norm != no_clip_norm;
  const bool finite = nonfinite != Nonfinite::propagate;
  if (in_parts != nullptr) call(in_parts->exchange.attr("_agree"), py::make_tuple(core_.digest(), norm || finite));
  if ((norm || finite) && in_parts != nullptr) {
    measured = measure_with_others(scale, norm, finite, large, in_parts->exchange);
  } else if (norm || finite) {
    without_gil_if(large, [&] { measured = core_.measure(pointers_.data(), scale, norm, finite, executor); });
  }
  if (measured.first_nonfinite != onepass::GradientStats::none) {
    if (nonfinite == Nonfinite::raise) {
      call_hook("_nonfinite_gradient", measured.first_nonfinite);
      throw std::runtime_error("a gradient is not finite");
    }
    remember(measured, clip_norm);
    ++skipped_;
    return;
  }
  // An infinite clip_norm only measures, even where the norm is NaN.
  if (norm && std::isfinite(clip_norm) && !(measured.norm <= clip_norm)) {
    plan(onepass::clipped_scale(scale, clip_norm, measured.norm));
  }
  if (in_parts == nullptr) {
    without_gil_if(large, [&] { core_.apply(executor); });
  } else {
    for (std::size_t k = 0; k < in_parts->parts.size(); ++k) {
      call(in_parts->exchange.attr("_ready"), py::make_tuple(k));
      without_gil_if(large, [&] { core_.apply_some(in_parts->parts[k]); });
    }
    core_.count_step();
  }
  remember(measured, clip_norm);
}

GradientStats Optimizer::measure_with_others(double scale, bool norm, bool finite, bool large,
                                             const py::object& exchange) {
  std::size_t count = 0;
  for (const Parameter& parameter : core_.parameters()) count += onepass::blocks_of(parameter.size);
  py::array_t<double> blocks({count, std::size_t{2}});
  auto* const room = reinterpret_cast<onepass::BlockStats*>(blocks.mutable_data());
  without_gil_if(large, [&] { core_.measure_blocks(pointers_.data(), scale, norm, finite, room); });
  const auto [total, first] =
      call(exchange.attr("_measured"), py::make_tuple(blocks)).cast<std::pair<double, std::optional<std::size_t>>>();
  return {total, first.value_or(onepass::GradientStats::none)};
}

// Have the core take the groups' options, with the values of their schedules at this step.
void Optimizer::take_options() {
  core_.take_options();  // all at once: an option that a schedule sets takes effect at the next step
  bool called = false;
  for (std::size_t g = 0; g < core_.group_count(); ++g) {
    if (!core_.scheduled(g)) continue;
    called = true;
    const auto [lr, ema_decay] = call_hook("_scheduled", g, core_.step_count() + 1).cast<std::pair<double, double>>();
    core_.schedule(g, lr, ema_decay);
  }
  if (called) check_again();
}

void Optimizer::plan(double scale) {
  try {
    core_.plan(pointers_.data(), scale);
  } catch (const onepass::Overflow& overflow) {
    call_hook("_overflow", overflow.parameter, overflow.step, scale);
    throw;
  }
}

void Optimizer::remember(const GradientStats& measured, double clip_norm) {
  grad_norm_ = measured.norm;
  measured_ = clip_norm != no_clip_norm;
}

}  // namespace onepass::python
