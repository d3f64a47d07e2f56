// Bayesian matrix factorization by Gibbs sampling; mfdmc_fast/ops/README.md has the model and its conditionals.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/batches.hpp"
#include "cpu/fused_kernels.hpp"
#include "cpu/team.hpp"

namespace mfdmc {

// What some entities of a side have in common, feature by feature; nothing is owned.
struct FeatureBags {
  const std::int64_t* offsets;   // [F + 1]
  const std::int32_t* entities;  // those with feature f: from offsets[f] up to offsets[f + 1]
  std::int64_t n_features;
};

class GibbsSampler {
 public:
  // `implicit`: the items that a user has rated are her features, and the users that have rated an item are its.
  // `noise_degrees`: degrees of freedom of the weights' prior, the mean of which is 1; 0: all weights are 1.
  GibbsSampler(const RatingStore& store, float mean, std::int64_t rank, std::uint64_t seed, bool implicit,
               double noise_degrees,
               const std::vector<FeatureBags>& user_bags, const std::vector<FeatureBags>& item_bags,
               const Kernels& kernels);

  // Draws everything once. Bit-identical for any size of the team.
  void sweep(Team& team);

  // Adds this draw's predictions of n pairs, clipped to [low, high], to sums.
  void add_predictions(const std::int32_t* users, const std::int32_t* items, std::int64_t n, float low, float high,
                       float* sums, Team& team) const;

  // This draw of the users (side 0) or items (1): factors, then bias.
  void copy_rows(int side, float* out /* [n, rank + 1] */) const;

  // The weights of the noise precision of the users' or items' ratings, [n].
  const std::vector<float>& weights(int side) const { return sides_[side].weight; }

  std::int64_t rows(int side) const { return sides_[side].n; }
  std::int64_t rank() const { return shape_.rank; }
  double noise_precision() const { return shape_.noise_precision; }

 private:
  struct Block {
    FeatureBags bags;
    std::vector<float> scale;      // [n] 1 / sqrt(features of the entity)
    std::vector<float> squares;    // [F] as in FeatureBlock
    std::vector<float> weights;    // [F, stride]
    std::vector<float> precision;  // [stride] of the weights
  };
  struct Side {
    std::int64_t n;
    const std::int64_t* offsets;
    const std::int32_t* partners;
    const float* ratings;
    std::vector<float> factors, bias, prior, precision, mean, residuals, weight;
    std::vector<double> squares;  // [n] see squared_errors
    std::vector<Block> blocks;
  };

  void begin(Side& side, const std::vector<FeatureBags>& bags, bool implicit, const Side& other, std::uint64_t key);
  void draw_rows(int side, Team& team);
  // The prior of columns [column, column + lanes) of a side: means, precisions, feature weights.
  void draw_prior(int side, std::int64_t column);
  void draw_noise(Team& team);
  void sum_squares(int side, Team& team);
  void draw_weights(int side, Team& team);
  // What a column's precision is divided by where the ratings are in other units than their standard deviation.
  double square_unit(std::int64_t column) const { return column < shape_.rank ? unit_ : unit_ * unit_; }
  GibbsSide view(const Side& side) const;
  // Names the random numbers of a purpose in this sweep; `part` tells apart the columns or blocks that share it.
  enum class Purpose { start, rows, prior, features, noise, weights };
  std::uint64_t key(Purpose purpose, int side, std::int64_t part = 0) const;

  const Kernels& kernels_;
  std::int64_t lanes_;
  GibbsShape shape_;
  double unit_;  // standard deviation of the ratings
  std::uint64_t seed_, sweep_ = 0;
  double noise_degrees_;
  std::vector<std::int64_t> item_offsets_;
  std::vector<std::int32_t> item_users_;
  std::vector<float> item_ratings_;
  Side sides_[2];
};

// D draws that were kept.
struct Draws {
  const float* users;  // [D, n_users, rank + 1] factors, then bias
  const float* items;  // [D, n_items, rank + 1]
  std::int64_t n_draws, n_users, n_items, rank;
};

// Means and standard deviations over the draws of the predictions of n pairs, clipped to [low, high].
void posterior_scores(const Draws& draws, float mean, float low, float high, const std::int64_t* users,
                      const std::int64_t* items, std::int64_t n, float* means, float* deviations, Team& team);

}  // namespace mfdmc
