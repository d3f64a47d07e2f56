// Optimizer steps on the rows of a table. Part of the kernels that are compiled once for each instruction set.
#pragma once

#include "cpu/fused_kernels.hpp"
#include "cpu/simd.hpp"
#include "cpu/tiles.hpp"

namespace mfdmc {
namespace {

// A function of the numbers of a row and their moments, in place: function(c, x, m, v) works on kLanes of them from
// column c on. The last of a row are taken together with some before them, which are loaded before and stored after
// they have been worked on by themselves and so get the same values twice: parts of registers would take longer.
template <typename Function>
inline void update_moments(float* x, float* m, float* v, std::int64_t n, Function function) {
  struct Block {
    Vec x, m, v;
  };
  if (n < kLanes) {
    Block block = {load_part(x, n), load_part(m, n), load_part(v, n)};
    function(0, block.x, block.m, block.v);
    store_part(x, block.x, n);
    store_part(m, block.m, n);
    store_part(v, block.v, n);
    return;
  }
  const auto work = [&](std::int64_t c) {
    Block block = {load(x + c), load(m + c), load(v + c)};
    function(c, block.x, block.m, block.v);
    return block;
  };
  const auto put = [&](std::int64_t c, const Block& block) {
    store(x + c, block.x);
    store(m + c, block.m);
    store(v + c, block.v);
  };
  const std::int64_t whole = n - n % kLanes;
  Block last;
  if (whole < n) last = work(n - kLanes);
  for (std::int64_t c = 0; c < whole; c += kLanes) put(c, work(c));
  if (whole < n) put(n - kLanes, last);
}

// numerator / (sqrt(v) * root + epsilon)
inline Vec adam_quotient(Vec numerator, Vec v, Vec root, Vec epsilon) {
  // the smallest normal number in the place of 0: its root is 1e-19, which epsilon swallows as it does 0
  const Vec deviation = v * inverse_sqrt(maximum(v, splat(1.17549435e-38f)));
  return numerator * inverse(deviation * root + epsilon);
}

// beta1^n and beta2^n; 1 where n is negative, as for a caller who repeats a step.
inline float power1(const StepSchedule& schedule, std::int32_t n) {
  if (n <= 0) return 1.0f;
  return n < kPowers ? schedule.powers1[n] : 0.0f;  // 0.9^256 is 2e-12
}

inline float power2(const StepSchedule& schedule, std::int32_t n) {
  if (n <= 0) return 1.0f;
  return n < kPowers ? schedule.powers2[n] : __builtin_powf(schedule.beta2, static_cast<float>(n));
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

  // A row whose moments, though not the row itself, are still as they were `missed` steps ago; grad_at(c) is its
  // gradient from column c on.
  template <typename GradAt>
  void on_row(const StepSchedule& schedule, std::int32_t missed, std::int64_t n, float* x, float* m, float* v,
              GradAt grad_at) const {
    const Vec fading1 = splat(power1(schedule, missed)), fading2 = splat(power2(schedule, missed));
    update_moments(x, m, v, n, [&](std::int64_t c, Vec& row, Vec& first, Vec& second) {
      if (missed > 0) {
        first *= fading1;
        second *= fading2;
      }
      (*this)(grad_at(c), row, first, second);
    });
  }
};

// Steps of Adam with zero gradient: those that a row has missed.
//
// A missed step multiplies m by beta1 and v by beta2, and moves x by size_t m_t / (sqrt(v_t) root_t + epsilon). With
// c_t = size_t beta1^j and r_t = root_t beta2^(j/2) after j steps, many of them move x by m sum_t c_t f(r_t), where
// f(r) = 1 / (sqrt(v) r + epsilon). r_t hardly changes while c_t fades, so f is taken at two points only, which have
// the mean and the variance of r_t under the weights c_t. In the first 256 steps root_t still falls fast, so they go
// one by one.
class MissedSteps {
 public:
  explicit MissedSteps(const StepSchedule& schedule) : schedule_(schedule) {
    float power1 = 1, power2 = 1;
    const float root2 = __builtin_sqrtf(schedule.beta2);
    for (std::int64_t lane = 0; lane < kLanes; ++lane) {
      first_powers1_[lane] = power1 *= schedule.beta1;
      first_powers2_[lane] = power2 *= root2;
    }
    lanes_power1_ = splat(power1);
    lanes_power2_ = splat(power2);
  }

  // Moves row e of a side by the steps before `until` that it has missed. Its moments stay as they are, to be written
  // once only, by AdamStep.
  void move(const TrainedSide& side, std::int64_t e, std::int32_t until) const {
    const std::int32_t from = side.next_step[e];
    if (from >= until) return;
    const std::int64_t s = side.total_clusters;
    move(side.logits + e * s, side.logits_m + e * s, side.logits_v + e * s, s, schedule_.logit_step, from, until);
    if (side.bias) move(side.bias + e, side.bias_m + e, side.bias_v + e, 1, schedule_.bias_step, from, until);
  }

  // The same with all that belongs to the row.
  void make_up(const TrainedSide& side, std::int64_t e, std::int32_t until) const {
    move(side, e, until);
    const std::int32_t missed = until - side.next_step[e];
    if (missed <= 0) return;
    const float fading1 = power1(schedule_, missed), fading2 = power2(schedule_, missed);
    const std::int64_t s = side.total_clusters;
    for (std::int64_t j = e * s; j < (e + 1) * s; ++j) {
      side.logits_m[j] *= fading1;
      side.logits_v[j] *= fading2;
    }
    if (side.bias) {
      side.bias_m[e] *= fading1;
      side.bias_v[e] *= fading2;
    }
    side.next_step[e] = until;
  }

