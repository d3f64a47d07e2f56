#include "cpu/batch_step.hpp"

#include <algorithm>
#include <cmath>
#include <utility>

#include "cpu/threads.hpp"

namespace mfdmc {
namespace {

// Pieces of a pass over the rows of one side. Part of the definition of every sum: more or fewer would round otherwise.
constexpr std::int64_t kChunks = 32;

struct Range {
  std::int64_t first, last;
};

// Chunk c of n things, cut at multiples of `unit`.
Range chunk_of(std::int64_t n, std::int64_t unit, std::int64_t c) {
  const std::int64_t units = (n + unit - 1) / unit;
  return {std::min(n, units * c / kChunks * unit), std::min(n, units * (c + 1) / kChunks * unit)};
}

// Chunk c of the rows of a side such that chunks hold about equally many ratings.
Range rows_of(const BatchSide& side, std::int64_t n_ratings, std::int64_t c) {
  const auto row_at = [&](std::int64_t rating) {
    return std::lower_bound(side.offsets, side.offsets + side.n_rows, rating) - side.offsets;
  };
  return {c == 0 ? 0 : row_at(n_ratings * c / kChunks),
          c + 1 == kChunks ? side.n_rows : row_at(n_ratings * (c + 1) / kChunks)};
}

// Grows only: memory is not given back between batches, whose sizes hardly differ.
template <typename T>
T* at_least(std::vector<T>& buffer, std::int64_t n) {
  if (static_cast<std::int64_t>(buffer.size()) < n) buffer.resize(n);
  return buffer.data();
}

// The spread of the centers of a side; adds weight * gradient to grad [S, d].
double spread_and_gradient(const TrainedSide& side, double margin, double weight, double* grad) {
  const std::int64_t d = side.view_dim;
  std::int64_t n_views = 0;
  for (std::int64_t v = 0; v < side.n_views; ++v) n_views += side.view_offsets[v + 1] - side.view_offsets[v] >= 2;
  double spread = 0;
  for (std::int64_t v = 0; v < side.n_views; ++v) {
    const std::int64_t k0 = side.view_offsets[v], k1 = side.view_offsets[v + 1];
    const double share = k1 - k0 < 2 ? 0.0 : 2.0 / (static_cast<double>(k1 - k0) * (k1 - k0 - 1) * n_views);
    for (std::int64_t k = k0; k < k1; ++k)
      for (std::int64_t l = k + 1; l < k1; ++l) {
        const float *a = side.centers + k * d, *b = side.centers + l * d;
        double square = 0;
        for (std::int64_t c = 0; c < d; ++c) square += (static_cast<double>(a[c]) - b[c]) * (a[c] - b[c]);
        const double distance = std::sqrt(square), lacking = margin - distance;
        if (lacking <= 0) continue;
        spread += share * lacking * lacking;
        if (distance == 0) continue;  // the hinge has no direction there
        const double factor = weight * share * -2.0 * lacking / distance;
        for (std::int64_t c = 0; c < d; ++c) {
          grad[k * d + c] += factor * (static_cast<double>(a[c]) - b[c]);
          grad[l * d + c] -= factor * (static_cast<double>(a[c]) - b[c]);
        }
      }
  }
  return spread;
}

}  // namespace

BatchSide BatchStep::SideBuffers::view(const GroupedBatch::SideGroups& groups, const TrainedSide& side,
                                       const LossSetup& loss, std::int64_t lanes) {
  BatchSide out{};
  out.n_rows = static_cast<std::int64_t>(groups.rows.size());
  out.rows = groups.rows.data();
  out.offsets = groups.offsets.data();
  out.order = groups.order.empty() ? nullptr : groups.order.data();
  out.others = groups.others.data();
  const std::int64_t tiles = (out.n_rows + lanes - 1) / lanes;
  out.embeddings = at_least(embeddings, out.n_rows * loss.padded_dim);
  out.grad = at_least(grad, out.n_rows * loss.padded_dim);
  out.bias = at_least(bias, out.n_rows);
  out.grad_bias = at_least(grad_bias, out.n_rows);
  if (side.centers) {
    out.log_weights = at_least(log_weights, tiles * side.total_clusters * lanes);
    at_least(center_sums, kChunks * side.total_clusters * (side.view_dim + 1));
  }
  return out;
}

LossValues BatchStep::run(const GroupedBatch& batch, TrainedSide user, const TrainedCenters& user_centers,
                          TrainedSide item, const TrainedCenters& item_centers, const StepSetup& setup) {
  const std::int64_t n = batch.size(), lanes = kernels_.lanes;
  for (auto [side, buffers] : {std::pair{&user, &user_}, std::pair{&item, &item_}}) {
    if (!side->centers) continue;
    float* norms = at_least(buffers->center_norms, side->total_clusters);
    for (std::int64_t k = 0; k < side->total_clusters; ++k) {
      norms[k] = 0;
      for (std::int64_t c = 0; c < side->view_dim; ++c)
        norms[k] += side->centers[k * side->view_dim + c] * side->centers[k * side->view_dim + c];
    }
    side->center_norms = norms;
  }
  const BatchSide sides[2] = {user_.view(batch.user, user, setup.loss, lanes),
                              item_.view(batch.item, item, setup.loss, lanes)};
  const TrainedSide trained[2] = {user, item};
  UpdateSetup updates[2] = {setup.update, setup.update};
  updates[0].gradients = setup.user_gradients;
  updates[1].gradients = setup.item_gradients;
  SideBuffers* const buffers[2] = {&user_, &item_};
  float* const errors = at_least(errors_, n);
  double terms[2 * kChunks][4] = {}, squares[kChunks] = {};

  // a batch too small to share out is faster on one thread
  const int threads = n < 2048 ? 1 : n_threads_;
#pragma omp parallel num_threads(threads)
  {
#pragma omp for schedule(dynamic, 1)
    for (std::int64_t task = 0; task < 2 * kChunks; ++task) {
      const std::int64_t s = task / kChunks;
      const Range r = chunk_of(sides[s].n_rows, lanes, task % kChunks);
      kernels_.entity_forward(trained[s], sides[s], setup.loss, updates[s], r.first, r.last, terms[task]);
    }
#pragma omp for schedule(dynamic, 1)
    for (std::int64_t c = 0; c < kChunks; ++c) {
      const Range r = chunk_of(n, lanes, c);
      squares[c] = kernels_.rating_errors(sides[0], sides[1], setup.loss, batch.user.position.data(),
                                          batch.item.position.data(), batch.ratings.data(), setup.global_mean, r.first,
                                          r.last, errors);
    }
  }

  LossValues out{};
  for (double square : squares) out.mse += square / static_cast<double>(n);
  for (const auto& part : terms) {
    out.proximity += part[0];
    out.entropy += part[1];
    out.l2 += part[2];
    out.bias_l2 += part[3];
  }
  std::vector<double> center_grads[2];  // [S, d]
  for (std::int64_t s = 0; s < 2; ++s) {
    if (!trained[s].centers) continue;
    center_grads[s].assign(trained[s].total_clusters * trained[s].view_dim, 0.0);
    out.spread += spread_and_gradient(trained[s], setup.spread_margin, setup.loss.spread, center_grads[s].data());
  }
  out.total = out.mse + setup.loss.spread * out.spread + setup.loss.proximity * out.proximity +
              setup.loss.entropy * out.entropy + setup.loss.l2 * out.l2 + setup.loss.bias_l2 * out.bias_l2;
  // as the reference, which sums in float; the parameters stay as they are, for a diagnosis
  if (setup.update.optimizer != Optimizer::none && !std::isfinite(static_cast<float>(out.total))) return out;

  const std::int64_t per_chunk[2] = {user.centers ? user.total_clusters * (user.view_dim + 1) : 0,
                                     item.centers ? item.total_clusters * (item.view_dim + 1) : 0};
  const std::int64_t per_thread = std::max(per_chunk[0], per_chunk[1]) * lanes;
  float* const scratch = at_least(scratch_, threads * per_thread);
#pragma omp parallel num_threads(threads)
  {
#pragma omp for schedule(dynamic, 1)
    for (std::int64_t task = 0; task < 2 * kChunks; ++task) {
      const std::int64_t s = task / kChunks;
      const Range r = rows_of(sides[s], n, task % kChunks);
      kernels_.segment_sums(sides[s], sides[1 - s], setup.loss, errors, r.first, r.last);
    }
#pragma omp for schedule(dynamic, 1)
    for (std::int64_t task = 0; task < 2 * kChunks; ++task) {
      const std::int64_t s = task / kChunks, c = task % kChunks;
      const Range r = chunk_of(sides[s].n_rows, lanes, c);
      kernels_.entity_backward(trained[s], sides[s], setup.loss, updates[s], r.first, r.last,
                               scratch + thread_id() * per_thread,
                               buffers[s]->center_sums.data() + c * per_chunk[s]);
    }
  }

  if (user.centers) {
    step_centers(user, user_centers, user_, setup, center_grads[0]);
    step_centers(item, item_centers, item_, setup, center_grads[1]);
  }
  return out;
}

void BatchStep::step_centers(const TrainedSide& side, const TrainedCenters& centers, const SideBuffers& buffers,
                             const StepSetup& setup, std::vector<double>& grad) {
  const std::int64_t s = side.total_clusters, d = side.view_dim;
  for (std::int64_t k = 0; k < s; ++k) {
    double by_center = 0;  // sum of 2 a w
    for (std::int64_t c = 0; c <= d; ++c) {
      double sum = 0;
      for (std::int64_t chunk = 0; chunk < kChunks; ++chunk)
        sum += buffers.center_sums[(chunk * s + k) * (d + 1) + c];
      if (c < d)
        grad[k * d + c] += sum;
      else
        by_center = sum;
    }
    for (std::int64_t c = 0; c < d; ++c) grad[k * d + c] += by_center * centers.centers[k * d + c];
  }
  if (setup.update.optimizer == Optimizer::none) {
    for (std::int64_t j = 0; j < s * d; ++j) centers.grad[j] = static_cast<float>(grad[j]);
    return;
  }
  // centers are few: they make every step
  const AdamSchedule& adam = setup.update.adam;
  const std::int32_t step = setup.update.step;
  for (std::int64_t j = 0; j < s * d; ++j) {
    const float g = static_cast<float>(grad[j]);
    centers.m[j] += adam.rest1 * (g - centers.m[j]);
    centers.v[j] = adam.beta2 * centers.v[j] + adam.rest2 * g * g;
    centers.centers[j] -= setup.center_step[step] * centers.m[j] /
                          (std::sqrt(centers.v[j]) * adam.inverse_root[step] + adam.epsilon);
  }
}

}  // namespace mfdmc
