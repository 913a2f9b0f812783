// Storage of the state and parameters of a PyTorch parameter group in fewer bits.
#pragma once

#include <pybind11/pybind11.h>

#include <cstddef>
#include <optional>
#include <vector>

#include "core/optimizer.hpp"
#include "python/dlpack.hpp"

namespace onepass::python {

namespace py = pybind11;

struct TorchStorage {
  std::vector<Storage> states;     // of parameters with narrow_from elements or more; smaller ones have float32
  bool has_narrow_states;          // at least one of them is not plain
  std::size_t narrow_from;         // elements
  std::vector<py::object> scales;  // for each state: the name of its scales
  std::vector<bool> divisors;      // for each state: the rule divides by it or takes its root
  py::object low;                  // the name of the lower part of bfloat16 parameters
  unsigned char master_bits;       // of bfloat16 parameters
  bool stochastic;

  // Return true if arrays of a parameter may be narrower than its dtype.
  bool is_narrow(const std::optional<DLTensor>& param) const {
    return has_narrow_states || (param && param->storage() == Storage::bfloat16);
  }
};

void register_torch_storage(py::module_& m);

}  // namespace onepass::python
