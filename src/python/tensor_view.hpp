// Views of PyTorch's tensors: their memory, and the numbers of one-element tensors.
#pragma once

#include <pybind11/pybind11.h>

#include <optional>

#include "python/dlpack.hpp"

namespace onepass::python {

namespace py = pybind11;

// Viewer of tensors. Runs no Python code, unless a tensor has no memory to view.
class TensorViewer {
 public:
  // exchange: PyTorch's DLPackExchangeAPI, or None; type: torch.Tensor.
  TensorViewer(const py::object& exchange, py::object type);

  bool works() const { return view_tensor_ != nullptr; }

  // Return the view of a tensor, or nothing for other objects and for tensors without a view (sparse, lazy, meta).
  std::optional<DLTensor> view(PyObject* tensor) const;

  // Return the value of a Python number or of a one-element tensor of float32 or float64, or nothing for other objects.
  // is_fixed: the object cannot change in place.
  struct Number {
    double value;
    bool is_fixed;
  };
  std::optional<Number> number(PyObject* object) const;

  const py::object& type() const { return type_; }

 private:
  py::object type_;
  DLPackExchange::ViewTensor view_tensor_ = nullptr;
};

// Read or write the number in a one-element tensor's memory. dtype: a result of DLTensor::dtype().
double read_number(const void* data, DType dtype);
void write_number(void* data, DType dtype, double value);

}  // namespace onepass::python
