// Training on ratings that stay in memory: batches are dealt, grouped and worked off without leaving C++.
#pragma once

#include <cstdint>

#include "cpu/batch_step.hpp"
#include "cpu/batches.hpp"

namespace mfdmc {

class Trainer {
 public:
  Trainer(const RatingStore& store, std::int64_t n_batches, std::uint64_t seed, const Kernels& kernels, int n_threads)
      : dealer_(store, n_batches, seed), step_(kernels, n_threads), n_threads_(n_threads) {}

  void start_epoch(std::uint64_t epoch) { dealer_.start_epoch(epoch, n_threads_); }

  // One step on batch b of the epoch that was started; `n_ratings` becomes the size of the batch.
  LossValues step(std::int64_t b, const TrainedSide& user, const TrainedCenters& user_centers, const TrainedSide& item,
                  const TrainedCenters& item_centers, StepSetup setup, std::int64_t* n_ratings) {
    dealer_.make_batch(b, n_threads_, batch_);
    *n_ratings = setup.loss.batch_size = batch_.size();
    return step_.run(batch_, user, user_centers, item, item_centers, setup);
  }

 private:
  Dealer dealer_;
  BatchStep step_;
  GroupedBatch batch_;
  int n_threads_;
};

}  // namespace mfdmc
