#include "python/group.hpp"

#include <pybind11/stl.h>

#include <algorithm>
#include <limits>
#include <string>
#include <utility>

#include "core/dispatch.hpp"
#include "python/gc.hpp"

namespace onepass::python {

Group::Group(const RuleEntry& rule, py::object values, std::vector<double> options, const CommonOptions& common)
    : core_(std::make_shared<onepass::Group>(rule, std::move(options), common)), values_(std::move(values)) {}

py::object Group::values() const {
  const std::scoped_lock lock(mutex_);
  return values_;
}

bool Group::swap(const py::object& expected, py::object values, std::vector<double> options,
                 const CommonOptions& common) {
  const std::scoped_lock lock(mutex_);
  if (!values_.is(expected)) return false;
  core_->set(std::move(options), common);
  std::swap(values_, values);
  return true;
}

bool Group::swap_lr(const py::object& expected, py::object values, double lr, bool scheduled) {
  const std::scoped_lock lock(mutex_);
  if (!values_.is(expected)) return false;
  core_->set_lr(lr, scheduled);
  std::swap(values_, values);
  return true;
}

int Group::traverse(visitproc visit, void* argument) const { return visit_all({&values_}, visit, argument); }

void Group::clear() {
  py::object values = py::none();
  const std::scoped_lock lock(mutex_);
  std::swap(values_, values);
}

bool swap_all(std::vector<OptionsUpdate>& updates) {
  std::vector<std::unique_lock<std::mutex>> locks;
  locks.reserve(updates.size());
  for (OptionsUpdate& update : updates) locks.emplace_back(update.group.mutex_);
  const auto is_expected = [](const OptionsUpdate& update) { return update.group.values_.is(update.expected); };
  if (!std::all_of(updates.begin(), updates.end(), is_expected)) return false;
  for (OptionsUpdate& update : updates) {
    update.group.core_->set(std::move(update.options), update.common);
    std::swap(update.group.values_, update.values);
  }
  return true;
}

void register_group(py::module_& m) {
  py::class_<CommonOptions>(m, "CommonOptions")
      .def(py::init([](double lr, double weight_decay, double clip_value, double ema_decay, bool decoupled,
                       bool maximize, bool averaged, bool keep_subnormals, bool scheduled) {
             return CommonOptions{lr,       weight_decay, clip_value,      ema_decay, decoupled,
                                  maximize, averaged,     keep_subnormals, scheduled};
           }),
           py::kw_only(), py::arg("lr"), py::arg("weight_decay") = 0.0,
           py::arg("clip_value") = std::numeric_limits<double>::infinity(), py::arg("ema_decay") = 0.0,
           py::arg("decoupled") = false, py::arg("maximize") = false, py::arg("averaged") = false,
           py::arg("keep_subnormals"), py::arg("scheduled") = false);

  py::class_<Group>(m, "Group", py::custom_type_setup(&set_up_collection<Group>))
      .def(py::init([](const std::string& rule, py::object values, std::vector<double> options,
                       const CommonOptions& common) {
             return std::make_unique<Group>(onepass::find_rule(rule), std::move(values), std::move(options), common);
           }),
           py::arg("rule"), py::arg("values"), py::arg("options"), py::arg("common"))
      .def_property_readonly("values", &Group::values)
      .def("swap", &Group::swap, py::arg("expected"), py::arg("values"), py::arg("options"), py::arg("common"))
      .def("swap_lr", &Group::swap_lr, py::arg("expected"), py::arg("values"), py::arg("lr"), py::arg("scheduled"));
}

}  // namespace onepass::python
