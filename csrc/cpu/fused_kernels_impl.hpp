// Included by one file for each instruction set, which has set MFDMC_VECTOR_BYTES and -march.
#pragma once

#include "cpu/fused_kernels.hpp"
#include "cpu/row_optimizers.hpp"
#include "cpu/short_permutations.hpp"
#include "cpu/simd.hpp"
#include "cpu/tiles.hpp"

namespace mfdmc {
namespace {

// 1 / (V ln K_v) for each view, 0 where K_v = 1: what turns a sum of entropies into the entropy term.
inline void entropy_scales(const TrainedSide& side, float* scales /* [V] */) {
  for (std::int64_t v = 0; v < side.n_views; ++v) {
    const std::int64_t clusters = side.view_offsets[v + 1] - side.view_offsets[v];
    scales[v] =
        clusters > 1 ? 1.0f / (static_cast<float>(side.n_views) * __builtin_logf(static_cast<float>(clusters))) : 0.0f;
  }
}

// The sum of a(c) b(c) over the d columns of a view. Where d = `dim` is known, in four sums: one alone would make every
// addition wait for the one before it.
template <std::int64_t dim, typename A, typename B>
inline Vec sum_of_products(std::int64_t d, A a, B b) {
  if constexpr (dim < 8) {
    Vec sum = a(0) * b(0);
    for (std::int64_t c = 1; c < (dim ? dim : d); ++c) sum += a(c) * b(c);
    return sum;
  } else {
    Vec sums[4] = {a(0) * b(0), a(1) * b(1), a(2) * b(2), a(3) * b(3)};
#pragma GCC unroll 16
    for (std::int64_t c = 4; c < dim; ++c) sums[c % 4] += a(c) * b(c);
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
  }
}

// What all rows of a tile have in common, of MFDMC and of FunkMF: share of the ratings and the biases' part of the
// loss.
struct TileBias {
  Vec share, square;  // share * bias^2
};

inline TileBias forward_bias(const TrainedSide& side, const BatchSide& batch, const LossSetup& loss, std::int64_t t,
                             std::int64_t n_rows) {
  const Vec share = tile_shares(batch, t, n_rows, loss.batch_size);
  const Vec bias = side.bias ? gather(side.bias, batch.rows + t, n_rows) : Vec{};
  store_part(batch.bias + t, bias, n_rows);
  return {share, bias * bias * share};
}

// The rows' shares in the L2 term.
inline Vec l2_shares(const TrainedSide& side, const BatchSide& batch, std::int64_t t, std::int64_t n_rows, Vec share) {
  return side.l2_scale ? share * gather(side.l2_scale, batch.rows + t, n_rows) : share;
}

// Asks for what the forward pass reads of rows [first, last) of the batch.
inline void prefetch_logits(const TrainedSide& side, const UpdateSetup& update, const std::int64_t* rows,
                            std::int64_t first, std::int64_t last) {
  const std::int64_t s = side.total_clusters;
  for (std::int64_t r = first; r < last; ++r) {
    prefetch(side.logits + rows[r] * s, s);
    if (update.optimizer != Optimizer::adam || side.next_step[rows[r]] >= update.step) continue;
    prefetch(side.logits_m + rows[r] * s, s);
    prefetch(side.logits_v + rows[r] * s, s);
  }
}

// FunkMF: the embedding is the row itself.
void factor_forward(const TrainedSide& side, const BatchSide& batch, const LossSetup& loss, const UpdateSetup& update,
                    std::int64_t first, std::int64_t last, double* terms) {
  const std::int64_t n = side.total_clusters;
  const MissedSteps missed(update.schedule);
  Vec squares{}, bias_squares{};
  for (std::int64_t t = first; t < last; t += kLanes) {
    const std::int64_t n_rows = least(kLanes, last - t);
    prefetch_logits(side, update, batch.rows, t + kLanes, least(t + 2 * kLanes, last));
    if (update.optimizer == Optimizer::adam)
      for (std::int64_t r = 0; r < n_rows; ++r) missed.move(side, batch.rows[t + r], update.step);
    Vec lengths[kLanes];
    for (std::int64_t r = 0; r < kLanes; ++r) lengths[r] = Vec{};
    for (std::int64_t r = 0; r < n_rows; ++r) {
      const float* row = side.logits + batch.rows[t + r] * n;
      float* z = batch.embeddings + (t + r) * loss.padded_dim;
      for (std::int64_t j = 0; j < n; j += kLanes) {
        const Vec x = load_part(row + j, least(kLanes, n - j));
        store(z + j, x);
        lengths[r] += x * x;
      }
    }
    const TileBias bias = forward_bias(side, batch, loss, t, n_rows);
    squares += sums_of_rows(lengths) * l2_shares(side, batch, t, n_rows, bias.share);
    bias_squares += bias.square;
  }
  terms[2] += sum_lanes(squares);
  terms[3] += sum_lanes(bias_squares);
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
  const MissedSteps missed(update.schedule);
  Vec proximities{}, entropies{}, squares{}, bias_squares{};
  for (std::int64_t t = first; t < last; t += kLanes) {
    const std::int64_t n_rows = least(kLanes, batch.n_rows - t);
    prefetch_logits(side, update, batch.rows, t + kLanes, least(t + 2 * kLanes, last));
    if (update.optimizer == Optimizer::adam)
      for (std::int64_t r = 0; r < n_rows; ++r) missed.move(side, batch.rows[t + r], update.step);
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
        total += w;
        weighted_log += w * x;
        weighted_norm += w * splat(side.center_norms[k]);
        for (std::int64_t c = 0; c < d; ++c) role[c] += w * splat(center[c]);
      }
      const Vec log_total = log_from_one(total), inverse = splat(1.0f) / total;
      // two differences: the sum of `largest` and `log_total` would round where logits are large
      for (std::int64_t k = k0; k < k1; ++k) store(log_weights + k * kLanes, (tile[k] - largest) - log_total);
      for (std::int64_t c = 0; c < d; ++c) z[v * d + c] = role[c] *= inverse;
      const auto role_at = [&](std::int64_t c) { return role[c]; };
      const Vec square = sum_of_products<dim>(d, role_at, role_at);
      proximity += weighted_norm * inverse - square;
      entropy += (log_total - weighted_log * inverse) * splat(scales[v]);
    }
    const Vec* embedding = z;
    if (loss.sum_views) {
      for (std::int64_t c = 0; c < n_views * d; ++c)
        store(batch.view_embeddings + (t / kLanes * n_views * d + c) * kLanes, z[c]);
      for (std::int64_t c = 0; c < d; ++c) {
        combined[c] = z[c];
        for (std::int64_t v = 1; v < n_views; ++v) combined[c] += z[v * d + c];
      }
      embedding = combined;
    }
    Vec l2{};
    for (std::int64_t c = 0; c < loss.embedding_dim; ++c) l2 += embedding[c] * embedding[c];
    const TileBias bias = forward_bias(side, batch, loss, t, n_rows);
    proximities += proximity * bias.share;
    entropies += entropy * bias.share;
    squares += l2 * l2_shares(side, batch, t, n_rows, bias.share);
    bias_squares += bias.square;
    for_rows(embedding, n_rows, loss.embedding_dim, [&](std::int64_t r, std::int64_t c, Vec x, std::int64_t) {
      store(batch.embeddings + (t + r) * loss.padded_dim + c, x);  // zero in the padding
    });
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

void weight_sums(const TrainedSide& side, const bool* among, std::int64_t first, std::int64_t last, double* sums) {
  const std::int64_t s = side.total_clusters;
  Vec tile[kMaxColumns], totals[kMaxColumns];
  for (std::int64_t k = 0; k < s; ++k) totals[k] = Vec{};
  for (std::int64_t t = first; t < last; t += kLanes) {
    const std::int64_t n_rows = least(kLanes, last - t);
    load_transposed([&](std::int64_t r) { return side.logits + (t + r) * s; }, n_rows, s, tile);
    alignas(64) float counted[kLanes];
    for (std::int64_t r = 0; r < kLanes; ++r) counted[r] = r < n_rows && among[t + r] ? 1.0f : 0.0f;
    for (std::int64_t v = 0; v < side.n_views; ++v) {
      const std::int64_t k0 = side.view_offsets[v], k1 = side.view_offsets[v + 1];
      Vec largest = tile[k0], total{};
      for (std::int64_t k = k0 + 1; k < k1; ++k) largest = maximum(largest, tile[k]);
      for (std::int64_t k = k0; k < k1; ++k) total += tile[k] = exp_negative(tile[k] - largest);
      const Vec factor = load(counted) / total;
      for (std::int64_t k = k0; k < k1; ++k) totals[k] += tile[k] * factor;
    }
  }
  for (std::int64_t k = 0; k < s; ++k) sums[k] = sum_lanes(totals[k]);
}

// The sum of e z_other over ratings of one row, in registers if `width`, its length in vectors, is known; else `width`
// is 0 and it grows in memory.
template <std::int64_t width>
class GradientSum {
 public:
  GradientSum(const BatchSide& batch, std::int64_t row, std::int64_t padded_dim)
      : to_(batch.grad + row * padded_dim), bias_(batch.grad_bias + row), padded_dim_(padded_dim) {
    if constexpr (width)
      for (std::int64_t c = 0; c < width; ++c) sums_[c] = Vec{};
    else
      for (std::int64_t c = 0; c < padded_dim; c += kLanes) store(to_ + c, Vec{});
  }

