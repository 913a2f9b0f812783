// The Python face of the core: turns arrays into pointers, and nothing else. What a user may hand over wrongly is
// explained in optimizers.py; here it is only noticed.
#include <pybind11/critical_section.h>
#include <pybind11/native_enum.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "dispatch.hpp"
#include "dlpack.hpp"
#include "float_mode.hpp"
#include "optimizer.hpp"
#include "parallel.hpp"
#include "power.hpp"

namespace py = pybind11;

namespace {

using onepass::CommonOptions;
using onepass::DType;
using onepass::Gradient;
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

// What a parameter's arrays look like to the core. The caller has checked their layouts.
Parameter describe(const py::array& param, const std::vector<py::array>& states,
                   const std::optional<py::array>& average) {
  const std::optional<DType> dtype = dtype_of(param.ptr());
  if (!dtype) throw py::type_error("arrays must be native float32 or float64");
  if (states.size() > onepass::max_states) throw py::value_error("too many states");
  const auto data_of = [&](const py::array& state) {
    if (dtype_of(state.ptr()) != dtype || state.size() != param.size()) {
      throw py::value_error("state must have the dtype and size of its parameter");
    }
    return fields(state.ptr()).data;
  };
  const auto size = static_cast<std::size_t>(param.size());
  const auto rows = static_cast<std::size_t>(param.ndim() == 0 ? 1 : param.shape(0));
  Parameter parameter{*dtype, size, rows == 0 ? 0 : size / rows, {}, 0, 0, 1};
  parameter.operands.param = fields(param.ptr()).data;
  for (std::size_t k = 0; k < states.size(); ++k) parameter.operands.state[k] = data_of(states[k]);
  if (average) parameter.operands.average = data_of(*average);
  return parameter;
}

// Python before 3.14 ends a thread that wants the interpreter when the interpreter ends, by unwinding its stack. That
// must not pass through destructors: they promise not to throw, and would release objects that this thread may not
// touch. So where that can begin it is caught, and the thread waits for the process to end.
[[noreturn]] void wait_for_the_end() noexcept {
  for (;;) std::this_thread::sleep_for(std::chrono::hours(1));
}

// Calls the function while other threads have the interpreter.
template <class Function>
void without_gil(Function function) {
  PyThreadState* const state = PyEval_SaveThread();
  function();
  try {
    PyEval_RestoreThread(state);
  } catch (...) {
    wait_for_the_end();
  }
}

// Calls a function of Python, in which this thread may lose the interpreter.
py::object call(const py::object& function, const py::tuple& arguments) {
  PyObject* result = nullptr;
  try {
    result = PyObject_Call(function.ptr(), arguments.ptr(), nullptr);
  } catch (...) {
    wait_for_the_end();
  }
  if (result == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(result);
}

template <class Function>
void without_gil_if(bool worth_it, Function function) {
  if (worth_it) {
    without_gil(function);
  } else {
    function();
  }
}

// Reads an attribute that objects of one type have from a function in C, without looking its name up each time.
class Getter {
 public:
  Getter(PyTypeObject* type, const char* name) : type_(type), name_(name) {
    const py::object found = py::getattr(py::handle(reinterpret_cast<PyObject*>(type)), name_, py::none());
    if (!PyObject_TypeCheck(found.ptr(), &PyGetSetDescr_Type)) return;
    definition_ = reinterpret_cast<PyGetSetDescrObject*>(found.ptr())->d_getset;
  }

  // Throws whatever error reading it raises.
  py::object operator()(PyObject* object) const {
    PyObject* const value = definition_ != nullptr && Py_TYPE(object) == type_
                                ? definition_->get(object, definition_->closure)
                                : PyObject_GetAttr(object, name_.ptr());
    if (value == nullptr) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(value);
  }

 private:
  PyTypeObject* type_;
  py::str name_;
  PyGetSetDef* definition_ = nullptr;
};

// An array of float32 or float64 in which numbers are told, and looked at again.
class Told {
 public:
  explicit Told(py::array array) : array_(std::move(array)), single_(dtype_of(array_.ptr()) == onepass::float32) {
    if (!dtype_of(array_.ptr())) throw py::value_error("numbers are told in float32 or float64");
  }

  bool says(std::size_t i, double value) const {
    return single_ ? static_cast<const float*>(array_.data())[i] == static_cast<float>(value)
                   : static_cast<const double*>(array_.data())[i] == value;
  }

  void tell(std::size_t i, double value) {
    if (single_) {
      static_cast<float*>(array_.mutable_data())[i] = static_cast<float>(value);
    } else {
      static_cast<double*>(array_.mutable_data())[i] = value;
    }
  }

  std::size_t size() const { return static_cast<std::size_t>(array_.size()); }

 private:
  py::array array_;
  bool single_;
};

// Fills slots of a Python object, whatever its class makes of assignments. No signal is handled in between.
void assign(py::handle object, const py::dict& slots) {
  for (const auto& [name, value] : slots) {
    if (PyObject_GenericSetAttr(object.ptr(), name.ptr(), value.ptr()) != 0) throw py::error_already_set();
  }
}

// Holds the arrays of an optimizer and takes gradients in. A Python subclass supplies what the fast path does not know:
// _arrange (gradients in another container), _convert (a gradient in another form), _scheduled (what schedules say),
// and the words of its errors: _overflow, _nonfinite_gradient, _parameter_changed.
class Optimizer {
 public:
  enum class Form : unsigned char { array, sequence, mapping };
  enum class Nonfinite : unsigned char { propagate, skip, raise };

  explicit Optimizer(bool flush_denormals) : core_(flush_denormals), ndarray_(NumPy::get().PyArray_Type_) {}
  Optimizer(const Optimizer&) = delete;
  Optimizer& operator=(const Optimizer&) = delete;
  ~Optimizer() = default;

  // Takes the parameters in, each with its state and its running average or None; the gradients of all then come in
  // this form. In the same moment the optimizer's slots are filled: whoever looks, or is interrupted, finds both or
  // neither.
  void add_group(Form form, std::shared_ptr<onepass::Group> group, const std::vector<py::object>& keys,
                 const std::vector<py::array>& params, const std::vector<std::vector<py::array>>& states,
                 const std::vector<std::optional<py::array>>& averages, const py::dict& slots) {
    std::optional<Turn> turn;
    if (!Turn::is_mine(*this) || !is_locked_) turn.emplace(*this);
    std::vector<Parameter> parameters;
    std::vector<Held> held = held_;
    std::vector<Range> ranges = ranges_;
    for (std::size_t i = 0; i < params.size(); ++i) {
      parameters.push_back(describe(params[i], states.at(i), averages.at(i)));
      const Parameter& parameter = parameters.back();
      const std::size_t bytes = parameter.size * onepass::bytes_of(parameter.dtype);
      const auto& param = fields(params[i].ptr());
      held.push_back({keys.at(i),
                      params[i],
                      states[i],
                      {param.dimensions, param.dimensions + param.nd},
                      param.flags & any_order,
                      nullptr});
      if (const auto& average = averages[i]) held.back().states.push_back(*average);
      add_range(ranges, param.data, bytes);
      for (const py::array& state : held.back().states) add_range(ranges, fields(state.ptr()).data, bytes);
    }
    std::sort(ranges.begin(), ranges.end());
    for (Held& known : held) known.disjoint = nullptr;  // from these arrays too?
    gradients_.reserve(held.size());
    pointers_.resize(held.size());
    core_.add_group(std::move(group), parameters);
    held_.swap(held);  // the old one goes when all is done
    ranges_ = std::move(ranges);
    form_ = form;
    assign(self(), slots);
  }

  // Puts other state in place: pairs of arrays of equal size and layout, to and from, the groups' options with what
  // their slots then hold, the options of the whole, and the counts.
  using Options = std::tuple<std::shared_ptr<onepass::Group>, std::vector<double>, CommonOptions, py::object, py::dict>;
  void restore(const std::vector<std::pair<py::array, py::array>>& copies, std::vector<Options> options,
               double clip_norm, Nonfinite nonfinite, std::int64_t step_count, std::int64_t skipped,
               const std::vector<std::int64_t>& steps, const std::vector<double>& mu_products) {
    std::optional<Turn> turn;
    if (!Turn::is_mine(*this) || !is_locked_) turn.emplace(*this);
    if (steps.size() != held_.size() || mu_products.size() != held_.size()) {
      throw py::value_error("one count for each parameter");
    }
    for (const auto& [to, from] : copies) {
      if (to.nbytes() != from.nbytes() || (fields(to.ptr()).flags & fields(from.ptr()).flags & any_order) == 0) {
        throw py::value_error("the arrays of a pair must have the same layout");
      }
    }
    for (const auto& [to, from] : copies) {
      std::memmove(fields(to.ptr()).data, fields(from.ptr()).data, static_cast<std::size_t>(to.nbytes()));
    }
    core_.restore(step_count, steps, mu_products);
    skipped_ = skipped;
    clip_norm_ = clip_norm;
    nonfinite_ = nonfinite;
    for (auto& [group, numbers, common, object, slots] : options) {
      group->set(std::move(numbers), common);
      assign(object, slots);
    }
  }

  // Calls the function while nobody steps. It may add groups and restore.
  py::object locked(const py::function& function) {
    const Turn turn(*this);
    const struct Locked {
      bool& is_locked;
      ~Locked() { is_locked = false; }
    } until_the_end{is_locked_ = true};
    return call(function, py::tuple());
  }

  void step(py::handle grads, py::handle grad_scale) {
    const Turn turn(*this);
    const Release release{gradients_};

    const double scale = number(grad_scale);
    collect(grads);
    take_pointers();
    finish(scale);
  }

  // The same in parts, along gradients that come from elsewhere meanwhile: what the step is for other processes to join
  // in (onepass.integrations.mpi). Calls exchange._agree(digest, whole) when all is prepared and nothing has changed;
  // where the whole gradient is wanted first, which must be there then, exchange._measured(blocks); and
  // exchange._ready(k) before the k-th of the parts, lists of parameters, is read and updated.
  void step_in_parts(py::handle grads, double scale, const std::vector<std::vector<std::size_t>>& parts,
                     const py::object& exchange) {
    const Turn turn(*this);
    const Release release{gradients_};
    collect(grads);
    take_pointers();
    if (std::any_of(pointers_.begin(), pointers_.end(), [](const Gradient& each) { return each.rows != nullptr; })) {
      throw py::type_error("gradients of some rows cannot be applied in parts");
    }
    const InParts in_parts{parts, exchange};
    finish(scale, &in_parts);
  }

  std::size_t count() const { return held_.size(); }

  // What PyTorch's tensors were when they were taken as the parameters.
  struct TakenTensors {
    py::tuple tensors;
    std::vector<onepass::Layout> layouts;
    std::vector<bool> shown;  // whether PyTorch has each one's state
    Getter grad;
    onepass::DLPackExchange::Look look;
    Told steps;  // what PyTorch has of each one's counts
    Told mu_products;
  };

  // The same along the gradients of these tensors. Returns false, and has done nothing, where one of them, its gradient
  // or its count is not simply what is expected.
  bool step_tensors(TakenTensors& taken) {
    const Turn turn(*this);
    const Release release{gradients_};
    if (taken.tensors.size() != held_.size()) return false;
    for (std::size_t i = 0; i < held_.size(); ++i) {
      if (take_gradient(taken, i)) continue;
      PyErr_Clear();  // the slow way says it in words
      return false;
    }
    finish(1);
    for (std::size_t i = 0; i < held_.size(); ++i) {
      const Parameter& parameter = core_.parameters()[i];
      taken.steps.tell(i, static_cast<double>(parameter.step));
      taken.mu_products.tell(i, parameter.mu_product);
    }
    return true;
  }

  // Those of the tensors that the last step changed.
  py::tuple stepped(const py::tuple& tensors) const {
    const auto missing = [](const Gradient& gradient) { return gradient.data == nullptr; };
    if (std::none_of(pointers_.begin(), pointers_.end(), missing)) return tensors;
    py::list found;
    for (std::size_t i = 0; i < pointers_.size(); ++i) {
      if (!missing(pointers_[i])) found.append(tensors[i]);
    }
    return py::tuple(found);
  }

  // Whether the core can read this object as the gradient of parameter i as it is.
  bool fits(std::size_t i, PyObject* gradient) {
    if (Py_TYPE(gradient) != ndarray_) return false;
    const auto& array = fields(gradient);
    Held& held = held_.at(i);
    const Parameter& parameter = core_.parameters()[i];
    if ((array.flags & held.order) == 0 || (array.flags & NumPy::NPY_ARRAY_ALIGNED_) == 0) return false;
    if (static_cast<std::size_t>(array.nd) != held.shape.size()) return false;
    for (std::size_t axis = 0; axis < held.shape.size(); ++axis) {
      if (array.dimensions[axis] != held.shape[axis]) return false;
    }
    if (dtype_of(gradient) != parameter.dtype) return false;
    return is_disjoint(i, array.data);
  }

  std::int64_t step_count() const {
    return reading([this] { return core_.step_count(); });
  }
  std::int64_t skipped() const { return skipped_; }
  std::int64_t parameter_step(std::size_t i) const {
    return reading([&] { return core_.parameters().at(i).step; });
  }
  double mu_product(std::size_t i) const {
    return reading([&] { return core_.parameters().at(i).mu_product; });
  }

  // The norm of the last step's gradients, if it was asked for.
  std::optional<double> grad_norm() const { return measured_ ? std::optional<double>(grad_norm_) : std::nullopt; }

  // What the garbage collector is told.
  int traverse(visitproc visit, void* argument) const {
    for (const Held& held : held_) {
      for (const py::object* object : {&held.key, static_cast<const py::object*>(&held.param)}) {
        if (const int found = visit(object->ptr(), argument)) return found;
      }
    }
    return 0;
  }
  void clear() {
    std::vector<Held> held;
    held.swap(held_);
    core_.clear();
  }

  static constexpr double no_clip_norm = -1;
  std::atomic<double> clip_norm_{no_clip_norm};
  std::atomic<Nonfinite> nonfinite_{Nonfinite::propagate};

 private:
  struct Held {
    py::object key;
    py::array param;
    std::vector<py::array> states;  // and its running average
    std::vector<py::ssize_t> shape;
    int order;             // NumPy's flags of the contiguous layouts that it has
    const void* disjoint;  // a gradient here was found to overlap none of the arrays; nor will it, they stay
  };

  struct Release {  // whatever happens, the gradients are the caller's again
    std::vector<py::object>& gradients;
    ~Release() { gradients.clear(); }
  };

  using Range = std::pair<std::uintptr_t, std::uintptr_t>;

  // Lets one thread at a time step; the others wait without holding the interpreter.
  class Turn {
   public:
    explicit Turn(const Optimizer& optimizer) : optimizer_(optimizer) {
      if (is_mine(optimizer)) {
        throw std::runtime_error(
            "this optimizer is in the middle of a step: a schedule or a gradient's own code called it again");
      }
      const unsigned forks = onepass::forks();
      if (!optimizer.mutex_.try_lock()) {
        // Who has just taken the turn may not have said so yet; who took it before a fork never lets go.
        for (int tries = 0; optimizer.owner_forks_ != forks && tries < 100; ++tries) {
          without_gil([] { std::this_thread::sleep_for(std::chrono::milliseconds(1)); });
        }
        if (optimizer.owner_forks_ != forks) {
          throw std::runtime_error(
              "this process was forked while another thread was inside a step of this optimizer: its parameters and "
              "state may hold half a step here; make a new optimizer, or fork between steps");
        }
        without_gil([&] { optimizer.mutex_.lock(); });
      }
      optimizer.owner_forks_ = forks;
      optimizer.owner_ = PyThread_get_thread_ident();
    }
    ~Turn() {
      optimizer_.owner_ = 0;
      optimizer_.mutex_.unlock();
    }
    Turn(const Turn&) = delete;
    Turn& operator=(const Turn&) = delete;

    static bool is_mine(const Optimizer& optimizer) { return optimizer.owner_ == PyThread_get_thread_ident(); }

   private:
    const Optimizer& optimizer_;
  };

  // Reads the core's counts between steps; in the middle of one, its own thread may.
  template <class Function>
  std::invoke_result_t<Function> reading(Function function) const {
    std::optional<Turn> turn;
    if (!Turn::is_mine(*this)) turn.emplace(*this);
    return function();
  }

  // Points to the gradient of a tensor, if both are what is expected.
  bool take_gradient(const TakenTensors& taken, std::size_t i) {
    static constexpr char nothing = 0;  // where the gradient of no elements lies
    const Parameter& parameter = core_.parameters()[i];
    const onepass::Layout& layout = taken.layouts[i];
    const auto step = static_cast<double>(parameter.step);
    if (!taken.steps.says(i, step) || !taken.mu_products.says(i, parameter.mu_product)) return false;
    PyObject* const tensor = PyTuple_GET_ITEM(taken.tensors.ptr(), static_cast<Py_ssize_t>(i));
    onepass::DLTensor param = {};
    if (taken.look(tensor, &param) != 0 || !layout.is_of(param)) return false;
    if (parameter.size != 0 && param.address() != parameter.operands.param) return false;

    pointers_[i] = {};
    const py::object& gradient = gradients_.emplace_back(taken.grad(tensor));
    if (gradient.is_none()) return true;
    onepass::DLTensor found = {};
    if (!taken.shown[i] || taken.look(gradient.ptr(), &found) != 0 || !layout.is_of(found)) return false;
    const void* const data = parameter.size == 0 ? &nothing : found.address();
    if (data == nullptr || !is_disjoint(i, data)) return false;
    // The one lazy negation that can lie so: the imaginary part of a conjugate, which is each second number.
    if (parameter.size == 1 && call(gradient.attr("is_neg"), py::tuple()).cast<bool>()) return false;
    pointers_[i].data = data;
    return true;
  }

  // What a method of the Python subclass returns.
  template <class... Arguments>
  py::object ask(const char* method, Arguments&&... arguments) {
    return call(self().attr(method), py::make_tuple(std::forward<Arguments>(arguments)...));
  }

  py::object self() { return py::cast(this, py::return_value_policy::reference); }

  static void add_range(std::vector<Range>& ranges, const void* data, std::size_t bytes) {
    const auto begin = reinterpret_cast<std::uintptr_t>(data);
    if (bytes != 0) ranges.emplace_back(begin, begin + bytes);
  }

  // Whether a gradient of parameter i here shares no memory with a parameter or with state.
  bool is_disjoint(std::size_t i, const void* data) {
    if (data == held_[i].disjoint) return true;
    const Parameter& parameter = core_.parameters()[i];
    if (overlaps(data, parameter.size * onepass::bytes_of(parameter.dtype))) return false;
    held_[i].disjoint = data;
    return true;
  }

  // Whether these bytes belong to a parameter or to state.
  bool overlaps(const void* data, std::size_t bytes) const {
    const auto begin = reinterpret_cast<std::uintptr_t>(data);
    const auto after = std::upper_bound(ranges_.begin(), ranges_.end(), Range{begin, UINTPTR_MAX});
    if (after != ranges_.end() && after->first < begin + bytes) return true;
    return after != ranges_.begin() && std::prev(after)->second > begin;
  }

  // Fills pointers_ with what gradients_ hold, converted where the core could not read them.
  void take_pointers() {
    bool converted = false;
    for (std::size_t i = 0; i < held_.size(); ++i) {
      py::object& gradient = gradients_[i];
      pointers_[i] = {};
      if (gradient.is_none()) continue;
      check_parameter(i);
      if (!fits(i, gradient.ptr())) {
        converted = true;
        gradient = ask("_convert", i, gradient);
      }
      if (PyTuple_CheckExact(gradient.ptr())) {
        pointers_[i] = sparse_rows(i, gradient);
      } else if (converted && !fits(i, gradient.ptr())) {
        throw py::value_error("a converted gradient does not fit its parameter");
      } else {
        pointers_[i].data = fields(gradient.ptr()).data;
      }
    }
    if (converted) check_again();
  }

  struct InParts {
    const std::vector<std::vector<std::size_t>>& parts;
    const py::object& exchange;
  };

  // Takes the step along pointers_.
  void finish(double scale, const InParts* in_parts = nullptr) {
    const double clip_norm = clip_norm_;
    const Nonfinite nonfinite = nonfinite_;
    take_options();
    plan(scale);
    const bool large = core_.planned_elements() >= release_gil_from;
    onepass::Measured measured;
    const bool norm = clip_norm != no_clip_norm;
    const bool finite = nonfinite != Nonfinite::propagate;
    if (in_parts != nullptr) call(in_parts->exchange.attr("_agree"), py::make_tuple(core_.digest(), norm || finite));
    if ((norm || finite) && in_parts != nullptr) {
      measured = measure_with_others(scale, norm, finite, large, in_parts->exchange);
    } else if (norm || finite) {
      without_gil_if(large, [&] { measured = core_.measure(pointers_.data(), scale, norm, finite); });
    }
    if (measured.first_nonfinite != onepass::Measured::none) {
      if (nonfinite == Nonfinite::raise) {
        ask("_nonfinite_gradient", measured.first_nonfinite);
        throw std::runtime_error("a gradient is not finite");
      }
      remember(measured, clip_norm);
      ++skipped_;
      return;
    }
    // Infinity only measures, whatever it measured.
    if (clip_norm != no_clip_norm && std::isfinite(clip_norm) && !(measured.norm <= clip_norm)) {
      plan(onepass::clipped_scale(scale, clip_norm, measured.norm));
    }
    if (in_parts == nullptr) {
      without_gil_if(large, [this] { core_.apply(); });
    } else {
      for (std::size_t k = 0; k < in_parts->parts.size(); ++k) {
        call(in_parts->exchange.attr("_ready"), py::make_tuple(k));
        without_gil_if(large, [&] { core_.apply_some(in_parts->parts[k]); });
      }
      core_.count_step();
    }
    remember(measured, clip_norm);
  }

  onepass::Measured measure_with_others(double scale, bool norm, bool finite, bool large, const py::object& exchange) {
    std::size_t count = 0;
    for (const Parameter& parameter : core_.parameters()) count += onepass::blocks_of(parameter.size);
    py::array_t<double> blocks({count, std::size_t{2}});
    auto* const room = reinterpret_cast<onepass::Block*>(blocks.mutable_data());
    without_gil_if(large, [&] { core_.measure_blocks(pointers_.data(), scale, norm, finite, room); });
    const auto [found, first] =
        call(exchange.attr("_measured"), py::make_tuple(blocks)).cast<std::pair<double, std::optional<std::size_t>>>();
    return {found, first.value_or(onepass::Measured::none)};
  }

  // Has the core take the groups' options, with what their schedules say of this step.
  void take_options() {
    core_.take_options();  // all at once: what one schedule then changes counts from the next step on
    bool called = false;
    for (std::size_t g = 0; g < core_.group_count(); ++g) {
      if (!core_.scheduled(g)) continue;
      called = true;
      const auto [lr, ema_decay] = ask("_scheduled", g, core_.step_count() + 1).cast<std::pair<double, double>>();
      core_.schedule(g, lr, ema_decay);
    }
    if (called) check_again();
  }

  void plan(double scale) {
    try {
      core_.plan(pointers_.data(), scale);
    } catch (const onepass::Overflow& overflow) {
      ask("_overflow", overflow.parameter, overflow.step, scale);
      throw;
    }
  }

  void remember(const onepass::Measured& measured, double clip_norm) {
    grad_norm_ = measured.norm;
    measured_ = clip_norm != no_clip_norm;
  }

  // The pair of arrays that _convert made of a gradient of some rows.
  Gradient sparse_rows(std::size_t i, const py::tuple& pair) const {
    const auto rows = pair[0].cast<py::array_t<std::int64_t, py::array::c_style>>();
    const auto values = pair[1].cast<py::array>();
    const Parameter& parameter = core_.parameters()[i];
    const auto count = static_cast<std::size_t>(rows.size());
    const std::int64_t* const first = rows.data();
    const std::int64_t all = held_[i].shape[0];
    bool good = rows.is(pair[0]) && dtype_of(values.ptr()) == parameter.dtype &&
                static_cast<std::size_t>(values.size()) == count * parameter.row_size &&
                (held_[i].order & fields(values.ptr()).flags & NumPy::NPY_ARRAY_C_CONTIGUOUS_) != 0;
    for (std::size_t r = 0; good && r < count; ++r) {
      good = first[r] < all && first[r] > (r == 0 ? -1 : first[r - 1]);
    }
    if (!good) throw py::value_error("converted rows do not fit their parameter");
    return {fields(values.ptr()).data, first, count};
  }

  double number(py::handle grad_scale) {
    if (!grad_scale) return 1;
    if (PyFloat_CheckExact(grad_scale.ptr()) && std::isfinite(PyFloat_AS_DOUBLE(grad_scale.ptr()))) {
      return PyFloat_AS_DOUBLE(grad_scale.ptr());
    }
    return ask("_number", "grad_scale", grad_scale).cast<double>();
  }

  // Fills gradients_ with one object for each parameter.
  void collect(py::handle grads) {
    if (form_ == Form::array) {
      gradients_.push_back(py::reinterpret_borrow<py::object>(grads));
      return;
    }
    if (form_ == Form::sequence ? collect_sequence(grads) : collect_mapping(grads)) return;
    gradients_.clear();
    const py::list arranged = ask("_arrange", grads);
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
    const Parameter& parameter = core_.parameters()[i];
    const Held& held = held_[i];
    bool same = array.data == parameter.operands.param && static_cast<std::size_t>(array.nd) == held.shape.size() &&
                (array.flags & any_order) == held.order && dtype_of(held.param.ptr()) == parameter.dtype;
    for (std::size_t axis = 0; same && axis < held.shape.size(); ++axis) {
      same = array.dimensions[axis] == held.shape[axis];
    }
    if (!same || (array.flags & NumPy::NPY_ARRAY_WRITEABLE_) == 0) ask("_parameter_changed", i, same);
  }

  // After Python code ran: are parameters and gradients what they were?
  void check_again() {
    for (std::size_t i = 0; i < held_.size(); ++i) {
      const Gradient& gradient = pointers_[i];
      if (gradient.data == nullptr) continue;
      check_parameter(i);
      PyObject* const array = gradients_[i].ptr();
      if (gradient.rows == nullptr && (!fits(i, array) || fields(array).data != gradient.data)) {
        throw py::value_error("a gradient was changed while the step was prepared");
      }
    }
  }

  onepass::Optimizer core_;
  Form form_ = Form::array;
  PyTypeObject* ndarray_;
  std::vector<Held> held_;
  std::vector<Range> ranges_;  // of all parameters and state, sorted
  // Room for a step's gradients.
  std::vector<py::object> gradients_;
  std::vector<Gradient> pointers_;
  std::atomic<std::int64_t> skipped_{0};
  std::atomic<double> grad_norm_{0};
  std::atomic<bool> measured_{false};
  bool is_locked_ = false;  // the turn is that of a call of locked()
  mutable std::mutex mutex_;
  mutable std::atomic<unsigned long> owner_{0};   // the thread whose step this is, or 0
  mutable std::atomic<unsigned> owner_forks_{0};  // and in which process: see forks()
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

// The optimizer of an object; null before its __init__ was called.
template <class T = Optimizer>
T* find(PyObject* self) {
  auto* const instance = reinterpret_cast<py::detail::instance*>(self);
  // The garbage collector may look while pybind11 is still making the object.
  if (!instance->simple_layout && instance->nonsimple.values_and_holders == nullptr) return nullptr;
  const auto value = instance->get_value_and_holder();
  return value.holder_constructed() ? value.value_ptr<T>() : nullptr;
}

Optimizer& of(py::handle self) {
  Optimizer* const optimizer = find(self.ptr());
  if (optimizer == nullptr) throw py::type_error("the optimizer's __init__ was not called");
  return *optimizer;
}

// The same for an object of any kind: attributes of the class may be asked of anything.
Optimizer& checked(const py::object& self) {
  if (!py::isinstance<Optimizer>(self)) throw py::type_error("not an optimizer");
  return of(self);
}

// PyTorch's tensors as the parameters of an optimizer, and all that was looked at when they were taken: groups, state.
// Where nothing has changed since and no gradient is unusual, their step asks nothing more of Python.
class Tensors {
 public:
  // shown: whether PyTorch has each tensor's state; said: of each group the values of the names, of which the first is
  // the tensors; entries: of each value of state a pair of that dict and its values; steps, mu_products: where each
  // tensor's are told; changed: a function to call with the tensors that were changed; exchange: PyTorch's
  // DLPackExchangeAPI. Where that is none that is known, or no tensor can be looked at, every step is refused.
  Tensors(py::object optimizer, const py::tuple& tensors, std::vector<bool> shown, py::tuple names, py::list said,
          py::dict state, py::tuple entries, py::array steps, py::array mu_products, py::object changed,
          const py::object& exchange)
      : optimizer_(std::move(optimizer)),
        names_(std::move(names)),
        said_(std::move(said)),
        state_(std::move(state)),
        entries_(std::move(entries)),
        changed_(std::move(changed)),
        taken_{tensors,
               {},
               std::move(shown),
               Getter(Py_TYPE(tensors.empty() ? tensors.ptr() : tensors[0].ptr()), "grad"),
               nullptr,
               Told(std::move(steps)),
               Told(std::move(mu_products))} {
    const std::size_t count = checked(optimizer_).count();
    if (tensors.size() != count || taken_.shown.size() != count || taken_.steps.size() != count ||
        taken_.mu_products.size() != count) {
      throw py::value_error("one tensor and one count for each parameter");
    }
    const auto look = look_of(exchange);
    if (look == nullptr) return;
    for (const py::handle tensor : tensors) {
      onepass::DLTensor view = {};
      if (look(tensor.ptr(), &view) != 0) {
        PyErr_Clear();
        return;
      }
      taken_.layouts.emplace_back(view);
    }
    taken_.look = look;
  }

  // Steps along the tensors' gradients. Returns false, and has done nothing, where anything is not as it was.
  bool step(py::handle groups, py::handle state) {
    if (taken_.look == nullptr || !state.is(state_) || !are_said(groups) || !is_state()) return false;
    Optimizer& optimizer = of(optimizer_);
    if (!optimizer.step_tensors(taken_)) return false;
    if (!py::reinterpret_steal<py::object>(
            PyObject_CallOneArg(changed_.ptr(), optimizer.stepped(taken_.tensors).ptr()))) {
      throw py::error_already_set();
    }
    return true;
  }

  // What the garbage collector is told.
  int traverse(visitproc visit, void* argument) const {
    for (const py::object* object : std::initializer_list<const py::object*>{&optimizer_, &names_, &said_, &state_,
                                                                             &entries_, &changed_, &taken_.tensors}) {
      if (const int found = object->ptr() == nullptr ? 0 : visit(object->ptr(), argument)) return found;
    }
    return 0;
  }
  void clear() {
    taken_.look = nullptr;  // no further step
    for (py::object* object :
         std::initializer_list<py::object*>{&optimizer_, &said_, &state_, &entries_, &changed_, &taken_.tensors}) {
      *object = py::object();
    }
  }

 private:
  static onepass::DLPackExchange::Look look_of(const py::object& exchange) {
    if (PyCapsule_CheckExact(exchange.ptr()) == 0) return nullptr;
    const auto* const api = py::reinterpret_borrow<py::capsule>(exchange).get_pointer<const onepass::DLPackExchange>();
    return api->major == onepass::DLPackExchange::known_major ? api->look : nullptr;
  }

  bool are_said(py::handle given) const {
    if (!PyList_CheckExact(given.ptr())) return false;
    const auto groups = py::reinterpret_borrow<py::list>(given);
    if (groups.size() != said_.size()) return false;
    for (std::size_t g = 0; g < said_.size(); ++g) {
      const auto group_said = said_[g].cast<py::list>();
      const py::object group = groups[g];
      if (!PyDict_Check(group.ptr()) || group_said.size() != names_.size()) return false;
      const py::scoped_critical_section section(group, group_said);
      for (std::size_t k = 0; k < names_.size(); ++k) {
        const auto at = static_cast<Py_ssize_t>(k);
        PyObject* const value = PyDict_GetItemWithError(group.ptr(), PyTuple_GET_ITEM(names_.ptr(), at));
        const auto held = py::reinterpret_borrow<py::object>(value);
        const auto known = py::reinterpret_borrow<py::object>(PyList_GET_ITEM(group_said.ptr(), at));
        // Tensors are told apart by what they are: those of one number may be equal.
        int same = 0;
        if (held && k == 0) same = are_items(held, known);
        if (held && k != 0) same = PyObject_RichCompareBool(held.ptr(), known.ptr(), Py_EQ);
        if (same == 1) continue;
        PyErr_Clear();  // tensors do not compare to a truth value
        return false;
      }
    }
    return true;
  }

  // Whether two lists hold the very same objects.
  static int are_items(const py::object& list, const py::object& known) {
    if (!PyList_CheckExact(list.ptr()) || !PyList_CheckExact(known.ptr())) return 0;
    const py::scoped_critical_section section(list);
    const Py_ssize_t count = PyList_GET_SIZE(known.ptr());
    if (PyList_GET_SIZE(list.ptr()) != count) return 0;
    for (Py_ssize_t i = 0; i < count; ++i) {
      if (PyList_GET_ITEM(list.ptr(), i) != PyList_GET_ITEM(known.ptr(), i)) return 0;
    }
    return 1;
  }

  // Whether state holds the very dicts and the very tensors that it held, in their order.
  bool is_state() const {
    const py::scoped_critical_section section(state_);
    return holds(state_.ptr(), entries_.ptr(), [](PyObject* own, PyObject* pair) {
      if (own != PyTuple_GET_ITEM(pair, 0)) return false;
      const py::scoped_critical_section inner(own);
      return holds(own, PyTuple_GET_ITEM(pair, 1), [](PyObject* value, PyObject* known) { return value == known; });
    });
  }

  template <class Same>
  static bool holds(PyObject* dict, PyObject* known, Same same) {
    if (PyDict_Size(dict) != PyTuple_GET_SIZE(known)) return false;
    PyObject* value = nullptr;
    Py_ssize_t i = 0;
    for (Py_ssize_t at = 0; PyDict_Next(dict, &at, nullptr, &value) != 0; ++i) {
      if (!same(value, PyTuple_GET_ITEM(known, i))) return false;
    }
    return true;
  }

  py::object optimizer_;
  py::tuple names_;
  py::list said_;
  py::dict state_;
  py::tuple entries_;
  py::object changed_;
  Optimizer::TakenTensors taken_;
};

// Lets the garbage collector find cycles through what an object of this class holds.
template <class T>
void set_up_collection(PyHeapTypeObject* heap_type) {
  PyTypeObject* const type = &heap_type->ht_type;
  type->tp_flags |= Py_TPFLAGS_HAVE_GC;
  type->tp_traverse = [](PyObject* self, visitproc visit, void* arg) {
    Py_VISIT(Py_TYPE(self));
    const T* const held = find<T>(self);
    return held == nullptr ? 0 : held->traverse(visit, arg);
  };
  type->tp_clear = [](PyObject* self) {
    if (T* const held = find<T>(self)) held->clear();
    return 0;
  };
}

// What the function returns, or null with Python's exception for what it throws.
template <class Function>
PyObject* guarded(Function function) {
  try {
    return function();
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
    const auto value = reinterpret_cast<py::detail::instance*>(self)->get_value_and_holder();
    if (positional != 2 || !value.holder_constructed()) throw py::type_error("step takes groups and state");
    return py::bool_(value.value_ptr<Tensors>()->step(arguments[0], arguments[1])).release().ptr();
  });
}

bool step_once(const std::string& rule_name, const std::vector<double>& options, const CommonOptions& common,
               double grad_scale, bool flush_denormals, std::int64_t step, const py::array& param,
               const py::array& grad, const std::vector<py::array>& states, const std::optional<py::array>& average) {
  const onepass::Rule& rule = onepass::find_rule(rule_name);
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
  const auto* const data = reinterpret_cast<const onepass::Block*>(blocks.data());
  const onepass::Measured found = onepass::total(data, counts.data(), counts.size(), grad_scale, finite);
  if (found.first_nonfinite == onepass::Measured::none) return {found.norm, std::nullopt};
  return {found.norm, found.first_nonfinite};
}

void stream_limit(const py::array& param, const py::array& grad, const py::array& exp_avg,
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
    onepass::kernels().stream_limit[x.dtype](x.operands, begin, end);
  };
  const std::size_t bytes = parameter.size * onepass::bytes_of(parameter.dtype) * 7;
  without_gil([&] { onepass::run_parts(part, &parameter, parameter.size, bytes); });
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
             const py::dict& slots) {
            group.set(std::move(options), common);
            assign(object, slots);
          },
          py::arg("options"), py::arg("common"), py::arg("object"), py::arg("slots"));

  py::class_<Optimizer> optimizer(m, "Optimizer", py::custom_type_setup(&set_up_collection<Optimizer>));
  py::native_enum<Optimizer::Form>(optimizer, "Form", "enum.Enum")
      .value("array", Optimizer::Form::array)
      .value("sequence", Optimizer::Form::sequence)
      .value("mapping", Optimizer::Form::mapping)
      .finalize();
  py::native_enum<Optimizer::Nonfinite>(optimizer, "Nonfinite", "enum.Enum")
      .value("propagate", Optimizer::Nonfinite::propagate)
      .value("skip", Optimizer::Nonfinite::skip)
      .value("raise", Optimizer::Nonfinite::raise)
      .finalize();
  // Properties take the object itself: pybind11 would hand over an optimizer that was never made.
  optimizer.def(py::init<bool>(), py::arg("flush_denormals"))
      .def("_add_group", &Optimizer::add_group, py::arg("form"), py::arg("group"), py::arg("keys"), py::arg("params"),
           py::arg("states"), py::arg("averages"), py::arg("slots"))
      .def("_restore", &Optimizer::restore, py::arg("copies"), py::arg("options"), py::arg("clip_norm"),
           py::arg("nonfinite"), py::arg("step_count"), py::arg("skipped"), py::arg("steps"), py::arg("mu_products"))
      .def("_locked", &Optimizer::locked, py::arg("function"))
      .def("_step_in_parts", &Optimizer::step_in_parts, py::arg("grads"), py::arg("grad_scale"), py::arg("parts"),
           py::arg("exchange"))
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
  tensors.def(py::init<py::object, const py::tuple&, std::vector<bool>, py::tuple, py::list, py::dict, py::tuple,
                       py::array, py::array, py::object, const py::object&>(),
              py::arg("optimizer"), py::arg("tensors"), py::arg("shown"), py::arg("names"), py::arg("said"),
              py::arg("state"), py::arg("entries"), py::arg("steps"), py::arg("mu_products"), py::arg("changed"),
              py::arg("exchange"));
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
  m.def("stream_limit", &stream_limit, py::arg("param"), py::arg("grad"), py::arg("exp_avg"), py::arg("exp_avg_sq"));
  m.def("get_num_threads", &onepass::get_num_threads);
  m.def("set_num_threads", &onepass::set_num_threads, py::arg("count"));
  m.def("power", &onepass::power, py::arg("base"), py::arg("exponent"));
}
