#include "cpu/batches.hpp"

#include <algorithm>
#include <numeric>
#include <utility>

#include "cpu/random_numbers.hpp"

namespace mfdmc {
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
  std::int64_t distinct = 0;
  for (std::int64_t q = first_of(piece); q < first_of(piece + 1); ++q) {
    distinct += q == 0 || users_[q] != users_[q - 1];
    ++places[items_[q]].next;
  }
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
  std::int32_t* const items = out_->items.data();
  Link* const links = out_->links.data();
  std::int64_t row = starts_[piece] - 1;
  for (std::int64_t q = first_of(piece); q < first_of(piece + 1); ++q) {
    if (q == 0 || users_[q] != users_[q - 1]) {
      ++row;
      out_->user.rows[row] = users_[q];
      out_->user.offsets[row] = q;
    }
    Places& place = places[items_[q]];
    items[q] = place.row;
    links[place.next++] = {static_cast<std::int32_t>(q), static_cast<std::int32_t>(row)};
  }
}

Dealer::Dealer(const RatingStore& store, std::int64_t n_batches, std::uint64_t seed, std::int64_t at_once)
    : store_(store),
      n_batches_(n_batches),
      n_runs_((store.size() + n_batches - 1) / n_batches),
      together_(std::clamp<std::int64_t>(at_once / n_runs_, 1, n_batches)),
      seed_(seed) {}

void Dealer::deal(std::int64_t b, Team& team) {
  first_ = b;
  last_ = std::min(n_batches_, b + together_);
  const std::int64_t n = store_.size();
  users_.resize(n_runs_ * together_);
  items_.resize(n_runs_ * together_);
  ratings_.resize(n_runs_ * together_);
  const std::uint64_t stream = mix(mix(seed_ + kGolden) + epoch_);
  constexpr std::int64_t block = 1024;  // runs
  std::vector<std::int32_t> scratch(team.size() * 3 * n_batches_);
  // as plain pointers, which the compiler need not read again after every rating
  std::int32_t *const users = users_.data(), *const items = items_.data();
  float* const ratings = ratings_.data();
  const std::int64_t n_batches = n_batches_, n_runs = n_runs_, first_batch = first_, last_batch = last_;
  const RatingStore store = store_;
  team.run((n_runs + block - 1) / block, [=, &scratch](std::int64_t index, int member) {
    std::int32_t* const permutation = scratch.data() + member * 3 * n_batches;  // [n_batches]
    std::int32_t* const swaps = permutation + n_batches;                        // [n_batches]
    std::int32_t* const user_of = swaps + n_batches;                            // [n_batches]
    const std::int64_t first = index * block;
    std::int64_t user =
        std::upper_bound(store.user_offsets, store.user_offsets + store.n_users + 1, first * n_batches) -
        store.user_offsets - 1;
    for (std::int64_t run = first; run < std::min(n_runs, first + block); ++run) {
      const std::int64_t start = run * n_batches, there = std::min(n_batches, n - start);
      // loops of their own, so that the processor works ahead in the first while it waits in the second
      for (std::int64_t k = 0; k < n_batches; ++k) {
        const std::uint64_t random = mix(stream + static_cast<std::uint64_t>(start + k + 1) * kGolden) >> 32;
        swaps[k] = static_cast<std::int32_t>((random * (k + 1)) >> 32);  // uniform in 0 ... k
      }
      for (std::int64_t k = 0; k < n_batches; ++k) {
        permutation[k] = permutation[swaps[k]];
        permutation[swaps[k]] = static_cast<std::int32_t>(k);
      }
      for (std::int64_t k = 0; k < there;) {
        while (start + k >= store.user_offsets[user + 1]) ++user;
        const std::int64_t upto = std::min(there, store.user_offsets[user + 1] - start);
        for (; k < upto; ++k) user_of[k] = static_cast<std::int32_t>(user);
      }
      for (std::int64_t b = first_batch; b < last_batch; ++b) {
        const std::int64_t k = permutation[b], to = (b - first_batch) * n_runs + run;
        if (k >= there) {  // only in the last run
          users[to] = -1;
          continue;
        }
        users[to] = user_of[k];
        items[to] = store.items[start + k];
        ratings[to] = store.ratings[start + k];
      }
    }
  });
}

void Dealer::begin(std::int64_t b, int n_pieces, Grouping& grouping, GroupedBatch& out) const {
  const std::int64_t at = (b - first_) * n_runs_;
  const std::int64_t n = n_runs_ - (users_[at + n_runs_ - 1] < 0);
  grouping.begin(users_.data() + at, items_.data() + at, ratings_.data() + at, n, store_.n_users,
                 store_.n_items, n_pieces, out);
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
