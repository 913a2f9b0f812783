#include "python/optimizer.hpp"

#include <pybind11/critical_section.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <utility>

#include "python/dict.hpp"
#include "python/instance.hpp"
#include "python/schedule.hpp"

namespace onepass::python {

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
  finish(prepare(grads, grad_scale));
}

std::vector<double> Optimizer::prepare_step(py::handle grads, py::handle grad_scale) {
  const ScopedGradients gradients(*this);
  const StepInputs inputs = prepare(grads, grad_scale);
  plan(inputs.scale);
  prepared_ = PreparedStep{inputs, gradients_};
  return core_.plan_inputs();
}

const Optimizer::PreparedStep& Optimizer::prepared_step() const {
  if (!prepared_) throw std::runtime_error("no step is prepared");
  return *prepared_;
}

py::array_t<double> Optimizer::measure_step() {
  const std::scoped_lock lock(lock_);
  const StepInputs& inputs = prepared_step().inputs;
  py::array_t<double> blocks({core_.block_count(), std::size_t{2}});
  auto* const stats = reinterpret_cast<onepass::BlockStats*>(blocks.mutable_data());
  without_gil_if(is_large(core_), [&] {
    core_.measure_blocks(pointers_.data(), inputs.scale, inputs.wants_norm(), inputs.wants_finite(), inputs.executor,
                         stats);
  });
  return blocks;
}

bool Optimizer::commit_step(double norm, std::optional<std::size_t> first_nonfinite) {
  const std::scoped_lock lock(lock_);
  const PreparedStep step = prepared_step();
  prepared_.reset();
  return commit(step.inputs, {norm, first_nonfinite.value_or(onepass::GradientStats::none)});
}

Optimizer::ScopedGradients::ScopedGradients(Optimizer& optimizer) : optimizer_(optimizer), lock_(optimizer.lock_) {
  optimizer.check_process();
  optimizer.prepared_.reset();
}

Optimizer::ScopedGradients::~ScopedGradients() { optimizer_.gradients_.clear(); }

// Fill pointers_ and have the core take the options of this step. All user code runs before the pointers are taken.
StepInputs Optimizer::prepare(py::handle grads, py::handle grad_scale) {
  if (evaluates_) {
    call_hook("_explain", "evaluation_mode");
    throw std::runtime_error("evaluation_mode");
  }
  // Take all options at once: an option that user code sets from here on takes effect at the next step.
  core_.take_options();
  StepInputs inputs = {1, onepass::pool_executor(), clip_norm_, nonfinite_};
  const std::vector<std::size_t> scheduled = core_.scheduled_groups();
  const bool plain_scale =
      !grad_scale || (PyFloat_CheckExact(grad_scale.ptr()) && std::isfinite(PyFloat_AS_DOUBLE(grad_scale.ptr())));
  if (plain_scale && grad_scale) inputs.scale = PyFloat_AS_DOUBLE(grad_scale.ptr());
  const bool fits = plain_scale && collect(grads) && take_pointers(false);
  if (fits && scheduled.empty()) return inputs;

  if (!fits) {
    const py::object prepared = plain_scale ? call_hook("_prepare", grads) : call_hook("_prepare", grads, grad_scale);
    const auto [gradients, scale] = prepared.cast<std::pair<py::object, py::object>>();
    if (!plain_scale) inputs.scale = scale.cast<double>();
    gradients_.clear();
    if (!collect_sequence(gradients)) throw py::value_error("wrong number of gradients");
  }
  for (const std::size_t g : scheduled) evaluate_schedules(g, core_.step_count() + 1);
  inputs.executor = onepass::pool_executor();  // again: user code may fork or set a number of threads
  if (!take_pointers(true)) throw py::value_error("a gradient was changed while the step was prepared");
  return inputs;
}

// Have the core take the values of a group's schedules at step t.
void Optimizer::evaluate_schedules(std::size_t g, std::int64_t t) {
  const py::object values = groups_[g].cast<const Group&>().values();
  const auto evaluate = [&](const char* name, double minimum, double limit) {
    const auto option = py::reinterpret_borrow<py::object>(PyDict_GetItemString(values.ptr(), name));
    if (!option || option.is_none()) return 0.0;
    const auto failed = [&](const char* kind, const py::object& detail) {
      call_hook("_explain", kind, g, name, t, detail);
      throw std::runtime_error(kind);
    };
    return evaluate_schedule(option, t, minimum, limit, failed);
  };
  const double lr = evaluate("lr", -std::numeric_limits<double>::max(), INFINITY);
  core_.schedule(g, lr, evaluate("ema_decay", 0, 1));
}

