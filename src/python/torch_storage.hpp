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
  bool is_state_narrow;            // the group has a state_dtype
  std::vector<Storage> moments;    // of parameters with narrow_from elements or more; smaller ones have float32
  std::size_t narrow_from;         // elements
  std::vector<py::object> scales;  // for each moment: the name of its scales
  std::vector<bool> divisors;      // for each moment: the rule divides by it or takes its root
  py::object low;                  // the name of the lower part of bfloat16 parameters
  unsigned char master_bits;       // of bfloat16 parameters
  bool stochastic;

  // Return true if arrays of a parameter may be narrower than its dtype.
  bool is_narrow(const std::optional<DLTensor>& param) const {
    return is_state_narrow || (param && param->storage() == Storage::bfloat16);
  }
};

void register_torch_storage(py::module_& m);

}  // namespace onepass::python
