#include "python/torch.hpp"

#include <pybind11/critical_section.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <initializer_list>

#include "python/arrays.hpp"
#include "python/gc.hpp"
#include "python/gil.hpp"
#include "python/optimizer.hpp"

namespace onepass::python {
namespace {

DLPackExchange::ViewTensor view_tensor_of(const py::object& exchange) {
  if (PyCapsule_CheckExact(exchange.ptr()) == 0) return nullptr;
  const auto* const api = py::reinterpret_borrow<py::capsule>(exchange).get_pointer<const DLPackExchange>();
  return api->major == DLPackExchange::known_major ? api->view_tensor : nullptr;
}

// TorchFastPath.step(groups, state)
PyObject* step(PyObject* self, PyObject* const* arguments, Py_ssize_t positional) {
  return guarded([&] {
    auto* const fast_path = try_get<TorchFastPath>(self);
    if (positional != 2 || fast_path == nullptr) throw py::type_error("step takes groups and state");
    return py::bool_(fast_path->step(arguments[0], arguments[1])).release().ptr();
  });
}

}  // namespace

MirroredCounts::MirroredCounts(py::array array)
    : array_(std::move(array)), data_(array_.mutable_data()), single_(dtype_of(array_) == float32) {
  if (!dtype_of(array_)) throw py::value_error("counts are mirrored in float32 or float64");
}

bool MirroredCounts::matches(std::size_t i, double value) const {
  return single_ ? static_cast<const float*>(data_)[i] == static_cast<float>(value)
                 : static_cast<const double*>(data_)[i] == value;
}

void MirroredCounts::set(std::size_t i, double value) {
  if (single_) {
    static_cast<float*>(data_)[i] = static_cast<float>(value);
  } else {
    static_cast<double*>(data_)[i] = value;
  }
}

Snapshot::Snapshot(const Parts& parts) : container_(parts.first), items_(parts.second) {
  if (!PyDict_Check(container_.ptr()) && !PyList_Check(container_.ptr())) {
    throw py::type_error("a snapshot is of a dict or of a list");
  }
}

bool Snapshot::is_unchanged() const {
  PyObject* const container = container_.ptr();
  PyObject* const items = items_.ptr();
  const py::scoped_critical_section section(container_);
  if (PyList_Check(container)) {
    const Py_ssize_t count = PyTuple_GET_SIZE(items);
    if (PyList_GET_SIZE(container) != count) return false;
    for (Py_ssize_t i = 0; i < count; ++i) {
      if (PyList_GET_ITEM(container, i) != PyTuple_GET_ITEM(items, i)) return false;
    }
    return true;
  }
  const Py_ssize_t count = PyDict_GET_SIZE(container);
  if (PyTuple_GET_SIZE(items) != 2 * count) return false;
  PyObject* key = nullptr;
  PyObject* value = nullptr;
  Py_ssize_t at = 0;
  for (Py_ssize_t i = 0; PyDict_Next(container, &at, &key, &value) != 0; ++i) {
    if (key != PyTuple_GET_ITEM(items, i) || value != PyTuple_GET_ITEM(items, count + i)) return false;
  }
  return true;
}

int Snapshot::traverse(visitproc visit, void* argument) const {
  return visit_all({&container_, &items_}, visit, argument);
}

TorchFastPath::TorchFastPath(py::object optimizer, py::tuple tensors, std::vector<bool> published,
                             const std::vector<GroupSnapshot::Parts>& groups, const std::vector<Snapshot::Parts>& state,
                             py::array steps, py::array mu_products, py::object changed, const py::object& exchange)
    : optimizer_(std::move(optimizer)),
      tensors_(std::move(tensors)),
      published_(std::move(published)),
      state_(state.begin(), state.end()),
      grad_name_(py::reinterpret_steal<py::object>(PyUnicode_InternFromString("grad"))),
      steps_(std::move(steps)),
      mu_products_(std::move(mu_products)),
      changed_(std::move(changed)) {
  const std::size_t count = require_optimizer(optimizer_).parameter_count();
  if (tensors_.size() != count || published_.size() != count || steps_.size() != count ||
      mu_products_.size() != count) {
    throw py::value_error("one tensor and one count for each parameter");
  }
  if (state_.empty()) throw py::value_error("the dict of all state is missing");
  for (const auto& [dict, params] : groups) groups_.push_back({Snapshot(dict), Snapshot(params)});
  const auto view_tensor = view_tensor_of(exchange);
  if (view_tensor == nullptr) return;
  for (const py::handle tensor : tensors_) {
    DLTensor view = {};
    if (view_tensor(tensor.ptr(), &view) != 0) {
      PyErr_Clear();
      return;
    }
    layouts_.emplace_back(view);
  }
  neg_checked_at_.resize(count);
  view_tensor_ = view_tensor;
}

void TorchFastPath::update_group(std::size_t g, const GroupSnapshot::Parts& parts) {
  GroupSnapshot group = {Snapshot(parts.first), Snapshot(parts.second)};
  const std::scoped_lock lock(core_of(optimizer_).lock());
  std::swap(groups_.at(g), group);
}

bool TorchFastPath::step(PyObject* groups, PyObject* state) {
  if (view_tensor_ == nullptr) return false;
  Optimizer& optimizer = core_of(optimizer_);
  py::tuple updated;
  {
    Optimizer::ScopedGradients gradients(optimizer);
    const Executor executor = optimizer.choose_executor();  // before pointers are taken: it may run Python code
    if (optimizer.parameters().size() != tensors_.size() || !is_unchanged(groups, state)) return false;
    for (std::size_t i = 0; i < tensors_.size(); ++i) {
      std::optional<Found> found = find_gradient(i, optimizer.parameters()[i]);
      if (!found || !gradients.add(std::move(found->gradient), found->data)) {
        PyErr_Clear();  // the slow path raises the error
        return false;
      }
    }
    gradients.apply(executor);
    publish_counts(optimizer.parameters());
    updated = optimizer.updated(tensors_);
  }
  if (!py::reinterpret_steal<py::object>(PyObject_CallOneArg(changed_.ptr(), updated.ptr()))) {
    throw py::error_already_set();
  }
  return true;
}

// True if groups and state hold the objects that they held. One container after the other: a critical section ends
// while a nested one waits.
bool TorchFastPath::is_unchanged(PyObject* groups, PyObject* state) const {
  if (!PyList_CheckExact(groups) || !state_.front().is_of(state)) return false;
  {
    const py::scoped_critical_section section(groups);
    if (static_cast<std::size_t>(PyList_GET_SIZE(groups)) != groups_.size()) return false;
    for (std::size_t g = 0; g < groups_.size(); ++g) {
      if (!groups_[g].dict.is_of(PyList_GET_ITEM(groups, static_cast<Py_ssize_t>(g)))) return false;
    }
  }
  return std::all_of(
             groups_.begin(), groups_.end(),
             [](const GroupSnapshot& group) { return group.dict.is_unchanged() && group.params.is_unchanged(); }) &&
         std::all_of(state_.begin(), state_.end(), [](const Snapshot& dict) { return dict.is_unchanged(); });
}

// The gradient of a tensor; nothing if the tensor, its count or the gradient is not as expected.
std::optional<TorchFastPath::Found> TorchFastPath::find_gradient(std::size_t i, const Parameter& parameter) {
  static constexpr char nothing = 0;  // the memory of gradients without elements
  if (!steps_.matches(i, static_cast<double>(parameter.step)) ||
      !mu_products_.matches(i, parameter.scalars.values[0])) {
    return std::nullopt;
  }
  PyObject* const tensor = PyTuple_GET_ITEM(tensors_.ptr(), static_cast<Py_ssize_t>(i));
  DLTensor view = {};
  if (view_tensor_(tensor, &view) != 0 || !layouts_[i].matches(view)) return std::nullopt;
  if (parameter.size != 0 && view.address() != parameter.operands.param) return std::nullopt;
  Found found = {py::reinterpret_steal<py::object>(PyObject_GetAttr(tensor, grad_name_.ptr()))};
  if (!found.gradient) throw py::error_already_set();
  if (found.gradient.is_none()) return found;
  if (!published_[i] || view_tensor_(found.gradient.ptr(), &view) != 0 || !layouts_[i].matches(view)) {
    return std::nullopt;
  }
  found.data = parameter.size == 0 ? &nothing : view.address();
  if (found.data == nullptr) return std::nullopt;
  // is_neg takes long, and contiguous tensors are practically never lazily negated, except the imaginary part of one
  // conjugate number: check gradients of more elements once for each address.
  if (parameter.size != 1 && found.data == neg_checked_at_[i]) return found;
  if (call(found.gradient.attr("is_neg"), py::tuple()).cast<bool>()) return std::nullopt;
  neg_checked_at_[i] = found.data;
  return found;
}

void TorchFastPath::publish_counts(const std::vector<Parameter>& parameters) {
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    steps_.set(i, static_cast<double>(parameters[i].step));
    mu_products_.set(i, parameters[i].scalars.values[0]);
  }
}

