// One batch through the three passes of fused_kernels.hpp, and the centers' own step.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/aligned.hpp"
#include "cpu/batches.hpp"
#include "cpu/exchange.hpp"
#include "cpu/fused_kernels.hpp"
#include "cpu/team.hpp"

namespace mfdmc {

// The loss terms of a batch, unweighted, and their weighted sum.
struct LossValues {
  double total, mse, spread, proximity, entropy, l2, bias_l2;
};

// The centers of a side and, by optimizer, what belongs to them.
struct TrainedCenters {
  float* centers;  // [S, d]
  float* m;        // [S, d] (adam)
  float* v;        // [S, d] (adam)
  float* row_sum;  // [S] (adagrad)
  float* grad;     // [S, d] (none)
};

// What one step needs besides the batch.
struct StepSetup {
  LossSetup loss;
  UpdateSetup update;
  GradientTables user_gradients, item_gradients;  // (none)
  const float* center_step;                       // [steps] as StepSchedule::logit_step, for the centers
  float spread_margin, global_mean;
};

// Buffers that live from step to step. The work is cut into pieces that depend on the batch alone, and every sum is
// taken in a fixed order, so that results are the same for any number of threads.
class BatchStep {
 public:
  explicit BatchStep(const Kernels& kernels) : kernels_(kernels) {}

  // Loss of the batch at the parameters as they are, and one step, or gradients with Optimizer::none. If the loss is
  // not finite, only some users have made the step. `user` and `item` are FunkMF where their `centers` are null. The
  // stages of `next`, if there is one, run along with the passes. With an `exchange`, which has begun this batch, the
  // batch and the users are those of this process and `item` has the rows of its own items; the loss is that of all.
  LossValues run(const GroupedBatch& batch, TrainedSide user, const TrainedCenters& user_centers, TrainedSide item,
                 const TrainedCenters& item_centers, const StepSetup& setup, Team& team, Grouping* next,
                 Exchange* exchange);

 private:
  struct SideBuffers {
    AlignedVector<float> embeddings, center_sums, center_norms;
  };

  // The gradient of the centers is that of spread [S, d], to which `sums` [S, d + 1] are added: of w h, and of 2 a w.
  void step_centers(const TrainedSide& side, const TrainedCenters& centers, const StepSetup& setup,
                    std::vector<double>& grad, const double* sums);

  const Kernels& kernels_;
  SideBuffers user_, item_;
  AlignedVector<float> item_rows_, errors_, scratch_;
  AlignedVector<float> rated_;  // of the items that this process's ratings need, where others own some of them
};

}  // namespace mfdmc
