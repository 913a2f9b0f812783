// The Python face of the core: turns arrays into pointers, and nothing else. What a user may hand over wrongly is
// explained in optimizers.py; here it is only noticed.
#include <pybind11/critical_section.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "dispatch.hpp"
#include "float_mode.hpp"
#include "optimizer.hpp"
#include "power.hpp"

namespace py = pybind11;

namespace {

using onepass::DType;
using onepass::Parameter;
using NumPy = py::detail::npy_api;

// Below this many elements a step is over before another thread could have made use of the interpreter.
constexpr std::size_t release_gil_from = 1 << 16;

constexpr int any_order = NumPy::NPY_ARRAY_C_CONTIGUOUS_ | NumPy::NPY_ARRAY_F_CONTIGUOUS_;

const py::detail::PyArray_Proxy& fields(PyObject* array) { return *py::detail::array_proxy(array); }

// float32 or float64 in the machine's byte order; nothing else.
std::optional<DType> dtype_of(PyObject* array) {
  const auto* const descr = py::detail::array_descriptor_proxy(fields(array).descr);
  if (descr->byteorder != '=' && descr->byteorder != '|') return std::nullopt;
  if (descr->type_num == NumPy::NPY_FLOAT_) return onepass::float32;
  if (descr->type_num == NumPy::NPY_DOUBLE_) return onepass::float64;
  return std::nullopt;
}

std::size_t size_of(DType dtype) { return dtype == onepass::float32 ? sizeof(float) : sizeof(double); }

// What a parameter's arrays look like to the core. The caller has checked that they fit each other.
Parameter describe(const py::array& param, const std::vector<py::array>& states) {
  const std::optional<DType> dtype = dtype_of(param.ptr());
  if (!dtype) throw py::type_error("arrays must be native float32 or float64");
  Parameter parameter{*dtype, static_cast<std::size_t>(param.size()), {}, 0, 0};
  parameter.operands.param = fields(param.ptr()).data;
  for (std::size_t k = 0; k < states.size(); ++k) parameter.operands.state[k] = fields(states[k].ptr()).data;
  return parameter;
}

// The options of some parameters, and whether their learning rate is asked for before each step.
class Group : public onepass::Group {
 public:
  using onepass::Group::Group;
  std::atomic<bool> scheduled{false};
};

// Holds the arrays of an optimizer and takes gradients in. A Python subclass supplies what the fast path does not know:
// _arrange (gradients in another container), _convert (a gradient in another form), _learning_rate (of a schedule).
class Optimizer {
 public:
  enum class Form : unsigned char { array, sequence, mapping };

  Optimizer(const std::string& rule, Form form, bool flush_denormals)
      : core_(onepass::find_rule(rule), flush_denormals), form_(form), ndarray_(NumPy::get().PyArray_Type_) {}
  Optimizer(const Optimizer&) = delete;
  Optimizer& operator=(const Optimizer&) = delete;
  ~Optimizer() = default;

  void add_group(std::shared_ptr<Group> group, const std::vector<py::object>& keys,
                 const std::vector<py::array>& params, const std::vector<std::vector<py::array>>& states) {
    const Turn turn(*this);
    std::vector<Parameter> parameters;
    std::vector<Held> held = held_;
    std::vector<Range> ranges = ranges_;
    for (std::size_t i = 0; i < params.size(); ++i) {
      parameters.push_back(describe(params[i], states[i]));
      const std::size_t bytes = parameters.back().size * size_of(parameters.back().dtype);
      const auto& param = fields(params[i].ptr());
      held.push_back({keys[i],
                      params[i],
                      states[i],
                      {param.dimensions, param.dimensions + param.nd},
                      param.flags & any_order,
                      nullptr});
      add_range(ranges, param.data, bytes);
      for (const py::array& state : states[i]) add_range(ranges, fields(state.ptr()).data, bytes);
    }
    std::sort(ranges.begin(), ranges.end());
    for (Held& known : held) known.disjoint = nullptr;  // from these arrays too?
    gradients_.reserve(held.size());
    pointers_.resize(held.size());
    groups_.push_back(group);
    try {
      core_.add_group(std::move(group), parameters);
    } catch (...) {
      groups_.pop_back();
      throw;
    }
    held_ = std::move(held);
    ranges_ = std::move(ranges);
  }

