// Garbage collection of bound objects that hold Python objects.
#pragma once

#include <pybind11/pybind11.h>

#include <initializer_list>

#include "python/instance.hpp"

namespace onepass::python {

// Visit these objects, except null ones.
inline int visit_all(std::initializer_list<const py::object*> objects, visitproc visit, void* argument) {
  for (const py::object* object : objects) {
    if (const int result = object->ptr() == nullptr ? 0 : visit(object->ptr(), argument)) return result;
  }
  return 0;
}

// For py::custom_type_setup: collect cycles through T::traverse() and T::clear().
template <class T>
void set_up_collection(PyHeapTypeObject* heap_type) {
  PyTypeObject* const type = &heap_type->ht_type;
  type->tp_flags |= Py_TPFLAGS_HAVE_GC;
  type->tp_traverse = [](PyObject* self, visitproc visit, void* arg) {
    Py_VISIT(Py_TYPE(self));
    const T* const object = try_get<T>(self);
    return object == nullptr ? 0 : object->traverse(visit, arg);
  };
  type->tp_clear = [](PyObject* self) {
    if (T* const object = try_get<T>(self)) object->clear();
    return 0;
  };
}

}  // namespace onepass::python
