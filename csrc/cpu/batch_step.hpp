// One batch through the four passes of fused_kernels.hpp, and the centers' own step.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/fused_kernels.hpp"

namespace mfdmc {

// The loss terms of a batch, unweighted, and their weighted sum.
struct LossValues {
  double total, mse, spread, proximity, entropy, l2, bias_l2;
};

// Ratings in any order, and the same ratings seen from each side.
struct GroupedBatch {
  struct SideGroups {
    std::vector<std::int64_t> rows;     // [R] distinct rows, ascending
    std::vector<std::int64_t> offsets;  // [R + 1]
    std::vector<std::int32_t> order;    // [B] positions in the batch by row, or empty where that is the batch's order
    std::vector<std::int32_t> others;   // [B] position among the other side's rows, by this side's order
    std::vector<std::int32_t> position; // [B] position among this side's rows, in the batch's order
  };
  SideGroups user, item;
  std::vector<float> ratings;  // [B]
  std::int64_t size() const { return static_cast<std::int64_t>(ratings.size()); }
};

// The centers of a side, their gradient and their Adam state; null m and v where gradients are only written.
struct TrainedCenters {
  float* centers;  // [S, d]
  float* m;        // [S, d]
  float* v;        // [S, d]
  float* grad;     // [S, d], written with Optimizer::none
};

// What one step needs besides the batch.
struct StepSetup {
  LossSetup loss;
  UpdateSetup update;
  GradientTables user_gradients, item_gradients;  // (none)
  const float* center_step;  // [steps] learning rate / (1 - beta1^(t+1)) of the centers
  float spread_margin, global_mean;
};

// Buffers that live from step to step. The work is cut into pieces that depend on the batch alone, and every sum is
// taken in a fixed order, so that results are the same for any number of threads.
class BatchStep {
 public:
  BatchStep(const Kernels& kernels, int n_threads) : kernels_(kernels), n_threads_(n_threads) {}

  // Loss of the batch at the parameters as they are; then, if it is finite, one step, or gradients with
  // Optimizer::none. `user` and
  // `item` are FunkMF where their `centers` are null.
  LossValues run(const GroupedBatch& batch, TrainedSide user, const TrainedCenters& user_centers, TrainedSide item,
                 const TrainedCenters& item_centers, const StepSetup& setup);

 private:
  struct SideBuffers {
    std::vector<float> log_weights, embeddings, bias, grad, grad_bias, center_sums, center_norms;
    BatchSide view(const GroupedBatch::SideGroups& groups, const TrainedSide& side, const LossSetup& loss,
                   std::int64_t lanes);
  };

  void step_centers(const TrainedSide& side, const TrainedCenters& centers, const SideBuffers& buffers,
                    const StepSetup& setup, std::vector<double>& grad /* [S, d], of the spread */);

  const Kernels& kernels_;
  int n_threads_;
  SideBuffers user_, item_;
  std::vector<float> errors_, scratch_;
};

}  // namespace mfdmc
