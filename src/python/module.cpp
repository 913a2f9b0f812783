// The compiled module: what Python calls, under which name.
#include <pybind11/native_enum.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "core/dispatch.hpp"
#include "core/float_mode.hpp"
#include "core/optimizer.hpp"
#include "core/parallel.hpp"
#include "kernels/power.hpp"
#include "python/arrays.hpp"
#include "python/objects.hpp"
#include "python/optimizer.hpp"
#include "python/torch.hpp"

namespace onepass::python {
namespace {

// Optimizer.step as a plain C function: pybind11's dispatcher would take as long again as a step of a small tensor.
constexpr const char* step_doc = R"(step($self, /, grads, grad_scale=1.0)
--

Update the parameters in place, along these gradients.

Args:
    grads: the gradients in the shape in which the parameters came: an array,
        a sequence, or a mapping. Each has its parameter's shape and any real
        floating dtype and memory layout; one whose dtype or layout is not its
        parameter's, or that shares memory with a parameter or with state, is
        copied into a scratch buffer that the optimizer keeps. With groups they
        come as one sequence, in the order of the groups. ``None`` leaves its
        parameter, state and step count as they are; a `SparseRows` touches
        some rows of the parameter and of its state, and no others.
    grad_scale: a factor for every gradient, applied in the same pass.

Raises:
    TypeError: a gradient that is no array of real floating-point numbers.
    FloatingPointError: a gradient that holds NaN or infinity, where
        ``nonfinite="raise"``.
    IndexError: a row that the parameter does not have.
    ValueError: too few or too many gradients, an unknown or missing name, a
        gradient of another shape than its parameter's, a schedule that returns
        no usable number, a coefficient that overflows the parameters' dtype,
        or a ``grad_scale`` that is not finite. Nothing has changed.

Example:
    >>> import numpy as np, onepass
    >>> w = np.ones(3, np.float32)
    >>> opt = onepass.Adam(w, lr=0.5)
    >>> opt.step(np.array([1, 0, -1], np.float32))
    >>> w
    array([0.5, 1. , 1.5], dtype=float32)
)";

// The arguments of a call, by position or by name; throws what Python would for a function of that signature.
std::pair<py::handle, py::handle> step_arguments(PyObject* const* arguments, Py_ssize_t positional, PyObject* names) {
  py::handle grads;
  py::handle grad_scale;
  if (positional > 2) {
    throw py::type_error("step() takes 2 arguments, grads and grad_scale, but " + std::to_string(positional) +
                         " were given");
  }
  if (positional > 0) grads = arguments[0];
  if (positional > 1) grad_scale = arguments[1];
  const Py_ssize_t named = names == nullptr ? 0 : PyTuple_GET_SIZE(names);
  for (Py_ssize_t i = 0; i < named; ++i) {
    const py::handle name = PyTuple_GET_ITEM(names, i);
    const bool is_grads = PyUnicode_CompareWithASCIIString(name.ptr(), "grads") == 0;
    if (!is_grads && PyUnicode_CompareWithASCIIString(name.ptr(), "grad_scale") != 0) {
      throw py::type_error("step() got an unexpected keyword argument " + py::repr(name).cast<std::string>());
    }
    py::handle& argument = is_grads ? grads : grad_scale;
    if (argument) throw py::type_error("step() got multiple values for argument " + py::repr(name).cast<std::string>());
    argument = arguments[positional + i];
  }
  if (!grads) throw py::type_error("step() is missing the argument 'grads'");
  return {grads, grad_scale};
}

PyObject* step(PyObject* self, PyObject* const* arguments, Py_ssize_t positional, PyObject* names) {
  return guarded([&] {
    Optimizer& optimizer = of(self);
    const auto [grads, grad_scale] = step_arguments(arguments, positional, names);
    optimizer.step(grads, grad_scale);
    return py::none().release().ptr();
  });
}

// Tensors.step(groups, state)
PyObject* step_tensors(PyObject* self, PyObject* const* arguments, Py_ssize_t positional) {
  return guarded([&] {
    auto* const tensors = find<Tensors>(self);
    if (positional != 2 || tensors == nullptr) throw py::type_error("step takes groups and state");
    return py::bool_(tensors->step(arguments[0], arguments[1])).release().ptr();
  });
}

// A method that is called on the object itself, once it was made.
template <class Result, class... Arguments>
auto method(Result (Optimizer::*function)(Arguments...)) {
  return [function](const py::object& self, Arguments... arguments) {
    return (checked(self).*function)(std::forward<Arguments>(arguments)...);
  };
}

bool step_once(const std::string& rule_name, const std::vector<double>& options, const CommonOptions& common,
               double grad_scale, bool flush_denormals, std::int64_t step, const py::array& param,
               const py::array& grad, const std::vector<py::array>& states, const std::optional<py::array>& average) {
  const onepass::RuleEntry& rule = onepass::find_rule(rule_name);
  if (options.size() != rule.option_count || states.size() != rule.state_count) {
    throw py::value_error("wrong number of options or states for this rule");
  }
  if (common.averaged != average.has_value()) throw py::value_error("averaged, but no average, or the other way round");
  Parameter parameter = describe(param, states, average);
  const auto lies_well = [](const py::array& array) { return (fields(array.ptr()).flags & any_order) != 0; };
  const auto is_state = [&](const py::array& state) { return lies_well(state) && state.writeable(); };
  if (dtype_of(grad.ptr()) != parameter.dtype || grad.size() != param.size() || !lies_well(grad)) {
    throw py::value_error("the gradient must be contiguous, with the dtype and size of its parameter");
  }
  if (!is_state(param) || !std::all_of(states.begin(), states.end(), is_state) || (average && !is_state(*average))) {
    throw py::value_error("a parameter, its state and its average must be contiguous and writeable");
  }
  parameter.operands.grad = fields(grad.ptr()).data;
  parameter.step = step;
  bool done = false;
  without_gil_if(parameter.size >= release_gil_from, [&] {
    done = onepass::step_once(rule, options.data(), common, grad_scale, parameter, flush_denormals);
  });
  return done;
}

// An array of memory that is another object's, which it keeps alive.
py::array array_at(std::uintptr_t address, const py::dtype& dtype, std::vector<py::ssize_t> shape,
                   std::vector<py::ssize_t> strides, const py::object& owner) {
  return py::array(dtype, std::move(shape), std::move(strides), reinterpret_cast<const void*>(address), owner);
}

// The L2 norm of a contiguous array, as clip_norm's of one gradient.
double norm(const py::array& array) {
  const std::optional<DType> dtype = dtype_of(array.ptr());
  if (!dtype || (fields(array.ptr()).flags & any_order) == 0) {
    throw py::value_error("the array must be contiguous, of native float32 or float64");
  }
  const void* const data = fields(array.ptr()).data;
  const auto size = static_cast<std::size_t>(array.size());
  double found = 0;
  without_gil_if(size >= release_gil_from, [&] { found = onepass::norm(*dtype, data, size); });
  return found;
}

// What blocks of gradients say together, each row of the array a block: the norm, and the first parameter whose
// gradient is not finite, if that was asked for and there is one.
std::pair<double, std::optional<std::size_t>> total(const py::array_t<double, py::array::c_style>& blocks,
                                                    const std::vector<std::size_t>& counts, double grad_scale,
                                                    bool finite) {
  std::size_t rows = 0;
  for (const std::size_t count : counts) rows += count;
  if (blocks.ndim() != 2 || blocks.shape(1) != 2 || static_cast<std::size_t>(blocks.shape(0)) != rows) {
    throw py::value_error("blocks must have two columns, and as many rows as there are blocks");
  }
  const auto* const data = reinterpret_cast<const onepass::BlockStats*>(blocks.data());
  const onepass::GradientStats found = onepass::total(data, counts.data(), counts.size(), grad_scale, finite);
  if (found.first_nonfinite == onepass::GradientStats::none) return {found.norm, std::nullopt};
  return {found.norm, found.first_nonfinite};
}

void stream_baseline(const py::array& param, const py::array& grad, const py::array& exp_avg,
                     const py::array& exp_avg_sq) {
  Parameter parameter = describe(param, {exp_avg, exp_avg_sq}, std::nullopt);
  for (const py::array& array : {param, grad, exp_avg, exp_avg_sq}) {
    if (dtype_of(array.ptr()) != parameter.dtype || array.size() != param.size() ||
        (fields(array.ptr()).flags & any_order) == 0 || (!array.is(grad) && !array.writeable())) {
      throw py::value_error("the arrays must be contiguous, writeable, of one dtype and one size");
    }
  }
  parameter.operands.grad = fields(grad.ptr()).data;
  const auto part = [](const void* context, std::size_t begin, std::size_t end) {
    const auto& x = *static_cast<const Parameter*>(context);
    onepass::kernels().stream_baseline[x.dtype](x.operands, begin, end);
  };
  const std::size_t bytes = parameter.size * onepass::bytes_of(parameter.dtype) * 7;
  without_gil([&] { onepass::run_parts(part, &parameter, parameter.size, bytes); });
}

py::dict rules() {
  py::dict all;
  const onepass::Kernels& kernels = onepass::kernels();
  for (std::size_t i = 0; i < kernels.rule_count; ++i) {
    const onepass::RuleEntry& rule = kernels.rules[i];
    all[rule.name] = py::make_tuple(std::vector<std::string>(rule.options, rule.options + rule.option_count),
                                    std::vector<std::string>(rule.states, rule.states + rule.state_count));
  }
  return all;
}

}  // namespace

