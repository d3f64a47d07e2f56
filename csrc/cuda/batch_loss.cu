// The passes of batch_loss: entities forward, ratings once for each side, entities backward, centers.
#include <algorithm>
#include <cstdint>

#include "cuda/block.hpp"
#include "cuda/entities.hpp"
#include "cuda/kernels.hpp"
#include "mfdmc/row_loss.hpp"

namespace mfdmc::cuda {
namespace {

// Blocks of the backward pass at most, so that there are not too many parts of the centers' gradients. It must not
// depend on the device, because it is in what order sums are taken.
constexpr std::int64_t kMostParts = 256;

// The row's part of the batch's ratings.
MFDMC_DEVICE inline float share_of(const SideBatch& batch, std::int64_t row) {
  return static_cast<float>(batch.row_offsets[row + 1] - batch.row_offsets[row]) / static_cast<float>(batch.n_ratings);
}

MFDMC_DEVICE inline float l2_share_of(const Entities& side, const SideBatch& batch, std::int64_t row) {
  return share_of(batch, row) * (batch.l2_scale ? batch.l2_scale[side.rows[row]] : 1.0f);
}

// norms[k] = |c_k|^2
MFDMC_DEVICE inline void center_norms(const Block& block, const Entities& side, float* norms) {
  block.each(side.total_clusters, [&](int k) {
    const float* const center = side.centers + static_cast<std::int64_t>(k) * side.view_dim;
    float sum = 0;
    for (int c = 0; c < side.view_dim; ++c) sum += center[c] * center[c];
    norms[k] = sum;
  });
}

// One block: a tile of entities.
struct Forward {
  static constexpr int kThreads = 256;
  static constexpr const char* kName = "batch_loss, entity forward";
  Entities side;
  SideBatch batch;
  float* embeddings;
  float* terms;

  // beside the tile: proximity and entropy of each view, and the row's four terms
  MFDMC_HOST_DEVICE static int floats(const Entities& side) { return TileShape(side).floats() + 2 * side.n_views + 4; }
  static int rows_of_tile(const Entities& side) { return tile_rows(floats(side), side.total_clusters); }

  int n_tile_rows = rows_of_tile(side);

  MFDMC_DEVICE void operator()(Block& block) const {
    const std::int64_t first = block.index() * n_tile_rows;
    const int n_rows = rows_from(side, first, n_tile_rows), dim = embedding_dim(side), n_views = side.n_views;
    const TileShape shape(side);
    float* const norms = block.shared<float>(0);
    float* const memory = norms + side.total_clusters;
    const Tile tile(memory, shape, n_rows);
    float* const of_views = memory + n_rows * shape.floats();  // [2, rows, V]
    float* const of_rows = of_views + 2 * n_rows * n_views;    // [rows, 4]
    center_norms(block, side, norms);
    embed_tile(block, side, first, n_rows, tile);
    block.each(n_rows * n_views, [&](int task) {
      const int v = task % n_views, k = side.view_offsets[v], n_clusters = side.view_offsets[v + 1] - k;
      const int at = task / n_views * side.total_clusters + k;
      of_views[task] = proximity_of(tile.weights + at, norms + k, n_clusters, tile.roles + task * side.view_dim,
                                    side.view_dim) /
                       static_cast<float>(n_views);
      of_views[n_rows * n_views + task] = entropy_of(tile.weights + at, tile.log_weights + at, n_clusters) *
                                          entropy_scale(n_views, n_clusters);
    });
    block.each(n_rows * dim,
               [&](int task) { embeddings[first * dim + task] = combined(side, tile, task / dim, task % dim); });
    block.each(n_rows, [&](int r) {
      const std::int64_t row = first + r;
      const float share = share_of(batch, row);
      float proximity = 0, entropy = 0, square = 0;
      for (int v = 0; v < n_views; ++v) {
        proximity += of_views[r * n_views + v];
        entropy += of_views[(n_rows + r) * n_views + v];
      }
      for (int c = 0; c < dim; ++c) square += embeddings[row * dim + c] * embeddings[row * dim + c];
      const float bias = side.bias ? side.bias[side.rows[row]] : 0.0f;
      of_rows[4 * r] = share * proximity;
      of_rows[4 * r + 1] = share * entropy;
      of_rows[4 * r + 2] = l2_share_of(side, batch, row) * square;
      of_rows[4 * r + 3] = share * bias * bias;
    });
    block.each(4, [&](int term) {
      float sum = 0;
      for (int r = 0; r < n_rows; ++r) sum += of_rows[4 * r + term];
      terms[block.index() * 4 + term] = sum;
    });
  }
};

// One warp: a chunk of the ratings of one row. First a lane for each rating, then a lane for each number of the
// embedding, so that no sum crosses lanes.
struct Ratings {
  static constexpr int kThreads = 128, kWarps = kThreads / kLanes;
  static constexpr const char* kName = "batch_loss, rating pass";
  SideBatch batch;
  RatingPass call;

