#include "cpu/batches.hpp"

#include <algorithm>
#include <numeric>
#include <utility>

namespace mfdmc {
namespace {

constexpr std::uint64_t kGolden = 0x9E3779B97F4A7C15u;

// The finalizer of SplitMix64 (Steele, Lea and Flood, 2014).
std::uint64_t mix(std::uint64_t x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

}  // namespace

Dealer::Dealer(const RatingStore& store, std::int64_t n_batches, std::uint64_t seed)
    : store_(store), n_batches_(n_batches), n_runs_((store.size() + n_batches - 1) / n_batches), seed_(seed) {}

void Dealer::start_epoch(std::uint64_t epoch, int n_threads) {
  const std::int64_t n = store_.size();
  users_.resize(n_runs_ * n_batches_);
  items_.resize(n_runs_ * n_batches_);
  ratings_.resize(n_runs_ * n_batches_);
  sizes_.assign(n_batches_, n_runs_);
  const std::uint64_t stream = mix(mix(seed_ + kGolden) + epoch);
  constexpr std::int64_t block = 1024;  // runs
#pragma omp parallel num_threads(n_threads)
  {
    std::vector<std::int32_t> permutation(n_batches_), user_of(n_batches_);
#pragma omp for schedule(static)
    for (std::int64_t first = 0; first < n_runs_; first += block) {
      std::int64_t user =
          std::upper_bound(store_.user_offsets, store_.user_offsets + store_.n_users + 1, first * n_batches_) -
          store_.user_offsets - 1;
      for (std::int64_t run = first; run < std::min(n_runs_, first + block); ++run) {
        const std::int64_t start = run * n_batches_;
        for (std::int64_t k = 0; k < n_batches_; ++k) {
          const std::uint64_t random = mix(stream + static_cast<std::uint64_t>(start + k + 1) * kGolden) >> 32;
          const std::int64_t j = static_cast<std::int64_t>((random * (k + 1)) >> 32);  // uniform in 0 ... k
          permutation[k] = permutation[j];
          permutation[j] = static_cast<std::int32_t>(k);
          while (start + k < n && start + k >= store_.user_offsets[user + 1]) ++user;
          user_of[k] = static_cast<std::int32_t>(user);
        }
        for (std::int64_t b = 0; b < n_batches_; ++b) {
          const std::int64_t rating = start + permutation[b], to = b * n_runs_ + run;
          if (rating >= n) {  // only in the last run
            sizes_[b] = n_runs_ - 1;
            continue;
          }
          users_[to] = user_of[permutation[b]];
          items_[to] = store_.items[rating];
          ratings_[to] = store_.ratings[rating];
        }
      }
    }
  }
}

void Dealer::make_batch(std::int64_t b, int n_threads, GroupedBatch& out) {
  const std::int64_t n = sizes_[b];
  const std::int32_t* const users = users_.data() + b * n_runs_;  // [n]
  const std::int32_t* const items = items_.data() + b * n_runs_;  // [n]
  out.ratings.assign(ratings_.data() + b * n_runs_, ratings_.data() + b * n_runs_ + n);
  if (n < 4096) n_threads = 1;
  // a stable counting sort by item and a scan for distinct users, each thread on a piece of its own; the result does
  // not depend on how many pieces there are
  item_counts_.assign(static_cast<std::size_t>(n_threads) * store_.n_items, 0);
  starts_.assign(n_threads + 1, 0);
  out.user.position.resize(n);
  out.user.order.clear();
  out.item.position.resize(n);
  out.item.order.resize(n);
  out.item.rows.clear();
  out.item.offsets.clear();
  std::vector<std::int32_t>& row_of_item = out.item.others;  // scratch until the end
  row_of_item.resize(store_.n_items);

#pragma omp parallel num_threads(n_threads)
  {
#pragma omp for schedule(static, 1)
    for (int piece = 0; piece < n_threads; ++piece) {
      std::int64_t* counts = item_counts_.data() + piece * store_.n_items;
      std::int64_t distinct = 0;
      for (std::int64_t q = n * piece / n_threads; q < n * (piece + 1) / n_threads; ++q) {
        distinct += q == 0 || users[q] != users[q - 1];
        ++counts[items[q]];
      }
      starts_[piece + 1] = distinct;
    }
#pragma omp single
    {
      std::partial_sum(starts_.begin(), starts_.end(), starts_.begin());
      out.user.rows.resize(starts_.back());
      out.user.offsets.resize(starts_.back() + 1);
      out.user.offsets.back() = n;
      std::int64_t total = 0;
      for (std::int64_t i = 0; i < store_.n_items; ++i) {
        const std::int64_t before_item = total;
        for (int t = 0; t < n_threads; ++t) {
          std::int64_t& count = item_counts_[t * store_.n_items + i];
          const std::int64_t c = count;
          count = total;
          total += c;
        }
        if (total == before_item) continue;
        row_of_item[i] = static_cast<std::int32_t>(out.item.rows.size());
        out.item.rows.push_back(i);
        out.item.offsets.push_back(before_item);
      }
      out.item.offsets.push_back(n);
    }
#pragma omp for schedule(static, 1)
    for (int piece = 0; piece < n_threads; ++piece) {
      std::int64_t* next = item_counts_.data() + piece * store_.n_items;
      std::int64_t row = starts_[piece] - 1;
      for (std::int64_t q = n * piece / n_threads; q < n * (piece + 1) / n_threads; ++q) {
        if (q == 0 || users[q] != users[q - 1]) {
          ++row;
          out.user.rows[row] = users[q];
          out.user.offsets[row] = q;
        }
        out.user.position[q] = static_cast<std::int32_t>(row);
        out.item.position[q] = row_of_item[items[q]];
        out.item.order[next[items[q]]++] = static_cast<std::int32_t>(q);
      }
    }
  }
  out.user.others = out.item.position;
  out.item.others.resize(n);
#pragma omp parallel for schedule(static) num_threads(n_threads)
  for (std::int64_t q = 0; q < n; ++q) out.item.others[q] = out.user.position[out.item.order[q]];
}

void group_pairs(const std::int64_t* users, const std::int64_t* items, const float* ratings, std::int64_t n,
                 GroupedBatch& out) {
  out.ratings.assign(ratings, ratings + n);
  for (auto [side, ids] : {std::pair{&out.user, users}, std::pair{&out.item, items}}) {
    side->order.resize(n);
    std::iota(side->order.begin(), side->order.end(), 0);
    if (!std::is_sorted(ids, ids + n))
      std::sort(side->order.begin(), side->order.end(), [ids = ids](std::int32_t a, std::int32_t b) {
        return ids[a] != ids[b] ? ids[a] < ids[b] : a < b;
      });
    side->rows.clear();
    side->offsets.clear();
    side->position.resize(n);
    for (std::int64_t q = 0; q < n; ++q) {
      const std::int64_t id = ids[side->order[q]];
      if (side->rows.empty() || side->rows.back() != id) {
        side->rows.push_back(id);
        side->offsets.push_back(q);
      }
      side->position[side->order[q]] = static_cast<std::int32_t>(side->rows.size()) - 1;
    }
    side->offsets.push_back(n);
  }
  for (auto [side, other] : {std::pair{&out.user, &out.item}, std::pair{&out.item, &out.user}}) {
    side->others.resize(n);
    for (std::int64_t q = 0; q < n; ++q) side->others[q] = other->position[side->order[q]];
  }
}

}  // namespace mfdmc
