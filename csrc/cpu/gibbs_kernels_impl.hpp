// The kernels of gibbs_kernels.hpp for one instruction set; see simd.hpp for how that is chosen.
#pragma once

#include "cpu/gibbs_kernels.hpp"
#include "cpu/split_mix.hpp"
#include "cpu/simd.hpp"
#include "cpu/tiles.hpp"

namespace mfdmc {
namespace {

constexpr std::int64_t kRowGroup = 8;   // rows of a Gram matrix at a time: as many sums as hide the latency of an FMA

// sin(2 pi x) and cos(2 pi x) for |x| <= 1/2, absolute error below 3e-7.
inline void sin_cos_turns(Vec x, Vec& sine, Vec& cosine) {
  // x = quarter / 4 + r with |r| <= 1/8
  const Vec magic = splat(12582912.0f);
  const Vec shifted = x * splat(4.0f) + magic;
  const IntVec quarter = bits(shifted);
  const Vec r = (x - (shifted - magic) * splat(0.25f)) * splat(6.28318531f);
  const Vec r2 = r * r;
  Vec s = splat(-1.9515296e-4f);
  s = s * r2 + splat(8.3321609e-3f);
  s = s * r2 - splat(1.6666655e-1f);
  s = s * r2 * r + r;
  Vec c = splat(2.4433157e-5f);
  c = c * r2 - splat(1.3887316e-3f);
  c = c * r2 + splat(4.1666646e-2f);
  c = c * r2 * r2 - splat(0.5f) * r2 + splat(1.0f);
  const IntVec odd = -(quarter & 1);  // all ones where sine and cosine change places
  const IntVec swapped_sine = (bits(c) & odd) | (bits(s) & ~odd), swapped_cosine = (bits(s) & odd) | (bits(c) & ~odd);
  sine = from_bits(swapped_sine ^ ((quarter & 2) << 30));
  cosine = from_bits(swapped_cosine ^ (((quarter + 1) & 2) << 30));
}

// Standard normal numbers by Box and Muller, two vectors from one random number of 64 bits for each lane.
inline void normals(const std::uint64_t* random /* [kLanes] */, Vec& a, Vec& b) {
  alignas(64) float uniform[kLanes], turns[kLanes];
  for (std::int64_t lane = 0; lane < kLanes; ++lane) {
    // (0, 1) and [-1/2, 1/2]
    uniform[lane] = (static_cast<float>(static_cast<std::int32_t>(random[lane] >> 41)) + 0.5f) * 0x1p-23f;
    turns[lane] = static_cast<float>(static_cast<std::int32_t>(random[lane])) * 0x1p-32f;
  }
  const Vec twice = splat(2.0f) * log_from_one(splat(1.0f) / load(uniform));
  const Vec radius = twice * inverse_sqrt(maximum(twice, splat(1e-12f)));
  Vec sine, cosine;
  sin_cos_turns(load(turns), sine, cosine);
  a = radius * cosine;
  b = radius * sine;
}

// Adds x y' for the gathered rows to gram [rows, stride], lower triangle by whole blocks of columns.
inline void add_gram(const float* gathered /* [n, stride] */, std::int64_t n, std::int64_t rows, std::int64_t stride,
                     float* gram) {
  for (std::int64_t column = 0; column < rows; column += kLanes)
    for (std::int64_t row = column / kRowGroup * kRowGroup; row < rows; row += kRowGroup) {
      Vec sums[kRowGroup];
#pragma GCC unroll 8
      for (std::int64_t r = 0; r < kRowGroup; ++r) sums[r] = load(gram + (row + r) * stride + column);
      for (std::int64_t q = 0; q < n; ++q) {
        const float* const x = gathered + q * stride;
        const Vec y = load(x + column);
#pragma GCC unroll 8
        for (std::int64_t r = 0; r < kRowGroup; ++r) sums[r] += splat(x[row + r]) * y;
      }
#pragma GCC unroll 8
      for (std::int64_t r = 0; r < kRowGroup; ++r) store(gram + (row + r) * stride + column, sums[r]);
    }
}

// Each row's system has the matrix P = a X'X + diag(precision) and the right-hand side h = a X't + precision * prior, where
// X holds the partners' rows with a 1 for the bias, t what is left of the ratings, both times the root of the partner's
// weight, and a is noise_precision times the row's own weight. With t as one more column of X, the Cholesky factorization of the bordered matrix, L L' = P, leaves y =
// L^-1 h in its last row, and L'^-1 (y + e) with standard normal e has the mean P^-1 h and the covariance P^-1.
inline void sample_rows(const GibbsSide& own, const GibbsSide& other, const GibbsShape& shape, std::uint64_t key,
                        std::int64_t first, std::int64_t last, float* scratch) {
  const std::int64_t unknowns = shape.rank + 1, stride = shape.stride, n_rows = last - first;
  float* const gathered = scratch;                       // [kGathered, stride]
  float* const gram = gathered + kGathered * stride;     // [stride, stride]
  float* const system = gram + stride * stride;          // [triangle, kLanes]: row i, column j <= i at i (i + 1) / 2 + j
  float* const noise = system + (unknowns + 1) * (unknowns + 2) / 2 * kLanes;  // [unknowns + 1, kLanes]
  const auto at = [&](std::int64_t i, std::int64_t j) { return system + (i * (i + 1) / 2 + j) * kLanes; };

  for (std::int64_t lane = 0; lane < kLanes; ++lane) {
    const std::int64_t row = first + least(lane, n_rows - 1);  // what is repeated is not used
    for (std::int64_t j = 0; j < stride * stride; ++j) gram[j] = 0.0f;
    const std::int64_t end = lane < n_rows ? own.offsets[row + 1] : own.offsets[row];
    for (std::int64_t begin = own.offsets[row]; begin < end; begin += kGathered) {
      const std::int64_t n = least(kGathered, end - begin);
      for (std::int64_t q = 0; q < n; ++q) {
        const std::int64_t partner = own.partners[begin + q];
        const float* const from = other.factors + partner * stride;
        float* const to = gathered + q * stride;
        const float root = __builtin_sqrtf(other.weight[partner]);
        for (std::int64_t c = 0; c < stride; c += kLanes) store(to + c, splat(root) * load(from + c));
        to[unknowns] = root * (own.ratings[begin + q] - shape.mean - other.bias[partner]);
      }
      add_gram(gathered, n, unknowns + 1, stride, gram);
    }
    for (std::int64_t i = 0; i <= unknowns; ++i)
      for (std::int64_t j = 0; j <= i; ++j) at(i, j)[lane] = gram[i * stride + j];
    for (std::int64_t k = 0; k < unknowns; ++k)  // the prior's part of h, to be added below
      noise[k * kLanes + lane] = own.precision[k] * own.prior[row * stride + k];
  }

  alignas(64) float weight[kLanes];
  for (std::int64_t lane = 0; lane < kLanes; ++lane) weight[lane] = own.weight[first + least(lane, n_rows - 1)];
  const Vec alpha = splat(shape.noise_precision) * load(weight);
  for (std::int64_t i = 0; i <= unknowns; ++i)
    for (std::int64_t j = 0; j <= i && j < unknowns; ++j) {
      Vec value = alpha * load(at(i, j));
      if (i == j) value += splat(own.precision[i]);
      if (i == unknowns) value += load(noise + j * kLanes);
      store(at(i, j), value);
    }
  for (std::int64_t j = 0; j < unknowns; ++j) {
    // without rounding a pivot is never less than the prior's share
    const Vec inverse_pivot = inverse_sqrt(maximum(load(at(j, j)), splat(own.precision[j])));
    store(at(j, j), inverse_pivot);
    for (std::int64_t i = j + 1; i <= unknowns; ++i) store(at(i, j), load(at(i, j)) * inverse_pivot);
    for (std::int64_t i = j + 1; i <= unknowns; ++i) {
      const Vec factor = load(at(i, j));
      for (std::int64_t k = j + 1; k <= i && k < unknowns; ++k)
        store(at(i, k), load(at(i, k)) - factor * load(at(k, j)));
    }
  }

  const std::int64_t pairs = (unknowns + 1) / 2;
  for (std::int64_t pair = 0; pair < pairs; ++pair) {
    std::uint64_t random[kLanes];
    for (std::int64_t lane = 0; lane < kLanes; ++lane) random[lane] = random_at(key, (first + lane) * pairs + pair);
    Vec a, b;
    normals(random, a, b);
    store(noise + 2 * pair * kLanes, a);
    store(noise + (2 * pair + 1) * kLanes, b);
  }
  for (std::int64_t j = unknowns - 1; j >= 0; --j) {
    Vec value = load(at(unknowns, j)) + load(noise + j * kLanes);
    for (std::int64_t i = j + 1; i < unknowns; ++i) value -= load(at(i, j)) * load(noise + i * kLanes);
    store(noise + j * kLanes, value * load(at(j, j)));  // in place of the noise: the solution
  }
  for (std::int64_t lane = 0; lane < n_rows; ++lane) {
    float* const row = own.factors + (first + lane) * stride;
    for (std::int64_t k = 0; k < shape.rank; ++k) row[k] = noise[k * kLanes + lane];
    own.bias[first + lane] = noise[shape.rank * kLanes + lane];
  }
}

inline void sample_features(const FeatureBlock& block, const GibbsShape& shape, const float* precision,
                            const float* weight_precision, std::uint64_t key, std::int64_t column, float* residuals) {
  const std::int64_t stride = shape.stride;
  const Vec row_precision = load(precision + column), own_precision = load(weight_precision + column);
  float* const of_column = residuals + column;
  for (std::int64_t f = 0; f < block.n_features; ++f) {
    const std::int64_t begin = block.offsets[f], end = block.offsets[f + 1];
    Vec sum{};
    for (std::int64_t q = begin; q < end; ++q) {
      const std::int64_t entity = block.entities[q];
      sum += splat(block.scale[entity]) * load(of_column + entity * stride);
    }
    float* const weights = block.weights + f * stride + column;
    const Vec old = load(weights), known = row_precision * splat(block.squares[f]);
    const Vec variance = inverse(known + own_precision);
    std::uint64_t random[kLanes];
    for (std::int64_t lane = 0; lane < kLanes; ++lane) random[lane] = random_at(key, f * (shape.rank + 1) + column + lane);
    Vec noise, unused;
    normals(random, noise, unused);
    const Vec drawn = (row_precision * sum + known * old) * variance + noise * variance * inverse_sqrt(variance);
    store(weights, drawn);
    const Vec change = drawn - old;
    for (std::int64_t q = begin; q < end; ++q) {
      const std::int64_t entity = block.entities[q];
      float* const residual = of_column + entity * stride;
      store(residual, load(residual) - splat(block.scale[entity]) * change);
    }
  }
}

// Both rows end in a 1 for the bias, which the product is too large by.
inline float predict(const GibbsSide& a, const GibbsSide& b, const GibbsShape& shape, std::int64_t i, std::int64_t j) {
  const float *x = a.factors + i * shape.stride, *y = b.factors + j * shape.stride;
  Vec sum{};
  for (std::int64_t c = 0; c < shape.stride; c += kLanes) sum += load(x + c) * load(y + c);
  return sum_lanes(sum) - 1.0f + shape.mean + a.bias[i] + b.bias[j];
}

inline void squared_errors(const GibbsSide& own, const GibbsSide& other, const GibbsShape& shape, std::int64_t first,
                           std::int64_t last, double* sums) {
  for (std::int64_t i = first; i < last; ++i) {
    double sum = 0;
    for (std::int64_t q = own.offsets[i]; q < own.offsets[i + 1]; ++q) {
      const std::int64_t partner = own.partners[q];
      const double error = predict(own, other, shape, i, partner) - own.ratings[q];
      sum += error * error * other.weight[partner];
    }
    sums[i] = sum;
  }
}

inline void add_predictions(const GibbsSide& user, const GibbsSide& item, const GibbsShape& shape,
                            const std::int32_t* users, const std::int32_t* items, std::int64_t n, float low,
                            float high, float* sums) {
  for (std::int64_t q = 0; q < n; ++q) {
    const float value = predict(user, item, shape, users[q], items[q]);
    sums[q] += value < low ? low : value > high ? high : value;
  }
}

}  // namespace
}  // namespace mfdmc