 private:
  // Steps [from, until) on n numbers.
  void move(float* p, const float* m, const float* v, std::int64_t n, const float* sizes, std::int32_t from,
            std::int32_t until) const {
    if (until - from <= 3 || from < 256)
      move_one_by_one(p, m, v, n, sizes, from, until);
    else
      move_at_once(p, m, v, n, sizes, from, until);
  }

  void move_one_by_one(float* p, const float* m, const float* v, std::int64_t n, const float* sizes, std::int32_t from,
                       std::int32_t until) const {
    constexpr std::int32_t no_momentum = 192;  // 0.9^192 is 2e-9: what is left of the momentum moves no float
    const std::int32_t last = static_cast<std::int32_t>(least(until, from + no_momentum));
    const Vec beta1 = splat(schedule_.beta1), beta2 = splat(schedule_.beta2), epsilon = splat(schedule_.epsilon);
    for (std::int64_t j = 0; j < n; j += kLanes) {
      const std::int64_t there = least(kLanes, n - j);
      Vec x = load_part(p + j, there), first = load_part(m + j, there), second = load_part(v + j, there);
      for (std::int32_t t = from; t < last; ++t) {
        first *= beta1;
        second *= beta2;
        x -= adam_quotient(splat(sizes[t]) * first, second, splat(schedule_.inverse_root[t]), epsilon);
      }
      store_part(p + j, x, there);
    }
  }

  void move_at_once(float* p, const float* m, const float* v, std::int64_t n, const float* sizes, std::int32_t from,
                    std::int32_t until) const {
    const std::int64_t steps = least(until - from, 128);  // 0.9^128 is 1e-6
    const float origin = schedule_.inverse_root[from];
    Vec power1 = first_powers1_, power2 = first_powers2_, weight{}, mean{}, square{};
    for (std::int64_t t = 0; t < steps; t += kLanes) {
      const std::int64_t there = least(kLanes, steps - t);
      const Vec c = load_part(sizes + from + t, there) * power1;
      const Vec r = load_part(schedule_.inverse_root + from + t, there) * power2 - splat(origin);
      weight += c;
      mean += c * r;
      square += c * r * r;
      power1 *= lanes_power1_;
      power2 *= lanes_power2_;
    }
    const float total = sum_lanes(weight), shift = total > 0 ? sum_lanes(mean) / total : 0.0f;
    const float variance = total > 0 ? sum_lanes(square) / total - shift * shift : 0.0f;
    const float deviation = variance > 0 ? __builtin_sqrtf(variance) : 0.0f;
    const Vec half = splat(0.5f * total), low = splat(origin + shift - deviation),
              high = splat(origin + shift + deviation), epsilon = splat(schedule_.epsilon);
    for (std::int64_t j = 0; j < n; j += kLanes) {
      const std::int64_t there = least(kLanes, n - j);
      const Vec first = half * load_part(m + j, there), second = load_part(v + j, there);
      store_part(p + j,
                 load_part(p + j, there) -
                     (adam_quotient(first, second, low, epsilon) + adam_quotient(first, second, high, epsilon)),
                 there);
    }
  }

  const StepSchedule& schedule_;
  Vec first_powers1_, first_powers2_, lanes_power1_, lanes_power2_;  // of beta1 and of the root of beta2
};

void catch_up(const TrainedSide& side, const StepSchedule& schedule, std::int32_t until, std::int64_t first,
              std::int64_t last) {
  const MissedSteps missed(schedule);
  for (std::int64_t e = first; e < last; ++e) missed.make_up(side, e, until);
}

// Row-wise AdaGrad: adds the mean square of the gradient to the row's sum and returns what the gradient is to be
// multiplied with.
inline Vec adagrad_factor(Vec mean_square, Vec& sum, float step_size, float epsilon) {
  sum += mean_square;
  Vec factor;
  for (std::int64_t lane = 0; lane < kLanes; ++lane) factor[lane] = step_size / (__builtin_sqrtf(sum[lane]) + epsilon);
  return factor;
}

// The biases of a tile; before its rows.
inline void update_biases(const TrainedSide& side, const UpdateSetup& update, const std::int64_t* rows,
                          std::int64_t n_rows, Vec grad) {
  switch (update.optimizer) {
    case Optimizer::none:
      if (update.gradients.bias) scatter(update.gradients.bias, rows, n_rows, grad);
      return;
    case Optimizer::adam: {
      if (!side.bias) return;
      alignas(64) float fading1[kLanes], fading2[kLanes];  // before the rows' next_step is moved on
      for (std::int64_t r = 0; r < kLanes; ++r) {
        const std::int32_t missed = update.step - side.next_step[rows[least(r, n_rows - 1)]];
        fading1[r] = power1(update.schedule, missed);
        fading2[r] = power2(update.schedule, missed);
      }
      Vec x = gather(side.bias, rows, n_rows), m = gather(side.bias_m, rows, n_rows) * load(fading1),
          v = gather(side.bias_v, rows, n_rows) * load(fading2);
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
      const Vec factor =
          adagrad_factor(grad * grad, sum, update.schedule.bias_step[update.step], update.schedule.epsilon);
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
      for (std::int64_t r = 0; r < n_rows; ++r) {
        const std::int64_t at = rows[r] * s;
        step.on_row(update.schedule, update.step - side.next_step[rows[r]], s, side.logits + at, side.logits_m + at,
                    side.logits_v + at, [&](std::int64_t c) { return load(staged + r * padded + c); });
        side.next_step[rows[r]] = update.step + 1;
      }
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
      step.on_row(update.schedule, update.step - side.next_step[e], s, row, side.logits_m + e * s,
                  side.logits_v + e * s, grad_at);
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
