// PyTorch's tensors as the parameters of an optimizer: a step that asks nothing of Python but their gradients.
#pragma once

#include <pybind11/critical_section.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstddef>
#include <initializer_list>
#include <tuple>
#include <utility>
#include <vector>

#include "python/arrays.hpp"
#include "python/dlpack.hpp"
#include "python/objects.hpp"
#include "python/optimizer.hpp"

namespace onepass::python {

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
  explicit Told(py::array array)
      : array_(std::move(array)), data_(array_.mutable_data()), single_(dtype_of(array_.ptr()) == float32) {
    if (!dtype_of(array_.ptr())) throw py::value_error("numbers are told in float32 or float64");
  }

  bool says(std::size_t i, double value) const {
    return single_ ? static_cast<const float*>(data_)[i] == static_cast<float>(value)
                   : static_cast<const double*>(data_)[i] == value;
  }

  void tell(std::size_t i, double value) {
    if (single_) {
      static_cast<float*>(data_)[i] = static_cast<float>(value);
    } else {
      static_cast<double*>(data_)[i] = value;
    }
  }

  std::size_t size() const { return static_cast<std::size_t>(array_.size()); }

 private:
  py::array array_;
  void* data_;
  bool single_;
};

// What a dict held: its very keys and its very values, in their order. Objects are told apart by what they are and not
// by what they are equal to: tensors of one number may be equal.
class SeenDict {
 public:
  using Parts = std::tuple<py::dict, py::tuple, py::tuple>;  // the dict, its keys, its values
  explicit SeenDict(const Parts& parts)
      : dict_(std::get<0>(parts)), keys_(std::get<1>(parts)), values_(std::get<2>(parts)) {
    if (keys_.size() != values_.size()) throw py::value_error("a dict has as many values as keys");
  }

  bool is(PyObject* dict) const { return dict == dict_.ptr(); }

  // Whether it holds them still.
  bool is_same() const {
    const py::scoped_critical_section section(dict_);
    const Py_ssize_t count = PyTuple_GET_SIZE(keys_.ptr());
    if (PyDict_GET_SIZE(dict_.ptr()) != count) return false;
    Py_ssize_t at = 0;
    for (Py_ssize_t i = 0; i < count; ++i) {
      PyObject* key = nullptr;
      PyObject* value = nullptr;
      if (PyDict_Next(dict_.ptr(), &at, &key, &value) == 0) return false;
      if (key != PyTuple_GET_ITEM(keys_.ptr(), i) || value != PyTuple_GET_ITEM(values_.ptr(), i)) return false;
    }
    return true;
  }

  int traverse(visitproc visit, void* argument) const { return visit_all({&dict_, &keys_, &values_}, visit, argument); }

 private:
  py::dict dict_;
  py::tuple keys_;
  py::tuple values_;
};

// What a group of parameters held: its dict, and the list of tensors in that.
class SeenGroup {
 public:
  using Parts = std::tuple<py::dict, py::tuple, py::tuple, py::list, py::tuple>;  // as of SeenDict; the list, its items
  explicit SeenGroup(const Parts& parts)
      : dict_({std::get<0>(parts), std::get<1>(parts), std::get<2>(parts)}),
        list_(std::get<3>(parts)),
        items_(std::get<4>(parts)) {}

  bool is(PyObject* dict) const { return dict_.is(dict); }

  bool is_same() const {
    if (!dict_.is_same()) return false;
    const py::scoped_critical_section section(list_);
    const Py_ssize_t count = PyTuple_GET_SIZE(items_.ptr());
    if (PyList_GET_SIZE(list_.ptr()) != count) return false;
    for (Py_ssize_t i = 0; i < count; ++i) {
      if (PyList_GET_ITEM(list_.ptr(), i) != PyTuple_GET_ITEM(items_.ptr(), i)) return false;
    }
    return true;
  }

  int traverse(visitproc visit, void* argument) const {
    const int found = dict_.traverse(visit, argument);
    return found != 0 ? found : visit_all({&list_, &items_}, visit, argument);
  }

 private:
  SeenDict dict_;
  py::list list_;
  py::tuple items_;
};

// The tensors, and all that was looked at when they were taken: groups, state. Where nothing has changed since and no
// gradient is unusual, their step asks nothing more of Python.
class Tensors {
 public:
  // shown: whether PyTorch has each tensor's state; state: the dict of all state, then those in it; steps, mu_products:
  // where each tensor's are told; changed: a function to call with the tensors that were changed; exchange: PyTorch's
  // DLPackExchangeAPI. Where that is none that is known, or no tensor can be looked at, every step is refused.
  Tensors(py::object optimizer, const py::tuple& tensors, std::vector<bool> shown,
          const std::vector<SeenGroup::Parts>& groups, const std::vector<SeenDict::Parts>& state, py::array steps,
          py::array mu_products, py::object changed, const py::object& exchange)
      : optimizer_(std::move(optimizer)),
        tensors_(tensors),
        shown_(std::move(shown)),
        groups_(groups.begin(), groups.end()),
        state_(state.begin(), state.end()),
        grad_(Py_TYPE(tensors.empty() ? tensors.ptr() : tensors[0].ptr()), "grad"),
        steps_(std::move(steps)),
        mu_products_(std::move(mu_products)),
        changed_(std::move(changed)) {
    const std::size_t count = checked(optimizer_).count();
    if (tensors.size() != count || shown_.size() != count || steps_.size() != count || mu_products_.size() != count) {
      throw py::value_error("one tensor and one count for each parameter");
    }
    if (state_.empty()) throw py::value_error("the first dict of state is that of the others");
    const auto look = look_of(exchange);
    if (look == nullptr) return;
    for (const py::handle tensor : tensors) {
      DLTensor view = {};
      if (look(tensor.ptr(), &view) != 0) {
        PyErr_Clear();
        return;
      }
      layouts_.emplace_back(view);
    }
    asked_.resize(count);
    look_ = look;
  }

