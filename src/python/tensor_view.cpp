#include "python/tensor_view.hpp"

#include <utility>

#include "python/arrays.hpp"

namespace onepass::python {

TensorViewer::TensorViewer(const py::object& exchange, py::object type) : type_(std::move(type)) {
  if (!PyType_Check(type_.ptr())) throw py::type_error("type must be torch.Tensor");
  if (PyCapsule_CheckExact(exchange.ptr()) == 0) return;
  const auto* const api = py::reinterpret_borrow<py::capsule>(exchange).get_pointer<const DLPackExchange>();
  if (api->major == DLPackExchange::known_major) view_tensor_ = api->view_tensor;
}

std::optional<DLTensor> TensorViewer::view(PyObject* tensor) const {
  DLTensor result = {};
  if (view_tensor_ == nullptr || !PyObject_TypeCheck(tensor, reinterpret_cast<PyTypeObject*>(type_.ptr()))) {
    return std::nullopt;
  }
  if (view_tensor_(tensor, &result) == 0) return result;
  PyErr_Clear();
  return std::nullopt;
}

std::optional<TensorViewer::Number> TensorViewer::number(PyObject* object) const {
  if (PyFloat_Check(object)) return Number{PyFloat_AS_DOUBLE(object), true};
  if (PyLong_Check(object)) {
    const double value = PyLong_AsDouble(object);
    if (value == -1 && PyErr_Occurred() != nullptr) {
      PyErr_Clear();
      return std::nullopt;
    }
    return Number{value, true};
  }
  if (PyArray_IsScalar(object, Floating) || PyArray_IsScalar(object, Integer)) {
    const auto number = py::reinterpret_steal<py::object>(PyNumber_Float(object));
    if (number) return Number{PyFloat_AS_DOUBLE(number.ptr()), true};
    PyErr_Clear();
    return std::nullopt;
  }
  const std::optional<DLTensor> tensor = view(object);
  if (!tensor || tensor->size() != 1 || tensor->data == nullptr) return std::nullopt;
  const std::optional<DType> dtype = tensor->dtype();
  if (!dtype) return std::nullopt;
  return Number{read_number(tensor->address(), *dtype), false};
}

double read_number(const void* data, DType dtype) {
  return dtype == float32 ? static_cast<double>(*static_cast<const float*>(data)) : *static_cast<const double*>(data);
}

void write_number(void* data, DType dtype, double value) {
  if (dtype == float32) {
    *static_cast<float*>(data) = static_cast<float>(value);
  } else {
    *static_cast<double*>(data) = value;
  }
}

}  // namespace onepass::python
