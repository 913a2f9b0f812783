#include "python/torch_engine.hpp"

#include <pybind11/critical_section.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <mutex>
#include <tuple>
#include <utility>

#include "python/dict.hpp"
#include "python/gc.hpp"
#include "python/gil.hpp"
#include "python/instance.hpp"
#include "python/torch_threads.hpp"

namespace onepass::python {
namespace {

py::object borrow(PyObject* object) { return py::reinterpret_borrow<py::object>(object); }

}  // namespace

TorchEngine::TorchEngine(std::vector<py::object> groups, py::object state, std::vector<std::vector<py::object>> states,
                         std::vector<TorchStorage> storages, std::vector<py::object> scalars, TensorViewer viewer,
                         py::object get_num_threads, py::object count_changes, py::object explain,
                         py::object rows_and_values, bool flush_denormals)
    : groups_(std::move(groups)),
      state_(std::move(state)),
      state_names_(std::move(states)),
      storages_(std::move(storages)),
      scalar_names_(std::move(scalars)),
      viewer_(std::move(viewer)),
      get_num_threads_(std::move(get_num_threads)),
      count_changes_(std::move(count_changes)),
      explain_(std::move(explain)),
      rows_and_values_(std::move(rows_and_values)),
      grad_name_(py::reinterpret_steal<py::object>(PyUnicode_InternFromString("grad"))),
      core_(flush_denormals) {
  if (!PyDict_Check(state_.ptr())) throw py::type_error("state: expected a dict");
  if (state_names_.size() != groups_.size() || storages_.size() != groups_.size() ||
      scalar_names_.size() > onepass::max_scalars + 1) {
    throw py::value_error("one list of state names and one storage for each group");
  }
  for (std::size_t g = 0; g < groups_.size(); ++g) {
    const TorchGroup* const group = try_group(groups_[g]);
    if (group == nullptr || state_names_[g].size() > max_tensors) throw py::type_error("groups: expected TorchGroups");
    const std::vector<Parameter> unknown(group->tensors().size(), Parameter{onepass::float32, 0, 0, {}, g, 0, {}});
    for (const py::handle tensor : group->tensors()) {
      const std::size_t first = index_.emplace(tensor.ptr(), entries_.size()).first->second;
      Entry entry = {};
      entry.tensor = tensor.ptr();
      entry.group = g;
      entry.first = first;
      entry.is_narrow = storages_[g].is_narrow(viewer_.view(entry.tensor));
      entries_.push_back(std::move(entry));
    }
    core_.add_group(group->core(), unknown);
  }
  py::list tensors;
  for (const Entry& entry : entries_) tensors.append(py::handle(entry.tensor));
  tensors_ = py::tuple(tensors);
  objects_.resize(entries_.size());
  pointers_.resize(entries_.size());
}

TorchGroup* TorchEngine::try_group(const py::object& object) {
  return py::isinstance<TorchGroup>(object) ? try_get<TorchGroup>(object.ptr()) : nullptr;
}

bool TorchEngine::step(PyObject* groups, PyObject* state, PyObject* substitutes, std::size_t only, PyObject* copies) {
  std::vector<std::pair<py::object, py::object>> pairs;  // read first: a list of another form must change nothing
  if (copies != Py_None) pairs = py::handle(copies).cast<decltype(pairs)>();
  py::tuple changed;
  bool is_applied = false;
  {
    const std::scoped_lock lock(lock_);
    const struct Release {
      TorchEngine& engine;
      ~Release() {
        for (StepObjects& objects : engine.objects_) objects = {};
        engine.narrow_objects_.clear();
      }
    } at_exit{*this};
    const std::int64_t before = step_count_;
    if (!step_locked(groups, state, substitutes, only)) return false;
    changed = updated();
    is_applied = step_count_ != before;
  }
  if (is_applied) {
    for (const auto& [to, from] : pairs) call(to.attr("copy_"), py::make_tuple(from));
  }
  call(count_changes_, py::make_tuple(changed));
  return true;
}

bool TorchEngine::takes(const py::object& groups, const py::object& state) {
  const std::scoped_lock lock(lock_);
  return state.is(state_) && has_groups(groups.ptr()) && take_options(false);
}

void TorchEngine::renew(std::size_t g, py::dict places, std::vector<double> options, const CommonOptions& common) {
  const std::scoped_lock lock(lock_);
  if (g >= groups_.size()) throw py::index_error("no such group");
  group(g).renew(std::move(places), std::move(options), common);
}

bool TorchEngine::step_locked(PyObject* groups, PyObject* state, PyObject* substitutes, std::size_t only) {
  if (state != state_.ptr() || !has_groups(groups) || !take_options(substitutes != Py_None)) return false;
  const bool may_be_large = elements_ >= release_gil_from || substitutes != Py_None;
  const Executor executor = may_be_large ? torch_executor(get_num_threads_) : onepass::Executor{1, nullptr};
  // Python code may run during collect() and check_negated(), but not during or after the last locate().
  if (!collect(state, substitutes, only)) return false;
  Found found = locate();
  for (int tries = 0; found == Found::unchecked && tries < 3; ++tries) found = check_negated() ? locate() : Found::odd;
  if (found != Found::ready) {
    forget();
    return false;
  }
  if (finish(executor)) {
    ++step_count_;
  } else {
    pointers_.assign(pointers_.size(), {});  // nothing was updated
  }
  return true;
}

// Return true if these are the optimizer's groups.
bool TorchEngine::has_groups(PyObject* groups) const {
  if (!PyList_CheckExact(groups)) return false;
  const py::scoped_critical_section section{py::handle(groups)};
  const auto has_same_size = [&] { return static_cast<std::size_t>(PyList_GET_SIZE(groups)) == groups_.size(); };
  for (std::size_t g = 0; g < groups_.size(); ++g) {
    const TorchGroup& own = group(g);  // may suspend the section, hence the size each time
    if (!has_same_size() || !own.is_of(PyList_GET_ITEM(groups, static_cast<Py_ssize_t>(g)))) return false;
  }
  return has_same_size();
}

// Have the core take the options of the groups. Return false if Python must read the options, or if a group has other
// tensors.
bool TorchEngine::take_options(bool is_renewed) {
  for (std::size_t g = 0; g < groups_.size(); ++g) {
    if (!group(g).update(viewer_, is_renewed)) return false;
  }
  core_.take_options();
  return true;
}

// Fill objects_ with the gradients, and with the state of the parameters that have a gradient.
bool TorchEngine::collect(PyObject* state, PyObject* substitutes, std::size_t only) {
  if (substitutes != Py_None &&
      (!PyList_CheckExact(substitutes) || static_cast<std::size_t>(PyList_GET_SIZE(substitutes)) != entries_.size())) {
    throw py::value_error("substitutes: expected None or a list with one item for each parameter");
  }
  bool any = false;
  for (std::size_t i = 0; i < entries_.size(); ++i) {
    if (only != every_parameter && i != only) continue;
    StepObjects& objects = objects_[i];
    if (substitutes != Py_None) {
      objects.substitute = borrow(PyList_GET_ITEM(substitutes, static_cast<Py_ssize_t>(i)));
      entries_[i].is_odd = !objects.substitute.is_none();
      entries_[i].is_sparse = false;
      if (entries_[i].is_odd) continue;
      objects.substitute = py::object();
    }
    if (!collect_gradient(i)) return false;
    any = any || objects.gradient;
  }
  return !any || collect_state(state);
}

// Fill objects_ with the gradient of a parameter. Return false if the parameter needs a substitute.
bool TorchEngine::collect_gradient(std::size_t i) {
  StepObjects& objects = objects_[i];
  objects.gradient = py::reinterpret_steal<py::object>(PyObject_GetAttr(entries_[i].tensor, grad_name_.ptr()));
  if (!objects.gradient) throw py::error_already_set();
  if (objects.gradient.is_none()) {
    objects.gradient = py::object();
  } else if (entries_[i].is_sparse) {
    const py::object tensors = call(rows_and_values_, py::make_tuple(objects.gradient));
    if (tensors.is_none()) return false;
    std::tie(objects.rows, objects.values) = tensors.cast<std::pair<py::object, py::object>>();
  } else if (entries_[i].is_odd) {
    return false;
  }
  return true;
}

bool TorchEngine::collect_state(PyObject* state) {
  {
    const py::scoped_critical_section section{py::handle(state)};
    PyObject* key = nullptr;
    PyObject* value = nullptr;
    Py_ssize_t at = 0;
    while (PyDict_Next(state, &at, &key, &value) != 0) {
      const auto known = index_.find(key);
      if (known != index_.end()) objects_[known->second].dict = borrow(value);
    }
  }
  for (std::size_t i = 0; i < entries_.size(); ++i) {
    StepObjects& objects = objects_[i];
    if (!objects.gradient) continue;
    if (entries_[i].first != i) objects.dict = objects_[entries_[i].first].dict;
    if (!collect_tensors(i)) return false;
  }
  return true;
}

// Fill objects_ with the state of a parameter. Return false if some is missing.
bool TorchEngine::collect_tensors(std::size_t i) {
  StepObjects& objects = objects_[i];
  const std::vector<py::object>& names = state_names_[entries_[i].group];
  if (names.empty() && scalar_names_.empty() && !entries_[i].is_narrow) return true;
  if (!objects.dict || !PyDict_Check(objects.dict.ptr())) return false;
  for (std::size_t k = 0; k < names.size(); ++k) {
    objects.tensors[k] = find(objects.dict, names[k]);
    if (!objects.tensors[k]) return false;
  }
  for (std::size_t k = 0; k < scalar_names_.size(); ++k) {
    objects.scalars[k] = find(objects.dict, scalar_names_[k]);
    if (!objects.scalars[k]) return false;
  }
  if (entries_[i].is_narrow) collect_storage(i);
  return true;
}

// Have the core take a parameter's counts from their tensors.
void TorchEngine::read_counts(std::size_t i) {
  const StepObjects& objects = objects_[i];
  const auto read = [&](std::size_t k) { return read_number(objects.counts[k].data, objects.counts[k].dtype); };
  onepass::Scalars scalars = {};
  for (std::size_t k = 0; k < rule(entries_[i].group).scalar_count; ++k) scalars.values[k] = read(k + 1);
  // A rule without a count only distinguishes its first step, and the first step has a substitute.
  const double step = objects.counts[0].data == nullptr ? 1 : read(0);
  const bool is_possible = step >= 0 && step < 9007199254740992.0;
  if (!is_possible) {
    call(explain_, py::make_tuple("impossible_step", i, step));
    throw py::value_error("step number: expected 0 or more");
  }
  core_.set_counts(i, static_cast<std::int64_t>(step), scalars);
}

void TorchEngine::write_counts(std::size_t i) {
  const StepObjects& objects = objects_[i];
  const Parameter& parameter = core_.parameters()[i];
  const auto write = [&](std::size_t k, double value) {
    if (objects.counts[k].data != nullptr) write_number(objects.counts[k].data, objects.counts[k].dtype, value);
  };
  // Added to the count of now: other workers may have counted meanwhile.
  const Count& count = objects.counts[0];
  if (count.data != nullptr) write(0, read_number(count.data, count.dtype) + 1);
  for (std::size_t k = 0; k < rule(entries_[i].group).scalar_count; ++k) write(k + 1, parameter.scalars.values[k]);
}

// Carry out the step along pointers_. Return false if the step was skipped.
bool TorchEngine::finish(const Executor& executor) {
  const StepInputs inputs = {1, executor, clip_norm_, nonfinite_};
  const auto explain = [this] { return explain_; };
  plan(core_, pointers_.data(), inputs.scale, explain);
  const GradientStats measured = measure(core_, pointers_.data(), inputs);
  const std::optional<double> scale = scale_after(inputs, measured, explain);
  grad_norm_ = inputs.wants_norm() ? std::optional(measured.norm) : std::nullopt;
  if (!scale) {
    ++skipped_;
    return false;
  }
  if (has_overlaps_) {
    apply_in_order(*scale, executor);
    return true;
  }
  if (*scale != inputs.scale) plan(core_, pointers_.data(), *scale, explain);
  without_gil_if(is_large(core_), [&] { core_.apply(executor); });
  for (std::size_t i = 0; i < entries_.size(); ++i) {
    if (pointers_[i].data != nullptr) write_counts(i);
  }
  return true;
}

// Step parameters that share memory one after the other, as PyTorch does.
void TorchEngine::apply_in_order(double scale, const Executor& executor) {
  std::vector<Gradient> one(pointers_.size());
  for (std::size_t i = 0; i < entries_.size(); ++i) {
    if (pointers_[i].data == nullptr) continue;
    read_counts(i);  // again: a tensor may occur twice
    one[i] = pointers_[i];
    plan(core_, one.data(), scale, [this] { return explain_; });
    core_.apply(executor);
    write_counts(i);
    one[i] = {};
  }
}

py::tuple TorchEngine::updated() const {
  const auto is_missing = [](const Gradient& gradient) { return gradient.data == nullptr; };
  const auto is_averaged = [](const Parameter& parameter) { return parameter.operands.average != nullptr; };
  const std::vector<Parameter>& parameters = core_.parameters();
  if (std::none_of(pointers_.begin(), pointers_.end(), is_missing) &&
      std::none_of(parameters.begin(), parameters.end(), is_averaged)) {
    return tensors_;
  }
  py::list tensors;
  for (std::size_t i = 0; i < entries_.size(); ++i) {
    if (pointers_[i].data == nullptr) continue;
    tensors.append(py::handle(entries_[i].tensor));
    const py::object& average = objects_[i].tensors[rule(entries_[i].group).state_count];
    if (average) tensors.append(average);
  }
  return py::tuple(tensors);
}

bool TorchEngine::clear_gradients(const py::object& groups) const {
  if (!has_groups(groups.ptr())) return false;
  for (std::size_t g = 0; g < groups_.size(); ++g) {
    if (!group(g).has_same_tensors()) return false;
  }
  for (const Entry& entry : entries_) {
    if (PyObject_SetAttr(entry.tensor, grad_name_.ptr(), Py_None) != 0) throw py::error_already_set();
  }
  return true;
}

int TorchEngine::traverse(visitproc visit, void* argument) const {
  for (const py::object& group : groups_) {
    if (const int result = visit_all({&group}, visit, argument)) return result;
  }
  return visit_all({&state_, &tensors_, &count_changes_, &explain_, &rows_and_values_, &get_num_threads_}, visit,
                   argument);
}

void TorchEngine::clear() {
  std::vector<py::object> groups = std::move(groups_);
  groups_.clear();
  entries_.clear();
  core_.clear();
  state_ = py::dict();
}

namespace {

PyObject* step_engine(PyObject* self, PyObject* const* arguments, Py_ssize_t count) {
  return guarded([&] {
    auto* const engine = try_get<TorchEngine>(self);
    if (count < 2 || count > 5 || engine == nullptr) {
      throw py::type_error("step takes groups, state, substitutes, the only parameter and copies");
    }
    PyObject* const substitutes = count > 2 ? arguments[2] : Py_None;
    const bool is_every = count < 4 || arguments[3] == Py_None;
    const std::size_t only = is_every ? TorchEngine::every_parameter : py::handle(arguments[3]).cast<std::size_t>();
    PyObject* const copies = count > 4 ? arguments[4] : Py_None;
    return py::bool_(engine->step(arguments[0], arguments[1], substitutes, only, copies)).release().ptr();
  });
}

}  // namespace

void register_torch(py::module_& m) {
  register_torch_group(m);
  register_torch_storage(m);
  py::class_<TorchEngine> engine(m, "TorchEngine", py::custom_type_setup(&set_up_collection<TorchEngine>));
  engine
      .def(py::init([](std::vector<py::object> groups, py::object state, std::vector<std::vector<py::object>> states,
                       std::vector<TorchStorage> storages, std::vector<py::object> scalars, const py::object& exchange,
                       py::object tensor_type, py::object get_num_threads, py::object count_changes, py::object explain,
                       py::object rows_and_values, bool flush_denormals) {
             return std::make_unique<TorchEngine>(
                 std::move(groups), std::move(state), std::move(states), std::move(storages), std::move(scalars),
                 TensorViewer(exchange, std::move(tensor_type)), std::move(get_num_threads), std::move(count_changes),
                 std::move(explain), std::move(rows_and_values), flush_denormals);
           }),
           py::arg("groups"), py::arg("state"), py::arg("states"), py::arg("storages"), py::arg("scalars"),
           py::arg("exchange"), py::arg("tensor_type"), py::arg("get_num_threads"), py::arg("count_changes"),
           py::arg("explain"), py::arg("rows_and_values"), py::arg("flush_denormals"))
      .def("takes", &TorchEngine::takes, py::arg("groups"), py::arg("state"))
      .def("renew", &TorchEngine::renew, py::arg("group"), py::arg("places"), py::arg("options"), py::arg("common"))
      .def("clear_gradients", &TorchEngine::clear_gradients)
      .def("set_clip_norm", &TorchEngine::set_clip_norm)
      .def("set_nonfinite", &TorchEngine::set_nonfinite)
      .def("set_seed", &TorchEngine::set_seed)
      .def("set_results", &TorchEngine::set_results, py::arg("skipped"), py::arg("grad_norm"))
      .def_property_readonly("step_count", &TorchEngine::step_count)
      .def_property_readonly("skipped", &TorchEngine::skipped)
      .def_property_readonly("grad_norm", &TorchEngine::grad_norm);
  static PyMethodDef step_method = {"step", as_cfunction(&step_engine), METH_FASTCALL, nullptr};
  add_method(engine, step_method);
}

}  // namespace onepass::python