  // A group whose options have changed, once the optimizer has them.
  void see(std::size_t g, const SeenGroup::Parts& parts) { groups_.at(g) = SeenGroup(parts); }

  // Steps along the tensors' gradients. Returns false, and has done nothing, where anything is not as it was.
  bool step(py::handle groups, py::handle state) {
    if (look_ == nullptr || !are_groups(groups.ptr()) || !is_state(state.ptr())) return false;
    Optimizer& optimizer = of(optimizer_);
    if (!optimizer.step_from(*this)) {
      PyErr_Clear();  // the slow way says it in words
      return false;
    }
    if (!py::reinterpret_steal<py::object>(PyObject_CallOneArg(changed_.ptr(), optimizer.stepped(tensors_).ptr()))) {
      throw py::error_already_set();
    }
    return true;
  }

  // For Optimizer::step_from: the gradient of a tensor, if both and its count are simply what is expected.
  bool look(std::size_t i, const Parameter& parameter, py::object& gradient, const void*& data) {
    static constexpr char nothing = 0;  // where the gradient of no elements lies
    if (!steps_.says(i, static_cast<double>(parameter.step)) || !mu_products_.says(i, parameter.scalars.values[0])) {
      return false;
    }
    PyObject* const tensor = PyTuple_GET_ITEM(tensors_.ptr(), static_cast<Py_ssize_t>(i));
    DLTensor found = {};
    if (look_(tensor, &found) != 0 || !layouts_[i].is_of(found)) return false;
    if (parameter.size != 0 && found.address() != parameter.operands.param) return false;
    gradient = grad_(tensor);
    if (gradient.is_none()) return true;
    if (!shown_[i] || look_(gradient.ptr(), &found) != 0 || !layouts_[i].is_of(found)) return false;
    data = parameter.size == 0 ? &nothing : found.address();
    if (data == nullptr) return false;
    // Lazy negation: next to nothing makes contiguous tensors so but the imaginary part of one conjugate number, and
    // asking takes long. So others are asked once for each place where they lie.
    if (parameter.size != 1 && data == asked_[i]) return true;
    if (call(gradient.attr("is_neg"), py::tuple()).cast<bool>()) return false;
    asked_[i] = data;
    return true;
  }

  void tell(std::size_t i, const Parameter& parameter) {
    steps_.tell(i, static_cast<double>(parameter.step));
    mu_products_.tell(i, parameter.scalars.values[0]);
  }

  // What the garbage collector is told.
  int traverse(visitproc visit, void* argument) const {
    if (const int found = visit_all({&optimizer_, &tensors_, &changed_}, visit, argument)) return found;
    for (const SeenGroup& seen : groups_) {
      if (const int found = seen.traverse(visit, argument)) return found;
    }
    for (const SeenDict& seen : state_) {
      if (const int found = seen.traverse(visit, argument)) return found;
    }
    return 0;
  }
  void clear() {
    look_ = nullptr;  // no further step
    groups_.clear();
    state_.clear();
    for (py::object* object : std::initializer_list<py::object*>{&optimizer_, &tensors_, &changed_}) {
      *object = py::object();
    }
  }

 private:
  static DLPackExchange::Look look_of(const py::object& exchange) {
    if (PyCapsule_CheckExact(exchange.ptr()) == 0) return nullptr;
    const auto* const api = py::reinterpret_borrow<py::capsule>(exchange).get_pointer<const DLPackExchange>();
    return api->major == DLPackExchange::known_major ? api->look : nullptr;
  }

  bool are_groups(PyObject* groups) const {
    if (!PyList_CheckExact(groups)) return false;
    const py::scoped_critical_section section(groups);
    if (static_cast<std::size_t>(PyList_GET_SIZE(groups)) != groups_.size()) return false;
    for (std::size_t g = 0; g < groups_.size(); ++g) {
      if (!groups_[g].is(PyList_GET_ITEM(groups, static_cast<Py_ssize_t>(g))) || !groups_[g].is_same()) return false;
    }
    return true;
  }

  bool is_state(PyObject* state) const {
    return state_.front().is(state) &&
           std::all_of(state_.begin(), state_.end(), [](const SeenDict& seen) { return seen.is_same(); });
  }

  py::object optimizer_;
  py::tuple tensors_;
  std::vector<bool> shown_;
  std::vector<SeenGroup> groups_;
  std::vector<SeenDict> state_;
  Getter grad_;
  Told steps_;
  Told mu_products_;
  py::object changed_;
  std::vector<Layout> layouts_;
  std::vector<const void*> asked_;  // where each one's gradient lay that was asked whether it is negated
  DLPackExchange::Look look_ = nullptr;
};

}  // namespace onepass::python
