// The bound Group: the options of some parameters, as Python shows them and as the core uses them.
#pragma once

#include <pybind11/pybind11.h>

#include <memory>
#include <mutex>
#include <vector>

#include "core/optimizer.hpp"

namespace onepass::python {

namespace py = pybind11;

struct OptionsUpdate;

// Holds a mapping of options and the numbers made from it, and changes both together. Threads that change options need
// no lock in Python, which a signal handler could leave locked: they derive new options from the mapping that they have
// read, and start over where another thread has replaced that mapping meanwhile.
class Group {
 public:
  Group(const RuleEntry& rule, py::object values, std::vector<double> options, const CommonOptions& common);

  // The mapping of options.
  py::object values() const;

  // Replace the expected mapping and its numbers. Returns false, and changes nothing, if the group holds another
  // mapping.
  bool swap(const py::object& expected, py::object values, std::vector<double> options, const CommonOptions& common);

  // The same where only the learning rate differs.
  bool swap_lr(const py::object& expected, py::object values, double lr, bool scheduled);

  const std::shared_ptr<onepass::Group>& core() const { return core_; }

  // For the garbage collector.
  int traverse(visitproc visit, void* argument) const;
  void clear();

 private:
  friend bool swap_all(std::vector<OptionsUpdate>& updates);

  const std::shared_ptr<onepass::Group> core_;
  // No Python code runs while it is locked: references are taken before and released afterwards.
  mutable std::mutex mutex_;
  py::object values_;
};

// New options of one group.
struct OptionsUpdate {
  Group& group;
  py::object expected;
  py::object values;
  std::vector<double> options;
  CommonOptions common;
};

// Group::swap() for several groups, each of them once: all or none.
bool swap_all(std::vector<OptionsUpdate>& updates);

void register_group(py::module_& m);

}  // namespace onepass::python