  void step(py::handle grads, py::handle grad_scale) {
    const Turn turn(*this);
    struct Release {  // whatever happens, the gradients are the caller's again
      std::vector<py::object>& gradients;
      ~Release() { gradients.clear(); }
    } const release{gradients_};

    const double scale = number(grad_scale);
    collect(grads);
    bool fast = true;  // no Python code has run since the parameters were checked
    for (std::size_t i = 0; i < held_.size(); ++i) {
      py::object& gradient = gradients_[i];
      pointers_[i] = nullptr;
      if (gradient.is_none()) continue;
      check_parameter(i);
      if (!fits(i, gradient.ptr())) {
        fast = false;
        gradient = self().attr("_convert")(i, gradient);
        if (!fits(i, gradient.ptr())) throw py::value_error("a converted gradient does not fit its parameter");
      }
      pointers_[i] = fields(gradient.ptr()).data;
    }
    for (std::size_t g = 0; g < groups_.size(); ++g) {
      if (!groups_[g]->scheduled) continue;
      fast = false;
      groups_[g]->set_lr(self().attr("_learning_rate")(g, core_.step_count() + 1).cast<double>());
    }
    for (std::size_t i = 0; !fast && i < held_.size(); ++i) {
      if (pointers_[i] != nullptr) check_parameter(i);
    }
    try {
      core_.plan(pointers_.data(), scale);
    } catch (const onepass::Overflow& overflow) {
      self().attr("_overflow")(overflow.parameter, overflow.step, scale);
      throw;
    }
    if (core_.planned_elements() >= release_gil_from) {
      const py::gil_scoped_release release_gil;
      core_.apply();
    } else {
      core_.apply();
    }
  }

  // Whether the core can read this object as the gradient of parameter i as it is.
  bool fits(std::size_t i, PyObject* gradient) {
    if (Py_TYPE(gradient) != ndarray_) return false;
    const auto& array = fields(gradient);
    Held& held = held_[i];
    const Parameter& parameter = core_.parameters()[i];
    if ((array.flags & held.order) == 0 || (array.flags & NumPy::NPY_ARRAY_ALIGNED_) == 0) return false;
    if (static_cast<std::size_t>(array.nd) != held.shape.size()) return false;
    if (!std::equal(held.shape.begin(), held.shape.end(), array.dimensions)) return false;
    if (dtype_of(gradient) != parameter.dtype) return false;
    if (array.data != held.disjoint) {
      if (overlaps(array.data, parameter.size * size_of(parameter.dtype))) return false;
      held.disjoint = array.data;
    }
    return true;
  }

  std::int64_t step_count() const { return core_.step_count(); }
  std::int64_t parameter_step(std::size_t i) const { return core_.parameters().at(i).step; }

 private:
  struct Held {
    py::object key;
    py::array param;
    std::vector<py::array> states;
    std::vector<py::ssize_t> shape;
    int order;             // NumPy's flags of the contiguous layouts that it has
    const void* disjoint;  // a gradient here was found to overlap none of the arrays; nor will it, they stay
  };

  using Range = std::pair<std::uintptr_t, std::uintptr_t>;

  // Lets one thread at a time step; the others wait without holding the interpreter.
  class Turn {
   public:
    explicit Turn(Optimizer& optimizer) : optimizer_(optimizer) {
      const unsigned long me = PyThread_get_thread_ident();
      if (optimizer.owner_ == me) {
        throw std::runtime_error(
            "this optimizer is in the middle of a step: a schedule or a gradient's own code called it again");
      }
      if (!optimizer.mutex_.try_lock()) {
        const py::gil_scoped_release release_gil;
        optimizer.mutex_.lock();
      }
      optimizer.owner_ = me;
    }
    ~Turn() {
      optimizer_.owner_ = 0;
      optimizer_.mutex_.unlock();
    }
    Turn(const Turn&) = delete;
    Turn& operator=(const Turn&) = delete;

   private:
    Optimizer& optimizer_;
  };

  py::object self() { return py::cast(this, py::return_value_policy::reference); }

  static void add_range(std::vector<Range>& ranges, const void* data, std::size_t bytes) {
    const auto begin = reinterpret_cast<std::uintptr_t>(data);
    if (bytes != 0) ranges.emplace_back(begin, begin + bytes);
  }

  // Whether these bytes belong to a parameter or to state.
  bool overlaps(const void* data, std::size_t bytes) const {
    const auto begin = reinterpret_cast<std::uintptr_t>(data);
    const auto after = std::upper_bound(ranges_.begin(), ranges_.end(), Range{begin, UINTPTR_MAX});
    if (after != ranges_.end() && after->first < begin + bytes) return true;
    return after != ranges_.begin() && std::prev(after)->second > begin;
  }

  static double number(py::handle grad_scale) {
    if (!grad_scale) return 1;
    const double scale = PyFloat_AsDouble(grad_scale.ptr());
    if (PyErr_Occurred() != nullptr) {
      PyErr_Clear();
      throw py::type_error("grad_scale must be a number, not " + py::repr(grad_scale).cast<std::string>());
    }
    if (!std::isfinite(scale)) {
      throw py::value_error("grad_scale must be finite, not " + py::repr(grad_scale).cast<std::string>());
    }
    return scale;
  }

