// The optimizer that Python sees: turns arrays into pointers, and nothing else. What a user may hand over wrongly is
// explained in base.py; here it is only noticed.
#pragma once

#include <pybind11/critical_section.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <thread>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "core/optimizer.hpp"
#include "core/parallel.hpp"
#include "python/arrays.hpp"
#include "python/objects.hpp"

namespace onepass::python {

// The slot in which a group's object in Python remembers its options.
inline py::str remembered() { return "_values"; }

// Holds the arrays of an optimizer and takes gradients in. A Python subclass supplies what the fast path does not know:
// _arrange (gradients in another container), _convert (a gradient in another form), _scheduled (what schedules say),
// and the words of its errors: _overflow, _nonfinite_gradient, _parameter_changed.
class Optimizer {
 public:
  enum class Form : unsigned char { array, sequence, mapping };
  enum class Nonfinite : unsigned char { propagate, skip, raise };

  // in_files: state lies in files, which forked processes share.
  Optimizer(bool flush_denormals, bool in_files)
      : core_(flush_denormals), ndarray_(NumPy::get().PyArray_Type_), in_files_(in_files) {}
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
    check_process();
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
    for (const auto& [slot, value] : slots) assign(self(), slot, value);
  }

  // Puts other state in place: pairs of arrays of equal size and layout, to and from, the groups' options with what
  // their objects remember of these now and then, the options of the whole, and the counts. Returns false, and has done
  // nothing, where a group has other options by now.
  using Options = std::tuple<std::shared_ptr<onepass::Group>, std::vector<double>, CommonOptions, py::object,
                             py::object, py::object>;
  bool restore(const std::vector<std::pair<py::array, py::array>>& copies, std::vector<Options> options,
               double clip_norm, Nonfinite nonfinite, std::int64_t step_count, std::int64_t skipped,
               const std::vector<std::int64_t>& steps, const std::vector<double>& mu_products) {
    std::optional<Turn> turn;
    if (!Turn::is_mine(*this) || !is_locked_) turn.emplace(*this);
    check_process();
    if (steps.size() != held_.size() || mu_products.size() != held_.size()) {
      throw py::value_error("one count for each parameter");
    }
    for (const auto& [to, from] : copies) {
      if (to.nbytes() != from.nbytes() || (fields(to.ptr()).flags & fields(from.ptr()).flags & any_order) == 0) {
        throw py::value_error("the arrays of a pair must have the same layout");
      }
    }
    const py::str slot = remembered();
    for (const auto& [group, numbers, common, object, known, values] : options) {
      if (!is_held(object, slot, known)) return false;
    }
    std::vector<Scalars> scalars;
    for (const double product : mu_products) scalars.push_back({{product}});
    for (const auto& [to, from] : copies) {
      std::memmove(fields(to.ptr()).data, fields(from.ptr()).data, static_cast<std::size_t>(to.nbytes()));
    }
    core_.restore(step_count, steps, scalars);
    skipped_ = skipped;
    clip_norm_ = clip_norm;
    nonfinite_ = nonfinite;
    for (auto& [group, numbers, common, object, known, values] : options) {
      const py::scoped_critical_section section(object);  // as replace() has: both, or it comes between them
      group->set(std::move(numbers), common);
      assign(object, slot, values);
    }
    return true;
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
    check_process();
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
    check_process();
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

  // The same along gradients that a source finds. source.look(i, parameter, gradient, data) says where the i-th lies,
  // null where there is none, and whose memory that is; source.tell(i, parameter) hears of its count afterwards.
  // Returns false, and has done nothing, where the source will not say, or the gradient shares memory with what it
  // would change.
  template <class Source>
  bool step_from(Source& source) {
    const Turn turn(*this);
    check_process();
    const Release release{gradients_};
    for (std::size_t i = 0; i < held_.size(); ++i) {
      const void* data = nullptr;
      if (!source.look(i, core_.parameters()[i], gradients_.emplace_back(), data)) return false;
      if (data != nullptr && !is_disjoint(i, data)) return false;
      pointers_[i] = {};
      pointers_[i].data = data;
    }
    finish(1);
    for (std::size_t i = 0; i < held_.size(); ++i) source.tell(i, core_.parameters()[i]);
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
    return reading([&] { return core_.parameters().at(i).scalars.values[0]; });
  }

  // The norm of the last step's gradients, if it was asked for.
  std::optional<double> grad_norm() const { return measured_ ? std::optional<double>(grad_norm_) : std::nullopt; }

  // What the garbage collector is told.
  int traverse(visitproc visit, void* argument) const {
    for (const Held& held : held_) {
      if (const int found = visit_all({&held.key, &held.param}, visit, argument)) return found;
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

  // Refuses to change state that is also another process's. Reading it does no harm.
  void check_process() const {
    if (in_files_ && onepass::forks() != made_forks_) {
      throw std::runtime_error(
          "this optimizer was made before a fork and its state lies in files (state_dir), which this process shares "
          "with its parent: what changes here would change there; make another optimizer in this process and load "
          "what was saved, or this one's state_dict()");
    }
  }

  // Reads the core's counts between steps; in the middle of one, its own thread may.
  template <class Function>
  std::invoke_result_t<Function> reading(Function function) const {
    std::optional<Turn> turn;
    if (!Turn::is_mine(*this)) turn.emplace(*this);
    return function();
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
    onepass::GradientStats measured;
    const bool norm = clip_norm != no_clip_norm;
    const bool finite = nonfinite != Nonfinite::propagate;
    if (in_parts != nullptr) call(in_parts->exchange.attr("_agree"), py::make_tuple(core_.digest(), norm || finite));
    if ((norm || finite) && in_parts != nullptr) {
      measured = measure_with_others(scale, norm, finite, large, in_parts->exchange);
    } else if (norm || finite) {
      without_gil_if(large, [&] { measured = core_.measure(pointers_.data(), scale, norm, finite); });
    }
    if (measured.first_nonfinite != onepass::GradientStats::none) {
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

  onepass::GradientStats measure_with_others(double scale, bool norm, bool finite, bool large,
                                             const py::object& exchange) {
    std::size_t count = 0;
    for (const Parameter& parameter : core_.parameters()) count += onepass::blocks_of(parameter.size);
    py::array_t<double> blocks({count, std::size_t{2}});
    auto* const room = reinterpret_cast<onepass::BlockStats*>(blocks.mutable_data());
    without_gil_if(large, [&] { core_.measure_blocks(pointers_.data(), scale, norm, finite, room); });
    const auto [found, first] =
        call(exchange.attr("_measured"), py::make_tuple(blocks)).cast<std::pair<double, std::optional<std::size_t>>>();
    return {found, first.value_or(onepass::GradientStats::none)};
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

  void remember(const onepass::GradientStats& measured, double clip_norm) {
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
  bool in_files_;
  unsigned made_forks_ = onepass::forks();  // in which process
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

inline Optimizer& of(py::handle self) {
  auto* const optimizer = find<Optimizer>(self.ptr());
  if (optimizer == nullptr) throw py::type_error("the optimizer's __init__ was not called");
  return *optimizer;
}

// The same for an object of any kind: attributes of the class may be asked of anything.
inline Optimizer& checked(const py::object& self) {
  if (!py::isinstance<Optimizer>(self)) throw py::type_error("not an optimizer");
  return of(self);
}

}  // namespace onepass::python
