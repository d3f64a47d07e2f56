#include "cpu/batches.hpp"

#include <algorithm>
#include <numeric>
#include <utility>

#include "cpu/split_mix.hpp"

namespace mfdmc {
namespace {

// what a member of the team reads at a time, so that it stays in the second-level cache
constexpr std::int64_t kRatingsPerRead = 1 << 16;

// The permutation [n] of a run whose first rating has the number `start` among all.
void permute(std::uint64_t stream, std::int64_t start, std::int64_t n, std::int32_t* permutation,
             std::int32_t* swaps /* [n] */) {
  // loops of their own, so that the processor works ahead in the first while it waits in the second
  for (std::int64_t k = 0; k < n; ++k) {
    const std::uint64_t random = mix(stream + static_cast<std::uint64_t>(start + k + 1) * kGolden) >> 32;
    swaps[k] = static_cast<std::int32_t>((random * (k + 1)) >> 32);  // uniform in 0 ... k
  }
  for (std::int64_t k = 0; k < n; ++k) {
    permutation[k] = permutation[swaps[k]];
    permutation[swaps[k]] = static_cast<std::int32_t>(k);
  }
}

}  // namespace

void Grouping::begin(const std::int32_t* users, const std::int32_t* items, const float* ratings, std::int64_t n,
                     std::int64_t n_users, std::int64_t n_items, int n_pieces, GroupedBatch& out) {
  users_ = users;
  items_ = items;
  n_ = n;
  n_items_ = n_items;
  n_pieces_ = n < 4096 ? 1 : n_pieces;
  out_ = &out;
  places_.resize(n_pieces_ * n_items);
  starts_.assign(n_pieces_ + 1, 0);
  out.ratings = ratings;
  out.n_ratings = n;
  out.items.resize(n);
  out.links.resize(n);
  // here and not when they are filled, as a task of a team must not throw
  for (auto [side, n_rows] : {std::pair{&out.user, n_users}, std::pair{&out.item, n_items}}) {
    side->rows.reserve(std::min(n, n_rows));
    side->offsets.reserve(std::min(n, n_rows) + 1);
  }
}

void Grouping::count(int piece) {
  Places* const places = places_.data() + piece * n_items_;
  std::fill(places, places + n_items_, Places{0, 0});
  // as local variables, which the compiler need not read again after every rating
  const std::int32_t *const users = users_, *const items = items_;
  const std::int64_t first = first_of(piece), last = first_of(piece + 1);
  std::int64_t distinct = first == 0 && last > 0;
  for (std::int64_t q = first > 0 ? first : 1; q < last; ++q) distinct += users[q] != users[q - 1];
  for (std::int64_t q = first; q < last; ++q) ++places[items[q]].next;
  starts_[piece + 1] = distinct;
}

void Grouping::place() {
  std::partial_sum(starts_.begin(), starts_.end(), starts_.begin());
  out_->user.rows.resize(starts_.back());
  out_->user.offsets.resize(starts_.back() + 1);
  out_->user.offsets.back() = n_;
  out_->item.rows.clear();
  out_->item.offsets.clear();
  std::int32_t total = 0;
  for (std::int64_t i = 0; i < n_items_; ++i) {
    const std::int32_t before_item = total;
    for (int piece = 0; piece < n_pieces_; ++piece) {
      Places& places = places_[piece * n_items_ + i];
      const std::int32_t place = total;
      total += places.next;
      places = {place, static_cast<std::int32_t>(out_->item.rows.size())};
    }
    if (total == before_item) continue;
    out_->item.rows.push_back(i);
    out_->item.offsets.push_back(before_item);
  }
  out_->item.offsets.push_back(n_);
}

void Grouping::fill(int piece) {
  Places* const places = places_.data() + piece * n_items_;
  const std::int32_t *const users = users_, *const items = items_;
  std::int32_t* const item_rows = out_->items.data();
  Link* const links = out_->links.data();
  std::int64_t *const user_rows = out_->user.rows.data(), *const user_offsets = out_->user.offsets.data();
  const std::int64_t first = first_of(piece), last = first_of(piece + 1);
  // all links are about to be written, one here and one there: faster when they are in the cache already
  for (std::int64_t q = 0; q < n_; q += 64 / static_cast<std::int64_t>(sizeof(Link))) __builtin_prefetch(links + q, 1);
  std::int64_t row = starts_[piece] - 1;
  std::int32_t user = first == 0 ? -1 : users[first - 1];
  for (std::int64_t q = first; q < last; ++q) {
    if (users[q] != user) {
      user = users[q];
      ++row;
      user_rows[row] = user;
      user_offsets[row] = q;
    }
    Places& place = places[items[q]];
    item_rows[q] = place.row;
    links[place.next++] = {static_cast<std::int32_t>(q), static_cast<std::int32_t>(row)};
  }
}

Dealer::Dealer(const RatingStore& store, std::int64_t n_batches, std::uint64_t seed, std::int64_t at_once,
               const Kernels& kernels)
    : store_(store),
      n_batches_(n_batches),
      skipped_(store.first / n_batches),
      missing_(store.first % n_batches),
      n_runs_((missing_ + store.size() + n_batches - 1) / n_batches),
      together_(std::clamp<std::int64_t>(at_once / n_runs_, 1, n_batches)),
      seed_(seed),
      kernels_(kernels) {}

std::uint64_t Dealer::stream() const { return mix(mix(seed_ + kGolden) + epoch_); }

void Dealer::start_epoch(std::uint64_t epoch) {
  epoch_ = epoch;
  first_ = last_ = 0;
  const std::int64_t last_run = store_.total / n_batches_;
  std::vector<std::int32_t> numbers(2 * n_batches_);
  permute(stream(), last_run * n_batches_, n_batches_, numbers.data(), numbers.data() + n_batches_);
  in_last_run_.resize(n_batches_);
  for (std::int64_t b = 0; b < n_batches_; ++b) in_last_run_[b] = numbers[b] < store_.total - last_run * n_batches_;
}

std::int64_t Dealer::block_size() const {
  const std::int64_t unit = n_batches_ <= kShortRun ? kShortRunsTogether : 1;
  if (store_.files) return std::max<std::int64_t>(kRatingsPerRead / (n_batches_ * unit), 1) * unit;
  return unit > 1 ? unit : 1024;
}

Dealer::Scratch Dealer::make_scratch() const {
  Scratch scratch;
  scratch.numbers.resize(std::max(kShortRunsTogether * kShortRun, 3 * n_batches_));
  if (store_.files) scratch.piece.reserve(block_size() * n_batches_);  // here, as a task must not throw
  return scratch;
}

void Dealer::deal(std::int64_t b, Team& team) {
  first_ = b;
  last_ = std::min(n_batches_, b + together_);
  users_.resize(n_runs_ * together_);
  items_.resize(n_runs_ * together_);
  ratings_.resize(n_runs_ * together_);
  const std::uint64_t random = stream();
  const std::int64_t block = block_size();
  std::vector<Scratch> scratch;
  for (int member = 0; member < team.size(); ++member) scratch.push_back(make_scratch());
  std::atomic<const char*> fault{nullptr};
  team.run((n_runs_ + block - 1) / block, [&, this](std::int64_t index, int member) {
    const std::int64_t first = index * block;
    deal_block(random, first, std::min(n_runs_, first + block), scratch[member], fault);
  });
  if (fault) {
    first_ = last_ = 0;
    store_.files->fail(fault);
  }
}

void Dealer::deal_some(std::int64_t b, std::int64_t first, std::int64_t last, std::int32_t* users, std::int32_t* items,
                       float* ratings) {
  first_ = b;
  last_ = b + 1;
  users_.resize(n_runs_);
  items_.resize(n_runs_);
  ratings_.resize(n_runs_);
  Scratch scratch = make_scratch();
  std::atomic<const char*> fault{nullptr};
  const std::int64_t block = block_size();
  for (std::int64_t from = first; from < last && !fault; from += block)
    deal_block(stream(), from, std::min(last, from + block), scratch, fault);
  first_ = last_ = 0;
  if (fault) store_.files->fail(fault);
  std::copy(users_.begin() + first, users_.begin() + last, users);
  std::copy(items_.begin() + first, items_.begin() + last, items);
  std::copy(ratings_.begin() + first, ratings_.begin() + last, ratings);
}

void Dealer::deal_block(std::uint64_t stream, std::int64_t first, std::int64_t last, Scratch& scratch,
                        std::atomic<const char*>& fault) {
  std::int32_t* const numbers = scratch.numbers.data();
  const std::int64_t start = std::max<std::int64_t>(start_of(first), 0),
                     n = std::min(start_of(last), store_.size()) - start;
  if (!store_.files) {
    const float* const ratings = store_.ratings + start;
    return deal_loaded(stream, first, last,
                       Loaded{store_.items + start, [ratings](std::int64_t k) { return ratings[k]; }, start}, numbers);
  }
  if (fault) return;
  RatingFiles::Piece& piece = scratch.piece;
  if (const char* what = store_.files->read(start, n, piece)) {
    fault = what;
    return;
  }
  const float *const values = store_.files->values(), *const ratings = piece.ratings.data();
  const std::uint8_t* const codes = piece.codes.data();
  const std::int32_t* const items = piece.items.data();
  if (store_.files->coded())
    deal_loaded(stream, first, last, Loaded{items, [=](std::int64_t k) { return values[codes[k]]; }, start}, numbers);
  else
    deal_loaded(stream, first, last, Loaded{items, [=](std::int64_t k) { return ratings[k]; }, start}, numbers);
}

template <typename RatingAt>
void Dealer::deal_loaded(std::uint64_t stream, std::int64_t first, std::int64_t last, const Loaded<RatingAt>& from,
                         std::int32_t* scratch) {
  if (n_batches_ > kShortRun) return deal_runs(stream, first, last, from, scratch);
  if (start_of(first) < 0 && first < last) {
    deal_runs(stream, first, first + 1, from, scratch);
    ++first;
  }
  const std::int64_t whole = std::max(first, std::min(last, (missing_ + store_.size()) / n_batches_));
  for (; first < whole; first += kShortRunsTogether)
    deal_short_runs(stream, first, std::min(whole, first + kShortRunsTogether), from, scratch);
  if (whole < last) deal_runs(stream, whole, last, from, scratch);
}

std::int64_t Dealer::user_at(std::int64_t rating) const {
  return std::upper_bound(store_.user_offsets, store_.user_offsets + store_.n_users + 1, rating) - store_.user_offsets -
         1;
}

template <typename RatingAt>
void Dealer::deal_runs(std::uint64_t stream, std::int64_t first, std::int64_t last, const Loaded<RatingAt>& from,
                       std::int32_t* scratch) {
  // as local variables, which the compiler need not read again after every rating
  std::int32_t *const users = users_.data(), *const items = items_.data();
  float* const ratings = ratings_.data();
  const std::int64_t n_batches = n_batches_, n_runs = n_runs_, first_batch = first_, last_batch = last_;
  const RatingStore store = store_;
  std::int32_t* const permutation = scratch;            // [n_batches]
  std::int32_t* const swaps = permutation + n_batches;  // [n_batches]
  std::int32_t* const user_of = swaps + n_batches;      // [n_batches]
  std::int64_t user = user_at(std::max<std::int64_t>(start_of(first), 0));
  for (std::int64_t run = first; run < last; ++run) {
    // the run has own ratings from number `missing` up to `there`
    const std::int64_t start = start_of(run), missing = std::max<std::int64_t>(-start, 0),
                       there = std::min(n_batches, store.size() - start);
    permute(stream, (skipped_ + run) * n_batches, n_batches, permutation, swaps);
    for (std::int64_t k = missing; k < there;) {
      while (start + k >= store.user_offsets[user + 1]) ++user;
      const std::int64_t upto = std::min(there, store.user_offsets[user + 1] - start);
      for (; k < upto; ++k) user_of[k] = static_cast<std::int32_t>(user);
    }
    for (std::int64_t b = first_batch; b < last_batch; ++b) {
      const std::int64_t k = permutation[b], to = (b - first_batch) * n_runs + run;
      if (k < missing || k >= there) {  // only in the first and the last run
        users[to] = -1;
        continue;
      }
      users[to] = user_of[k];
      items[to] = from.items[start - from.start + k];
      ratings[to] = from.rating_at(start - from.start + k);
    }
  }
}

template <typename RatingAt>
void Dealer::deal_short_runs(std::uint64_t stream, std::int64_t first, std::int64_t last, const Loaded<RatingAt>& from,
                             std::int32_t* user_of) {
  if (first >= last) return;
  const std::int64_t n_batches = n_batches_, start = start_of(first), end = start_of(last);
  std::int64_t user = user_at(start);
  for (std::int64_t k = start; k < end; ++user) {
    const std::int64_t upto = std::min(end, store_.user_offsets[user + 1]);
    for (; k < upto; ++k) user_of[k - start] = static_cast<std::int32_t>(user);
  }
  std::uint64_t permutations[kShortRunsTogether];
  kernels_.short_permutations(stream, n_batches, skipped_ + first, last - first, permutations);
  const std::int32_t* const store_items = from.items + (start - from.start);
  const auto rating_at = [&from, skipped = start - from.start](std::int64_t k) { return from.rating_at(skipped + k); };
  for (std::int64_t b = first_; b < last_; ++b) {
    const std::int64_t to = (b - first_) * n_runs_ + first;
    std::int32_t *const users = users_.data() + to, *const items = items_.data() + to;
    float* const ratings = ratings_.data() + to;
    for (std::int64_t run = 0; run < last - first; ++run) {
      const std::int64_t k = run * n_batches + static_cast<std::int64_t>(permutations[run] >> (4 * b) & 15);
      users[run] = user_of[k];
      items[run] = store_items[k];
      ratings[run] = rating_at(k);
    }
  }
}

void Dealer::begin(std::int64_t b, int n_pieces, Grouping& grouping, GroupedBatch& out) const {
  const Span span = dealt(b);
  grouping.begin(users_.data() + span.first, items_.data() + span.first, ratings_.data() + span.first, span.n,
                 store_.n_users, store_.n_items, n_pieces, out);
}

Dealer::Span Dealer::dealt(std::int64_t b) const {
  const std::int64_t first = (b - first_) * n_runs_, last = first + n_runs_ - 1;
  const bool starts = users_[first] >= 0, ends = users_[last] >= 0;
  return {first + !starts, n_runs_ == 1 ? starts : n_runs_ - !starts - !ends};
}

std::vector<std::int32_t> Dealer::item_counts(Team& team) const {
  const std::int64_t n_items = store_.n_items;
  std::vector<std::int32_t> counts((last_ - first_) * n_items, 0);
  team.run(last_ - first_, [&, this](std::int64_t index, int) {
    const Span span = dealt(first_ + index);
    std::int32_t* const of_batch = counts.data() + index * n_items;
    for (std::int64_t q = span.first; q < span.first + span.n; ++q) ++of_batch[items_[q]];
  });
  return counts;
}

void group_pairs(const std::int64_t* users, const std::int64_t* items, const float* ratings, std::int64_t n,
                 std::vector<float>& ratings_by_user, GroupedBatch& out) {
  // stable, as the sums of a row run along the given order
  const auto sorted_by = [n](auto id_of) {
    std::vector<std::int32_t> order(n);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return id_of(a) < id_of(b); });
    return order;
  };
  const std::vector<std::int32_t> by_user = sorted_by([&](std::int32_t q) { return users[q]; });
  const auto item_at = [&](std::int32_t q) { return items[by_user[q]]; };
  ratings_by_user.resize(n);
  for (std::int64_t q = 0; q < n; ++q) ratings_by_user[q] = ratings[by_user[q]];
  out.ratings = ratings_by_user.data();
  out.n_ratings = n;
  const std::vector<std::int32_t> by_item = sorted_by(item_at);
  std::vector<std::int32_t> position[2];  // of the rows of users and items, in the batch's order
  for (int s = 0; s < 2; ++s) {
    GroupedBatch::SideRows& side = s ? out.item : out.user;
    side.rows.clear();
    side.offsets.clear();
    position[s].resize(n);
    for (std::int64_t q = 0; q < n; ++q) {
      const std::int32_t at = s ? by_item[q] : static_cast<std::int32_t>(q);
      const std::int64_t id = s ? item_at(at) : users[by_user[q]];
      if (side.rows.empty() || side.rows.back() != id) {
        side.rows.push_back(id);
        side.offsets.push_back(q);
      }
      position[s][at] = static_cast<std::int32_t>(side.rows.size()) - 1;
    }
    side.offsets.push_back(n);
  }
  out.items = position[1];
  out.links.resize(n);
  for (std::int64_t q = 0; q < n; ++q) out.links[q] = {by_item[q], position[0][by_item[q]]};
}

}  // namespace mfdmc
