// Choice of the instruction set whose kernels this process uses.
#pragma once

#include <string>
#include <vector>

#include "kernels/table.hpp"

namespace onepass {

// The kernels in use, chosen at the first call: the widest instruction set of this processor, or the one that the
// environment variable ONEPASS_ISA names. Throws std::invalid_argument when the name is unknown or not supported by the
// processor.
const Kernels& kernels();

// Names of the instruction sets in this build, and of the ones that this processor has; narrowest first.
std::vector<std::string> built_instruction_sets();
std::vector<std::string> usable_instruction_sets();

// The rule of that name in the kernels in use. Throws std::invalid_argument when there is none.
const RuleEntry& find_rule(const std::string& name);

}  // namespace onepass