  // own embedding, gradient; error, error sum, square sum and partner of each lane
  MFDMC_HOST_DEVICE static int floats(int dim) { return 2 * dim + 4 * kLanes; }

  MFDMC_DEVICE void operator()(Block& block) const {
    block.each_warp(kWarps, [&](const Warp& warp, int w) {
      const std::int64_t chunk = block.index() * kWarps + w;
      if (chunk >= batch.n_chunks) return;
      const int dim = call.dim;
      float* const z = block.shared<float>(0) + w * floats(dim);
      float* const gradient = z + dim;
      float* const errors = gradient + dim;
      float* const error_sums = errors + kLanes;
      float* const square_sums = error_sums + kLanes;
      std::int32_t* const partners = reinterpret_cast<std::int32_t*>(square_sums + kLanes);
      const std::int64_t row = batch.chunk_row[chunk];
      const std::int64_t begin = batch.row_offsets[row] + (chunk - batch.chunk_offsets[row]) * kChunk;
      const std::int64_t row_end = batch.row_offsets[row + 1];
      const std::int64_t end = row_end - begin < kChunk ? row_end : begin + kChunk;
      const float known = call.global_mean + (call.own_bias ? call.own_bias[row] : 0.0f);
      const float scale = 2.0f / static_cast<float>(batch.n_ratings);
      warp.each(dim, [&](int c) {
        z[c] = call.own[row * dim + c];
        gradient[c] = 0;
      });
      warp.each(kLanes, [&](int lane) { error_sums[lane] = square_sums[lane] = 0; });
      for (std::int64_t base = begin; base < end; base += kLanes) {
        const int n = static_cast<int>(end - base < kLanes ? end - base : std::int64_t{kLanes});
        warp.each(n, [&](int lane) {
          const std::int64_t partner = batch.partner[base + lane];
          const float* const other = call.other + partner * dim;
          float product = 0;
          for (int c = 0; c < dim; ++c) product += z[c] * other[c];
          const float bias = call.other_bias ? call.other_bias[partner] : 0.0f;
          const float error = product + (known + bias) - batch.ratings[base + lane];
          partners[lane] = static_cast<std::int32_t>(partner);
          errors[lane] = scale * error;
          error_sums[lane] += scale * error;
          square_sums[lane] += error * error;
        });
        warp.each(dim, [&](int c) {
          float sum = gradient[c];
          for (int lane = 0; lane < n; ++lane)
            sum += errors[lane] * call.other[static_cast<std::int64_t>(partners[lane]) * dim + c];
          gradient[c] = sum;
        });
      }
      warp.each(dim, [&](int c) { call.gradients[chunk * (dim + 1) + c] = gradient[c]; });
      warp.each(2, [&](int which) {
        const float* const parts = which ? square_sums : error_sums;
        float sum = 0;
        for (int lane = 0; lane < kLanes; ++lane) sum += parts[lane];
        if (which == 0)
          call.gradients[chunk * (dim + 1) + dim] = sum;
        else if (call.squares)
          call.squares[chunk] = sum;
      });
    });
  }
};

// One block: every n-th tile of entities, and its part of the centers' gradients.
struct Backward {
  static constexpr int kThreads = 256;
  static constexpr const char* kName = "batch_loss, entity backward";
  Entities side;
  SideBatch batch;
  EntityBackward call;