int TorchFastPath::traverse(visitproc visit, void* argument) const {
  if (const int result = visit_all({&optimizer_, &tensors_, &changed_}, visit, argument)) return result;
  for (const GroupSnapshot& group : groups_) {
    if (const int result = group.dict.traverse(visit, argument)) return result;
    if (const int result = group.params.traverse(visit, argument)) return result;
  }
  for (const Snapshot& dict : state_) {
    if (const int result = dict.traverse(visit, argument)) return result;
  }
  return 0;
}

void TorchFastPath::clear() {
  view_tensor_ = nullptr;  // refuse every step
  groups_.clear();
  state_.clear();
  for (py::object* object : std::initializer_list<py::object*>{&optimizer_, &tensors_, &changed_}) {
    *object = py::object();
  }
}

void register_torch(py::module_& m) {
  py::class_<TorchFastPath> fast_path(m, "TorchFastPath", py::custom_type_setup(&set_up_collection<TorchFastPath>));
  fast_path
      .def(py::init<py::object, py::tuple, std::vector<bool>, const std::vector<GroupSnapshot::Parts>&,
                    const std::vector<Snapshot::Parts>&, py::array, py::array, py::object, const py::object&>(),
           py::arg("optimizer"), py::arg("tensors"), py::arg("published"), py::arg("groups"), py::arg("state"),
           py::arg("steps"), py::arg("mu_products"), py::arg("changed"), py::arg("exchange"))
      .def("update_group", &TorchFastPath::update_group, py::arg("index"), py::arg("group"));
  static PyMethodDef step_method = {"step", as_cfunction(&step), METH_FASTCALL, nullptr};
  add_method(fast_path, step_method);
}

}  // namespace onepass::python
