// Training by several processes: what they tell each other in every step.
//
// Users, and all their ratings, belong to one process each, and so do items: process r of N owns the items from
// n_items r / N on. In a step the owner of an item computes its embedding and sends it to the processes whose ratings
// need it; they return what their ratings add to its gradient, and the owner makes the step. Centers are everywhere:
// every process adds up the same parts of their gradients in the same order, so they have the same bits in all.
#pragma once

#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

#include "cpu/aligned.hpp"
#include "cpu/batches.hpp"
#include "cpu/fused_kernels.hpp"

namespace mfdmc {

class Exchange {
 public:
  // Messages to all processes or from all, by rank, this one included: as many bytes as `sizes` says, one after another.
  struct Messages {
    AlignedVector<char> bytes;
    std::vector<std::int64_t> sizes;
  };
  // Sends the first and fills the second, whose sizes are known. May throw, where a process is gone.
  using Swap = std::function<void(const Messages& sent, Messages& received)>;

  Exchange(int rank, int n_processes, std::int64_t n_items, Swap swap)
      : rank_(rank), n_processes_(n_processes), n_items_(n_items), swap_(std::move(swap)) {}

  std::int64_t first_item(int rank) const { return n_items_ * rank / n_processes_; }
  std::int64_t own_items() const { return first_item(rank_ + 1) - first_item(rank_); }

  // Makes known how often this process has each item in each of some batches that were dealt.
  void share_counts(const std::int32_t* counts /* [n, n_items] */, std::int64_t n);

  // Begins the step on batch `index` of those. The rows of own items that any process has in it, as rows of the tables
  // of own items, are `owned()`, with offsets by the ratings of all.
  void begin(std::int64_t index, const GroupedBatch& batch);
  const GroupedBatch::SideRows& owned() const { return owned_; }

  // From the embeddings and biases of `owned` those of `items`, the rows of this process's ratings.
  void share_items(const BatchSide& owned, const LossSetup& loss, BatchSide& items);

  // From grad and grad_bias of `items` the sums over all processes in those of `owned`; and `more` [n] becomes its sum.
  void sum_items(const BatchSide& items, const LossSetup& loss, BatchSide& owned, double* more, std::int64_t n);

  void sum(double* values, std::int64_t n);

 private:
  // Buffers for messages of as many bytes to and from each process.
  void lay_out(const std::vector<std::int64_t>& sent, const std::vector<std::int64_t>& received);

  int rank_, n_processes_;
  std::int64_t n_items_;
  Swap swap_;
  Messages sent_, received_;
  std::vector<std::int32_t> counts_;  // [processes, batches, own items]
  std::int64_t n_batches_ = 0;        // of those
  GroupedBatch::SideRows owned_;
  std::vector<std::vector<std::int32_t>> wanted_;  // for each process, which of the owned rows it has
  std::vector<std::int64_t> bounds_;               // [processes + 1] of the own batch's item rows, by owner
};

}  // namespace mfdmc
