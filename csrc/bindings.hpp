// What the binding files share; with them, the only code that uses pybind11.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <stdexcept>
#include <string>

#include "cpu/fused_kernels.hpp"

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

// Raises unless all of the numbers lie in [0, n).
template <typename T>
inline void check_indices(const std::string& name, const Array<T>& indices, std::int64_t n) {
  for (py::ssize_t q = 0; q < indices.size(); ++q)
    if (indices.data()[q] < 0 || indices.data()[q] >= n)
      throw std::out_of_range(name + "[" + std::to_string(q) + "] is " + std::to_string(indices.data()[q]) +
                              ", outside [0, " + std::to_string(n) + ")");
}

inline const Kernels& kernels_named(const std::optional<std::string>& name) {
  const Kernels* kernels = choose_kernels(name ? name->c_str() : nullptr);
  if (!kernels) throw py::value_error("this machine cannot run the kernels \"" + *name + "\"");
  return *kernels;
}

// The trainer and batch_loss.
void define_training(py::module_& module);

// What training in several processes is given.
void define_exchange(py::module_& module);

// Bayesian matrix factorization.
void define_gibbs(py::module_& module);

// Rows solved with everything else fixed.
void define_fold_in(py::module_& module);

}  // namespace mfdmc::bindings
