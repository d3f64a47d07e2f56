// The inner loops of training, compiled once for each instruction set (fused_kernels_*.cpp) and chosen at run time.
//
// One batch, in the order of its users, is worked off in three passes (mfdmc_fast/ops/README.md has the equations):
//   entity forward   each distinct user and item: assignment weights, embedding z, its share of the loss terms
//   rating pass      each rating: prediction and e = 2 (prediction - rating) / B; each user: gradient at z from its
//                    ratings, the sum of e z_item
//   entity backward  each distinct item: the same sum of e z_user; each distinct user and item: gradients of logits and
//                    bias, applied by the optimizer at once; its part of the gradient of the centers
// A BatchSide may hold a part of the batch's users only, as all three passes do on one chunk of them after the other.
// Rows (distinct entities) are taken kLanes at a time, a "tile", and turned cluster-major, so that ragged views are
// plain loops over clusters.
#pragma once

#include <cstdint>

#include "cpu/gibbs_kernels.hpp"

namespace mfdmc {

enum class Optimizer {
  none,  // write gradients instead of applying them
  adam,  // as torch.optim.Adam; steps that a row misses are made up for when it is needed again
  adagrad,  // row-wise: one sum of mean squares for each row
};

constexpr std::int32_t kPowers = 256;

// Ratings of a run whose permutation fits in 64 bits, and runs that are dealt at once.
constexpr std::int64_t kShortRun = 16, kShortRunsTogether = 64;

// What a step needs besides the gradient; the arrays are indexed by step, from 0.
struct StepSchedule {
  const float* logit_step;    // [steps] adam: learning rate / (1 - beta1^(t+1)); adagrad: learning rate
  const float* bias_step;     // [steps] likewise
  const float* inverse_root;  // [steps] 1 / sqrt(1 - beta2^(t+1)) (adam)
  const float *powers1, *powers2;  // [kPowers] beta1^n and beta2^n
  float beta1, beta2, epsilon;
  float rest1, rest2;  // 1 - beta, rounded once: the difference of rounded numbers would be off by 5e-5 for 0.999
};

// Clusters of a side, or numbers of an embedding, that a tile can hold on the stack.
constexpr std::int64_t kMaxColumns = 1024;

// One side's parameters and optimizer state; nothing is owned. For FunkMF, logits are the factors, S their number, and
// centers is null.
struct TrainedSide {
  float* logits;                     // [n, S]
  float* logits_m;                   // [n, S] first moment (adam)
  float* logits_v;                   // [n, S] second moment (adam)
  float* bias;                       // [n], or null
  float* bias_m;                     // [n] (adam)
  float* bias_v;                     // [n] (adam)
  std::int32_t* next_step;           // [n] first step that the row has not made yet (adam)
  float* row_sum;                    // [n] of the logits (adagrad)
  float* bias_sum;                   // [n] (adagrad)
  const float* centers;              // [S, d], or null (FunkMF)
  const float* center_norms;         // [S] squared lengths
  const float* l2_scale;             // [n] by which l2 is multiplied for each row, or null: 1
  const std::int64_t* view_offsets;  // [V + 1]
  std::int64_t n_entities, total_clusters, n_views, view_dim;
};

// Tiles whose parts of the centers' gradient are added up at once.
constexpr std::int64_t kTilesTogether = 8;

inline std::int64_t backward_scratch(const TrainedSide& side, std::int64_t lanes) {
  const std::int64_t s = side.total_clusters;
  return (s * (side.view_dim + 1) + kTilesTogether * (s + side.n_views * side.view_dim + 1)) * lanes;
}

// A rating as an item sees it. Side by side, because both are written to one random place and read from it.
struct Link {
  std::int32_t rating;  // position in the batch
  std::int32_t user;    // position of the user's row
};

// One side of a batch: its R distinct rows and what the passes hand on.
struct BatchSide {
  const std::int64_t* rows;     // [R]
  const std::int64_t* offsets;  // [R + 1] ratings of a row, in this side's order: from offsets[r] up to offsets[r + 1]
  const std::int32_t* items;    // of users: [B] for each rating, position of its item's row
  const Link* links;            // of items: [B] ratings item by item; null for users, as a batch is in their order, and
                                // where grad and grad_bias are known
  std::int64_t n_rows;
  float* log_weights;      // [tiles, S, kLanes]
  float* view_embeddings;  // [tiles, V d, kLanes] where views are summed, else null
  float* embeddings;       // [R, padded_dim], views combined; zero in the padding
  float* bias;             // [R]
  float* grad;             // [R, padded_dim] gradient at the combined embedding, from the ratings alone
  float* grad_bias;        // [R]
};

struct LossSetup {
  float spread, proximity, entropy, l2, bias_l2;  // weights; spread is not used here
  bool sum_views;
  std::int64_t batch_size;
  std::int64_t embedding_dim;  // D
  std::int64_t padded_dim;     // D rounded up to kLanes
};

// Where the gradients go with Optimizer::none: rows as in the table, others untouched.
struct GradientTables {
  float* logits;  // [n, S]
  float* bias;    // [n], or null
};

struct UpdateSetup {
  Optimizer optimizer;
  StepSchedule schedule;
  std::int32_t step;         // of this batch
  GradientTables gradients;  // (none)
};

struct FoldIn;

struct Kernels {
  const char* name;
  std::int64_t lanes;
  // Rows [first, last), whole tiles; adds the rows' parts of proximity, entropy, l2 and bias_l2 to terms [4].
  void (*entity_forward)(const TrainedSide&, const BatchSide&, const LossSetup&, const UpdateSetup&, std::int64_t first,
                         std::int64_t last, double* terms);
  // Ratings of the users' rows [first, last): errors, grad and grad_bias of these rows. Returns their sum of squared
  // errors.
  double (*rating_pass)(const BatchSide& user, const BatchSide& item, const LossSetup&, const float* ratings,
                        float global_mean, std::int64_t first, std::int64_t last, float* errors);
  // grad and grad_bias of the items' rows [first, last), from the errors.
  void (*item_sums)(const BatchSide& item, const BatchSide& user, const LossSetup&, const float* errors,
                    std::int64_t first, std::int64_t last);
  // Rows [first, last), whole tiles; items with links first get their grad and grad_bias from the errors. Writes to center_sums
  // [S, d + 1], for each cluster, the rows' sums of w h [d] and of 2 a w: the gradient of its center is the first plus
  // the second times the center. `scratch` holds backward_scratch() floats.
  void (*entity_backward)(const TrainedSide&, const BatchSide&, const BatchSide& other, const LossSetup&,
                          const UpdateSetup&, const float* errors, std::int64_t first, std::int64_t last,
                          float* scratch, float* center_sums);
  // Adam without gradient for rows [first, last) of the table, up to step `until`.
  void (*catch_up)(const TrainedSide&, const StepSchedule&, std::int32_t until, std::int64_t first, std::int64_t last);
  // Writes to sums [S] the assignment weights of rows [first, last) of the table, added up over the rows that `among`
  // [n] names.
  void (*weight_sums)(const TrainedSide&, const bool* among, std::int64_t first, std::int64_t last, double* sums);
  // The permutations of runs [first, first + n_runs), at most kShortRunsTogether, each of n <= kShortRun numbers, in four
  // bits each from the lowest on. `permutations` has room for kShortRunsTogether.
  void (*short_permutations)(std::uint64_t stream, std::int64_t n, std::int64_t first, std::int64_t n_runs,
                             std::uint64_t* permutations);
  GibbsKernels gibbs;
  // Solves rows [first, last), at most `lanes` of them. `scratch` holds fold_in_scratch() floats.
  void (*fold_in)(const FoldIn&, std::int64_t first, std::int64_t last, float* scratch);
};

extern const Kernels kernels_baseline;
#ifdef __x86_64__
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
#endif

// The fastest set that this processor can run, or the one named: `baseline`, `avx2` or `avx512`; null if it cannot.
const Kernels* choose_kernels(const char* name_or_null);

}  // namespace mfdmc