  // beside the tile: gradient at each weight, and at the combined embedding
  MFDMC_HOST_DEVICE static int floats(const Entities& side) {
    return TileShape(side).floats() + side.total_clusters + embedding_dim(side);
  }
  static int rows_of_tile(const Entities& side) { return tile_rows(floats(side), side.total_clusters); }

  int n_tile_rows = rows_of_tile(side);

  // What the ratings of a row add to number c of its gradients, c = dim: its bias.
  MFDMC_DEVICE float from_ratings(std::int64_t row, int c) const {
    const int columns = embedding_dim(side) + 1;
    float sum = 0;
    for (std::int64_t chunk = batch.chunk_offsets[row]; chunk < batch.chunk_offsets[row + 1]; ++chunk)
      sum += call.chunk_gradients[chunk * columns + c];
    return sum;
  }

  // Weight of the proximity of one view of the row.
  MFDMC_DEVICE float proximity_factor(std::int64_t row) const {
    return share_of(batch, row) * call.proximity / static_cast<float>(side.n_views);
  }

  MFDMC_DEVICE void operator()(Block& block) const {
    const int s = side.total_clusters, d = side.view_dim, n_views = side.n_views, dim = embedding_dim(side);
    const TileShape shape(side);
    float* const norms = block.shared<float>(0);
    float* const memory = norms + s;
    float* const part = call.center_parts + block.index() * s * (d + 1);
    center_norms(block, side, norms);
    block.each(s * (d + 1), [&](int task) { part[task] = 0; });
    for (std::int64_t first = block.index() * n_tile_rows; first < side.n_rows; first += block.count() * n_tile_rows) {
      const int n_rows = rows_from(side, first, n_tile_rows);
      const Tile tile(memory, shape, n_rows);
      float* const q = memory + n_rows * shape.floats();  // [rows, S]
      float* const gradient = q + n_rows * s;             // [rows, D] at the combined embedding
      embed_tile(block, side, first, n_rows, tile);
      block.each(n_rows * dim, [&](int task) {
        const int r = task / dim, c = task % dim;
        gradient[task] = from_ratings(first + r, c) +
                         2 * call.l2 * l2_share_of(side, batch, first + r) * combined(side, tile, r, c);
      });
      float* const h = tile.roles;  // [rows, V d]: gradient - 2 a z, in the place of z
      block.each(n_rows * n_views * d, [&](int task) {
        const int r = task / (n_views * d), c = task % (n_views * d);
        h[task] = gradient[r * dim + c % dim] - 2 * proximity_factor(first + r) * h[task];
      });
      block.each(n_rows * s, [&](int task) {
        const int r = task / s, k = task % s, v = side.view_of[k];
        const float entropy = share_of(batch, first + r) * call.entropy *
                              entropy_scale(n_views, side.view_offsets[v + 1] - side.view_offsets[v]);
        q[task] = weight_gradient(h + (r * n_views + v) * d, side.centers + static_cast<std::int64_t>(k) * d, d,
                                  norms[k], proximity_factor(first + r), tile.log_weights[task], entropy);
      });
      block.each(n_rows * n_views, [&](int task) {
        const int v = task % n_views, k = side.view_offsets[v], at = task / n_views * s + k;
        logit_gradients(tile.weights + at, side.view_offsets[v + 1] - k, q + at);
      });
      block.each(n_rows * s, [&](int task) { call.logits[side.rows[first + task / s] * s + task % s] = q[task]; });
      if (call.bias)
        block.each(n_rows, [&](int r) {
          const std::int64_t entity = side.rows[first + r];
          call.bias[entity] =
              from_ratings(first + r, dim) + 2 * call.bias_l2 * share_of(batch, first + r) * side.bias[entity];
        });
      block.each(s * (d + 1), [&](int task) {
        const int k = task / (d + 1), c = task % (d + 1), v = side.view_of[k];
        float sum = part[task];
        for (int r = 0; r < n_rows; ++r)
          sum += tile.weights[r * s + k] *
                 (c < d ? h[(r * n_views + v) * d + c] : 2 * proximity_factor(first + r));
        part[task] = sum;
      });
    }
  }
};

// One thread for each number: the sum of its parts.
struct SumParts {
  static constexpr int kThreads = 128;
  static constexpr const char* kName = "batch_loss, sum of parts";
  CenterGradients call;
  int n;