// Fill gradients_ with one object for each parameter. Return false for containers that only Python can unpack, and for
// None in place of the only array, which Python refuses.
bool Optimizer::collect(py::handle grads) {
  if (form_ == Form::sequence) return collect_sequence(grads);
  if (form_ == Form::mapping) return collect_mapping(grads);
  if (grads.is_none()) return false;
  gradients_.push_back(py::reinterpret_borrow<py::object>(grads));
  return true;
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

// Fill pointers_ from gradients_. Return false if the core cannot read a gradient without a conversion. Pairs of rows
// and values, which only _prepare creates, are accepted only if _prepare has run.
bool Optimizer::take_pointers(bool prepared) {
  for (std::size_t i = 0; i < records_.size(); ++i) {
    const py::object& gradient = gradients_[i];
    pointers_[i] = {};
    if (gradient.is_none()) continue;
    if (prepared && PyTuple_CheckExact(gradient.ptr())) {
      check_parameter(i);
      pointers_[i] = sparse_rows(i, py::reinterpret_borrow<py::tuple>(gradient));
    } else if (const std::optional<Storage> storage = readable_storage(i, gradient.ptr())) {
      pointers_[i].data = data_of(gradient);
      pointers_[i].storage = *storage;
    } else {
      return false;
    }
  }
  return true;
}

std::optional<Storage> Optimizer::readable_storage(std::size_t i, PyObject* gradient) {
  check_parameter(i);
  if (!PyArray_CheckExact(gradient)) return std::nullopt;
  PyArrayObject* const array = as_array(gradient);
  const ParameterRecord& record = records_[i];
  if ((PyArray_FLAGS(array) & record.order) == 0 || (PyArray_FLAGS(array) & NPY_ARRAY_ALIGNED) == 0) {
    return std::nullopt;
  }
  if (!record.has_shape(array)) return std::nullopt;
  const Parameter& parameter = core_.parameters()[i];
  const std::optional<Storage> storage = storage_of(gradient, parameter.dtype);
  if (!storage) return std::nullopt;
  const std::size_t bytes = parameter.size * onepass::bytes_of(*storage, parameter.dtype);
  if (!is_disjoint(i, PyArray_DATA(array), bytes)) return std::nullopt;
  return storage;
}

// Return true if a gradient of parameter i at this address overlaps no parameter and no state.
bool Optimizer::is_disjoint(std::size_t i, const void* data, std::size_t bytes) {
  ParameterRecord& record = records_[i];
  if (data == record.disjoint && bytes <= record.disjoint_bytes) return true;
  if (ranges_.overlap(data, bytes)) return false;
  record.disjoint = data;  // permanently: the arrays keep their addresses
  record.disjoint_bytes = bytes;
  return true;
}

// Return the gradient in a pair of arrays, rows and values, from _prepare.
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

// Throw if a parameter's array has changed: users can change its memory, shape and dtype in place.
void Optimizer::check_parameter(std::size_t i) {
  const ParameterRecord& record = records_[i];
  const Parameter& parameter = core_.parameters()[i];
  PyArrayObject* const array = as_array(record.param);
  const bool same = PyArray_DATA(array) == parameter.operands.param && record.has_shape(array) &&
                    (PyArray_FLAGS(array) & any_order) == record.order &&
                    (parameter.is_narrow ? storage_of(record.param, parameter.dtype) == parameter.storage.param
                                         : dtype_of(record.param) == parameter.dtype);
  if (!same) explain("reallocated_parameter", i);
  if ((PyArray_FLAGS(array) & NPY_ARRAY_WRITEABLE) == 0) explain("read_only_parameter", i);
}

void Optimizer::explain(const char* kind, std::size_t detail) {
  call_hook("_explain", kind, detail);
  throw std::runtime_error(kind);
}

// Step along pointers_.
void Optimizer::finish(const StepInputs& inputs) {
  plan(inputs.scale);
  commit(inputs, measure(core_, pointers_.data(), inputs));
}

// Carry out the planned step: clip, skip or refuse it according to its statistics. Return false if it was skipped.
bool Optimizer::commit(const StepInputs& inputs, const GradientStats& measured) {
  const std::optional<double> scale = scale_after(inputs, measured, [this] { return self().attr("_explain"); });
  if (scale) {
    if (*scale != inputs.scale) plan(*scale);
    without_gil_if(is_large(core_), [&] { core_.apply(inputs.executor); });
  } else {
    ++skipped_;
  }
  grad_norm_.store(inputs.wants_norm() ? measured.norm : not_measured, std::memory_order_relaxed);
  return scale.has_value();
}

void Optimizer::plan(double scale) {
  python::plan(core_, pointers_.data(), scale, [this] { return self().attr("_explain"); });
}

}  // namespace onepass::python
