// Assignment weights added up over entities: what pruning goes by.
#include <cstdint>

#include "cuda/block.hpp"
#include "cuda/entities.hpp"
#include "cuda/kernels.hpp"

namespace mfdmc::cuda {
namespace {

// One block: every kUsageParts-th tile of entities.
struct Usage {
  static constexpr int kThreads = 256;
  static constexpr const char* kName = "cluster_usage";
  Entities side;
  int rows_of_tile;
  double* parts;  // [blocks, S]

  MFDMC_DEVICE void operator()(Block& block) const {
    const int s = side.total_clusters;
    double* const part = parts + block.index() * s;
    block.each(s, [&](int k) { part[k] = 0; });
    const std::int64_t stride = block.count() * rows_of_tile;
    for (std::int64_t first = block.index() * rows_of_tile; first < side.n_rows; first += stride) {
      const int n_rows = rows_from(side, first, rows_of_tile);
      const Tile tile(block.shared<float>(0), TileShape(side), n_rows);
      softmax_tile(block, side, first, n_rows, tile);
      block.each(s, [&](int k) {
        double sum = part[k];
        for (int r = 0; r < n_rows; ++r) sum += static_cast<double>(tile.weights[r * s + k]);
        part[k] = sum;
      });
    }
  }
};

}  // namespace

void cluster_usage(const Entities& side, double* parts, Queue queue) {
  const int per_row = TileShape(side).floats(), rows = tile_rows(per_row, 0);
  launch(Usage{side, rows, parts}, kUsageParts, sizeof(float) * per_row * rows, queue);
}

}  // namespace mfdmc::cuda
