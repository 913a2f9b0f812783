// The bound Optimizer between steps: registration, restoring, counts.
#include <pybind11/stl.h>

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <utility>

#include "python/gc.hpp"
#include "python/optimizer.hpp"

namespace onepass::python {
namespace {

void check_pairs(const Optimizer::ArrayPairs& pairs) {
  for (const auto& [one, other] : pairs) {
    if (one.nbytes() != other.nbytes() ||
        (PyArray_FLAGS(as_array(one)) & PyArray_FLAGS(as_array(other)) & any_order) == 0) {
      throw py::value_error("the arrays of a pair must have the same layout");
    }
  }
}

}  // namespace

void Optimizer::add_group(Form form, const py::object& group, const std::vector<py::object>& keys,
                          const std::vector<py::array>& params, const std::vector<std::vector<py::array>>& states,
                          const std::vector<std::optional<py::array>>& averages,
                          const std::vector<std::optional<NarrowArrays>>& narrow, py::object record) {
  const std::unique_lock<StepLock> lock = lock_for_change();
  check_process();
  if (!py::isinstance<Group>(group)) throw py::type_error("group must be a Group");
  const std::shared_ptr<onepass::Group>& core_group = group.cast<const Group&>().core();
  std::vector<Parameter> parameters;
  std::vector<ParameterRecord> records = records_;
  for (std::size_t i = 0; i < params.size(); ++i) {
    parameters.push_back(describe(params[i], states.at(i), averages.at(i), narrow.at(i)));
    records.emplace_back(keys.at(i), params[i], states[i], averages[i], narrow[i]);
  }
  for (ParameterRecord& record : records) record.disjoint = nullptr;  // the new arrays may overlap
  MemoryRanges ranges = ranges_.with(records, records_.size());
  prepared_.reset();
  gradients_.reserve(records.size());
  pointers_.resize(records.size());
  groups_.reserve(groups_.size() + 1);
  core_.add_group(core_group, parameters);
  groups_.push_back(group);
  records_.swap(records);  // the old records are released at the end
  ranges_ = std::move(ranges);
  form_ = form;
  replace_record(record, evaluates_);
}

py::object Optimizer::record() const {
  const std::scoped_lock lock(record_mutex_);
  return record_;
}

bool Optimizer::restore(const std::vector<std::pair<py::array, py::array>>& copies, const std::vector<Options>& options,
                        double clip_norm, Nonfinite nonfinite, std::uint64_t seed, std::int64_t step_count,
                        std::int64_t skipped, const std::vector<std::int64_t>& steps,
                        const std::vector<std::vector<double>>& scalars, py::object record, bool evaluates) {
  const std::unique_lock<StepLock> lock = lock_for_change();
  check_process();
  if (steps.size() != records_.size() || scalars.size() != records_.size()) {
    throw py::value_error("one count for each parameter");
  }
  check_pairs(copies);
  std::vector<OptionsUpdate> updates;
  for (const auto& [group, expected, values, numbers, common] : options) {
    if (group == nullptr) throw py::type_error("group must not be None");
    updates.push_back({*group, expected, values, numbers, common});
  }
  std::vector<Scalars> values(scalars.size());
  for (std::size_t i = 0; i < scalars.size(); ++i) {
    if (scalars[i].size() > onepass::max_scalars) throw py::value_error("too many scalars");
    std::copy(scalars[i].begin(), scalars[i].end(), values[i].values);
  }
  if (!swap_all(updates)) return false;
  prepared_.reset();
  for (const auto& [to, from] : copies) {
    std::memmove(data_of(to), data_of(from), static_cast<std::size_t>(to.nbytes()));
  }
  core_.restore(step_count, steps, values);
  core_.set_seed(seed);
  skipped_ = skipped;
  clip_norm_ = clip_norm;
  nonfinite_ = nonfinite;
  replace_record(record, evaluates);
  return true;
}

void Optimizer::swap_arrays(const ArrayPairs& pairs, py::object record, bool evaluates) {
  const std::unique_lock<StepLock> lock = lock_for_change();
  check_process();
  check_pairs(pairs);
  prepared_.reset();
  for (const auto& [one, other] : pairs) {
    auto* const begin = static_cast<unsigned char*>(data_of(one));
    std::swap_ranges(begin, begin + one.nbytes(), static_cast<unsigned char*>(data_of(other)));
  }
  replace_record(record, evaluates);
}

// Swap the record with Python's record: the caller releases the old one.
void Optimizer::replace_record(py::object& record, bool evaluates) {
  const std::scoped_lock lock(record_mutex_);
  std::swap(record_, record);
  evaluates_ = evaluates;
}

py::object Optimizer::locked(const py::function& function) {
  const std::scoped_lock lock(lock_);
  const struct Locked {
    bool& is_locked;
    ~Locked() { is_locked = false; }
  } until_return{is_locked_ = true};
  return call(function, py::tuple());
}

// The lock, or nothing within locked().
std::unique_lock<StepLock> Optimizer::lock_for_change() {
  if (lock_.is_mine() && is_locked_) return {};
  return std::unique_lock<StepLock>(lock_);
}

// The lock, or nothing where this thread holds it.
std::unique_lock<StepLock> Optimizer::lock_for_reading() {
  if (lock_.is_mine()) return {};
  return std::unique_lock<StepLock>(lock_);
}

// Throw if a change of state would also change the state of another process. Reading is harmless.
void Optimizer::check_process() const {
  if (in_files_ && onepass::fork_count() != made_forks_) {
    throw std::runtime_error(
        "this optimizer: expected one created in this process, got one of the parent process, whose state files "
        "(state_dir) it shares (create another optimizer here, and load a saved file or this optimizer's "
        "state_dict())");
  }
}

std::int64_t Optimizer::step_count() {
  const std::unique_lock<StepLock> lock = lock_for_reading();
  return core_.step_count();
}

std::int64_t Optimizer::parameter_step(std::size_t i) {
  const std::unique_lock<StepLock> lock = lock_for_reading();
  return core_.parameters().at(i).step;
}

std::uint64_t Optimizer::seed() {
  const std::unique_lock<StepLock> lock = lock_for_reading();
  return core_.seed();
}

void Optimizer::set_seed(std::uint64_t seed) {
  const std::unique_lock<StepLock> lock = lock_for_change();
  core_.set_seed(seed);
}

py::dict Optimizer::parameter_scalars(std::size_t i) {
  const std::unique_lock<StepLock> lock = lock_for_reading();
  const Parameter& parameter = core_.parameters().at(i);
  const RuleEntry& rule = groups_.at(parameter.group).cast<const Group&>().core()->rule();
  py::dict scalars;
  for (std::size_t k = 0; k < rule.scalar_count; ++k) scalars[rule.scalars[k].name] = parameter.scalars.values[k];
  return scalars;
}

int Optimizer::traverse(visitproc visit, void* argument) const {
  for (const ParameterRecord& record : records_) {
    if (const int result = visit_all({&record.key, &record.param}, visit, argument)) return result;
  }
  for (const py::object& group : groups_) {
    if (const int result = visit_all({&group}, visit, argument)) return result;
  }
  return visit_all({&record_}, visit, argument);
}

void Optimizer::clear() {
  std::vector<ParameterRecord> records;
  records.swap(records_);
  std::vector<py::object> groups;
  groups.swap(groups_);
  record_ = py::object();
  core_.clear();
}

}  // namespace onepass::python
