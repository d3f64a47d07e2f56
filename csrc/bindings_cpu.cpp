// The Python module mfdmc_fast._cpu: checks the arrays, releases the GIL, calls a kernel.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "bindings.hpp"
#include "cpu/fused_kernels.hpp"
#include "cpu/score_pairs.hpp"
#include "cpu/top_items.hpp"

namespace py = pybind11;
using mfdmc::bindings::Array;
using mfdmc::bindings::check_shape;
using mfdmc::bindings::Indices;

namespace {

mfdmc::Combine parse_combine(const std::string& combine) {
  if (combine == "concat") return mfdmc::Combine::concat;
  if (combine == "sum") return mfdmc::Combine::sum;
  throw py::value_error("combine must be \"concat\" or \"sum\", not \"" + combine + "\"");
}

// The side that the arrays form, checked against each other. Fills `offsets`, which the side refers to, as to the
// arrays.
template <typename T>
mfdmc::Side<T> make_side(const std::string& name, const Array<T>& assignment_logits /* [n, S] */,
                         const Array<T>& centers /* [S, d] */, const std::vector<std::int64_t>& n_clusters /* [V] */,
                         const std::optional<Array<T>>& bias /* [n] */,
                         std::vector<std::int64_t>& offsets /* [V + 1] */) {
  if (n_clusters.empty()) throw py::value_error(name + ".n_clusters must name at least one view");
  offsets = {0};
  for (std::int64_t clusters : n_clusters) {
    if (clusters < 1) throw py::value_error(name + ".n_clusters must be at least 1 in every view");
    offsets.push_back(offsets.back() + clusters);
  }
  const py::ssize_t n_entities = assignment_logits.ndim() ? assignment_logits.shape(0) : 0;
  const py::ssize_t view_dim = centers.ndim() ? centers.shape(centers.ndim() - 1) : 0;
  check_shape(name + ".assignment_logits", assignment_logits, {n_entities, offsets.back()});
  check_shape(name + ".centers", centers, {offsets.back(), view_dim});
  if (bias) check_shape(name + ".bias", *bias, {n_entities});
  return {assignment_logits.data(),
          centers.data(),
          bias ? bias->data() : nullptr,
          offsets.data(),
          n_entities,
          offsets.back(),
          static_cast<std::int64_t>(n_clusters.size()),
          view_dim};
}

template <typename T>
void score_pairs(const Array<T>& user_logits /* [n_users, S_user] */, const Array<T>& user_centers /* [S_user, d] */,
                 const std::vector<std::int64_t>& user_n_clusters /* [V] */,
                 const std::optional<Array<T>>& user_bias /* [n_users] */,
                 const Array<T>& item_logits /* [n_items, S_item] */, const Array<T>& item_centers /* [S_item, d] */,
                 const std::vector<std::int64_t>& item_n_clusters /* [V] */,
                 const std::optional<Array<T>>& item_bias /* [n_items] */, double global_mean,
                 const Indices& user_idx /* [B] */, const Indices& item_idx /* [B] */, const std::string& combine,
                 int n_threads, Array<T>& predictions /* [B] */) {
  const mfdmc::Combine how = parse_combine(combine);
  std::vector<std::int64_t> user_offsets, item_offsets;
  const mfdmc::Side<T> user = make_side("user", user_logits, user_centers, user_n_clusters, user_bias, user_offsets);
  const mfdmc::Side<T> item = make_side("item", item_logits, item_centers, item_n_clusters, item_bias, item_offsets);
  if (user.n_views != item.n_views || user.view_dim != item.view_dim)
    throw py::value_error("user and item must have the same number of views and the same view_dim");
  if (user_bias.has_value() != item_bias.has_value())
    throw py::value_error("either both sides have a bias or none has");
  check_shape("user_idx", user_idx, {user_idx.size()});
  check_shape("item_idx", item_idx, {user_idx.size()});
  check_shape("predictions", predictions, {user_idx.size()});
  if (n_threads < 1) throw py::value_error("n_threads must be at least 1");
  T* const out = predictions.mutable_data();  // raises if the array is read-only
  const std::int64_t* const users = user_idx.data();
  const std::int64_t* const items = item_idx.data();
  const std::int64_t n_pairs = user_idx.size();
  py::gil_scoped_release release;
  mfdmc::score_pairs(user, item, global_mean, users, items, n_pairs, how, n_threads, out);
}

template <typename T>
void define_score_pairs(py::module_& module) {
  module.def("score_pairs", &score_pairs<T>, py::arg("user_logits").noconvert(), py::arg("user_centers").noconvert(),
             py::arg("user_n_clusters"), py::arg("user_bias").noconvert(), py::arg("item_logits").noconvert(),
             py::arg("item_centers").noconvert(), py::arg("item_n_clusters"), py::arg("item_bias").noconvert(),
             py::arg("global_mean"), py::arg("user_idx").noconvert(), py::arg("item_idx").noconvert(),
             py::arg("combine"), py::arg("n_threads"), py::arg("predictions").noconvert(),
             "Writes global_mean + biases + z_u . z_i of B (user, item) pairs into predictions [B].");
}

void top_items(const Array<float>& users /* [U, D] */, const Array<float>& items /* [M, D] */,
               const std::optional<Array<float>>& item_bias /* [M] */,
               const std::optional<Indices>& exclude_offsets /* [U + 1] */,
               const std::optional<Indices>& exclude_items, int n_threads, Indices& found /* [U, n] */,
               Array<float>& scores /* [U, n] */) {
  if (users.ndim() != 2 || items.ndim() != 2 || found.ndim() != 2)
    throw py::value_error("users, items and found must be matrices");
  const std::int64_t n_users = users.shape(0), n_items = items.shape(0), dim = users.shape(1), n = found.shape(1);
  check_shape("items", items, {n_items, dim});
  check_shape("found", found, {n_users, n});
  check_shape("scores", scores, {n_users, n});
  if (item_bias) check_shape("item_bias", *item_bias, {n_items});
  if (exclude_offsets.has_value() != exclude_items.has_value())
    throw py::value_error("give both exclude_offsets and exclude_items, or neither");
  const std::int64_t *offsets = nullptr, *excluded = nullptr;
  if (exclude_offsets) {
    check_shape("exclude_offsets", *exclude_offsets, {n_users + 1});
    offsets = exclude_offsets->data();
    excluded = exclude_items->data();
    if (offsets[0] != 0 || offsets[n_users] != exclude_items->size() ||
        !std::is_sorted(offsets, offsets + n_users + 1))
      throw py::value_error("exclude_offsets must ascend from 0 to the number of excluded items");
    for (py::ssize_t q = 0; q < exclude_items->size(); ++q)
      if (excluded[q] < 0 || excluded[q] >= n_items)
        throw std::out_of_range("exclude_items[" + std::to_string(q) + "] is " + std::to_string(excluded[q]) +
                                ", outside [0, " + std::to_string(n_items) + ")");
  }
  if (n_threads < 1) throw py::value_error("n_threads must be at least 1");
  std::int64_t* const out_items = found.mutable_data();
  float* const out_scores = scores.mutable_data();
  const float *z_users = users.data(), *z_items = items.data(), *bias = item_bias ? item_bias->data() : nullptr;
  py::gil_scoped_release release;
  mfdmc::top_items(z_users, n_users, z_items, n_items, dim, bias, offsets, excluded, n, n_threads, out_items,
                   out_scores);
}

py::dict build_info() {
  py::dict info;
#if defined(__clang__)
  info["compiler"] = "clang " __clang_version__;
#elif defined(__GNUC__)
  info["compiler"] = "gcc " __VERSION__;
#else
  info["compiler"] = "unknown";
#endif
  info["simd"] = mfdmc::choose_kernels(nullptr)->name;
  return info;
}

}  // namespace

PYBIND11_MODULE(_cpu, module) {
  module.doc() = "CPU kernels of mfdmc_fast; called through mfdmc_fast.ops.native alone.";
  module.def("build_info", &build_info, "Compiler and instruction set that this module was built with.");
  module.def("top_items", &top_items, py::arg("users").noconvert(), py::arg("items").noconvert(),
             py::arg("item_bias").noconvert(), py::arg("exclude_offsets").noconvert(),
             py::arg("exclude_items").noconvert(), py::arg("n_threads"), py::arg("found").noconvert(),
             py::arg("scores").noconvert(), "Writes the n best items of each user and their scores.");
  define_score_pairs<float>(module);
  define_score_pairs<double>(module);
  mfdmc::bindings::define_exchange(module);
  mfdmc::bindings::define_training(module);
  mfdmc::bindings::define_gibbs(module);
  mfdmc::bindings::define_fold_in(module);
}
