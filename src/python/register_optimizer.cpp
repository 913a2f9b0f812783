// The bound Optimizer's methods and properties.
#include <pybind11/stl.h>

#include <string>
#include <utility>

#include "python/gc.hpp"
#include "python/instance.hpp"
#include "python/optimizer.hpp"

namespace onepass::python {
namespace {

constexpr const char* step_doc = R"(step($self, /, grads, grad_scale=1.0)
--

Update the parameters in place along these gradients.

Args:
    grads: gradients in the form of the parameters: an array, a sequence or a
        mapping; with groups, one sequence in the order of the groups, or one
        mapping if the parameters have names. Each gradient has its parameter's
        shape, and any real floating dtype and memory layout. A gradient is copied
        only if its dtype or layout differs from its parameter's, or if it shares
        memory with a parameter or with state. Arrays of other libraries in CPU
        memory work too. ``None`` in a sequence or mapping leaves the parameter, its
        state and its step count unchanged. `SparseRows` updates only some rows of
        the parameter and of its state.
    grad_scale: a factor for every gradient, applied in the same pass.

Raises:
    TypeError: a gradient is not an array of real floating-point numbers.
    FloatingPointError: a gradient holds NaN or infinity, and ``nonfinite`` is
        ``"raise"``.
    IndexError: `SparseRows` names a row that the parameter does not have.
    ValueError: too few or too many gradients, an unknown or missing name, a
        gradient whose shape is not its parameter's, a schedule that returns
        no usable number, a coefficient that overflows the parameters' dtype,
        or a ``grad_scale`` that is not finite.
    RuntimeError: the optimizer is in evaluation mode, or already in use by this
        thread: a schedule called ``step``. After any error, nothing has changed.

Example:
    >>> import numpy as np, onepass
    >>> w = np.ones(3, np.float32)
    >>> opt = onepass.Adam(w, lr=0.5)
    >>> opt.step(np.array([1, 0, -1], np.float32))
    >>> w
    array([0.5, 1. , 1.5], dtype=float32)
)";

// The arguments of a call, by position or by name. Throws what Python throws for a function of this signature. Parsed
// here because pybind11's own parsing takes six times as long: 440 ns compared with 70 ns per call, both in excess of
// an empty Python function on the same busy machine. A small step takes 300 ns (EPYC Zen 3, pybind11 3.1).
std::pair<py::handle, py::handle> step_arguments(Optimizer& optimizer, PyObject* const* arguments,
                                                 Py_ssize_t positional, PyObject* names) {
  py::handle grads;
  py::handle grad_scale;
  if (positional > 2) optimizer.explain("surplus_arguments", static_cast<std::size_t>(positional));
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
    Optimizer& optimizer = core_of(self);
    const auto [grads, grad_scale] = step_arguments(optimizer, arguments, positional, names);
    optimizer.step(grads, grad_scale);
    return py::none().release().ptr();
  });
}

// Methods that take any object and require an optimizer: pybind11 would pass one whose constructor never ran.
template <class Result, class... Arguments>
auto method(Result (Optimizer::*function)(Arguments...)) {
  return [function](const py::object& self, Arguments... arguments) {
    return (require_optimizer(self).*function)(std::forward<Arguments>(arguments)...);
  };
}
template <class Result>
auto method(Result (Optimizer::*function)() const) {
  return [function](const py::object& self) { return (require_optimizer(self).*function)(); };
}

}  // namespace

void register_optimizer(py::module_& m) {
  m.attr("no_clip_norm") = no_clip_norm;
  m.attr("scale_group") = onepass::scale_group;
  py::class_<NarrowArrays>(m, "NarrowArrays")
      .def(py::init<std::vector<std::optional<py::array>>, std::vector<bool>, std::optional<py::array>, unsigned char,
                    bool, std::uint64_t, std::optional<std::size_t>>(),
           py::arg("scales"), py::arg("divisors"), py::arg("low"), py::arg("master_bits"), py::arg("stochastic"),
           py::arg("first") = 0, py::arg("part_of") = py::none());
  py::class_<Optimizer> optimizer(m, "Optimizer", py::custom_type_setup(&set_up_collection<Optimizer>));
  optimizer.def(py::init<bool, bool, py::object>(), py::arg("flush_denormals"), py::arg("in_files"), py::arg("record"))
      .def_property_readonly("_record",
                             [](const py::object& self) {
                               const auto* const optimizer = try_get<Optimizer>(self.ptr());
                               if (optimizer == nullptr)
                                 throw py::attribute_error("_record");  // before __init__ was called
                               return optimizer->record();
                             })
      .def("_add_group", method(&Optimizer::add_group), py::arg("form"), py::arg("group"), py::arg("keys"),
           py::arg("params"), py::arg("states"), py::arg("averages"), py::arg("narrow"), py::arg("record"))
      .def("_restore", method(&Optimizer::restore), py::arg("copies"), py::arg("options"), py::arg("clip_norm"),
           py::arg("nonfinite"), py::arg("seed"), py::arg("step_count"), py::arg("skipped"), py::arg("steps"),
           py::arg("scalars"), py::arg("record"), py::arg("evaluates"))
      .def("_swap_arrays", method(&Optimizer::swap_arrays), py::arg("pairs"), py::arg("record"), py::arg("evaluates"))
      .def("_locked", method(&Optimizer::locked), py::arg("function"))
      .def("_prepare_step", method(&Optimizer::prepare_step), py::arg("grads"), py::arg("grad_scale"))
      .def("_measure_step", method(&Optimizer::measure_step))
      .def("_commit_step", method(&Optimizer::commit_step), py::arg("norm"), py::arg("first_nonfinite"))
      .def("_fits",
           [](const py::object& self, std::size_t i, const py::object& gradient) {
             Optimizer& optimizer = require_optimizer(self);
             if (i >= optimizer.parameter_count()) throw py::index_error("no such parameter");
             return optimizer.fits(i, gradient.ptr());
           })
      .def("_parameter_step", method(&Optimizer::parameter_step))
      .def("_parameter_scalars", method(&Optimizer::parameter_scalars))
      .def_property("_seed", method(&Optimizer::seed), method(&Optimizer::set_seed))
      .def_property("_clip_norm", method(&Optimizer::clip_norm), method(&Optimizer::set_clip_norm))
      .def_property("_nonfinite", method(&Optimizer::nonfinite), method(&Optimizer::set_nonfinite))
      .def_property_readonly("step_count", method(&Optimizer::step_count), "The number of steps applied so far.")
      .def_property_readonly("skipped", method(&Optimizer::skipped),
                             "The number of steps skipped because a gradient was not finite: see ``nonfinite``.")
      .def_property_readonly(
          "grad_norm", method(&Optimizer::grad_norm),
          "The global L2 norm of the last step's gradients before clipping, or None if ``clip_norm`` was not set.");
  static PyMethodDef step_method = {"step", as_cfunction(&step), METH_FASTCALL | METH_KEYWORDS, step_doc};
  add_method(optimizer, step_method);
}

}  // namespace onepass::python
