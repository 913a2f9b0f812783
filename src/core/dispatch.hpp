// Choice of the instruction set whose kernels this process uses.
#pragma once

#include <string>
#include <vector>

#include "kernels/table.hpp"

namespace onepass {

// The kernels in use: the widest that this processor has, or those that the environment variable ONEPASS_ISA names,
// chosen at the first call. Throws std::invalid_argument when the name is unknown or not supported by the processor.
const Kernels& kernels();

// The names of the instruction sets built in, narrowest first, and of those that this processor has.
std::vector<std::string> built_instruction_sets();
std::vector<std::string> usable_instruction_sets();

// The rule of that name in the kernels in use. Throws std::invalid_argument when there is none.
const RuleEntry& find_rule(const std::string& name);

}  // namespace onepass
