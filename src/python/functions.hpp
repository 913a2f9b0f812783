// Functions of the module that need no optimizer.
#pragma once

#include <pybind11/pybind11.h>

namespace onepass::python {

namespace py = pybind11;

void register_functions(py::module_& m);

}  // namespace onepass::python
