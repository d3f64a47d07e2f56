// Fold-in: rows of one side solved from their ratings while everything else stays as it is.
//
// The other side is fixed, so a row's squared errors are a quadratic function of x = (embedding, bias), and with a
// normal prior of x they stay one: the ratings are read once, and a step costs the same however many there are.
#pragma once

#include <cstdint>

#include "cpu/fused_kernels.hpp"
#include "cpu/team.hpp"

namespace mfdmc {

// What is solved; nothing is owned. U = D + 1 with biases, else D.
struct FoldIn {
  TrainedSide side;             // logits: the start, and then the solution; bias: written, or null
  LossSetup loss;               // proximity, entropy, sum_views and the embedding's length are used
  StepSchedule schedule;        // logit_step and inverse_root of every step, and Adam's constants
  const float* embeddings;      // [M, D] of the partners
  const float* biases;          // [M] of the partners, or null
  const std::int64_t* offsets;  // [n + 1] ratings of a row
  const std::int32_t* partners; // [N]
  const float* ratings;         // [N]
  const float* prior_means;     // [n, U]
  const float* prior_precision; // [U, U], in units of squared errors
  float global_mean;
  std::int32_t n_steps;
};

// Length of a row of embedding, bias and rating.
inline std::int64_t fold_in_stride(std::int64_t dim) {
  return (dim + 2 + kGibbsPadding - 1) / kGibbsPadding * kGibbsPadding;
}

inline std::int64_t fold_in_scratch(const TrainedSide& side, std::int64_t dim, std::int64_t lanes) {
  const std::int64_t stride = fold_in_stride(dim), unknowns = dim + 1;
  return kGathered * stride + stride * stride + (unknowns * (unknowns + 1) + 5 * side.total_clusters) * lanes;
}

// Any number of threads gives the same bits.
void fold_in(const FoldIn& problem, const Kernels& kernels, Team& team);

}  // namespace mfdmc
