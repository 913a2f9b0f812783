// The compiled module: its table of contents.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "core/dispatch.hpp"
#include "core/float_mode.hpp"
#include "core/spinning_blas.hpp"
#include "core/thread_count.hpp"
#include "python/arrays.hpp"
#include "python/functions.hpp"
#include "python/group.hpp"
#include "python/optimizer.hpp"
#include "python/step_lock.hpp"
#include "python/torch_engine.hpp"

namespace onepass::python {
namespace {

const char* name_of(onepass::StateKind kind) {
  switch (kind) {
    case onepass::StateKind::moment:
      return "moment";
    case onepass::StateKind::slow_moment:
      return "slow_moment";
    case onepass::StateKind::divisor:
      return "divisor";
    case onepass::StateKind::weight:
      break;
  }
  return "weight";
}

// The names of each rule's options, the kinds of its state arrays, and its scalars' initial values.
py::dict rules() {
  py::dict all;
  const onepass::Kernels& kernels = onepass::kernels();
  for (std::size_t i = 0; i < kernels.rule_count; ++i) {
    const onepass::RuleEntry& rule = kernels.rules[i];
    py::dict states;
    py::dict scalars;
    for (std::size_t k = 0; k < rule.state_count; ++k) states[rule.states[k].name] = name_of(rule.states[k].kind);
    for (std::size_t k = 0; k < rule.scalar_count; ++k) scalars[rule.scalars[k].name] = rule.scalars[k].initial;
    all[rule.name] =
        py::make_tuple(std::vector<std::string>(rule.options, rule.options + rule.option_count), states, scalars);
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
  import_numpy();  // and with it the BLAS that spinning_blas() looks for
  onepass::spinning_blas();
  onepass::get_num_threads();  // reads the environment now

  m.attr("__version__") = ONEPASS_VERSION;
  m.attr("compiler") = ONEPASS_COMPILER;
  m.attr("can_flush_denormals") = onepass::FloatMode::can_flush;
  m.attr("instruction_set") = onepass::kernels().instruction_set;
  m.attr("built_instruction_sets") = onepass::built_instruction_sets();
  m.attr("usable_instruction_sets") = onepass::usable_instruction_sets();
  m.attr("rules") = rules();

  register_functions(m);
  register_group(m);
  register_optimizer(m);
  register_step_lock(m);
  register_torch(m);
}

}  // namespace onepass::python
