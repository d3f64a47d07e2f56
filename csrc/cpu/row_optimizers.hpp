// Optimizer steps on the rows of a table. Part of the kernels that are compiled once for each instruction set.
#pragma once

#include "cpu/fused_kernels.hpp"
#include "cpu/simd.hpp"
#include "cpu/tiles.hpp"

namespace mfdmc {
namespace {

constexpr std::int32_t kNoMomentum = 192;  // 0.9^192 is 2e-9: what is left of the momentum moves no float

// A function of up to kLanes numbers of a row and its moments, in place.
template <typename Function>
inline void update_moments(float* p, float* m, float* v, std::int64_t n, Function function) {
  Vec x = load_part(p, n), first = load_part(m, n), second = load_part(v, n);
  function(x, first, second);
  store_part(p, x, n);
  store_part(m, first, n);
  store_part(v, second, n);
}

// numerator / (sqrt(v) * root + epsilon)
inline Vec adam_quotient(Vec numerator, Vec v, Vec root, Vec epsilon) {
  // the smallest normal number in the place of 0: its root is 1e-19, which epsilon swallows as it does 0
  const Vec deviation = v * inverse_sqrt(maximum(v, splat(1.17549435e-38f)));
  return numerator * inverse(deviation * root + epsilon);
}

// One step of Adam with its constants in registers.
struct AdamStep {
  Vec rest1, beta2, rest2, epsilon, root, size;

  AdamStep(const StepSchedule& schedule, float step_size, std::int32_t step)
      : rest1(splat(schedule.rest1)),
        beta2(splat(schedule.beta2)),
        rest2(splat(schedule.rest2)),
        epsilon(splat(schedule.epsilon)),
        root(splat(schedule.inverse_root[step])),
        size(splat(step_size)) {}

  void operator()(Vec grad, Vec& x, Vec& m, Vec& v) const {
    m += rest1 * (grad - m);
    v = beta2 * v + rest2 * grad * grad;
    x -= adam_quotient(size * m, v, root, epsilon);
  }

