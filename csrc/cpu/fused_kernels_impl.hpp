// Included by one file for each instruction set, which has set MFDMC_VECTOR_BYTES and -march.
#pragma once

#include "cpu/fused_kernels.hpp"
#include "cpu/simd.hpp"

namespace mfdmc {
namespace {

// No function of the standard library that is a template or inline: its copy from here, made for this instruction set,
// could end up in code for every processor.
inline std::int64_t least(std::int64_t a, std::int64_t b) { return a < b ? a : b; }

constexpr std::int32_t kNoMomentum = 400;  // 0.9^400 is 5e-19: what is left of the momentum moves no float

// A matrix of tile-many rows, row-major with any stride, to column-major [columns][kLanes]; missing rows repeat the last.
// Whole blocks have loops of fixed length, which the compiler unrolls instead of calling memset and memcpy.
template <typename RowOf>
inline void load_transposed(RowOf row_of, std::int64_t n_rows, std::int64_t columns, Vec* out /* [columns] */) {
  const float* rows[kLanes];
  for (std::int64_t r = 0; r < kLanes; ++r) rows[r] = row_of(least(r, n_rows - 1));  // what is repeated is not used
  Vec block[kLanes];
  std::int64_t c = 0;
  for (; c + kLanes <= columns; c += kLanes) {
#pragma GCC unroll 16
    for (std::int64_t r = 0; r < kLanes; ++r) block[r] = load(rows[r] + c);
    transpose(block);
#pragma GCC unroll 16
    for (std::int64_t r = 0; r < kLanes; ++r) out[c + r] = block[r];
  }
  if (c == columns) return;
  for (std::int64_t r = 0; r < kLanes; ++r) {
    block[r] = Vec{};
    std::memcpy(&block[r], rows[r] + c, (columns - c) * sizeof(float));
  }
  transpose(block);
  for (std::int64_t r = 0; c + r < columns; ++r) out[c + r] = block[r];
}

// The inverse: column-major to rows; writes `columns` rounded up to kLanes floats of every row, zero beyond `columns`.
template <typename RowOf>
inline void store_transposed(const Vec* in /* [columns] */, std::int64_t n_rows, std::int64_t columns, RowOf row_of) {
  Vec block[kLanes];
  std::int64_t c = 0;
  for (; c + kLanes <= columns; c += kLanes) {
#pragma GCC unroll 16
    for (std::int64_t r = 0; r < kLanes; ++r) block[r] = in[c + r];
    transpose(block);
    for (std::int64_t r = 0; r < n_rows; ++r) store(row_of(r) + c, block[r]);
  }
  if (c == columns) return;
  for (std::int64_t r = 0; r < kLanes; ++r) block[r] = c + r < columns ? in[c + r] : Vec{};
  transpose(block);
  for (std::int64_t r = 0; r < n_rows; ++r) store(row_of(r) + c, block[r]);
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

// 1 / (V ln K_v) for each view, 0 where K_v = 1: what turns a sum of entropies into the entropy term.
inline void entropy_scales(const TrainedSide& side, float* scales /* [V] */) {
  for (std::int64_t v = 0; v < side.n_views; ++v) {
    const std::int64_t clusters = side.view_offsets[v + 1] - side.view_offsets[v];
    scales[v] =
        clusters > 1 ? 1.0f / (static_cast<float>(side.n_views) * __builtin_logf(static_cast<float>(clusters))) : 0.0f;
  }
}

// Sums over the lanes of n vectors in memory, kLanes of them at a time.
inline void sum_all_lanes(const float* vectors /* [n, kLanes] */, std::int64_t n, float* sums /* [n] */) {
  Vec block[kLanes];
  for (std::int64_t j = 0; j < n; j += kLanes) {
    const std::int64_t width = least(kLanes, n - j);
    for (std::int64_t r = 0; r < kLanes; ++r) block[r] = r < width ? load(vectors + (j + r) * kLanes) : Vec{};
    transpose(block);
    for (std::int64_t half = kLanes / 2; half; half /= 2)
      for (std::int64_t r = 0; r < half; ++r) block[r] += block[r + half];
    std::memcpy(sums + j, &block[0], width * sizeof(float));
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

// `dim` is view_dim where it is known at compile time, so that what belongs to one view stays in registers; else 0.
template <std::int64_t dim>
void entity_forward_of(const TrainedSide& side, const BatchSide& batch, const LossSetup& loss,
                       const UpdateSetup& update, std::int64_t first, std::int64_t last, double* terms) {
  const std::int64_t s = side.total_clusters, d = dim ? dim : side.view_dim, n_views = side.n_views;
  constexpr std::int64_t most = dim ? dim : kMaxColumns;
  Vec tile[kMaxColumns], z[kMaxColumns], combined[most];
  float scales[kMaxColumns];
  entropy_scales(side, scales);
  Vec proximities{}, entropies{}, squares{}, bias_squares{};
  for (std::int64_t t = first; t < last; t += kLanes) {
    const std::int64_t n_rows = least(kLanes, batch.n_rows - t);
    for (std::int64_t r = t + kLanes; r < least(t + 2 * kLanes, last); ++r)
      prefetch(side.logits + batch.rows[r] * s, s);
    if (update.optimizer == Optimizer::adam)
      for (std::int64_t r = 0; r < n_rows; ++r) catch_up_row(side, update.adam, batch.rows[t + r], update.step);
    load_transposed([&](std::int64_t r) { return side.logits + batch.rows[t + r] * s; }, n_rows, s, tile);
    float* const log_weights = batch.log_weights + (t / kLanes) * s * kLanes;
    Vec proximity{}, entropy{};
    for (std::int64_t v = 0; v < n_views; ++v) {
      const std::int64_t k0 = side.view_offsets[v], k1 = side.view_offsets[v + 1];
      Vec largest = tile[k0];
      for (std::int64_t k = k0 + 1; k < k1; ++k) largest = maximum(largest, tile[k]);
      Vec total{}, weighted_log{}, weighted_norm{}, role[most];
      for (std::int64_t c = 0; c < d; ++c) role[c] = Vec{};
      for (std::int64_t k = k0; k < k1; ++k) {
        const Vec x = tile[k] - largest;
        const Vec w = exp_negative(x);
        const float* center = side.centers + k * d;
        tile[k] = x;
        total += w;
        weighted_log += w * x;
        weighted_norm += w * splat(side.center_norms[k]);
        for (std::int64_t c = 0; c < d; ++c) role[c] += w * splat(center[c]);
      }
      const Vec log_total = log_from_one(total), inverse = splat(1.0f) / total;
      for (std::int64_t k = k0; k < k1; ++k) store(log_weights + k * kLanes, tile[k] - log_total);
      Vec square{};
      for (std::int64_t c = 0; c < d; ++c) {
        const Vec zc = role[c] * inverse;
        square += zc * zc;
        z[v * d + c] = zc;
      }
      proximity += weighted_norm * inverse - square;
      entropy += (log_total - weighted_log * inverse) * splat(scales[v]);
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
    proximities += proximity * share;
    entropies += entropy * share;
    squares += l2 * share;
    store_transposed(embedding, n_rows, loss.embedding_dim,
                     [&](std::int64_t r) { return batch.embeddings + (t + r) * loss.padded_dim; });
    Vec bias{};
    for (std::int64_t r = 0; r < n_rows; ++r) {
      bias[r] = side.bias ? side.bias[batch.rows[t + r]] : 0.0f;
      batch.bias[t + r] = bias[r];
    }
    bias_squares += bias * bias * share;
  }
  terms[0] += sum_lanes(proximities) / static_cast<float>(n_views);
  terms[1] += sum_lanes(entropies);
  terms[2] += sum_lanes(squares);
  terms[3] += sum_lanes(bias_squares);
}

void entity_forward(const TrainedSide& side, const BatchSide& batch, const LossSetup& loss, const UpdateSetup& update,
                    std::int64_t first, std::int64_t last, double* terms) {
  if (!side.centers) return factor_forward(side, batch, loss, update, first, last, terms);
  switch (side.view_dim) {
    case 2:
      return entity_forward_of<2>(side, batch, loss, update, first, last, terms);
    case 4:
      return entity_forward_of<4>(side, batch, loss, update, first, last, terms);
    case 8:
      return entity_forward_of<8>(side, batch, loss, update, first, last, terms);
    case 16:
      return entity_forward_of<16>(side, batch, loss, update, first, last, terms);
    default:
      return entity_forward_of<0>(side, batch, loss, update, first, last, terms);
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

// One Adam step on n numbers that overlap with nothing else.
inline void adam_step(float* __restrict x, float* __restrict m, float* __restrict v, const float* __restrict g,
                      std::int64_t n, float size, float root, const AdamSchedule& adam) {
  const float rest1 = adam.rest1, beta2 = adam.beta2, rest2 = adam.rest2, epsilon = adam.epsilon;
  std::int64_t j = 0;
  for (; j + kLanes <= n; j += kLanes) {
    const Vec grad = load(g + j);
    Vec first = load(m + j), second = load(v + j);
    first += splat(rest1) * (grad - first);
    second = splat(beta2) * second + splat(rest2) * grad * grad;
    store(m + j, first);
    store(v + j, second);
    // the smallest normal number in the place of 0: its root is 1e-19, which epsilon swallows as it does 0
    const Vec deviation = second * inverse_sqrt(maximum(second, splat(1.17549435e-38f)));
    store(x + j, load(x + j) - splat(size) * first * inverse(deviation * splat(root) + splat(epsilon)));
  }
  for (; j < n; ++j) {
    m[j] += rest1 * (g[j] - m[j]);
    v[j] = beta2 * v[j] + rest2 * g[j] * g[j];
    x[j] -= size * m[j] / (__builtin_sqrtf(v[j]) * root + epsilon);
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
  const AdamSchedule& adam = update.adam;
  const float root = adam.inverse_root[update.step];
  adam_step(side.logits + e * s, side.logits_m + e * s, side.logits_v + e * s, grad, s, adam.logit_step[update.step], root, adam);
  if (side.bias)
    adam_step(side.bias + e, side.bias_m + e, side.bias_v + e, &grad_bias, 1, adam.bias_step[update.step], root, adam);
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

template <std::int64_t dim>
void entity_backward_of(const TrainedSide& side, const BatchSide& batch, const LossSetup& loss,
                        const UpdateSetup& update, std::int64_t first, std::int64_t last, float* scratch,
                        float* center_sums) {
  const std::int64_t s = side.total_clusters, d = dim ? dim : side.view_dim, n_views = side.n_views;
  const std::int64_t padded_clusters = (s + kLanes - 1) / kLanes * kLanes;
  constexpr std::int64_t most = dim ? dim : kMaxColumns;
  Vec tile[kMaxColumns], q[kMaxColumns], z[kMaxColumns], g[kMaxColumns];
  alignas(64) float rows[kLanes * kMaxColumns];
  float scales[kMaxColumns];
  entropy_scales(side, scales);
  std::memset(scratch, 0, s * (d + 1) * kLanes * sizeof(float));
  for (std::int64_t t = first; t < last; t += kLanes) {
    const std::int64_t n_rows = least(kLanes, batch.n_rows - t);
    if (update.optimizer == Optimizer::adam)  // for the end of this tile
      for (std::int64_t r = t; r < t + n_rows; ++r) {
        prefetch(side.logits + batch.rows[r] * s, s);
        prefetch(side.logits_m + batch.rows[r] * s, s);
        prefetch(side.logits_v + batch.rows[r] * s, s);
      }
    const float* const log_weights = batch.log_weights + (t / kLanes) * s * kLanes;
    load_transposed([&](std::int64_t r) { return batch.grad + (t + r) * loss.padded_dim; }, n_rows, loss.embedding_dim,
                    g);
    const Vec share = tile_shares(batch, t, n_rows, loss.batch_size);
    if (n_rows < kLanes)  // lanes without a row must add nothing to the centers
      for (std::int64_t c = 0; c < loss.embedding_dim; ++c) g[c] = share > Vec{} ? g[c] : Vec{};
    const Vec l2 = share * splat(2.0f * loss.l2);
    for (std::int64_t k = 0; k < s; ++k) tile[k] = exp_negative(load(log_weights + k * kLanes));
    if (loss.sum_views) {
      // z of each view is not kept, only their sum is
      for (std::int64_t v = 0; v < n_views; ++v) {
        Vec role[most];
        for (std::int64_t c = 0; c < d; ++c) role[c] = Vec{};
        for (std::int64_t k = side.view_offsets[v]; k < side.view_offsets[v + 1]; ++k)
          for (std::int64_t c = 0; c < d; ++c) role[c] += tile[k] * splat(side.centers[k * d + c]);
        for (std::int64_t c = 0; c < d; ++c) {
          z[v * d + c] = role[c];
          g[c] += l2 * role[c];
        }
      }
    } else {
      load_transposed([&](std::int64_t r) { return batch.embeddings + (t + r) * loss.padded_dim; }, n_rows,
                      loss.embedding_dim, z);
      for (std::int64_t c = 0; c < loss.embedding_dim; ++c) g[c] += l2 * z[c];
    }
    const Vec a = share * splat(loss.proximity / static_cast<float>(n_views)), twice_a = a + a;
    for (std::int64_t v = 0; v < n_views; ++v) {
      const std::int64_t k0 = side.view_offsets[v], k1 = side.view_offsets[v + 1];
      const Vec* gv = g + (loss.sum_views ? 0 : v * d);
      const Vec entropy_scale = share * splat(loss.entropy * scales[v]);
      Vec h[most];  // g - 2 a z
      for (std::int64_t c = 0; c < d; ++c) h[c] = gv[c] - twice_a * z[v * d + c];
      Vec heaviest{}, q_heaviest{};
      for (std::int64_t k = k0; k < k1; ++k) {
        const Vec w = tile[k];
        const float* center = side.centers + k * d;
        float* sums = scratch + k * (d + 1) * kLanes;
        Vec dot{};
        for (std::int64_t c = 0; c < d; ++c) {
          dot += h[c] * splat(center[c]);
          store(sums + c * kLanes, load(sums + c * kLanes) + w * h[c]);
        }
        store(sums + d * kLanes, load(sums + d * kLanes) + twice_a * w);
        // the entropy's gradient at A_k is -scale w (ln w + H): as if ∂/∂w were -scale ln w
        q[k] = dot + a * splat(side.center_norms[k]) - entropy_scale * load(log_weights + k * kLanes);
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
  sum_all_lanes(scratch, s * (d + 1), center_sums);
}

void entity_backward(const TrainedSide& side, const BatchSide& batch, const LossSetup& loss, const UpdateSetup& update,
                     std::int64_t first, std::int64_t last, float* scratch, float* center_sums) {
  if (!side.centers) return factor_backward(side, batch, loss, update, first, last);
  switch (side.view_dim) {
    case 2:
      return entity_backward_of<2>(side, batch, loss, update, first, last, scratch, center_sums);
    case 4:
      return entity_backward_of<4>(side, batch, loss, update, first, last, scratch, center_sums);
    case 8:
      return entity_backward_of<8>(side, batch, loss, update, first, last, scratch, center_sums);
    case 16:
      return entity_backward_of<16>(side, batch, loss, update, first, last, scratch, center_sums);
    default:
      return entity_backward_of<0>(side, batch, loss, update, first, last, scratch, center_sums);
  }
}

}  // namespace
}  // namespace mfdmc
