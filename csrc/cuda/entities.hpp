// A tile of entities in shared memory: what the passes over distinct rows have in common.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/block.hpp"
#include "cuda/kernels.hpp"
#include "mfdmc/embedding.hpp"

namespace mfdmc::cuda {

// Numbers a row keeps in shared memory.
struct TileShape {
  int n_clusters, n_views, view_dim;

  MFDMC_HOST_DEVICE explicit TileShape(const Entities& side)
      : n_clusters(side.total_clusters), n_views(side.n_views), view_dim(side.view_dim) {}

  MFDMC_HOST_DEVICE int roles() const { return n_views * view_dim; }
  // log weights, weights, and one embedding for each view
  MFDMC_HOST_DEVICE int floats() const { return 2 * n_clusters + roles(); }
};

// Rows of a tile, as many as fit beside `fixed` floats with `per_row` floats each; at least one.
inline int tile_rows(int per_row, int fixed) {
  constexpr int most = 32, room = static_cast<int>(kPlainShared / sizeof(float));
  const int rows = (room - fixed) / per_row;
  return rows < 1 ? 1 : rows > most ? most : rows;
}

// Row-major in shared memory: log_weights [rows, S], weights [rows, S], roles [rows, V d].
struct Tile {
  float *log_weights, *weights, *roles;

  MFDMC_DEVICE Tile(float* memory, const TileShape& shape, int n_rows)
      : log_weights(memory),
        weights(memory + n_rows * shape.n_clusters),
        roles(memory + 2 * n_rows * shape.n_clusters) {}
};

// The rows of a tile from the entity `first` of the list on.
MFDMC_DEVICE inline int rows_from(const Entities& side, std::int64_t first, int most) {
  return static_cast<int>(side.n_rows - first < most ? side.n_rows - first : most);
}

// Softmax of entities [first, first + n_rows) of the list.
MFDMC_DEVICE inline void softmax_tile(const Block& block, const Entities& side, std::int64_t first, int n_rows,
                                      const Tile& tile) {
  const int s = side.total_clusters;
  block.each(n_rows * s, [&](int task) {
    tile.log_weights[task] = side.assignment_logits[side.rows[first + task / s] * s + task % s];
  });
  block.each(n_rows * side.n_views, [&](int task) {
    const int r = task / side.n_views, v = task % side.n_views, k = side.view_offsets[v];
    float* const logits = tile.log_weights + r * s + k;
    log_softmax_row(logits, side.view_offsets[v + 1] - k, logits, tile.weights + r * s + k);
  });
}

// The same and their projection.
MFDMC_DEVICE inline void embed_tile(const Block& block, const Entities& side, std::int64_t first, int n_rows,
                                    const Tile& tile) {
  const int s = side.total_clusters, d = side.view_dim;
  softmax_tile(block, side, first, n_rows, tile);
  block.each(n_rows * side.n_views * d, [&](int task) {
    const int r = task / (side.n_views * d), v = task / d % side.n_views, k = side.view_offsets[v];
    tile.roles[task] = projection(tile.weights + r * s + k, side.centers + static_cast<std::int64_t>(k) * d,
                                  side.view_offsets[v + 1] - k, d, task % d);
  });
}

// Number c of the combined embedding of row r of a tile.
MFDMC_DEVICE inline float combined(const Entities& side, const Tile& tile, int r, int c) {
  const int roles = side.n_views * side.view_dim;
  if (!side.sum_views) return tile.roles[r * roles + c];
  float sum = 0;
  for (int v = 0; v < side.n_views; ++v) sum += tile.roles[r * roles + v * side.view_dim + c];
  return sum;
}

}  // namespace mfdmc::cuda
