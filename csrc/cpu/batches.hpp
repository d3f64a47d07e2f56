// Batches: dealt from a rating store by run (as mfdmc_fast/data/batches.py says), or made of given index pairs.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/batch_step.hpp"

namespace mfdmc {

// N ratings in (user, item) order; nothing is owned.
struct RatingStore {
  const std::int64_t* user_offsets;  // [n_users + 1]
  const std::int32_t* items;         // [N]
  const float* ratings;              // [N]
  std::int64_t n_users, n_items;
  std::int64_t size() const { return user_offsets[n_users]; }
};

// Deals the ratings of a store into the batches of an epoch.
class Dealer {
 public:
  // n_batches is at most 65,536.
  Dealer(const RatingStore& store, std::int64_t n_batches, std::uint64_t seed);

  void start_epoch(std::uint64_t epoch, int n_threads);
  // Batch b of the epoch that was started, grouped on both sides.
  void make_batch(std::int64_t b, int n_threads, GroupedBatch& out);

 private:
  RatingStore store_;
  std::int64_t n_batches_, n_runs_;
  std::uint64_t seed_;
  std::vector<std::int32_t> users_, items_;  // [n_batches, runs]: the batches of the epoch, one after the other
  std::vector<float> ratings_;               // [n_batches, runs]
  std::vector<std::int64_t> sizes_;          // [n_batches]: runs, or one less
  std::vector<std::int64_t> item_counts_, starts_;
};

// Groups index pairs in any order; indices have been checked.
void group_pairs(const std::int64_t* users /* [n] */, const std::int64_t* items /* [n] */,
                 const float* ratings /* [n] */, std::int64_t n, GroupedBatch& out);

}  // namespace mfdmc
