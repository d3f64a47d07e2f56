// Training on ratings in memory or in files: batches are dealt, grouped and worked off without leaving C++, except where
// processes exchange messages.
#pragma once

#include <cstdint>
#include <optional>
#include <utility>

#include "cpu/batch_step.hpp"
#include "cpu/batches.hpp"
#include "cpu/exchange.hpp"
#include "cpu/team.hpp"

namespace mfdmc {

class Trainer {
 public:
  Trainer(const RatingStore& store, std::int64_t n_batches, std::uint64_t seed, std::int64_t dealt_at_once,
          std::optional<Exchange> exchange, const Kernels& kernels)
      : n_batches_(n_batches),
        dealer_(store, n_batches, seed, dealt_at_once, kernels),
        exchange_(std::move(exchange)),
        step_(kernels) {}

  void start_epoch(std::uint64_t epoch) {
    dealer_.start_epoch(epoch);
    grouped_ = -1;
  }

  Dealer& dealer() {
    grouped_ = -1;
    return dealer_;
  }

  // Rows of the item side that are trained here.
  std::int64_t own_items(std::int64_t n_items) const { return exchange_ ? exchange_->own_items() : n_items; }

  // One step on batch b of the epoch that was started; `n_ratings` becomes the size of the batch, in all processes.
  LossValues step(std::int64_t b, const TrainedSide& user, const TrainedCenters& user_centers, const TrainedSide& item,
                  const TrainedCenters& item_centers, StepSetup setup, Team& team, std::int64_t* n_ratings) {
    if (grouped_ != b) {
      if (!dealer_.holds(b)) {
        dealer_.deal(b, team);
        if (exchange_) exchange_->share_counts(dealer_.item_counts(team).data(), dealer_.dealt_batches());
      }
      dealer_.begin(b, team.size(), grouping_, batches_[b % 2]);
      team.run(grouping_.pieces(), [&](std::int64_t piece, int) { grouping_.count(static_cast<int>(piece)); });
      grouping_.place();
      team.run(grouping_.pieces(), [&](std::int64_t piece, int) { grouping_.fill(static_cast<int>(piece)); });
    }
    const GroupedBatch& batch = batches_[b % 2];
    *n_ratings = setup.loss.batch_size = dealer_.batch_size(b);
    if (exchange_) exchange_->begin(b - dealer_.first_dealt(), batch);
    // what is dealt at the moment stays where it is as long as this batch needs it
    const bool more = b + 1 < n_batches_ && dealer_.holds(b + 1);
    if (more) dealer_.begin(b + 1, team.size(), grouping_, batches_[(b + 1) % 2]);
    const LossValues loss =
        step_.run(batch, user, user_centers, item, item_centers, setup, team, more ? &grouping_ : nullptr,
                  exchange_ ? &*exchange_ : nullptr);
    grouped_ = more ? b + 1 : -1;
    return loss;
  }

 private:
  std::int64_t n_batches_;
  Dealer dealer_;
  std::optional<Exchange> exchange_;
  Grouping grouping_;
  GroupedBatch batches_[2];
  std::int64_t grouped_ = -1;  // the batch that is ready, in batches_[grouped_ % 2]
  BatchStep step_;
};

}  // namespace mfdmc
