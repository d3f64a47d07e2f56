// The inner loops of the Gibbs sampler for Bayesian matrix factorization, compiled once for each instruction set beside
// those of training. mfdmc_fast/ops/README.md has the model.
#pragma once

#include <cstdint>

namespace mfdmc {

// Factors of a row that a tile can hold; rows are padded to a multiple of kGibbsPadding floats.
constexpr std::int64_t kMaxRank = 126;
constexpr std::int64_t kGibbsPadding = 16;
constexpr std::int64_t kGathered = 64;  // ratings whose partners are copied together: they stay in the nearest cache

// One side of the model and its ratings, row by row; nothing is owned.
struct GibbsSide {
  float* factors;               // [n, stride]: the factors [rank], then 1, then zeros
  float* bias;                  // [n]
  const float* prior;           // [n, stride] prior means of the factors [rank] and of the bias
  const float* precision;       // [stride] prior precisions, likewise
  const std::int64_t* offsets;  // [n + 1] ratings of a row
  const std::int32_t* partners; // [N] rows of the other side
  const float* ratings;         // [N]
  const float* weight;          // [n] how exact a row's ratings are: see GibbsShape
  std::int64_t n;
};

struct GibbsShape {
  std::int64_t rank, stride;
  float mean;             // of the ratings: added to every prediction
  float noise_precision;  // of a rating, times the weights of its user and its item
};

// One block of features of a side: entity e has a bag of features, each with the weight scale[e]; those it has more than
// once, as often.
struct FeatureBlock {
  const std::int64_t* offsets;   // [F + 1] entities that have a feature
  const std::int32_t* entities;  // feature by feature
  const float* scale;            // [n]
  const float* squares;          // [F] sum of (times e has f)^2 scale[e]^2 over the distinct entities of a feature
  float* weights;                // [F, stride]
  std::int64_t n_features;
};

struct GibbsKernels {
  // Draws rows [first, last), at most `lanes` of them, factors and bias of a row together, given the other side. `key`
  // names the random numbers of this draw of the side. `scratch` holds gibbs_scratch() floats.
  void (*sample_rows)(const GibbsSide& own, const GibbsSide& other, const GibbsShape&, std::uint64_t key,
                      std::int64_t first, std::int64_t last, float* scratch);
  // Draws the weights of a block's features one after the other, columns [column, column + lanes) of them, and takes
  // what changes out of the residuals [n, stride]: row minus prior mean.
  void (*sample_features)(const FeatureBlock&, const GibbsShape&, const float* precision /* [stride] of the rows */,
                          const float* weight_precision /* [stride] */, std::uint64_t key, std::int64_t column,
                          float* residuals);
  // Writes for rows [first, last) the sum of their ratings' squared errors, each times the weight of the partner.
  void (*squared_errors)(const GibbsSide& own, const GibbsSide& other, const GibbsShape&, std::int64_t first,
                         std::int64_t last, double* sums /* [n] */);
  // Adds predictions of n pairs, clipped to [low, high], to sums.
  void (*add_predictions)(const GibbsSide& user, const GibbsSide& item, const GibbsShape&,
                          const std::int32_t* users, const std::int32_t* items, std::int64_t n, float low, float high,
                          float* sums);
};

inline std::int64_t gibbs_scratch(std::int64_t rank, std::int64_t stride, std::int64_t lanes) {
  return kGathered * stride + stride * stride + ((rank + 2) * (rank + 3) / 2 + 2 * (rank + 2)) * lanes;
}

}  // namespace mfdmc
