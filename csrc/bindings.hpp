// What the binding files share; with them, the only code that uses pybind11.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <string>

namespace mfdmc::bindings {

namespace py = pybind11;

// With py::arg().noconvert() an array of another dtype or layout is refused instead of copied.
template <typename T>
using Array = py::array_t<T, py::array::c_style>;
using Indices = Array<std::int64_t>;

inline void check_shape(const std::string& name, const py::array& array, std::initializer_list<py::ssize_t> shape) {
  if (array.ndim() == static_cast<py::ssize_t>(shape.size()) && std::equal(shape.begin(), shape.end(), array.shape()))
    return;
  std::string expected, found;
  for (py::ssize_t size : shape) expected += (expected.empty() ? "" : ", ") + std::to_string(size);
  for (py::ssize_t axis = 0; axis < array.ndim(); ++axis)
    found += (axis ? ", " : "") + std::to_string(array.shape(axis));
  throw py::value_error(name + " must have shape [" + expected + "], not [" + found + "]");
}

// The trainer and batch_loss.
void define_training(py::module_& module);

}  // namespace mfdmc::bindings
