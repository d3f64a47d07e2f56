// The kernel of fold_in.hpp for one instruction set; see simd.hpp for how that is chosen.
#pragma once

#include "cpu/fold_in.hpp"
#include "cpu/fused_kernels_impl.hpp"
#include "cpu/gibbs_kernels_impl.hpp"

namespace mfdmc {
namespace {

// The squared errors of a tile of rows and the prior: x' matrix x - 2 right' x, divided by each row's ratings.
struct Quadratic {
  float* matrix;  // [U, U, kLanes]
  float* right;   // [U, kLanes]
  std::int64_t unknowns;

  float* at(std::int64_t i, std::int64_t j) const { return matrix + (i * unknowns + j) * kLanes; }
  float* right_at(std::int64_t i) const { return right + i * kLanes; }

  // Row i of matrix times x.
  Vec product(std::int64_t i, const Vec* x, std::int64_t n) const {
    // in four sums, as one alone would make every addition wait for the one before it
    Vec sums[4] = {Vec{}, Vec{}, Vec{}, Vec{}};
    std::int64_t j = 0;
    for (; j + 4 <= n; j += 4)
#pragma GCC unroll 4
      for (std::int64_t q = 0; q < 4; ++q) sums[q] += load(at(i, j + q)) * x[j + q];
    for (; j < n; ++j) sums[0] += load(at(i, j)) * x[j];
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
  }

  // What is left when the last unknown always has its best value, which last() gives.
  void eliminate_last() const {
    const std::int64_t last = unknowns - 1;
    const Vec pivot = splat(1.0f) / load(at(last, last));
    for (std::int64_t i = 0; i < last; ++i) {
      const Vec factor = load(at(i, last)) * pivot;
      store(right_at(i), load(right_at(i)) - factor * load(right_at(last)));
      for (std::int64_t j = 0; j < last; ++j) store(at(i, j), load(at(i, j)) - factor * load(at(last, j)));
    }
  }