PYBIND11_MODULE(_core, m, py::mod_gil_not_used()) {
  m.doc() = "The compiled core of onepass: private, and free to change.";
  try {
    onepass::kernels();
  } catch (const std::invalid_argument& error) {
    throw py::import_error(error.what());
  }

  onepass::get_num_threads();  // reads the environment now

  m.attr("__version__") = ONEPASS_VERSION;
  m.attr("compiler") = ONEPASS_COMPILER;
  m.attr("can_flush_denormals") = onepass::FloatMode::can_flush;
  m.attr("instruction_set") = onepass::kernels().instruction_set;
  m.attr("built_instruction_sets") = onepass::built_instruction_sets();
  m.attr("usable_instruction_sets") = onepass::usable_instruction_sets();
  m.attr("rules") = rules();

  py::class_<CommonOptions>(m, "CommonOptions")
      .def(py::init([](double lr, double weight_decay, double clip_value, double ema_decay, bool decoupled,
                       bool maximize, bool averaged, bool scheduled) {
             return CommonOptions{lr, weight_decay, clip_value, ema_decay, decoupled, maximize, averaged, scheduled};
           }),
           py::kw_only(), py::arg("lr"), py::arg("weight_decay"), py::arg("clip_value"), py::arg("ema_decay"),
           py::arg("decoupled"), py::arg("maximize"), py::arg("averaged"), py::arg("scheduled"));

  py::class_<onepass::Group, std::shared_ptr<onepass::Group>>(m, "Group")
      .def(py::init([](const std::string& rule, std::vector<double> options, const CommonOptions& common) {
             return std::make_shared<onepass::Group>(onepass::find_rule(rule), std::move(options), common);
           }),
           py::arg("rule"), py::arg("options"), py::arg("common"))
      .def(
          "set",
          [](onepass::Group& group, std::vector<double> options, const CommonOptions& common, const py::object& object,
             const py::object& known, const py::object& values) {
            return replace(object, remembered(), known, values, [&] { group.set(std::move(options), common); });
          },
          py::arg("options"), py::arg("common"), py::arg("object"), py::arg("known"), py::arg("values"))
      .def(
          "set_lr",
          [](onepass::Group& group, double lr, bool scheduled, const py::object& object, const py::object& known,
             const py::object& values) {
            return replace(object, remembered(), known, values, [&] { group.set_lr(lr, scheduled); });
          },
          py::arg("lr"), py::arg("scheduled"), py::arg("object"), py::arg("known"), py::arg("values"));

  py::class_<Optimizer> optimizer(m, "Optimizer", py::custom_type_setup(&set_up_collection<Optimizer>));
  py::native_enum<Optimizer::Form>(optimizer, "_Form", "enum.Enum")
      .value("array", Optimizer::Form::array)
      .value("sequence", Optimizer::Form::sequence)
      .value("mapping", Optimizer::Form::mapping)
      .finalize();
  py::native_enum<Optimizer::Nonfinite>(optimizer, "_Nonfinite", "enum.Enum")
      .value("propagate", Optimizer::Nonfinite::propagate)
      .value("skip", Optimizer::Nonfinite::skip)
      .value("raise", Optimizer::Nonfinite::raise)
      .finalize();
  // All take the object itself: pybind11 would hand over an optimizer that was never made.
  optimizer.def(py::init<bool, bool>(), py::arg("flush_denormals"), py::arg("in_files"))
      .def("_add_group", method(&Optimizer::add_group), py::arg("form"), py::arg("group"), py::arg("keys"),
           py::arg("params"), py::arg("states"), py::arg("averages"), py::arg("slots"))
      .def("_restore", method(&Optimizer::restore), py::arg("copies"), py::arg("options"), py::arg("clip_norm"),
           py::arg("nonfinite"), py::arg("step_count"), py::arg("skipped"), py::arg("steps"), py::arg("mu_products"))
      .def("_locked", method(&Optimizer::locked), py::arg("function"))
      .def("_step_in_parts", method(&Optimizer::step_in_parts), py::arg("grads"), py::arg("grad_scale"),
           py::arg("parts"), py::arg("exchange"))
      .def("_fits", [](const py::object& self, std::size_t i,
                       const py::object& gradient) { return checked(self).fits(i, gradient.ptr()); })
      .def("_parameter_step", [](const py::object& self, std::size_t i) { return checked(self).parameter_step(i); })
      .def("_mu_product", [](const py::object& self, std::size_t i) { return checked(self).mu_product(i); })
      .def_property(
          "_clip_norm", [](const py::object& self) { return checked(self).clip_norm_.load(); },
          [](const py::object& self, double clip_norm) { checked(self).clip_norm_ = clip_norm; })
      .def_property(
          "_nonfinite", [](const py::object& self) { return checked(self).nonfinite_.load(); },
          [](const py::object& self, Optimizer::Nonfinite nonfinite) { checked(self).nonfinite_ = nonfinite; })
      .def_property_readonly(
          "step_count", [](const py::object& self) { return checked(self).step_count(); },
          "The number of steps applied so far.")
      .def_property_readonly(
          "skipped", [](const py::object& self) { return checked(self).skipped(); },
          "The number of steps left out because of gradients that ``nonfinite`` refuses.")
      .def_property_readonly(
          "grad_norm", [](const py::object& self) { return checked(self).grad_norm(); },
          "The global L2 norm of the last step's gradients before clipping; None where ``clip_norm`` was not set then, "
          "and "
          "before the first step.");

  py::class_<Tensors> tensors(m, "Tensors", py::custom_type_setup(&set_up_collection<Tensors>));
  tensors
      .def(py::init<py::object, const py::tuple&, std::vector<bool>, const std::vector<SeenGroup::Parts>&,
                    const std::vector<SeenDict::Parts>&, py::array, py::array, py::object, const py::object&>(),
           py::arg("optimizer"), py::arg("tensors"), py::arg("shown"), py::arg("groups"), py::arg("state"),
           py::arg("steps"), py::arg("mu_products"), py::arg("changed"), py::arg("exchange"))
      .def("see", &Tensors::see, py::arg("index"), py::arg("group"));
  static PyMethodDef tensors_step = {"step", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&step_tensors)),
                                     METH_FASTCALL, nullptr};
  tensors.attr("step") = py::reinterpret_steal<py::object>(
      PyDescr_NewMethod(reinterpret_cast<PyTypeObject*>(tensors.ptr()), &tensors_step));

  static PyMethodDef step_method = {"step", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&step)),
                                    METH_FASTCALL | METH_KEYWORDS, step_doc};
  optimizer.attr("step") = py::reinterpret_steal<py::object>(
      PyDescr_NewMethod(reinterpret_cast<PyTypeObject*>(optimizer.ptr()), &step_method));

  m.attr("no_clip_norm") = Optimizer::no_clip_norm;
  m.def("step_once", &step_once, py::arg("rule"), py::arg("options"), py::arg("common"), py::arg("grad_scale"),
        py::arg("flush_denormals"), py::arg("step"), py::arg("param"), py::arg("grad"), py::arg("states"),
        py::arg("average") = std::nullopt);
  m.def("array_at", &array_at, py::arg("address"), py::arg("dtype"), py::arg("shape"), py::arg("strides"),
        py::arg("owner"));
  m.def("norm", &norm, py::arg("array"));
  m.def("total", &total, py::arg("blocks"), py::arg("counts"), py::arg("grad_scale"), py::arg("finite"));
  m.attr("norm_block") = onepass::norm_block;
  m.def("stream_baseline", &stream_baseline, py::arg("param"), py::arg("grad"), py::arg("exp_avg"),
        py::arg("exp_avg_sq"));
  m.def("get_num_threads", &onepass::get_num_threads);
  m.def("set_num_threads", &onepass::set_num_threads, py::arg("count"));
  m.def("power", &onepass::power, py::arg("base"), py::arg("exponent"));
}

}  // namespace onepass::python