  void on_row(Vec grad, float* x, float* m, float* v, std::int64_t n) const {
    update_moments(x, m, v, n, [&](Vec& a, Vec& b, Vec& c) { (*this)(grad, a, b, c); });
  }
};

// Steps [from, until) of Adam with zero gradient on n numbers.
inline void decay(float* p, float* m, float* v, std::int64_t n, const float* step_sizes, const StepSchedule& schedule,
                  std::int32_t from, std::int32_t until) {
  const std::int32_t last = static_cast<std::int32_t>(least(until, from + kNoMomentum));
  const float rest = last < until ? __builtin_powf(schedule.beta2, static_cast<float>(until - last)) : 1.0f;
  const Vec beta1 = splat(schedule.beta1), beta2 = splat(schedule.beta2), epsilon = splat(schedule.epsilon);
  for (std::int64_t j = 0; j < n; j += kLanes)
    update_moments(p + j, m + j, v + j, least(kLanes, n - j), [&](Vec& x, Vec& first, Vec& second) {
      for (std::int32_t t = from; t < last; ++t) {
        first *= beta1;
        second *= beta2;
        x -= adam_quotient(splat(step_sizes[t]) * first, second, splat(schedule.inverse_root[t]), epsilon);
      }
      if (last == until) return;
      first = Vec{};
      second *= splat(rest);
    });
}

// The steps before `until` that row e has missed.
inline void catch_up_row(const TrainedSide& side, const StepSchedule& schedule, std::int64_t e, std::int32_t until) {
  const std::int32_t from = side.next_step[e];
  if (from >= until) return;
  const std::int64_t s = side.total_clusters;
  decay(side.logits + e * s, side.logits_m + e * s, side.logits_v + e * s, s, schedule.logit_step, schedule, from, until);
  if (side.bias) decay(side.bias + e, side.bias_m + e, side.bias_v + e, 1, schedule.bias_step, schedule, from, until);
  side.next_step[e] = until;
}

void catch_up(const TrainedSide& side, const StepSchedule& schedule, std::int32_t until, std::int64_t first,
              std::int64_t last) {
  for (std::int64_t e = first; e < last; ++e) catch_up_row(side, schedule, e, until);
}

// Row-wise AdaGrad: adds the mean square of the gradient to the row's sum and returns what the gradient is to be
// multiplied with.
inline Vec adagrad_factor(Vec mean_square, Vec& sum, float step_size, float epsilon) {
  sum += mean_square;
  Vec factor;
  for (std::int64_t lane = 0; lane < kLanes; ++lane)
    factor[lane] = step_size / (__builtin_sqrtf(sum[lane]) + epsilon);
  return factor;
}

// The biases of a tile.
inline void update_biases(const TrainedSide& side, const UpdateSetup& update, const std::int64_t* rows,
                          std::int64_t n_rows, Vec grad) {
  switch (update.optimizer) {
    case Optimizer::none:
      if (update.gradients.bias) scatter(update.gradients.bias, rows, n_rows, grad);
      return;
    case Optimizer::adam: {
      if (!side.bias) return;
      Vec x = gather(side.bias, rows, n_rows), m = gather(side.bias_m, rows, n_rows),
          v = gather(side.bias_v, rows, n_rows);
      AdamStep(update.schedule, update.schedule.bias_step[update.step], update.step)(grad, x, m, v);
      scatter(side.bias, rows, n_rows, x);
      scatter(side.bias_m, rows, n_rows, m);
      scatter(side.bias_v, rows, n_rows, v);
      return;
    }
    case Optimizer::adagrad: {
      if (!side.bias) return;
      Vec sum = gather(side.bias_sum, rows, n_rows);
      const Vec x = gather(side.bias, rows, n_rows);
      const Vec factor = adagrad_factor(grad * grad, sum, update.schedule.bias_step[update.step], update.schedule.epsilon);
      scatter(side.bias, rows, n_rows, x - factor * grad);
      scatter(side.bias_sum, rows, n_rows, sum);
      return;
    }
  }
}

// The rows of a tile; `grad` is column-major and overwritten.
inline void update_tile(const TrainedSide& side, const UpdateSetup& update, const std::int64_t* rows,
                        std::int64_t n_rows, Vec* grad /* [S] */) {
  const std::int64_t s = side.total_clusters;
  switch (update.optimizer) {
    case Optimizer::none:
      for_rows(grad, n_rows, s, [&](std::int64_t r, std::int64_t c, Vec g, std::int64_t n) {
        store_part(update.gradients.logits + rows[r] * s + c, g, n);
      });
      return;
    case Optimizer::adam: {
      const AdamStep step(update.schedule, update.schedule.logit_step[update.step], update.step);
      // row by row: the memory of a row is read ahead by the hardware, that of a column of rows is not
      alignas(64) float staged[kLanes * kMaxColumns];
      const std::int64_t padded = (s + kLanes - 1) / kLanes * kLanes;
      for_rows(grad, n_rows, s,
               [&](std::int64_t r, std::int64_t c, Vec g, std::int64_t) { store(staged + r * padded + c, g); });
      for (std::int64_t r = 0; r < n_rows; ++r)
        for (std::int64_t c = 0, at = rows[r] * s; c < s; c += kLanes)
          step.on_row(load(staged + r * padded + c), side.logits + at + c, side.logits_m + at + c,
                      side.logits_v + at + c, least(kLanes, s - c));
      for (std::int64_t r = 0; r < n_rows; ++r) side.next_step[rows[r]] = update.step + 1;
      return;
    }
    case Optimizer::adagrad: {
      Vec square{};
      for (std::int64_t k = 0; k < s; ++k) square += grad[k] * grad[k];
      Vec sum = gather(side.row_sum, rows, n_rows);
      const Vec factor = adagrad_factor(square * splat(1.0f / static_cast<float>(s)), sum,
                                        update.schedule.logit_step[update.step], update.schedule.epsilon);
      scatter(side.row_sum, rows, n_rows, sum);
      for (std::int64_t k = 0; k < s; ++k) grad[k] *= factor;
      for_rows(grad, n_rows, s, [&](std::int64_t r, std::int64_t c, Vec g, std::int64_t n) {
        float* const x = side.logits + rows[r] * s + c;
        store_part(x, load_part(x, n) - g, n);
      });
      return;
    }
  }
}

// One row; grad_at(c) is its gradient from column c on, zero beyond the last.
template <typename GradAt>
inline void update_row(const TrainedSide& side, const UpdateSetup& update, std::int64_t e, GradAt grad_at) {
  const std::int64_t s = side.total_clusters;
  float* const row = side.logits + e * s;
  switch (update.optimizer) {
    case Optimizer::none:
      for (std::int64_t c = 0; c < s; c += kLanes)
        store_part(update.gradients.logits + e * s + c, grad_at(c), least(kLanes, s - c));
      return;
    case Optimizer::adam: {
      const AdamStep step(update.schedule, update.schedule.logit_step[update.step], update.step);
      for (std::int64_t c = 0; c < s; c += kLanes)
        step.on_row(grad_at(c), row + c, side.logits_m + e * s + c, side.logits_v + e * s + c, least(kLanes, s - c));
      side.next_step[e] = update.step + 1;
      return;
    }
    case Optimizer::adagrad: {
      Vec square{};
      for (std::int64_t c = 0; c < s; c += kLanes) square += grad_at(c) * grad_at(c);
      float& sum = side.row_sum[e];
      sum += sum_lanes(square) / static_cast<float>(s);
      const Vec factor =
          splat(update.schedule.logit_step[update.step] / (__builtin_sqrtf(sum) + update.schedule.epsilon));
      for (std::int64_t c = 0; c < s; c += kLanes) {
        const std::int64_t n = least(kLanes, s - c);
        store_part(row + c, load_part(row + c, n) - factor * grad_at(c), n);
      }
      return;
    }
  }
}

}  // namespace
}  // namespace mfdmc