  Vec last(const Vec* x) const {
    const std::int64_t last = unknowns - 1;
    return (load(right_at(last)) - product(last, x, last)) / load(at(last, last));
  }
};

// `gathered` [kGathered, stride] and `gram` [stride, stride] are scratch.
inline void sum_ratings(const FoldIn& p, std::int64_t first, std::int64_t n_rows, std::int64_t stride, float* gathered,
                        float* gram, const Quadratic& out) {
  const std::int64_t dim = p.loss.embedding_dim, unknowns = out.unknowns;
  alignas(64) float counts[kLanes];
  for (std::int64_t lane = 0; lane < kLanes; ++lane) {
    const std::int64_t row = first + least(lane, n_rows - 1);  // what is repeated is not used
    for (std::int64_t j = 0; j < stride * stride; ++j) gram[j] = 0.0f;
    const std::int64_t begin = p.offsets[row], end = p.offsets[row + 1];
    counts[lane] = end > begin ? static_cast<float>(end - begin) : 1.0f;
    for (std::int64_t block = begin; block < end; block += kGathered) {
      const std::int64_t n = least(kGathered, end - block);
      for (std::int64_t q = 0; q < n; ++q) {
        const std::int64_t partner = p.partners[block + q];
        float* const to = gathered + q * stride;
        std::memcpy(to, p.embeddings + partner * dim, dim * sizeof(float));
        to[dim] = 1.0f;  // without biases the next line puts the rating there
        to[unknowns] = p.ratings[block + q] - p.global_mean - (p.biases ? p.biases[partner] : 0.0f);
        for (std::int64_t c = unknowns + 1; c < stride; ++c) to[c] = 0.0f;
      }
      add_gram(gathered, n, unknowns + 1, stride, gram);
    }
    for (std::int64_t i = 0; i < unknowns; ++i) {
      out.right_at(i)[lane] = gram[unknowns * stride + i];
      for (std::int64_t j = 0; j <= i; ++j) out.at(i, j)[lane] = out.at(j, i)[lane] = gram[i * stride + j];
    }
  }
  const Vec share = splat(1.0f) / load(counts);
  for (std::int64_t i = 0; i < unknowns; ++i) {
    const float* const precision = p.prior_precision + i * unknowns;
    Vec pull{};
    for (std::int64_t j = 0; j < unknowns; ++j) {
      store(out.at(i, j), (load(out.at(i, j)) + splat(precision[j])) * share);
      alignas(64) float means[kLanes];
      for (std::int64_t lane = 0; lane < kLanes; ++lane)
        means[lane] = p.prior_means[(first + least(lane, n_rows - 1)) * unknowns + j];
      pull += splat(precision[j]) * load(means);
    }
    store(out.right_at(i), (load(out.right_at(i)) + pull) * share);
  }
}

// The embeddings of a tile with the logits [S, kLanes]; log weights [S, kLanes] and the views' embeddings z [V d] are
// kept for the gradient.
inline void embed_tile(const TrainedSide& side, bool sum_views, const float* logits, float* log_weights, Vec* z,
                       Vec* embedding) {
  const std::int64_t d = side.view_dim;
  for (std::int64_t v = 0; v < side.n_views; ++v) {
    const std::int64_t k0 = side.view_offsets[v], k1 = side.view_offsets[v + 1];
    Vec largest = load(logits + k0 * kLanes), total{}, *const role = z + v * d;
    for (std::int64_t k = k0 + 1; k < k1; ++k) largest = maximum(largest, load(logits + k * kLanes));
    for (std::int64_t c = 0; c < d; ++c) role[c] = Vec{};
    for (std::int64_t k = k0; k < k1; ++k) {
      const Vec x = load(logits + k * kLanes) - largest, w = exp_negative(x);
      store(log_weights + k * kLanes, x);
      total += w;
      for (std::int64_t c = 0; c < d; ++c) role[c] += w * splat(side.centers[k * d + c]);
    }
    const Vec log_total = log_from_one(total), inverse_total = splat(1.0f) / total;
    for (std::int64_t k = k0; k < k1; ++k)
      store(log_weights + k * kLanes, load(log_weights + k * kLanes) - log_total);
    for (std::int64_t c = 0; c < d; ++c) role[c] *= inverse_total;
  }
  for (std::int64_t c = 0; c < (sum_views ? d : side.n_views * d); ++c) {
    embedding[c] = z[c];
    if (sum_views)
      for (std::int64_t v = 1; v < side.n_views; ++v) embedding[c] += z[v * d + c];
  }
}

// Rows [first, last), at most kLanes: gradient steps on the logits, with the bias at its best value for each.
inline void fold_in_rows(const FoldIn& p, std::int64_t first, std::int64_t last, float* scratch) {
  const TrainedSide& side = p.side;
  const std::int64_t s = side.total_clusters, d = side.view_dim, n_views = side.n_views, n_rows = last - first;
  const std::int64_t dim = p.loss.embedding_dim, unknowns = dim + (side.bias ? 1 : 0);
  const std::int64_t stride = fold_in_stride(dim);
  float* const gathered = scratch;                             // [kGathered, stride]
  float* const gram = gathered + kGathered * stride;           // [stride, stride]
  const Quadratic errors{gram + stride * stride, gram + stride * stride + unknowns * unknowns * kLanes, unknowns};
  float* const logits = errors.right + unknowns * kLanes;      // [S, kLanes], and so the next four
  float *const first_moments = logits + s * kLanes, *const second_moments = first_moments + s * kLanes;
  float *const log_weights = second_moments + s * kLanes, *const slopes = log_weights + s * kLanes;
  sum_ratings(p, first, n_rows, stride, gathered, gram, errors);
  if (side.bias) errors.eliminate_last();

  Vec tile[kMaxColumns], z[kMaxColumns], embedding[kMaxColumns], gradient[kMaxColumns];
  load_transposed([&](std::int64_t r) { return side.logits + (first + r) * s; }, n_rows, s, tile);
  for (std::int64_t k = 0; k < s; ++k) {
    store(logits + k * kLanes, tile[k]);
    store(first_moments + k * kLanes, Vec{});
    store(second_moments + k * kLanes, Vec{});
  }
  float scales[kMaxColumns];
  entropy_scales(side, scales);
  const Vec a = splat(p.loss.proximity / static_cast<float>(n_views));
  for (std::int32_t step = 0; step < p.n_steps; ++step) {
    embed_tile(side, p.loss.sum_views, logits, log_weights, z, embedding);
    for (std::int64_t c = 0; c < dim; ++c)
      gradient[c] = splat(2.0f) * (errors.product(c, embedding, dim) - load(errors.right_at(c)));
    const AdamStep adam(p.schedule, p.schedule.logit_step[step], step);
    for (std::int64_t v = 0; v < n_views; ++v) {
      const Vec* const at_view = gradient + (p.loss.sum_views ? 0 : v * d);
      const Vec entropy_scale = splat(p.loss.entropy * scales[v]);
      // as in entity_backward_of: the mean relative to the heaviest cluster so far, so that nothing cancels
      Vec heaviest{}, origin{}, total{}, mean{};
      for (std::int64_t k = side.view_offsets[v]; k < side.view_offsets[v + 1]; ++k) {
        const Vec log_w = load(log_weights + k * kLanes), w = exp_negative(log_w);
        Vec slope = a * splat(side.center_norms[k]) - entropy_scale * log_w;
        for (std::int64_t c = 0; c < d; ++c)
          slope += (at_view[c] - (a + a) * z[v * d + c]) * splat(side.centers[k * d + c]);
        const Vec difference = slope - origin;
        const auto heavier = w > heaviest;
        mean += (heavier ? -total : w) * difference;
        origin = heavier ? slope : origin;
        total += w;
        heaviest = maximum(w, heaviest);
        store(slopes + k * kLanes, slope);
        store(log_weights + k * kLanes, w);
      }
      for (std::int64_t k = side.view_offsets[v]; k < side.view_offsets[v + 1]; ++k) {
        const std::int64_t at = k * kLanes;
        Vec x = load(logits + at), m = load(first_moments + at), square = load(second_moments + at);
        adam(load(log_weights + at) * ((load(slopes + at) - origin) - mean), x, m, square);
        store(logits + at, x);
        store(first_moments + at, m);
        store(second_moments + at, square);
      }
    }
  }
  for (std::int64_t k = 0; k < s; ++k) tile[k] = load(logits + k * kLanes);
  for_rows(tile, n_rows, s, [&](std::int64_t r, std::int64_t c, Vec x, std::int64_t n) {
    store_part(side.logits + (first + r) * s + c, x, n);
  });
  if (!side.bias) return;
  embed_tile(side, p.loss.sum_views, logits, log_weights, z, embedding);
  alignas(64) float biases[kLanes];
  store(biases, errors.last(embedding));
  std::memcpy(side.bias + first, biases, n_rows * sizeof(float));
}

}  // namespace
}  // namespace mfdmc