  // Fills gradients_ with one object for each parameter.
  void collect(py::handle grads) {
    if (form_ == Form::array) {
      gradients_.push_back(py::reinterpret_borrow<py::object>(grads));
      return;
    }
    if (form_ == Form::sequence ? collect_sequence(grads) : collect_mapping(grads)) return;
    gradients_.clear();
    const py::list arranged = self().attr("_arrange")(grads);
    if (!collect_sequence(arranged)) throw py::value_error("wrong number of gradients");
  }

  bool collect_sequence(py::handle grads) {
    PyObject* const items = grads.ptr();
    if (!PyList_CheckExact(items) && !PyTuple_CheckExact(items)) return false;
    const py::scoped_critical_section section(grads);
    if (static_cast<std::size_t>(PySequence_Fast_GET_SIZE(items)) != held_.size()) return false;
    for (std::size_t i = 0; i < held_.size(); ++i) {
      gradients_.push_back(
          py::reinterpret_borrow<py::object>(PySequence_Fast_GET_ITEM(items, static_cast<Py_ssize_t>(i))));
    }
    return true;
  }

  bool collect_mapping(py::handle grads) {
    if (!PyDict_CheckExact(grads.ptr())) return false;
    const py::scoped_critical_section section(grads);
    if (static_cast<std::size_t>(PyDict_Size(grads.ptr())) != held_.size()) return false;
    for (const Held& held : held_) {
      PyObject* const gradient = PyDict_GetItemWithError(grads.ptr(), held.key.ptr());
      if (gradient == nullptr) {
        if (PyErr_Occurred() != nullptr) throw py::error_already_set();
        return false;
      }
      gradients_.push_back(py::reinterpret_borrow<py::object>(gradient));
    }
    return true;
  }

  // An array that is held can still be changed in place; the core must not write through a stale pointer.
  void check_parameter(std::size_t i) {
    const auto& array = fields(held_[i].param.ptr());
    const bool same = array.data == core_.parameters()[i].operands.param;
    if (!same || (array.flags & NumPy::NPY_ARRAY_WRITEABLE_) == 0) self().attr("_parameter_changed")(i, same);
  }

