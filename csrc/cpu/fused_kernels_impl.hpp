// Included by one file for each instruction set, which has set MFDMC_VECTOR_BYTES and -march.
#pragma once

#include "cpu/fused_kernels.hpp"
#include "cpu/simd.hpp"

namespace mfdmc {
namespace {

// No function of the standard library that is a template or inline: its copy from here, made for this instruction set,
// could end up in code for every processor.
inline std::int64_t least(std::int64_t a, std::int64_t b) { return a < b ? a : b; }

constexpr std::int32_t kNoMomentum = 400;       // 0.9^400 is below the smallest float: such steps move nothing

// A matrix of tile-many rows, row-major with any stride, to column-major [columns][kLanes]; missing rows become zero.
template <typename RowOf>
inline void load_transposed(RowOf row_of, std::int64_t n_rows, std::int64_t columns, Vec* out /* [columns] */) {
  Vec block[kLanes];
  for (std::int64_t c = 0; c < columns; c += kLanes) {
    const std::int64_t width = least(kLanes, columns - c);
    for (std::int64_t r = 0; r < kLanes; ++r) {
      block[r] = Vec{};
      if (r < n_rows) {
        if (width == kLanes)
          block[r] = load(row_of(r) + c);
        else
          std::memcpy(&block[r], row_of(r) + c, width * sizeof(float));
      }
    }
    transpose(block);
    for (std::int64_t j = 0; j < width; ++j) out[c + j] = block[j];
  }
}

// The inverse: column-major to rows; writes `columns` rounded up to kLanes floats of every row, zero beyond `columns`.
template <typename RowOf>
inline void store_transposed(const Vec* in /* [columns] */, std::int64_t n_rows, std::int64_t columns, RowOf row_of) {
  Vec block[kLanes];
  for (std::int64_t c = 0; c < columns; c += kLanes) {
    const std::int64_t width = least(kLanes, columns - c);
    for (std::int64_t j = 0; j < kLanes; ++j) block[j] = j < width ? in[c + j] : Vec{};
    transpose(block);
    for (std::int64_t r = 0; r < n_rows; ++r) store(row_of(r) + c, block[r]);
  }
}

// Asks for a row of n numbers ahead of its use: rows lie anywhere in the table, out of the hardware's sight.
inline void prefetch(const float* row, std::int64_t n) {
  for (std::int64_t j = 0; j < n; j += 16) __builtin_prefetch(row + j);
}

// Steps [from, until) of Adam with zero gradient on n numbers.
inline void decay(float* p, float* m, float* v, std::int64_t n, const float* step_sizes, const AdamSchedule& adam,
                  std::int32_t from, std::int32_t until) {
  const std::int32_t last = static_cast<std::int32_t>(least(until, from + kNoMomentum));
  for (std::int32_t t = from; t < last; ++t) {
    const float size = step_sizes[t], root = adam.inverse_root[t];
    for (std::int64_t j = 0; j < n; ++j) {
      m[j] *= adam.beta1;
      v[j] *= adam.beta2;
      p[j] -= size * m[j] / (__builtin_sqrtf(v[j]) * root + adam.epsilon);
    }
  }
  if (last < until) {
    const float rest = __builtin_powf(adam.beta2, static_cast<float>(until - last));
    for (std::int64_t j = 0; j < n; ++j) {
      m[j] = 0;
      v[j] *= rest;
    }
  }
}

inline void catch_up_row(const TrainedSide& side, const AdamSchedule& adam, std::int64_t e, std::int32_t until) {
  const std::int32_t from = side.next_step[e];
  if (from >= until) return;
  const std::int64_t s = side.total_clusters;
  decay(side.logits + e * s, side.logits_m + e * s, side.logits_v + e * s, s, adam.logit_step, adam, from, until);
  if (side.bias) decay(side.bias + e, side.bias_m + e, side.bias_v + e, 1, adam.bias_step, adam, from, until);
  side.next_step[e] = until;
}

void catch_up(const TrainedSide& side, const AdamSchedule& adam, std::int32_t until, std::int64_t first,
              std::int64_t last) {
  for (std::int64_t e = first; e < last; ++e) catch_up_row(side, adam, e, until);
}

// Share of the batch's ratings that each row of a tile has; zero for missing rows.
inline Vec tile_shares(const BatchSide& batch, std::int64_t tile, std::int64_t n_rows, std::int64_t batch_size) {
  Vec share{};
  for (std::int64_t r = 0; r < n_rows; ++r)
    share[r] = static_cast<float>(batch.offsets[tile + r + 1] - batch.offsets[tile + r]);
  return share * splat(1.0f / static_cast<float>(batch_size));
}

// z of each view, [V, d] vectors, from log weights [S].
inline void tile_embeddings(const TrainedSide& side, const Vec* log_weights, Vec* z) {
  const std::int64_t d = side.view_dim;
  for (std::int64_t v = 0; v < side.n_views; ++v) {
    Vec* zv = z + v * d;
    for (std::int64_t c = 0; c < d; ++c) zv[c] = Vec{};
    for (std::int64_t k = side.view_offsets[v]; k < side.view_offsets[v + 1]; ++k) {
      const Vec w = exp_negative(log_weights[k]);
      for (std::int64_t c = 0; c < d; ++c) zv[c] += w * splat(side.centers[k * d + c]);
    }
  }
}

// FunkMF: the embedding is the row itself.
void factor_forward(const TrainedSide& side, const BatchSide& batch, const LossSetup& loss, const UpdateSetup& update,
                    std::int64_t first, std::int64_t last, double* terms) {
  for (std::int64_t r = first; r < last; ++r) {
    const std::int64_t e = batch.rows[r], n = side.total_clusters;
    if (update.optimizer == Optimizer::adam) catch_up_row(side, update.adam, e, update.step);
    const float* row = side.logits + e * n;
    float* z = batch.embeddings + r * loss.padded_dim;
    float l2 = 0;
    for (std::int64_t j = 0; j < n; ++j) {
      z[j] = row[j];
      l2 += row[j] * row[j];
    }
    for (std::int64_t j = n; j < loss.padded_dim; ++j) z[j] = 0;
    const double share = static_cast<double>(batch.offsets[r + 1] - batch.offsets[r]) / loss.batch_size;
    batch.bias[r] = side.bias ? side.bias[e] : 0.0f;
    terms[2] += share * l2;
    terms[3] += share * batch.bias[r] * batch.bias[r];
  }
}

void entity_forward(const TrainedSide& side, const BatchSide& batch, const LossSetup& loss, const UpdateSetup& update,
                    std::int64_t first, std::int64_t last, double* terms) {
  const std::int64_t s = side.total_clusters, d = side.view_dim, n_views = side.n_views;
  Vec tile[kMaxColumns], z[kMaxColumns], combined[kMaxColumns];
  if (!side.centers) return factor_forward(side, batch, loss, update, first, last, terms);
  const float per_view = 1.0f / static_cast<float>(n_views);
  for (std::int64_t t = first; t < last; t += kLanes) {
    const std::int64_t n_rows = least(kLanes, batch.n_rows - t);
    for (std::int64_t r = t + kLanes; r < least(t + 2 * kLanes, last); ++r)
      prefetch(side.logits + batch.rows[r] * s, s);
    if (update.optimizer == Optimizer::adam)
      for (std::int64_t r = 0; r < n_rows; ++r) catch_up_row(side, update.adam, batch.rows[t + r], update.step);
    load_transposed([&](std::int64_t r) { return side.logits + batch.rows[t + r] * s; }, n_rows, s, tile);
    Vec proximity{}, entropy{};
    for (std::int64_t v = 0; v < n_views; ++v) {
      const std::int64_t k0 = side.view_offsets[v], k1 = side.view_offsets[v + 1];
      Vec largest = tile[k0];
      for (std::int64_t k = k0 + 1; k < k1; ++k) largest = maximum(largest, tile[k]);
      Vec total{};
      Vec* zv = z + v * d;
      for (std::int64_t c = 0; c < d; ++c) zv[c] = Vec{};
      Vec weighted_log{}, weighted_norm{};
      for (std::int64_t k = k0; k < k1; ++k) {
        const Vec x = tile[k] - largest;
        const Vec w = exp_negative(x);
        tile[k] = x;
        total += w;
        weighted_log += w * x;
        for (std::int64_t c = 0; c < d; ++c) zv[c] += w * splat(side.centers[k * d + c]);
        weighted_norm += w * splat(side.center_norms[k]);
      }
      const Vec log_total = log_from_one(total), inverse = splat(1.0f) / total;
      for (std::int64_t k = k0; k < k1; ++k) tile[k] -= log_total;
      Vec squares{};
      for (std::int64_t c = 0; c < d; ++c) {
        zv[c] *= inverse;
        squares += zv[c] * zv[c];
      }
      proximity += weighted_norm * inverse - squares;
      if (k1 - k0 > 1)
        entropy += (log_total - weighted_log * inverse) * splat(1.0f / __builtin_logf(static_cast<float>(k1 - k0)));
    }
    const Vec* embedding = z;
    if (loss.sum_views) {
      for (std::int64_t c = 0; c < d; ++c) {
        combined[c] = z[c];
        for (std::int64_t v = 1; v < n_views; ++v) combined[c] += z[v * d + c];
      }
      embedding = combined;
    }
    Vec l2{};
    for (std::int64_t c = 0; c < loss.embedding_dim; ++c) l2 += embedding[c] * embedding[c];
    const Vec share = tile_shares(batch, t, n_rows, loss.batch_size);
    terms[0] += sum_lanes(proximity * share) * per_view;
    terms[1] += sum_lanes(entropy * share) * per_view;
    terms[2] += sum_lanes(l2 * share);
    for (std::int64_t k = 0; k < s; ++k) store(batch.log_weights + ((t / kLanes) * s + k) * kLanes, tile[k]);
    store_transposed(embedding, n_rows, loss.embedding_dim,
                     [&](std::int64_t r) { return batch.embeddings + (t + r) * loss.padded_dim; });
    for (std::int64_t r = 0; r < n_rows; ++r) {
      const float bias = side.bias ? side.bias[batch.rows[t + r]] : 0.0f;
      batch.bias[t + r] = bias;
      terms[3] += static_cast<double>(bias) * bias * share[r];
    }
  }
}

// Dot products of kLanes pairs of embeddings, one in each lane.
inline Vec dots(const float* const* a, const float* const* b, std::int64_t padded_dim) {
  Vec sums[kLanes];
  for (std::int64_t r = 0; r < kLanes; ++r) {
    Vec sum = load(a[r]) * load(b[r]);
    for (std::int64_t c = kLanes; c < padded_dim; c += kLanes) sum += load(a[r] + c) * load(b[r] + c);
    sums[r] = sum;
  }
  transpose(sums);
  for (std::int64_t half = kLanes / 2; half; half /= 2)
    for (std::int64_t r = 0; r < half; ++r) sums[r] += sums[r + half];
  return sums[0];
}

double rating_errors(const BatchSide& user, const BatchSide& item, const LossSetup& loss, const std::int32_t* users,
                     const std::int32_t* items, const float* ratings, float global_mean, std::int64_t first,
                     std::int64_t last, float* errors) {
  const float scale = 2.0f / static_cast<float>(loss.batch_size);
  double squares = 0;
  for (std::int64_t b = first; b < last; b += kLanes) {
    const std::int64_t n = least(kLanes, last - b);
    const float *a[kLanes], *c[kLanes];
    Vec base{};  // what is known without z
    for (std::int64_t r = 0; r < kLanes; ++r) {
      const std::int64_t at = b + least(r, n - 1);  // a short tile repeats its last rating
      a[r] = user.embeddings + users[at] * loss.padded_dim;
      c[r] = item.embeddings + items[at] * loss.padded_dim;
      base[r] = global_mean + user.bias[users[at]] + item.bias[items[at]] - ratings[at];
    }
    const Vec error = dots(a, c, loss.padded_dim) + base;
    const Vec scaled = error * splat(scale);
    for (std::int64_t r = 0; r < n; ++r) {
      errors[b + r] = scaled[r];
      squares += static_cast<double>(error[r]) * error[r];
    }
  }
  return squares;
}

// `width` vectors of the gradient at a time stay in registers.
template <std::int64_t width>
inline float segment_sum(const BatchSide& batch, const BatchSide& other, std::int64_t padded_dim, const float* errors,
                         std::int64_t row, std::int64_t column) {
  Vec sums[width];
  for (std::int64_t c = 0; c < width; ++c) sums[c] = Vec{};
  float total = 0;
  for (std::int64_t q = batch.offsets[row]; q < batch.offsets[row + 1]; ++q) {
    const float e = errors[batch.order ? batch.order[q] : q];
    const float* z = other.embeddings + batch.others[q] * padded_dim + column;
    total += e;
    for (std::int64_t c = 0; c < width; ++c) sums[c] += splat(e) * load(z + c * kLanes);
  }
  for (std::int64_t c = 0; c < width; ++c) store(batch.grad + row * padded_dim + column + c * kLanes, sums[c]);
  return total;
}

void segment_sums(const BatchSide& batch, const BatchSide& other, const LossSetup& loss, const float* errors,
                  std::int64_t first, std::int64_t last) {
  for (std::int64_t row = first; row < last; ++row) {
    std::int64_t c = 0;
    for (; c + 4 * kLanes <= loss.padded_dim; c += 4 * kLanes)
      batch.grad_bias[row] = segment_sum<4>(batch, other, loss.padded_dim, errors, row, c);
    for (; c + 2 * kLanes <= loss.padded_dim; c += 2 * kLanes)
      batch.grad_bias[row] = segment_sum<2>(batch, other, loss.padded_dim, errors, row, c);
    for (; c < loss.padded_dim; c += kLanes)
      batch.grad_bias[row] = segment_sum<1>(batch, other, loss.padded_dim, errors, row, c);
  }
}

inline void apply(const TrainedSide& side, const UpdateSetup& update, std::int64_t e, const float* grad /* [S] */,
                  float grad_bias) {
  const std::int64_t s = side.total_clusters;
  if (update.optimizer == Optimizer::none) {
    std::memcpy(update.gradients.logits + e * s, grad, s * sizeof(float));
    if (update.gradients.bias) update.gradients.bias[e] = grad_bias;
    return;
  }
  float* p = side.logits + e * s;
  if (update.optimizer == Optimizer::adagrad) {
    float squares = 0;
    for (std::int64_t j = 0; j < s; ++j) squares += grad[j] * grad[j];
    side.logits_sum[e] += squares / static_cast<float>(s);
    const float rate = update.logit_rate / (__builtin_sqrtf(side.logits_sum[e]) + update.adam.epsilon);
    for (std::int64_t j = 0; j < s; ++j) p[j] -= rate * grad[j];
    if (side.bias) {
      side.bias_sum[e] += grad_bias * grad_bias;
      side.bias[e] -= update.bias_rate * grad_bias / (__builtin_sqrtf(side.bias_sum[e]) + update.adam.epsilon);
    }
    return;
  }
  const AdamSchedule& adam = update.adam;
  const float root = adam.inverse_root[update.step];
  const auto adam_step = [&](float* x, float* m, float* v, const float* g, std::int64_t n, float size) {
    for (std::int64_t j = 0; j < n; ++j) {
      m[j] += adam.rest1 * (g[j] - m[j]);
      v[j] = adam.beta2 * v[j] + adam.rest2 * g[j] * g[j];
      x[j] -= size * m[j] / (__builtin_sqrtf(v[j]) * root + adam.epsilon);
    }
  };
  adam_step(p, side.logits_m + e * s, side.logits_v + e * s, grad, s, adam.logit_step[update.step]);
  if (side.bias) adam_step(side.bias + e, side.bias_m + e, side.bias_v + e, &grad_bias, 1, adam.bias_step[update.step]);
  side.next_step[e] = update.step + 1;
}

void factor_backward(const TrainedSide& side, const BatchSide& batch, const LossSetup& loss, const UpdateSetup& update,
                     std::int64_t first, std::int64_t last) {
  for (std::int64_t r = first; r < last; ++r) {
    const float share =
        static_cast<float>(batch.offsets[r + 1] - batch.offsets[r]) / static_cast<float>(loss.batch_size);
    float* grad = batch.grad + r * loss.padded_dim;
    const float* z = batch.embeddings + r * loss.padded_dim;
    for (std::int64_t j = 0; j < side.total_clusters; ++j) grad[j] += 2.0f * loss.l2 * share * z[j];
    apply(side, update, batch.rows[r], grad, batch.grad_bias[r] + 2.0f * loss.bias_l2 * share * batch.bias[r]);
  }
}

void entity_backward(const TrainedSide& side, const BatchSide& batch, const LossSetup& loss, const UpdateSetup& update,
                     std::int64_t first, std::int64_t last, float* scratch, float* center_sums) {
  const std::int64_t s = side.total_clusters, d = side.view_dim, n_views = side.n_views;
  if (!side.centers) return factor_backward(side, batch, loss, update, first, last);
  const std::int64_t padded_clusters = (s + kLanes - 1) / kLanes * kLanes;
  std::memset(scratch, 0, s * (d + 1) * kLanes * sizeof(float));
  Vec tile[kMaxColumns], q[kMaxColumns], z[kMaxColumns], g[kMaxColumns];
  alignas(64) float rows[kLanes * kMaxColumns];
  for (std::int64_t t = first; t < last; t += kLanes) {
    const std::int64_t n_rows = least(kLanes, batch.n_rows - t);
    if (update.optimizer == Optimizer::adam)  // for the end of this tile
      for (std::int64_t r = t; r < t + n_rows; ++r) {
        prefetch(side.logits + batch.rows[r] * s, s);
        prefetch(side.logits_m + batch.rows[r] * s, s);
        prefetch(side.logits_v + batch.rows[r] * s, s);
      }
    for (std::int64_t k = 0; k < s; ++k) tile[k] = load(batch.log_weights + ((t / kLanes) * s + k) * kLanes);
    load_transposed([&](std::int64_t r) { return batch.grad + (t + r) * loss.padded_dim; }, n_rows, loss.embedding_dim,
                    g);
    tile_embeddings(side, tile, z);
    const Vec share = tile_shares(batch, t, n_rows, loss.batch_size);
    const Vec l2 = share * splat(2.0f * loss.l2);
    if (loss.sum_views) {
      for (std::int64_t c = 0; c < d; ++c) {
        Vec sum = z[c];
        for (std::int64_t v = 1; v < n_views; ++v) sum += z[v * d + c];
        g[c] += l2 * sum;
      }
    } else {
      for (std::int64_t c = 0; c < loss.embedding_dim; ++c) g[c] += l2 * z[c];
    }
    const Vec a = share * splat(loss.proximity / static_cast<float>(n_views));
    for (std::int64_t v = 0; v < n_views; ++v) {
      const std::int64_t k0 = side.view_offsets[v], k1 = side.view_offsets[v + 1];
      const Vec* gv = g + (loss.sum_views ? 0 : v * d);
      Vec* h = z + v * d;  // h = g - 2 a z takes the place of z
      for (std::int64_t c = 0; c < d; ++c) h[c] = gv[c] - (a + a) * h[c];
      Vec entropy_scale{};
      if (k1 - k0 > 1)
        entropy_scale =
            share * splat(loss.entropy / (static_cast<float>(n_views) * __builtin_logf(static_cast<float>(k1 - k0))));
      Vec heaviest{}, q_heaviest{};
      for (std::int64_t k = k0; k < k1; ++k) {
        const Vec log_w = tile[k], w = exp_negative(log_w);
        const float* center = side.centers + k * d;
        float* sums = scratch + k * (d + 1) * kLanes;
        Vec dot{};
        for (std::int64_t c = 0; c < d; ++c) {
          dot += h[c] * splat(center[c]);
          store(sums + c * kLanes, load(sums + c * kLanes) + w * h[c]);
        }
        store(sums + d * kLanes, load(sums + d * kLanes) + (a + a) * w);
        // the entropy's gradient at A_k is -scale w (ln w + H): as if ∂/∂w were -scale ln w
        q[k] = dot + a * splat(side.center_norms[k]) - entropy_scale * log_w;
        tile[k] = w;
        q_heaviest = w > heaviest ? q[k] : q_heaviest;
        heaviest = maximum(w, heaviest);
      }
      // Relative to the heaviest cluster's q, so that nothing cancels where its weight is almost 1.
      Vec mean{};
      for (std::int64_t k = k0; k < k1; ++k) {
        q[k] -= q_heaviest;
        mean += tile[k] * q[k];
      }
      for (std::int64_t k = k0; k < k1; ++k) tile[k] *= q[k] - mean;
    }
    store_transposed(tile, n_rows, s, [&](std::int64_t r) { return rows + r * padded_clusters; });
    for (std::int64_t r = 0; r < n_rows; ++r) {
      const float grad_bias = batch.grad_bias[t + r] + 2.0f * loss.bias_l2 * share[r] * batch.bias[t + r];
      apply(side, update, batch.rows[t + r], rows + r * padded_clusters, grad_bias);
    }
  }
  for (std::int64_t j = 0; j < s * (d + 1); ++j) center_sums[j] = sum_lanes(load(scratch + j * kLanes));
}

}  // namespace
}  // namespace mfdmc
