// The arithmetic of one entity: assignment weights and their projection on the centers.
#pragma once

#include <cmath>
#include <cstdint>

#include "mfdmc/side.hpp"

namespace mfdmc {

// weights = softmax(logits) of one view.
template <typename T>
static MFDMC_HOST_DEVICE inline void softmax_row(const T* logits /* [n_clusters] */, std::int64_t n_clusters,
                                                 T* weights /* [n_clusters] */) {
  T largest = logits[0];
  for (std::int64_t k = 1; k < n_clusters; ++k) largest = logits[k] > largest ? logits[k] : largest;
  T total = 0;
  for (std::int64_t k = 0; k < n_clusters; ++k) {
    weights[k] = std::exp(logits[k] - largest);  // at most 1: no overflow however large the logits
    total += weights[k];
  }
  const T scale = T(1) / total;
  for (std::int64_t k = 0; k < n_clusters; ++k) weights[k] *= scale;
}

// The same, and its logarithm, which is finite also where a weight underflows to 0.
template <typename T>
static MFDMC_HOST_DEVICE inline void log_softmax_row(const T* logits /* [n_clusters] */, std::int64_t n_clusters,
                                                     T* log_weights /* [n_clusters], may be the logits */,
                                                     T* weights /* [n_clusters] */) {
  T largest = logits[0];
  for (std::int64_t k = 1; k < n_clusters; ++k) largest = logits[k] > largest ? logits[k] : largest;
  T total = 0;
  for (std::int64_t k = 0; k < n_clusters; ++k) {
    weights[k] = std::exp(logits[k] - largest);
    total += weights[k];
  }
  const T log_total = std::log(total), scale = T(1) / total;
  for (std::int64_t k = 0; k < n_clusters; ++k) {
    // two differences: the sum of `largest` and `log_total` would round where logits are large
    log_weights[k] = (logits[k] - largest) - log_total;
    weights[k] *= scale;
  }
}

// sum_k weights[k] * centers[k, j] of one view.
template <typename T>
static MFDMC_HOST_DEVICE inline T projection(const T* weights /* [n_clusters] */,
                                             const T* centers /* [n_clusters, view_dim] */, std::int64_t n_clusters,
                                             std::int64_t view_dim, std::int64_t j) {
  T sum = 0;
  for (std::int64_t k = 0; k < n_clusters; ++k) sum += weights[k] * centers[k * view_dim + j];
  return sum;
}

// role += sum_k weights[k] * centers[k, :] of one view.
template <typename T>
static MFDMC_HOST_DEVICE inline void add_projection_row(const T* weights /* [n_clusters] */,
                                                        const T* centers /* [n_clusters, view_dim] */,
                                                        std::int64_t n_clusters, std::int64_t view_dim,
                                                        T* role /* [view_dim] */) {
  for (std::int64_t j = 0; j < view_dim; ++j) role[j] += projection(weights, centers, n_clusters, view_dim, j);
}

// The embedding of one entity (Eq. 2 of arXiv:2504.14565).
template <typename T>
static MFDMC_HOST_DEVICE inline void embed_row(const Side<T>& side, std::int64_t entity, Combine combine,
                                               T* weights /* [S], scratch */, T* embedding /* [embedding_dim] */) {
  const std::int64_t d = side.view_dim;
  const T* logits = side.assignment_logits + entity * side.total_clusters;  // [S]
  const std::int64_t dim = embedding_dim(side, combine);
  for (std::int64_t j = 0; j < dim; ++j) embedding[j] = 0;
  for (std::int64_t v = 0; v < side.n_views; ++v) {
    const std::int64_t first = side.view_offsets[v];
    const std::int64_t n_clusters = side.view_offsets[v + 1] - first;
    softmax_row(logits + first, n_clusters, weights + first);
    add_projection_row(weights + first, side.centers + first * d, n_clusters, d,
                       combine == Combine::concat ? embedding + v * d : embedding);
  }
}

}  // namespace mfdmc
