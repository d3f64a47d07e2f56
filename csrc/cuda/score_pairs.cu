// Embeddings of distinct entities, then one thread for each pair.
#include <cstdint>

#include "cuda/block.hpp"
#include "cuda/entities.hpp"
#include "cuda/kernels.hpp"

namespace mfdmc::cuda {
namespace {

// One block: a tile of entities.
struct Embed {
  static constexpr int kThreads = 256;
  static constexpr const char* kName = "embed";
  Entities side;
  int rows_of_tile;
  float* embeddings;  // [n_rows, D]

  MFDMC_DEVICE void operator()(Block& block) const {
    const std::int64_t first = block.index() * rows_of_tile;
    const int n_rows = rows_from(side, first, rows_of_tile), dim = embedding_dim(side);
    const Tile tile(block.shared<float>(0), TileShape(side), n_rows);
    embed_tile(block, side, first, n_rows, tile);
    block.each(n_rows * dim,
               [&](int task) { embeddings[first * dim + task] = combined(side, tile, task / dim, task % dim); });
  }
};

struct Score {
  static constexpr int kThreads = 256;
  static constexpr const char* kName = "score_pairs";
  PairScores call;

  MFDMC_DEVICE void operator()(Block& block) const {
    const std::int64_t first = block.index() * kThreads, left = call.n_pairs - first;
    block.each(static_cast<int>(left < kThreads ? left : std::int64_t{kThreads}), [&](int task) {
      const std::int64_t b = first + task, u = call.user_position[b], i = call.item_position[b];
      const float *z_user = call.users + u * call.dim, *z_item = call.items + i * call.dim;
      float product = 0;
      for (int c = 0; c < call.dim; ++c) product += z_user[c] * z_item[c];
      float prediction = product + call.global_mean;
      if (call.user_bias) prediction += call.user_bias[u] + call.item_bias[i];
      call.predictions[b] = prediction;
    });
  }
};

}  // namespace

void embed(const Entities& side, float* embeddings, Queue queue) {
  const int per_row = TileShape(side).floats(), rows = tile_rows(per_row, 0);
  launch(Embed{side, rows, embeddings}, (side.n_rows + rows - 1) / rows, sizeof(float) * per_row * rows, queue);
}

void score_pairs(const PairScores& call, Queue queue) {
  launch(Score{call}, (call.n_pairs + Score::kThreads - 1) / Score::kThreads, 0, queue);
}

}  // namespace mfdmc::cuda
