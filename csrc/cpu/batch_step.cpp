#include "cpu/batch_step.hpp"

#include <algorithm>
#include <cmath>
#include <tuple>
#include <utility>

namespace mfdmc {
namespace {

// Pieces of a pass over the rows of one side. Which piece a row is in depends on the batch alone: it is part of the
// definition of every sum, and more or fewer pieces would round otherwise. Every one brings overhead that only several
// tiles are worth.
constexpr std::int64_t kChunks = 32;

std::int64_t item_chunks(std::int64_t n_rows, std::int64_t lanes) {
  return std::clamp<std::int64_t>(n_rows / (4 * lanes), 1, kChunks);
}

// Of users more where there are many, as what a chunk works with should stay in the second-level cache; and more where
// few of them have many ratings.
std::int64_t user_chunks(std::int64_t n_rows, std::int64_t n_ratings, std::int64_t lanes) {
  constexpr std::int64_t most_rows = 256, worth_ratings = 2048;
  const std::int64_t tiles = (n_rows + lanes - 1) / lanes;
  const std::int64_t most = std::min(tiles, std::max(kChunks, n_rows / most_rows));
  return std::clamp<std::int64_t>(std::max(tiles / 4, n_ratings / worth_ratings), 1, std::max<std::int64_t>(most, 1));
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

// Grows only: memory is not given back between batches, whose sizes hardly differ.
template <typename T>
T* at_least(AlignedVector<T>& buffer, std::int64_t n) {
  if (static_cast<std::int64_t>(buffer.size()) < n) buffer.resize(n);
  return buffer.data();
}

// A part of the rows' loss terms: proximity, entropy, l2 and bias_l2, and the sum of squared errors.
struct LossParts {
  double terms[4], squares;

  double sum() const { return terms[0] + terms[1] + terms[2] + terms[3] + squares; }
  void operator+=(const LossParts& other) {
    for (int t = 0; t < 4; ++t) terms[t] += other.terms[t];
    squares += other.squares;
  }
};

// The sums of a side's chunks, [chunks, n] from `parts` on, added to sums [n].
void add_chunks(const float* parts, std::int64_t n_chunks, std::int64_t n, double* sums) {
  for (std::int64_t chunk = 0; chunk < n_chunks; ++chunk, parts += n)
    for (std::int64_t j = 0; j < n; ++j) sums[j] += parts[j];
}

// Where the passes over some rows of a side keep what they hand on to each other, except the embeddings.
struct RowBuffers {
  static std::int64_t size(const TrainedSide& side, const LossSetup& loss, std::int64_t n_rows, std::int64_t lanes);
  // `memory` holds size() floats.
  static void lay_out(float* memory, const TrainedSide& side, const LossSetup& loss, std::int64_t lanes,
                      BatchSide& rows);
};

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

std::int64_t RowBuffers::size(const TrainedSide& side, const LossSetup& loss, std::int64_t n_rows, std::int64_t lanes) {
  const std::int64_t rows = (n_rows + lanes - 1) / lanes * lanes;
  const std::int64_t of_clusters =
      side.centers ? side.total_clusters + (loss.sum_views ? side.n_views * side.view_dim : 0) : 0;
  return rows * (of_clusters + loss.padded_dim + 2);
}

void RowBuffers::lay_out(float* memory, const TrainedSide& side, const LossSetup& loss, std::int64_t lanes,
                         BatchSide& rows) {
  const std::int64_t n = (rows.n_rows + lanes - 1) / lanes * lanes;
  const auto take = [&](std::int64_t per_row) {
    float* const taken = memory;
    memory += n * per_row;
    return taken;
  };
  rows.grad = take(loss.padded_dim);
  if (side.centers) rows.log_weights = take(side.total_clusters);
  if (side.centers && loss.sum_views) rows.view_embeddings = take(side.n_views * side.view_dim);
  rows.bias = take(1);
  rows.grad_bias = take(1);
}

LossValues BatchStep::run(const GroupedBatch& batch, TrainedSide user, const TrainedCenters& user_centers,
                          TrainedSide item, const TrainedCenters& item_centers, const StepSetup& setup, Team& team,
                          Grouping* next, Exchange* exchange) {
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
  UpdateSetup item_update = setup.update, user_update = setup.update;
  item_update.gradients = setup.item_gradients;
  user_update.gradients = setup.user_gradients;
  const LossSetup& loss = setup.loss;
  // `items` are those whose steps are made here: with an exchange the own ones, else those of the ratings, `rated`
  BatchSide items{}, users{};
  items.links = exchange ? nullptr : batch.links.data();
  users.items = batch.items.data();
  for (auto [side, groups, buffers] : {std::tuple{&items, exchange ? &exchange->owned() : &batch.item, &item_},
                                       std::tuple{&users, &batch.user, &user_}}) {
    side->rows = groups->rows.data();
    side->offsets = groups->offsets.data();
    side->n_rows = static_cast<std::int64_t>(groups->rows.size());
    side->embeddings = at_least(buffers->embeddings, side->n_rows * loss.padded_dim);
  }
  RowBuffers::lay_out(at_least(item_rows_, RowBuffers::size(item, loss, items.n_rows, lanes)), item, loss, lanes,
                      items);
  BatchSide rated = items;
  if (exchange) {
    rated.rows = batch.item.rows.data();
    rated.offsets = batch.item.offsets.data();
    rated.links = batch.links.data();
    rated.n_rows = static_cast<std::int64_t>(batch.item.rows.size());
    const std::int64_t numbers = rated.n_rows * loss.padded_dim;
    rated.embeddings = at_least(rated_, 2 * (numbers + rated.n_rows) + lanes);
    rated.grad = rated.embeddings + numbers;
    rated.bias = rated.grad + numbers;
    rated.grad_bias = rated.bias + rated.n_rows;
  }
  const std::int64_t n_item_chunks = item_chunks(items.n_rows, lanes),
                     n_user_chunks = user_chunks(users.n_rows, n, lanes);
  const std::int64_t item_sums = item.centers ? item.total_clusters * (item.view_dim + 1) : 0,
                     user_sums = user.centers ? user.total_clusters * (user.view_dim + 1) : 0;
  float* const item_center_sums = at_least(item_.center_sums, n_item_chunks * item_sums);
  float* const user_center_sums = at_least(user_.center_sums, n_user_chunks * user_sums);
  // of each member of the team: what the backward pass needs, and the rows of a chunk of users
  std::int64_t scratch_size = 0;
  for (const TrainedSide* side : {&item, &user})
    if (side->centers) scratch_size = std::max(scratch_size, backward_scratch(*side, lanes));
  const std::int64_t most_rows = ((users.n_rows + lanes - 1) / lanes / n_user_chunks + 1) * lanes;
  const std::int64_t per_member = scratch_size + RowBuffers::size(user, loss, most_rows, lanes);
  float* const scratch = at_least(scratch_, team.size() * per_member);
  float* const errors = at_least(errors_, n);
  std::vector<LossParts> item_parts(n_item_chunks, LossParts{}), user_parts(n_user_chunks, LossParts{});

  // The tasks of a pass over the items, with the pieces of the grouping of the next batch between them: so that a
  // member of the team has the same part of both in every pass and batch. Grouping first, its tasks are the longest.
  const std::int64_t pieces = next ? next->pieces() : 0;
  std::vector<std::int64_t> tasks;  // a chunk, or ~piece
  for (std::int64_t c = 0, piece = 0; c < n_item_chunks; ++c) {
    for (; piece < pieces && piece * n_item_chunks <= c * pieces; ++piece) tasks.push_back(~piece);
    tasks.push_back(c);
    if (c + 1 == n_item_chunks)
      for (; piece < pieces; ++piece) tasks.push_back(~piece);
  }
  const std::int64_t n_tasks = static_cast<std::int64_t>(tasks.size());

  team.run(n_tasks, [&](std::int64_t task, int) {
    const std::int64_t c = tasks[task];
    if (c < 0) return next->count(static_cast<int>(~c));
    const Range r = tiles_of(items, lanes, n_item_chunks, c);
    kernels_.entity_forward(item, items, loss, item_update, r.first, r.last, item_parts[c].terms);
  });
  if (exchange) exchange->share_items(items, loss, rated);
  LossParts all{};
  for (const LossParts& part : item_parts) all += part;
  std::vector<double> center_grads[2];  // [S, d] of items, users
  double spread = 0;
  for (auto [side, grad] : {std::pair{&item, &center_grads[0]}, std::pair{&user, &center_grads[1]}}) {
    if (!side->centers) continue;
    grad->assign(side->total_clusters * side->view_dim, 0.0);
    spread += spread_and_gradient(*side, setup.spread_margin, loss.spread, grad->data());
  }
  // Where the loss is not finite, parameters stay as they are, for a diagnosis; except that chunks of users whose part
  // of it is finite make the step, as they cannot wait for the others.
  const bool applied = setup.update.optimizer != Optimizer::none, finite_so_far = std::isfinite(all.sum() + spread);
  team.run(n_user_chunks + (next ? 1 : 0), [&](std::int64_t c, int member) {
    if (c == n_user_chunks) return next->place();
    const Range r = tiles_of(users, lanes, n_user_chunks, c);
    BatchSide chunk = users;
    chunk.rows += r.first;
    chunk.offsets += r.first;
    chunk.embeddings += r.first * loss.padded_dim;
    chunk.n_rows = r.last - r.first;
    float* const own = scratch + member * per_member;
    RowBuffers::lay_out(own + scratch_size, user, loss, lanes, chunk);
    LossParts& part = user_parts[c];
    kernels_.entity_forward(user, chunk, loss, user_update, 0, chunk.n_rows, part.terms);
    part.squares = kernels_.rating_pass(chunk, rated, loss, batch.ratings, setup.global_mean, 0, chunk.n_rows, errors);
    if (applied && !(finite_so_far && std::isfinite(part.sum()))) return;
    kernels_.entity_backward(user, chunk, rated, loss, user_update, errors, 0, chunk.n_rows, own,
                             user_center_sums + c * user_sums);
  });

  for (const LossParts& part : user_parts) all += part;
  std::vector<double> sums(user_sums, 0.0);  // of all chunks, in this process, then in all
  add_chunks(user_center_sums, n_user_chunks, user_sums, sums.data());
  if (exchange) {
    const std::int64_t pieces_of_rated = item_chunks(rated.n_rows, lanes);
    team.run(pieces_of_rated, [&](std::int64_t c, int) {
      const Range r = tiles_of(rated, lanes, pieces_of_rated, c);
      kernels_.item_sums(rated, users, loss, errors, r.first, r.last);
    });
    sums.insert(sums.end(), {all.terms[0], all.terms[1], all.terms[2], all.terms[3], all.squares});
    exchange->sum_items(rated, loss, items, sums.data(), static_cast<std::int64_t>(sums.size()));
    std::copy(sums.begin() + user_sums, sums.end() - 1, all.terms);
    all.squares = sums.back();
  }
  LossValues out{};
  out.mse = all.squares / static_cast<double>(loss.batch_size);
  out.spread = spread;
  out.proximity = all.terms[0];
  out.entropy = all.terms[1];
  out.l2 = all.terms[2];
  out.bias_l2 = all.terms[3];
  out.total = out.mse + loss.spread * out.spread + loss.proximity * out.proximity + loss.entropy * out.entropy +
              loss.l2 * out.l2 + loss.bias_l2 * out.bias_l2;
  // in float, as the reference sums
  if (applied && !std::isfinite(static_cast<float>(out.total))) return out;

  team.run(n_tasks, [&](std::int64_t task, int member) {
    const std::int64_t c = tasks[task];
    if (c < 0) return next->fill(static_cast<int>(~c));
    const Range r = tiles_of(items, lanes, n_item_chunks, c);
    kernels_.entity_backward(item, items, users, loss, item_update, errors, r.first, r.last,
                             scratch + member * per_member, item_center_sums + c * item_sums);
  });

  if (user.centers) {
    std::vector<double> sums_of_items(item_sums, 0.0);
    add_chunks(item_center_sums, n_item_chunks, item_sums, sums_of_items.data());
    if (exchange) exchange->sum(sums_of_items.data(), item_sums);
    step_centers(item, item_centers, setup, center_grads[0], sums_of_items.data());
    step_centers(user, user_centers, setup, center_grads[1], sums.data());
  }
  return out;
}

void BatchStep::step_centers(const TrainedSide& side, const TrainedCenters& centers, const StepSetup& setup,
                             std::vector<double>& grad, const double* sums) {
  const std::int64_t s = side.total_clusters, d = side.view_dim;
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
        for (std::int64_t c = 0; c < d; ++c) centers.centers[k * d + c] -= static_cast<float>(factor * grad[k * d + c]);
      }
      return;
  }
}

}  // namespace mfdmc
