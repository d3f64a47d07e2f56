// Batches: dealt from a rating store by run (as mfdmc_fast/data/batches.py says), or made of given index pairs.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

#include "cpu/fused_kernels.hpp"
#include "cpu/rating_files.hpp"
#include "cpu/team.hpp"

namespace mfdmc {

// Ratings grouped by user, and the same ratings seen from each side.
struct GroupedBatch {
  struct SideRows {
    std::vector<std::int64_t> rows;     // [R] distinct rows, ascending
    std::vector<std::int64_t> offsets;  // [R + 1]
  };
  SideRows user, item;
  std::vector<std::int32_t> items;  // [B] position of each rating's item among the rows
  std::vector<Link> links;          // [B] ratings item by item
  const float* ratings;  // [B]
  std::int64_t n_ratings;
};

// N ratings in (user, item) order, of which a process has those of some users; nothing is owned.
struct RatingStore {
  const std::int64_t* user_offsets;  // [n_users + 1] from 0 on, of the own users
  const std::int32_t* items;         // [own ratings]
  const float* ratings;              // [own ratings]
  std::int64_t n_users, n_items;
  std::int64_t first = 0, total = 0;  // number of the first own rating among all N, and N (for a Dealer)
  const RatingFiles* files = nullptr;  // where set, items and ratings are there and not in memory
  std::int64_t size() const { return user_offsets[n_users]; }
};

// Groups a batch that comes in the order of its users, in three stages of independent pieces: a stable counting sort by
// item, and a scan for distinct users. The result does not depend on the number of pieces.
class Grouping {
 public:
  // From here until the last stage is over, the batch is `out`.
  void begin(const std::int32_t* users /* [n], ascending */, const std::int32_t* items /* [n] */,
             const float* ratings /* [n] */, std::int64_t n, std::int64_t n_users, std::int64_t n_items,
             int n_pieces, GroupedBatch& out);

  int pieces() const { return n_pieces_; }
  void count(int piece);  // stage 1: pieces() pieces
  void place();           // stage 2: one piece
  void fill(int piece);   // stage 3: pieces() pieces

 private:
  std::int64_t first_of(int piece) const { return n_ * piece / n_pieces_; }

  const std::int32_t *users_ = nullptr, *items_ = nullptr;
  std::int64_t n_ = 0, n_items_ = 0;
  int n_pieces_ = 0;
  GroupedBatch* out_ = nullptr;
  struct Places {
    std::int32_t next;  // count of a piece's ratings, then the place of the next one
    std::int32_t row;   // position of the item among the rows
  };
  std::vector<Places> places_;        // [pieces, n_items]
  std::vector<std::int64_t> starts_;  // [pieces + 1]: distinct users before each piece
};

// Deals the ratings of a store into the batches of an epoch.
class Dealer {
 public:
  // n_batches is at most 65,536; about `at_once` ratings are dealt at a time, 12 bytes each.
  Dealer(const RatingStore& store, std::int64_t n_batches, std::uint64_t seed, std::int64_t at_once,
         const Kernels& kernels);

  void start_epoch(std::uint64_t epoch);
  bool holds(std::int64_t b) const { return first_ <= b && b < last_; }
  // Deals batch b and as many after it as are worth their memory, in place of those that were dealt before. Raises
  // RatingFileError where ratings cannot be read.
  void deal(std::int64_t b, Team& team);
  // What runs [first, last) give to batch b, without any other run being read: `users` is [last - first] with -1 where a run
  // gives nothing, then `items` and `ratings` say nothing. What was dealt before is gone.
  void deal_some(std::int64_t b, std::int64_t first, std::int64_t last, std::int32_t* users, std::int32_t* items,
                 float* ratings);
  std::int64_t runs() const { return n_runs_; }
  // Ratings of batch b in all processes.
  std::int64_t batch_size(std::int64_t b) const { return store_.total / n_batches_ + in_last_run_[b]; }
  // How often the ratings of each of the batches that are dealt have each item: [dealt batches, n_items].
  std::vector<std::int32_t> item_counts(Team& team) const;
  std::int64_t first_dealt() const { return first_; }
  std::int64_t dealt_batches() const { return last_ - first_; }
  // Begins the grouping of a batch that is dealt.
  void begin(std::int64_t b, int n_pieces, Grouping& grouping, GroupedBatch& out) const;

 private:
  // Ratings from number `start` on, in memory.
  template <typename RatingAt>
  struct Loaded {
    const std::int32_t* items;
    RatingAt rating_at;  // of a position after `start`
    std::int64_t start;
    Loaded(const std::int32_t* items_, RatingAt rating_at_, std::int64_t start_)
        : items(items_), rating_at(rating_at_), start(start_) {}
  };

  // What a member of the team works with.
  struct Scratch {
    std::vector<std::int32_t> numbers;
    RatingFiles::Piece piece;
  };

  std::uint64_t stream() const;
  // Runs that a member of the team deals at a time, and room for it to do so.
  std::int64_t block_size() const;
  Scratch make_scratch() const;
  void deal_block(std::uint64_t stream, std::int64_t first, std::int64_t last, Scratch& scratch,
                  std::atomic<const char*>& fault);
  template <typename RatingAt>
  void deal_loaded(std::uint64_t stream, std::int64_t first, std::int64_t last, const Loaded<RatingAt>& from,
                   std::int32_t* scratch);
  // Runs [first, last); `scratch` is [3, n_batches].
  template <typename RatingAt>
  void deal_runs(std::uint64_t stream, std::int64_t first, std::int64_t last, const Loaded<RatingAt>& from,
                 std::int32_t* scratch);
  // The same for whole runs, at most kShortRunsTogether of at most kShortRun ratings; `user_of` is [runs, n_batches].
  // Batch by batch, so that the processor sees few places of memory grow at a time.
  template <typename RatingAt>
  void deal_short_runs(std::uint64_t stream, std::int64_t first, std::int64_t last, const Loaded<RatingAt>& from,
                       std::int32_t* user_of);
  std::int64_t user_at(std::int64_t rating) const;
  // Number among the own ratings of the first one of a run, negative where the run begins with another process's.
  std::int64_t start_of(std::int64_t run) const { return run * n_batches_ - missing_; }
  // Where the ratings of a batch are.
  struct Span {
    std::int64_t first, n;
  };
  Span dealt(std::int64_t b) const;

  RatingStore store_;
  // Runs are numbered from the first that has an own rating on, which is run `skipped_` of all and lacks its first
  // `missing_` ratings; together_: batches that are dealt at once.
  std::int64_t n_batches_, skipped_, missing_, n_runs_, together_;
  std::uint64_t seed_, epoch_ = 0;
  const Kernels& kernels_;
  std::int64_t first_ = 0, last_ = 0;        // the batches that are dealt
  std::vector<std::int32_t> users_, items_;  // [together, runs]
  std::vector<float> ratings_;               // [together, runs]
  std::vector<std::uint8_t> in_last_run_;    // [batches] whether the last run of all has a rating for the batch
};

// Groups index pairs in any order; indices have been checked.
void group_pairs(const std::int64_t* users /* [n] */, const std::int64_t* items /* [n] */,
                 const float* ratings /* [n] */, std::int64_t n, std::vector<float>& ratings_by_user /* [n] */,
                 GroupedBatch& out);

}  // namespace mfdmc