  MFDMC_DEVICE void operator()(Block& block) const {
    const int first = static_cast<int>(block.index()) * kThreads;
    block.each(n - first < kThreads ? n - first : kThreads, [&](int task) {
      float sum = 0;
      for (std::int64_t part = 0; part < call.n_parts; ++part) sum += call.parts[part * n + first + task];
      call.sums[first + task] = sum;
    });
  }
};

// One thread for each center.
struct Centers {
  static constexpr int kThreads = 128;
  static constexpr const char* kName = "batch_loss, centers";
  Entities side;
  CenterGradients call;

  MFDMC_DEVICE void operator()(Block& block) const {
    const int d = side.view_dim, first = static_cast<int>(block.index()) * kThreads;
    int views = 0;  // that have pairs
    for (int v = 0; v < side.n_views; ++v) views += side.view_offsets[v + 1] - side.view_offsets[v] >= 2;
    block.each(side.total_clusters - first < kThreads ? side.total_clusters - first : kThreads, [&](int task) {
      const int k = first + task, v = side.view_of[k];
      const float* const center = side.centers + static_cast<std::int64_t>(k) * d;
      const float* const sums = call.sums + static_cast<std::int64_t>(k) * (d + 1);
      float* const gradient = call.gradients + static_cast<std::int64_t>(k) * d;
      for (int c = 0; c < d; ++c) gradient[c] = sums[c] + sums[d] * center[c];
      const int k0 = side.view_offsets[v], k1 = side.view_offsets[v + 1];
      float spread = 0;
      if (k1 - k0 >= 2) {
        // of a pair; either of its centers sees it
        const float share =
            2.0f / (static_cast<float>(k1 - k0) * static_cast<float>(k1 - k0 - 1) * static_cast<float>(views));
        for (int l = k0; l < k1; ++l)
          if (l != k)
            spread += share * hinge_of_pair(center, side.centers + static_cast<std::int64_t>(l) * d, d, call.margin,
                                            call.spread * share, gradient);
      }
      call.spread_parts[k] = spread / 2;
    });
  }
};

std::int64_t tiles_of(const Entities& side, int rows) { return (side.n_rows + rows - 1) / rows; }

}  // namespace

std::int64_t forward_blocks(const Entities& side) { return tiles_of(side, Forward::rows_of_tile(side)); }

void entity_forward(const Entities& side, const SideBatch& batch, float* embeddings, float* terms, Queue queue) {
  const Forward forward{side, batch, embeddings, terms};
  const int floats = side.total_clusters + forward.n_tile_rows * Forward::floats(side);
  launch(forward, forward_blocks(side), sizeof(float) * floats, queue);
}

void rating_pass(const SideBatch& batch, const RatingPass& call, Queue queue) {
  launch(Ratings{batch, call}, (batch.n_chunks + Ratings::kWarps - 1) / Ratings::kWarps,
         sizeof(float) * Ratings::kWarps * Ratings::floats(call.dim), queue);
}

std::int64_t backward_blocks(const Entities& side) {
  return std::min(tiles_of(side, Backward::rows_of_tile(side)), kMostParts);
}

void entity_backward(const Entities& side, const SideBatch& batch, const EntityBackward& call, Queue queue) {
  const Backward backward{side, batch, call};
  const int floats = side.total_clusters + backward.n_tile_rows * Backward::floats(side);
  launch(backward, backward_blocks(side), sizeof(float) * floats, queue);
}

void center_gradients(const Entities& side, const CenterGradients& call, Queue queue) {
  const int n = side.total_clusters * (side.view_dim + 1);
  launch(SumParts{call, n}, (n + SumParts::kThreads - 1) / SumParts::kThreads, 0, queue);
  launch(Centers{side, call}, (side.total_clusters + Centers::kThreads - 1) / Centers::kThreads, 0, queue);
}

}  // namespace mfdmc::cuda
