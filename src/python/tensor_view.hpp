// Looks at PyTorch's tensors: their memory and single numbers in them.
#pragma once

#include <pybind11/pybind11.h>

#include <optional>

#include "python/dlpack.hpp"

namespace onepass::python {

namespace py = pybind11;

// Views tensors. Runs no Python code, unless the tensor has no memory to view.
class TensorViewer {
 public:
  // exchange: PyTorch's DLPackExchangeAPI, or None; type: torch.Tensor.
  TensorViewer(const py::object& exchange, py::object type);

  bool works() const { return view_tensor_ != nullptr; }

  // The view of a tensor; nothing for other objects and for tensors that have none (sparse, lazy, meta).
  std::optional<DLTensor> view(PyObject* tensor) const;

  // The number of a Python number or of a tensor with one element, float32 or float64; nothing for other objects.
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

// The number in a tensor's memory of one element. dtype as DLTensor::dtype().
double read_number(const void* data, DType dtype);
void write_number(void* data, DType dtype, double value);

}  // namespace onepass::python
