#include "cpu/batch_step.hpp"

#include <algorithm>
#include <cmath>
#include <utility>

namespace mfdmc {
namespace {

// Pieces of a pass over the rows of one side, at most. Which piece a row is in depends on the batch alone: it is part of
// the definition of every sum, and more or fewer pieces would round otherwise.
constexpr std::int64_t kChunks = 32;

// Pieces of a pass: every one brings overhead that only several tiles are worth.
std::int64_t chunks_for(std::int64_t n_rows, std::int64_t lanes) {
  return std::clamp<std::int64_t>(n_rows / (4 * lanes), 1, kChunks);
}

struct Range {
  std::int64_t first, last;
};

// Chunk c of the rows of a side, cut at whole tiles.
Range tiles_of(const BatchSide& side, std::int64_t lanes, std::int64_t n_chunks, std::int64_t c) {
  const std::int64_t tiles = (side.n_rows + lanes - 1) / lanes;
  return {std::min(side.n_rows, tiles * c / n_chunks * lanes),
          std::min(side.n_rows, tiles * (c + 1) / n_chunks * lanes)};
}

// Chunk c of kChunks of the rows of a side such that chunks hold about equally many ratings.
Range rows_of(const BatchSide& side, std::int64_t n_ratings, std::int64_t c) {
  const auto row_at = [&](std::int64_t rating) {
    return std::lower_bound(side.offsets, side.offsets + side.n_rows, rating) - side.offsets;
  };
  return {c == 0 ? 0 : row_at(n_ratings * c / kChunks),
          c + 1 == kChunks ? side.n_rows : row_at(n_ratings * (c + 1) / kChunks)};
}

// Grows only: memory is not given back between batches, whose sizes hardly differ.
template <typename T>
T* at_least(AlignedVector<T>& buffer, std::int64_t n) {
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

BatchSide BatchStep::SideBuffers::view(const GroupedBatch::SideRows& groups, const TrainedSide& side,
                                       const LossSetup& loss, std::int64_t lanes, std::int64_t n_chunks) {
  BatchSide out{};
  out.n_rows = static_cast<std::int64_t>(groups.rows.size());
  out.rows = groups.rows.data();
  out.offsets = groups.offsets.data();
  const std::int64_t tiles = (out.n_rows + lanes - 1) / lanes;
  out.embeddings = at_least(embeddings, out.n_rows * loss.padded_dim);
  out.grad = at_least(grad, out.n_rows * loss.padded_dim);
  out.bias = at_least(bias, out.n_rows);
  out.grad_bias = at_least(grad_bias, out.n_rows);
  if (side.centers) {
    out.log_weights = at_least(log_weights, tiles * side.total_clusters * lanes);
    if (loss.sum_views)
      out.view_embeddings = at_least(view_embeddings, tiles * side.n_views * side.view_dim * lanes);
    at_least(center_sums, n_chunks * side.total_clusters * (side.view_dim + 1));
  }
  return out;
}

LossValues BatchStep::run(const GroupedBatch& batch, TrainedSide user, const TrainedCenters& user_centers,
                          TrainedSide item, const TrainedCenters& item_centers, const StepSetup& setup, Team& team,
                          Grouping* next) {
  const std::int64_t n = batch.n_ratings, lanes = kernels_.lanes;
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
  const TrainedSide trained[2] = {item, user};
  SideBuffers* const buffers[2] = {&item_, &user_};
  const GroupedBatch::SideRows* const groups[2] = {&batch.item, &batch.user};
  BatchSide sides[2];
  UpdateSetup updates[2] = {setup.update, setup.update};
  updates[0].gradients = setup.item_gradients;
  updates[1].gradients = setup.user_gradients;
  std::int64_t n_chunks[2], per_chunk[2], per_thread = 0;
  for (int s = 0; s < 2; ++s) {
    n_chunks[s] = chunks_for(static_cast<std::int64_t>(groups[s]->rows.size()), lanes);
    sides[s] = buffers[s]->view(*groups[s], trained[s], setup.loss, lanes, n_chunks[s]);
    per_chunk[s] = trained[s].centers ? trained[s].total_clusters * (trained[s].view_dim + 1) : 0;
    if (trained[s].centers) per_thread = std::max(per_thread, backward_scratch(trained[s], lanes));
  }
  sides[0].links = batch.links.data();
  sides[1].items = batch.items.data();
  // The tasks of a pass over the rows, items (side 0) and users side by side, with the pieces of the grouping of the next
  // batch (side 2) between them: so that a member of the team has the same part of all of them in every pass and batch.
  const std::int64_t counts[3] = {n_chunks[0], n_chunks[1], next ? next->pieces() : 0};
  struct Task {
    int side;
    std::int64_t chunk;
  };
  std::vector<Task> tasks;
  for (int s : {2, 0, 1})  // equal places: grouping first, its tasks are the longest
    for (std::int64_t c = 0; c < counts[s]; ++c) tasks.push_back({s, c});
  std::stable_sort(tasks.begin(), tasks.end(), [&](const Task& a, const Task& b) {
    return a.chunk * counts[b.side] < b.chunk * counts[a.side];  // by chunk / count
  });
  const std::int64_t n_tasks = static_cast<std::int64_t>(tasks.size());
  float* const errors = at_least(errors_, n);
  double terms[2 * kChunks][4] = {}, squares[kChunks] = {};

  team.run(n_tasks, [&](std::int64_t task, int) {
    const auto [s, c] = tasks[task];
    if (s == 2) return next->count(static_cast<int>(c));
    const Range r = tiles_of(sides[s], lanes, n_chunks[s], c);
    kernels_.entity_forward(trained[s], sides[s], setup.loss, updates[s], r.first, r.last, terms[s * kChunks + c]);
  });
  team.run(kChunks + (next ? 1 : 0), [&](std::int64_t c, int) {
    if (c == kChunks) return next->place();
    const Range r = rows_of(sides[1], n, c);
    squares[c] = kernels_.rating_pass(sides[1], sides[0], setup.loss, batch.ratings, setup.global_mean, r.first, r.last,
                                      errors);
  });

  LossValues out{};
  for (double square : squares) out.mse += square / static_cast<double>(n);
  for (const auto& part : terms) {
    out.proximity += part[0];
    out.entropy += part[1];
    out.l2 += part[2];
    out.bias_l2 += part[3];
  }
  std::vector<double> center_grads[2];  // [S, d]
  for (int s = 0; s < 2; ++s) {
    if (!trained[s].centers) continue;
    center_grads[s].assign(trained[s].total_clusters * trained[s].view_dim, 0.0);
    out.spread += spread_and_gradient(trained[s], setup.spread_margin, setup.loss.spread, center_grads[s].data());
  }
  out.total = out.mse + setup.loss.spread * out.spread + setup.loss.proximity * out.proximity +
              setup.loss.entropy * out.entropy + setup.loss.l2 * out.l2 + setup.loss.bias_l2 * out.bias_l2;
  // as the reference, which sums in float; the parameters stay as they are, for a diagnosis
  if (setup.update.optimizer != Optimizer::none && !std::isfinite(static_cast<float>(out.total))) return out;

  float* const scratch = at_least(scratch_, team.size() * per_thread);
  team.run(n_tasks, [&](std::int64_t task, int member) {
    const auto [s, c] = tasks[task];
    if (s == 2) return next->fill(static_cast<int>(c));
    const Range r = tiles_of(sides[s], lanes, n_chunks[s], c);
    kernels_.entity_backward(trained[s], sides[s], sides[1 - s], setup.loss, updates[s], errors, r.first, r.last,
                             scratch + member * per_thread, buffers[s]->center_sums.data() + c * per_chunk[s]);
  });

  if (user.centers) {
    step_centers(item, item_centers, item_, n_chunks[0], setup, center_grads[0]);
    step_centers(user, user_centers, user_, n_chunks[1], setup, center_grads[1]);
  }
  return out;
}

void BatchStep::step_centers(const TrainedSide& side, const TrainedCenters& centers, const SideBuffers& buffers,
                             std::int64_t n_chunks, const StepSetup& setup, std::vector<double>& grad) {
  const std::int64_t s = side.total_clusters, d = side.view_dim;
  std::vector<double> sums(s * (d + 1), 0.0);  // [S, d + 1]: of w h, and of 2 a w
  for (std::int64_t chunk = 0; chunk < n_chunks; ++chunk) {
    const float* const part = buffers.center_sums.data() + chunk * s * (d + 1);
    for (std::int64_t j = 0; j < s * (d + 1); ++j) sums[j] += part[j];
  }
  for (std::int64_t k = 0; k < s; ++k)
    for (std::int64_t c = 0; c < d; ++c)
      grad[k * d + c] += sums[k * (d + 1) + c] + sums[k * (d + 1) + d] * centers.centers[k * d + c];
  // centers are few: they make every step
  const StepSchedule& schedule = setup.update.schedule;
  const std::int32_t step = setup.update.step;
  switch (setup.update.optimizer) {
    case Optimizer::none:
      for (std::int64_t j = 0; j < s * d; ++j) centers.grad[j] = static_cast<float>(grad[j]);
      return;
    case Optimizer::adam:
      for (std::int64_t j = 0; j < s * d; ++j) {
        const float g = static_cast<float>(grad[j]);
        centers.m[j] += schedule.rest1 * (g - centers.m[j]);
        centers.v[j] = schedule.beta2 * centers.v[j] + schedule.rest2 * g * g;
        centers.centers[j] -= setup.center_step[step] * centers.m[j] /
                              (std::sqrt(centers.v[j]) * schedule.inverse_root[step] + schedule.epsilon);
      }
      return;
    case Optimizer::adagrad:
      for (std::int64_t k = 0; k < s; ++k) {
        double square = 0;
        for (std::int64_t c = 0; c < d; ++c) square += grad[k * d + c] * grad[k * d + c];
        centers.row_sum[k] += static_cast<float>(square / static_cast<double>(d));
        const double factor = setup.center_step[step] / (std::sqrt(centers.row_sum[k]) + schedule.epsilon);
        for (std::int64_t c = 0; c < d; ++c)
          centers.centers[k * d + c] -= static_cast<float>(factor * grad[k * d + c]);
      }
      return;
  }
}

}  // namespace mfdmc
