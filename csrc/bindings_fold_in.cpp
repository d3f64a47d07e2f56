// fold_in: checks the arrays, releases the GIL, calls.
#include <pybind11/stl.h>

#include <cmath>
#include <limits>
#include <optional>
#include <vector>

#include "bindings.hpp"
#include "cpu/fold_in.hpp"

namespace mfdmc::bindings {
namespace {

using Floats = Array<float>;
using Rows = Array<std::int32_t>;

// Writes the solution over `logits`, the start, and into `bias`.
void fold_in_rows(Floats& logits /* [R, S] */, std::optional<Floats>& bias /* [R] */, const Floats& centers /* [S, d] */,
                  const std::vector<std::int64_t>& n_clusters /* [V] */, const Floats& embeddings /* [M, D] */,
                  const std::optional<Floats>& partner_bias /* [M] */, float global_mean,
                  const Indices& offsets /* [R + 1] */, const Rows& partners /* [N] */, const Floats& ratings /* [N] */,
                  const Floats& prior_means /* [R, U] */, const Floats& prior_precision /* [U, U] */, bool sum_views,
                  float proximity, float entropy, const std::vector<double>& rates, double beta1, double beta2,
                  double epsilon, int n_threads, const std::optional<std::string>& kernels_name) {
  const Kernels& kernels = kernels_named(kernels_name);
  if (logits.ndim() != 2 || centers.ndim() != 2 || embeddings.ndim() != 2)
    throw py::value_error("logits, centers and embeddings must be matrices");
  const std::int64_t n = logits.shape(0), s = logits.shape(1), d = centers.shape(1), dim = embeddings.shape(1);
  std::vector<std::int64_t> view_offsets{0};
  for (std::int64_t clusters : n_clusters) {
    if (clusters < 1) throw py::value_error("n_clusters must be at least 1 in every view");
    view_offsets.push_back(view_offsets.back() + clusters);
  }
  const std::int64_t n_views = static_cast<std::int64_t>(n_clusters.size()), unknowns = dim + (bias ? 1 : 0);
  check_shape("centers", centers, {s, d});
  if (n_views < 1 || view_offsets.back() != s) throw py::value_error("n_clusters must add up to the columns");
  if (s > kMaxColumns || n_views * d > kMaxColumns) throw py::value_error("too many columns");
  if (dim != d * (sum_views ? 1 : n_views)) throw py::value_error("embeddings have another length than the views'");
  if (bias.has_value() != partner_bias.has_value()) throw py::value_error("either both sides have a bias or none has");
  if (bias) check_shape("bias", *bias, {n});
  if (partner_bias) check_shape("partner_bias", *partner_bias, {embeddings.shape(0)});
  check_shape("offsets", offsets, {n + 1});
  check_shape("partners", partners, {partners.size()});
  check_shape("ratings", ratings, {partners.size()});
  check_shape("prior_means", prior_means, {n, unknowns});
  check_shape("prior_precision", prior_precision, {unknowns, unknowns});
  const std::int64_t* const at = offsets.data();
  if (at[0] != 0 || at[n] != partners.size() || !std::is_sorted(at, at + n + 1))
    throw py::value_error("offsets must ascend from 0 to the number of ratings");
  check_indices("partners", partners, embeddings.shape(0));
  if (n_threads < 1 || rates.size() >= static_cast<std::size_t>(std::numeric_limits<std::int32_t>::max()))
    throw py::value_error("there must be a thread, and fewer steps");

  std::vector<float> step_sizes, inverse_roots;
  for (std::size_t t = 0; t < rates.size(); ++t) {
    const double step = static_cast<double>(t) + 1;
    step_sizes.push_back(static_cast<float>(rates[t] / (1 - std::pow(beta1, step))));
    inverse_roots.push_back(static_cast<float>(1 / std::sqrt(1 - std::pow(beta2, step))));
  }
  std::vector<float> norms(s, 0.0f);
  for (std::int64_t k = 0; k < s * d; ++k) norms[k / d] += centers.data()[k] * centers.data()[k];
  FoldIn problem{};
  problem.side.logits = logits.mutable_data();
  problem.side.bias = bias ? bias->mutable_data() : nullptr;
  problem.side.centers = centers.data();
  problem.side.center_norms = norms.data();
  problem.side.view_offsets = view_offsets.data();
  problem.side.n_entities = n;
  problem.side.total_clusters = s;
  problem.side.n_views = n_views;
  problem.side.view_dim = d;
  problem.loss.proximity = proximity;
  problem.loss.entropy = entropy;
  problem.loss.sum_views = sum_views;
  problem.loss.embedding_dim = dim;
  problem.schedule.logit_step = step_sizes.data();
  problem.schedule.inverse_root = inverse_roots.data();
  problem.schedule.beta1 = static_cast<float>(beta1);
  problem.schedule.beta2 = static_cast<float>(beta2);
  problem.schedule.epsilon = static_cast<float>(epsilon);
  problem.schedule.rest1 = static_cast<float>(1 - beta1);
  problem.schedule.rest2 = static_cast<float>(1 - beta2);
  problem.embeddings = embeddings.data();
  problem.biases = partner_bias ? partner_bias->data() : nullptr;
  problem.offsets = at;
  problem.partners = partners.data();
  problem.ratings = ratings.data();
  problem.prior_means = prior_means.data();
  problem.prior_precision = prior_precision.data();
  problem.global_mean = global_mean;
  problem.n_steps = static_cast<std::int32_t>(rates.size());
  py::gil_scoped_release release;
  fold_in(problem, kernels, Team::mine(n_threads));
}

}  // namespace

void define_fold_in(py::module_& module) {
  module.def("fold_in", &fold_in_rows, py::kw_only(), py::arg("logits").noconvert(), py::arg("bias").noconvert(),
             py::arg("centers").noconvert(), py::arg("n_clusters"), py::arg("embeddings").noconvert(),
             py::arg("partner_bias").noconvert(), py::arg("global_mean"), py::arg("offsets").noconvert(),
             py::arg("partners").noconvert(), py::arg("ratings").noconvert(), py::arg("prior_means").noconvert(),
             py::arg("prior_precision").noconvert(), py::arg("sum_views"), py::arg("proximity"), py::arg("entropy"),
             py::arg("rates"), py::arg("beta1"), py::arg("beta2"), py::arg("epsilon"), py::arg("n_threads"),
             py::arg("kernels"));
}

}  // namespace mfdmc::bindings
