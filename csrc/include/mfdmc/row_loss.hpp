// The loss terms of one entity in one view and their gradients (mfdmc_fast/ops/README.md has the equations).
#pragma once

#include <cmath>
#include <cstdint>

#include "mfdmc/side.hpp"

namespace mfdmc {

// sum_k w_k |z - c_k|^2 = sum_k w_k |c_k|^2 - |z|^2
static MFDMC_HOST_DEVICE inline float proximity_of(const float* weights /* [n_clusters] */,
                                                   const float* center_norms /* [n_clusters] squared lengths */,
                                                   int n_clusters, const float* role /* [view_dim] */, int view_dim) {
  float sum = 0, square = 0;
  for (int k = 0; k < n_clusters; ++k) sum += weights[k] * center_norms[k];
  for (int j = 0; j < view_dim; ++j) square += role[j] * role[j];
  return sum - square;
}

// -sum_k w_k ln w_k
static MFDMC_HOST_DEVICE inline float entropy_of(const float* weights /* [n_clusters] */,
                                                 const float* log_weights /* [n_clusters], finite */, int n_clusters) {
  float sum = 0;
  for (int k = 0; k < n_clusters; ++k) sum -= weights[k] * log_weights[k];
  return sum;
}

// 1 / (V ln K), 0 where K = 1: what turns a sum of entropies into the entropy term.
static MFDMC_HOST_DEVICE inline float entropy_scale(int n_views, int n_clusters) {
  return n_clusters > 1 ? 1.0f / (static_cast<float>(n_views) * std::log(static_cast<float>(n_clusters))) : 0.0f;
}

// What a cluster gets for its weight: h . c + proximity |c|^2 - entropy ln w, with h = g - 2 proximity z. Both
// factors are the terms' weights times the entity's share and the view's; the entropy's gradient at a logit is
// -w (ln w + H), as if the one at w were -ln w.
static MFDMC_HOST_DEVICE inline float weight_gradient(const float* h /* [view_dim] */,
                                                      const float* center /* [view_dim] */, int view_dim,
                                                      float center_norm, float proximity, float log_weight,
                                                      float entropy) {
  float sum = 0;
  for (int j = 0; j < view_dim; ++j) sum += h[j] * center[j];
  return sum + (proximity * center_norm - entropy * log_weight);
}

// gradient[k] = w_k (q_k - sum_j w_j q_j), in the place of q. The mean of q is taken relative to the q of the heaviest
// cluster, so that nothing cancels where one weight is almost 1.
static MFDMC_HOST_DEVICE inline void logit_gradients(const float* weights /* [n_clusters] */, int n_clusters,
                                                     float* q /* [n_clusters], in and out */) {
  int heaviest = 0;
  for (int k = 1; k < n_clusters; ++k) heaviest = weights[k] > weights[heaviest] ? k : heaviest;
  const float origin = q[heaviest];
  float mean = 0;
  for (int k = 0; k < n_clusters; ++k) mean += weights[k] * (q[k] - origin);
  for (int k = 0; k < n_clusters; ++k) q[k] = weights[k] * ((q[k] - origin) - mean);
}

// Part of the spread that center `a` has with another: max(0, margin - |a - b|)^2. Adds factor times its gradient at
// `a`.
static MFDMC_HOST_DEVICE inline float hinge_of_pair(const float* a /* [view_dim] */, const float* b /* [view_dim] */,
                                                    int view_dim, float margin, float factor,
                                                    float* gradient /* [view_dim] */) {
  float square = 0;
  for (int j = 0; j < view_dim; ++j) square += (a[j] - b[j]) * (a[j] - b[j]);
  const float distance = std::sqrt(square), lacking = margin - distance;
  if (lacking <= 0) return 0;
  if (distance > 0)  // else the hinge has no direction
    for (int j = 0; j < view_dim; ++j) gradient[j] += factor * -2 * lacking / distance * (a[j] - b[j]);
  return lacking * lacking;
}

}  // namespace mfdmc