  void add(float error, const float* z) {
    total_ += error;
    if constexpr (width)
      for (std::int64_t c = 0; c < width; ++c) sums_[c] += splat(error) * load(z + c * kLanes);
    else
      for (std::int64_t c = 0; c < padded_dim_; c += kLanes) store(to_ + c, load(to_ + c) + splat(error) * load(z + c));
  }

  void finish() {
    *bias_ = total_;
    if constexpr (width)
      for (std::int64_t c = 0; c < width; ++c) store(to_ + c * kLanes, sums_[c]);
  }

 private:
  float *to_, *bias_;
  std::int64_t padded_dim_;
  float total_ = 0;
  Vec sums_[width ? width : 1];
};

template <std::int64_t width>
double rating_pass_of(const BatchSide& user, const BatchSide& item, const LossSetup& loss, const float* ratings,
                      float global_mean, std::int64_t first, std::int64_t last, float* errors) {
  const std::int64_t padded_dim = width ? width * kLanes : loss.padded_dim;
  const Vec scale = splat(2.0f / static_cast<float>(loss.batch_size));
  const std::int64_t begin = user.offsets[first], end = user.offsets[last];
  const std::int32_t* const items = user.items;
  const float* const z_items = item.embeddings;
  double squares = 0;
  Vec square{};
  std::int64_t row = first - 1, row_end = begin;                      // of the rating whose prediction is next
  const float* z_user = nullptr;                                      // of that row
  float row_bias = 0;                                                 // of that row, and the mean
  std::int64_t summed = first, summed_end = user.offsets[first + 1];  // of the rating whose gradient is next
  GradientSum<width> sum(user, first, padded_dim);
  for (std::int64_t b = begin; b < end; b += kLanes) {
    const std::int64_t n = least(kLanes, end - b);
    alignas(64) float known[kLanes], scaled[kLanes];  // known: of a prediction without z
    Vec products[kLanes];
    const auto predict = [&](std::int64_t q, std::int64_t r) {
      if (q == row_end) {
        row_end = user.offsets[++row + 1];
        z_user = user.embeddings + row * padded_dim;
        row_bias = user.bias[row] + global_mean;
      }
      const std::int64_t i = items[q];
      const float* const z = z_items + i * padded_dim;
      known[r] = row_bias + item.bias[i];
      Vec product = load(z_user) * load(z);
      for (std::int64_t j = kLanes; j < padded_dim; j += kLanes) product += load(z_user + j) * load(z + j);
      products[r] = product;
    };
    if (n == kLanes) {
#pragma GCC unroll 16
      for (std::int64_t r = 0; r < kLanes; ++r) predict(b + r, r);
    } else {
      for (std::int64_t r = 0; r < kLanes; ++r) predict(b + least(r, n - 1), r);  // repeats the last rating
    }
    for (std::int64_t q = b + kLanes; q < least(b + 2 * kLanes, end); ++q)
      prefetch(z_items + items[q] * padded_dim, padded_dim);
    const Vec error = sums_of_rows(products) + load(known) - load_part(ratings + b, n);
    store(scaled, error * scale);
    store_part(errors + b, error * scale, n);
    if (n < kLanes) {
      for (std::int64_t r = 0; r < n; ++r) squares += static_cast<double>(error[r]) * error[r];
    } else {
      square += error * error;
    }
    for (std::int64_t r = 0; r < n; ++r) {
      if (b + r == summed_end) {
        sum.finish();
        sum = GradientSum<width>(user, ++summed, padded_dim);
        summed_end = user.offsets[summed + 1];
      }
      sum.add(scaled[r], z_items + items[b + r] * padded_dim);
    }
  }
  sum.finish();
  return squares + static_cast<double>(sum_lanes(square));
}

double rating_pass(const BatchSide& user, const BatchSide& item, const LossSetup& loss, const float* ratings,
                   float global_mean, std::int64_t first, std::int64_t last, float* errors) {
  if (first == last) return 0;
  switch (loss.padded_dim / kLanes) {
    case 1:
      return rating_pass_of<1>(user, item, loss, ratings, global_mean, first, last, errors);
    case 2:
      return rating_pass_of<2>(user, item, loss, ratings, global_mean, first, last, errors);
    case 4:
      return rating_pass_of<4>(user, item, loss, ratings, global_mean, first, last, errors);
    case 8:
      return rating_pass_of<8>(user, item, loss, ratings, global_mean, first, last, errors);
    default:
      return rating_pass_of<0>(user, item, loss, ratings, global_mean, first, last, errors);
  }
}

template <std::int64_t width>
void item_sums_of(const BatchSide& item, const BatchSide& user, const LossSetup& loss, const float* errors,
                  std::int64_t first, std::int64_t last) {
  const std::int64_t padded_dim = width ? width * kLanes : loss.padded_dim, n = item.offsets[last];
  constexpr std::int64_t ahead = 16;  // ratings
  for (std::int64_t row = first; row < last; ++row) {
    GradientSum<width> sum(item, row, padded_dim);
    for (std::int64_t q = item.offsets[row]; q < item.offsets[row + 1]; ++q) {
      if (q + ahead < n) {
        prefetch(user.embeddings + item.links[q + ahead].user * padded_dim, padded_dim);
        __builtin_prefetch(errors + item.links[q + ahead].rating);
      }
      sum.add(errors[item.links[q].rating], user.embeddings + item.links[q].user * padded_dim);
    }
    sum.finish();
  }
}

// grad and grad_bias of items.
void item_sums(const BatchSide& item, const BatchSide& user, const LossSetup& loss, const float* errors,
                      std::int64_t first, std::int64_t last) {
  switch (loss.padded_dim / kLanes) {
    case 1:
      return item_sums_of<1>(item, user, loss, errors, first, last);
    case 2:
      return item_sums_of<2>(item, user, loss, errors, first, last);
    case 4:
      return item_sums_of<4>(item, user, loss, errors, first, last);
    case 8:
      return item_sums_of<8>(item, user, loss, errors, first, last);
    default:
      return item_sums_of<0>(item, user, loss, errors, first, last);
  }
}

// Asks for all that the optimizer will change in the rows of a tile.
inline void prefetch_state(const TrainedSide& side, const UpdateSetup& update, const std::int64_t* rows,
                           std::int64_t n_rows) {
  const std::int64_t s = side.total_clusters;
  if (update.optimizer == Optimizer::none) return;
  for (std::int64_t r = 0; r < n_rows; ++r) {
    prefetch(side.logits + rows[r] * s, s);
    if (update.optimizer != Optimizer::adam) continue;
    prefetch(side.logits_m + rows[r] * s, s);
    prefetch(side.logits_v + rows[r] * s, s);
  }
}

inline Vec bias_gradient(const BatchSide& batch, const LossSetup& loss, std::int64_t t, std::int64_t n_rows,
                         Vec share) {
  return load_part(batch.grad_bias + t, n_rows) +
         splat(2.0f * loss.bias_l2) * share * load_part(batch.bias + t, n_rows);
}

void factor_backward(const TrainedSide& side, const BatchSide& batch, const BatchSide& other, const LossSetup& loss,
                     const UpdateSetup& update, const float* errors, std::int64_t first, std::int64_t last) {
  for (std::int64_t t = first; t < last; t += kLanes) {
    const std::int64_t n_rows = least(kLanes, last - t);
    prefetch_state(side, update, batch.rows + t, n_rows);
    if (batch.links) item_sums(batch, other, loss, errors, t, t + n_rows);
    const Vec share = tile_shares(batch, t, n_rows, loss.batch_size);
    alignas(64) float shares[kLanes];
    store(shares, l2_shares(side, batch, t, n_rows, share));
    update_biases(side, update, batch.rows + t, n_rows, bias_gradient(batch, loss, t, n_rows, share));
    for (std::int64_t r = 0; r < n_rows; ++r) {
      const float* z = batch.embeddings + (t + r) * loss.padded_dim;
      const float* grad = batch.grad + (t + r) * loss.padded_dim;
      const Vec l2 = splat(2.0f * loss.l2 * shares[r]);
      update_row(side, update, batch.rows[t + r], [&](std::int64_t c) { return load(grad + c) + l2 * load(z + c); });
    }
  }
}

// Adds to sums [S, d + 1] the products of the weights of some tiles with their h and 2 a, for the clusters of a view
// from k on and `n` columns from `first` on: a matrix product with the sums of `block` clusters in registers.
template <std::int64_t dim, std::int64_t block, std::int64_t first, std::int64_t n>
void add_center_sums(const TrainedSide& side, const float* weights /* [tiles, S, kLanes] */,
                     const float* h /* [tiles, V d + 1, kLanes] */, std::int64_t n_tiles, std::int64_t v,
                     std::int64_t k, float* sums) {
  const std::int64_t s = side.total_clusters, columns = side.n_views * dim + 1, k1 = side.view_offsets[v + 1];
  for (; k + block <= k1; k += block) {
    Vec acc[block][n];
#pragma GCC unroll 8
    for (std::int64_t j = 0; j < block; ++j)
#pragma GCC unroll 17
      for (std::int64_t c = 0; c < n; ++c) acc[j][c] = load(sums + ((k + j) * (dim + 1) + first + c) * kLanes);
    for (std::int64_t tile = 0; tile < n_tiles; ++tile) {
      const float* const row = h + tile * columns * kLanes;
      Vec w[block];
#pragma GCC unroll 8
      for (std::int64_t j = 0; j < block; ++j) w[j] = load(weights + (tile * s + k + j) * kLanes);
#pragma GCC unroll 17
      for (std::int64_t c = 0; c < n; ++c) {
        const Vec x = load(row + (first + c < dim ? v * dim + first + c : columns - 1) * kLanes);
#pragma GCC unroll 8
        for (std::int64_t j = 0; j < block; ++j) acc[j][c] += w[j] * x;
      }
    }
#pragma GCC unroll 8
    for (std::int64_t j = 0; j < block; ++j)
#pragma GCC unroll 17
      for (std::int64_t c = 0; c < n; ++c) store(sums + ((k + j) * (dim + 1) + first + c) * kLanes, acc[j][c]);
  }
  if constexpr (block > 1) add_center_sums<dim, block / 2, first, n>(side, weights, h, n_tiles, v, k, sums);
}

// The same for all clusters of a view and the columns from `first` on, as many at a time as there are registers for.
template <std::int64_t dim, std::int64_t first = 0>
void add_view_sums(const TrainedSide& side, const float* weights, const float* h, std::int64_t n_tiles, std::int64_t v,
                   float* sums) {
  constexpr std::int64_t block = kLanes < 16 ? 2 : 4, most = kLanes < 16 ? 5 : 6, left = dim + 1 - first;
  constexpr std::int64_t n = (left + (left + most - 1) / most - 1) / ((left + most - 1) / most);
  add_center_sums<dim, block, first, n>(side, weights, h, n_tiles, v, side.view_offsets[v], sums);
  if constexpr (n < left) add_view_sums<dim, first + n>(side, weights, h, n_tiles, v, sums);
}

// The same for any d.
inline void add_center_sums_of_any_dim(const TrainedSide& side, const float* weights, const float* h,
                                       std::int64_t n_tiles, std::int64_t v, float* sums) {
  const std::int64_t s = side.total_clusters, d = side.view_dim, columns = side.n_views * d + 1;
  for (std::int64_t k = side.view_offsets[v]; k < side.view_offsets[v + 1]; ++k)
    for (std::int64_t c = 0; c <= d; ++c) {
      Vec sum = load(sums + (k * (d + 1) + c) * kLanes);
      for (std::int64_t tile = 0; tile < n_tiles; ++tile)
        sum += load(weights + (tile * s + k) * kLanes) *
               load(h + (tile * columns + (c < d ? v * d + c : columns - 1)) * kLanes);
      store(sums + (k * (d + 1) + c) * kLanes, sum);
    }
}

template <std::int64_t dim>
void entity_backward_of(const TrainedSide& side, const BatchSide& batch, const BatchSide& other, const LossSetup& loss,
                        const UpdateSetup& update, const float* errors, std::int64_t first, std::int64_t last,
                        float* scratch, float* center_sums) {
  const std::int64_t s = side.total_clusters, d = dim ? dim : side.view_dim, n_views = side.n_views;
  const std::int64_t columns = n_views * d + 1;
  constexpr std::int64_t most = dim ? dim : kMaxColumns;
  Vec tile[kMaxColumns], q[kMaxColumns], z[kMaxColumns], g[kMaxColumns];
  float scales[kMaxColumns];
  entropy_scales(side, scales);
  float* const sums = scratch;                                     // [S, d + 1, kLanes]
  float* const all_weights = sums + s * (d + 1) * kLanes;          // [kTilesTogether, S, kLanes]
  float* const all_h = all_weights + kTilesTogether * s * kLanes;  // [kTilesTogether, V d + 1, kLanes]
  std::memset(sums, 0, s * (d + 1) * kLanes * sizeof(float));
  std::int64_t together = 0;
  for (std::int64_t t = first; t < last; t += kLanes) {
    const std::int64_t n_rows = least(kLanes, batch.n_rows - t);
    prefetch_state(side, update, batch.rows + t, n_rows);  // for the end of this tile
    if (batch.links) item_sums(batch, other, loss, errors, t, t + n_rows);
    const float* const log_weights = batch.log_weights + (t / kLanes) * s * kLanes;
    float* const weights = all_weights + together * s * kLanes;
    float* const tile_h = all_h + together * columns * kLanes;
    load_transposed([&](std::int64_t r) { return batch.grad + (t + r) * loss.padded_dim; }, n_rows, loss.embedding_dim,
                    g);
    const Vec share = tile_shares(batch, t, n_rows, loss.batch_size);
    if (n_rows < kLanes)  // lanes without a row must add nothing to the centers
      for (std::int64_t c = 0; c < loss.embedding_dim; ++c) g[c] = share > Vec{} ? g[c] : Vec{};
    if (loss.sum_views) {
      for (std::int64_t c = 0; c < n_views * d; ++c)
        z[c] = load(batch.view_embeddings + (t / kLanes * n_views * d + c) * kLanes);
    } else {
      load_transposed([&](std::int64_t r) { return batch.embeddings + (t + r) * loss.padded_dim; }, n_rows,
                      loss.embedding_dim, z);
    }
    const Vec l2 = l2_shares(side, batch, t, n_rows, share) * splat(2.0f * loss.l2);
    for (std::int64_t v = 0; v < n_views; ++v)
      for (std::int64_t c = 0; c < d; ++c) g[loss.sum_views ? c : v * d + c] += l2 * z[v * d + c];
    const Vec a = share * splat(loss.proximity / static_cast<float>(n_views)), twice_a = a + a;
    store(tile_h + (columns - 1) * kLanes, twice_a);
    for (std::int64_t v = 0; v < n_views; ++v) {
      const std::int64_t k0 = side.view_offsets[v], k1 = side.view_offsets[v + 1];
      const Vec* gv = g + (loss.sum_views ? 0 : v * d);
      const Vec entropy_scale = share * splat(loss.entropy * scales[v]);
      Vec h[most];  // g - 2 a z
      for (std::int64_t c = 0; c < d; ++c) {
        h[c] = gv[c] - twice_a * z[v * d + c];
        store(tile_h + (v * d + c) * kLanes, h[c]);
      }
      // The mean of q is taken relative to the q of the heaviest cluster so far, so that nothing cancels where one
      // weight is almost 1.
      Vec heaviest{}, origin{}, total{}, mean{};
      for (std::int64_t k = k0; k < k1; ++k) {
        const Vec log_w = load(log_weights + k * kLanes), w = exp_negative(log_w);
        const float* center = side.centers + k * d;
        // the entropy's gradient at A_k is -scale w (ln w + H): as if ∂/∂w were -scale ln w
        Vec qk = a * splat(side.center_norms[k]) - entropy_scale * log_w;
        qk += sum_of_products<dim>(
            d, [&](std::int64_t c) { return h[c]; }, [&](std::int64_t c) { return splat(center[c]); });
        const Vec difference = qk - origin;
        const auto heavier = w > heaviest;
        mean += (heavier ? -total : w) * difference;
        origin = heavier ? qk : origin;
        total += w;
        heaviest = maximum(w, heaviest);
        q[k] = qk;
        store(weights + k * kLanes, w);
      }
      for (std::int64_t k = k0; k < k1; ++k) tile[k] = load(weights + k * kLanes) * ((q[k] - origin) - mean);
    }
    update_biases(side, update, batch.rows + t, n_rows, bias_gradient(batch, loss, t, n_rows, share));
    update_tile(side, update, batch.rows + t, n_rows, tile);
    if (++together < kTilesTogether && t + kLanes < last) continue;
    for (std::int64_t v = 0; v < n_views; ++v) {
      if constexpr (dim)
        add_view_sums<dim>(side, all_weights, all_h, together, v, sums);
      else
        add_center_sums_of_any_dim(side, all_weights, all_h, together, v, sums);
    }
    together = 0;
  }
  sum_all_lanes(sums, s * (d + 1), center_sums);
}

void entity_backward(const TrainedSide& side, const BatchSide& batch, const BatchSide& other, const LossSetup& loss,
                     const UpdateSetup& update, const float* errors, std::int64_t first, std::int64_t last,
                     float* scratch, float* center_sums) {
  if (!side.centers) return factor_backward(side, batch, other, loss, update, errors, first, last);
  switch (side.view_dim) {
    case 2:
      return entity_backward_of<2>(side, batch, other, loss, update, errors, first, last, scratch, center_sums);
    case 4:
      return entity_backward_of<4>(side, batch, other, loss, update, errors, first, last, scratch, center_sums);
    case 8:
      return entity_backward_of<8>(side, batch, other, loss, update, errors, first, last, scratch, center_sums);
    case 16:
      return entity_backward_of<16>(side, batch, other, loss, update, errors, first, last, scratch, center_sums);
    default:
      return entity_backward_of<0>(side, batch, other, loss, update, errors, first, last, scratch, center_sums);
  }
}

}  // namespace
}  // namespace mfdmc