  onepass::Optimizer core_;
  Form form_;
  PyTypeObject* ndarray_;
  std::vector<std::shared_ptr<Group>> groups_;
  std::vector<Held> held_;
  std::vector<Range> ranges_;  // of all parameters and state, sorted
  // Room for a step's gradients.
  std::vector<py::object> gradients_;
  std::vector<const void*> pointers_;
  std::mutex mutex_;
  std::atomic<unsigned long> owner_{0};  // the thread whose step this is, or 0
};

// Optimizer.step as a plain C function: pybind11's dispatcher would take as long again as a step of a small tensor.
constexpr const char* step_doc = R"(step($self, /, grads, grad_scale=1.0)
--

Update the parameters in place, along these gradients.

Args:
    grads: the gradients in the shape in which the parameters came: an array,
        a sequence, or a mapping. Each has its parameter's shape and any real
        floating dtype and memory layout; one whose dtype or layout is not its
        parameter's, or that shares memory with a parameter or with state, is
        copied into a scratch buffer that the optimizer keeps. ``None`` leaves
        its parameter, state and step count as they are.
    grad_scale: a factor for every gradient, applied in the same pass.

Raises:
    TypeError: a gradient that is no array of real floating-point numbers.
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
  try {
    auto* const instance = reinterpret_cast<py::detail::instance*>(self);
    auto* const optimizer = instance->simple_layout ? static_cast<Optimizer*>(instance->simple_value_holder[0])
                                                    : py::handle(self).cast<Optimizer*>();
    if (optimizer == nullptr) throw py::type_error("the optimizer's __init__ was not called");
    const auto [grads, grad_scale] = step_arguments(arguments, positional, names);
    optimizer->step(grads, grad_scale);
    return py::none().release().ptr();
  } catch (py::error_already_set& error) {
    error.restore();
  } catch (const py::builtin_exception& error) {
    error.set_error();
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  return nullptr;
}

onepass::CommonOptions common_options(double lr, double weight_decay, bool decoupled, double grad_scale) {
  return {lr, weight_decay, decoupled, grad_scale};
}

bool step_once(const std::string& rule_name, const std::vector<double>& options, double lr, double weight_decay,
               bool decoupled, double grad_scale, bool flush_denormals, std::int64_t step, const py::array& param,
               const py::array& grad, const std::vector<py::array>& states) {
  const onepass::Rule& rule = onepass::find_rule(rule_name);
  Parameter parameter = describe(param, states);
  parameter.operands.grad = fields(grad.ptr()).data;
  parameter.step = step;
  const onepass::CommonOptions common = common_options(lr, weight_decay, decoupled, grad_scale);
  if (options.size() != rule.option_count || states.size() != rule.state_count) {
    throw py::value_error("wrong number of options or states for this rule");
  }
  if (parameter.size < release_gil_from) {
    return onepass::step_once(rule, options.data(), common, parameter, flush_denormals);
  }
  const py::gil_scoped_release release_gil;
  return onepass::step_once(rule, options.data(), common, parameter, flush_denormals);
}

void stream_limit(const py::array& param, const py::array& grad, const py::array& exp_avg,
                  const py::array& exp_avg_sq) {
  Parameter parameter = describe(param, {exp_avg, exp_avg_sq});
  for (const py::array& array : {param, grad, exp_avg, exp_avg_sq}) {
    if (dtype_of(array.ptr()) != parameter.dtype || array.size() != param.size() ||
        (fields(array.ptr()).flags & any_order) == 0 || (!array.is(grad) && !array.writeable())) {
      throw py::value_error("the arrays must be contiguous, writeable, of one dtype and one size");
    }
  }
  parameter.operands.grad = fields(grad.ptr()).data;
  const py::gil_scoped_release release_gil;
  onepass::kernels().stream_limit[parameter.dtype](parameter.operands, 0, parameter.size);
}

py::dict rules() {
  py::dict all;
  const onepass::Kernels& kernels = onepass::kernels();
  for (std::size_t i = 0; i < kernels.rule_count; ++i) {
    const onepass::Rule& rule = kernels.rules[i];
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

  m.attr("__version__") = ONEPASS_VERSION;
  m.attr("compiler") = ONEPASS_COMPILER;
  m.attr("can_flush_denormals") = onepass::FloatMode::can_flush;
  m.attr("instruction_set") = onepass::kernels().instruction_set;
  m.attr("built_instruction_sets") = onepass::built_instruction_sets();
  m.attr("usable_instruction_sets") = onepass::usable_instruction_sets();
  m.attr("rules") = rules();

  py::class_<Group, std::shared_ptr<Group>>(m, "Group")
      .def(py::init([](const std::string& rule, std::vector<double> options, double lr, double weight_decay,
                       bool decoupled, double grad_scale) {
             return std::make_shared<Group>(onepass::find_rule(rule), std::move(options),
                                            common_options(lr, weight_decay, decoupled, grad_scale));
           }),
           py::arg("rule"), py::arg("options"), py::arg("lr"), py::arg("weight_decay"), py::arg("decoupled"),
           py::arg("grad_scale"))
      .def(
          "set",
          [](Group& group, std::vector<double> options, double lr, double weight_decay, bool decoupled,
             double grad_scale) {
            group.set(std::move(options), common_options(lr, weight_decay, decoupled, grad_scale));
          },
          py::arg("options"), py::arg("lr"), py::arg("weight_decay"), py::arg("decoupled"), py::arg("grad_scale"))
      .def_property(
          "scheduled", [](const Group& group) { return group.scheduled.load(); },
          [](Group& group, bool scheduled) { group.scheduled = scheduled; });

  py::class_<Optimizer> optimizer(m, "Optimizer");
  py::enum_<Optimizer::Form>(optimizer, "Form")
      .value("array", Optimizer::Form::array)
      .value("sequence", Optimizer::Form::sequence)
      .value("mapping", Optimizer::Form::mapping);
  optimizer
      .def(py::init<const std::string&, Optimizer::Form, bool>(), py::arg("rule"), py::arg("form"),
           py::arg("flush_denormals"))
      .def("_add_group", &Optimizer::add_group, py::arg("group"), py::arg("keys"), py::arg("params"), py::arg("states"))
      .def("_fits",
           [](Optimizer& self, std::size_t i, const py::object& gradient) { return self.fits(i, gradient.ptr()); })
      .def("_parameter_step", &Optimizer::parameter_step, py::arg("index"))
      .def_property_readonly("step_count", &Optimizer::step_count, "The number of steps applied so far.");

  static PyMethodDef step_method = {"step", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&step)),
                                    METH_FASTCALL | METH_KEYWORDS, step_doc};
  optimizer.attr("step") = py::reinterpret_steal<py::object>(
      PyDescr_NewMethod(reinterpret_cast<PyTypeObject*>(optimizer.ptr()), &step_method));

  m.def("step_once", &step_once, py::arg("rule"), py::arg("options"), py::arg("lr"), py::arg("weight_decay"),
        py::arg("decoupled"), py::arg("grad_scale"), py::arg("flush_denormals"), py::arg("step"), py::arg("param"),
        py::arg("grad"), py::arg("states"));
  m.def("stream_limit", &stream_limit, py::arg("param"), py::arg("grad"), py::arg("exp_avg"), py::arg("exp_avg_sq"));
  m.def("power", &onepass::power, py::arg("base"), py::arg("exponent"));
}
