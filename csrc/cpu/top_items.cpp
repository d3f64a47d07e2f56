#include "cpu/top_items.hpp"

#include <algorithm>
#include <limits>
#include <numeric>
#include <vector>

#include "cpu/team.hpp"
#include "mfdmc/top_list.hpp"

namespace mfdmc {
namespace {

constexpr std::int64_t kItems = 16;  // scored side by side
constexpr std::int64_t kUsers = 64;  // a task; its scores stay in the cache

}  // namespace

void top_items(const float* users, std::int64_t n_users, const float* items, std::int64_t n_items, std::int64_t dim,
               const float* item_bias, const std::int64_t* exclude_offsets, const std::int64_t* exclude_items,
               std::int64_t n, int n_threads, std::int64_t* found, float* scores) {
  constexpr float none = -std::numeric_limits<float>::infinity();
  // items side by side in groups, [groups, dim, kItems], so that scoring is a plain loop over neighbours
  const std::int64_t groups = (n_items + kItems - 1) / kItems;
  std::vector<float> turned(groups * dim * kItems, 0.0f);
  for (std::int64_t i = 0; i < n_items; ++i)
    for (std::int64_t c = 0; c < dim; ++c) turned[(i / kItems * dim + c) * kItems + i % kItems] = items[i * dim + c];

  Team& team = Team::mine(n_threads);
  // allocated here, as a task must not throw
  std::vector<std::vector<float>> rows(team.size(), std::vector<float>(groups * kItems));
  std::vector<std::vector<std::int64_t>> orders(team.size(), std::vector<std::int64_t>(n_items));
  team.run((n_users + kUsers - 1) / kUsers, [&](std::int64_t task, int member) {
    std::vector<float>& row = rows[member];
    std::vector<std::int64_t>& order = orders[member];
    for (std::int64_t u = task * kUsers; u < std::min(n_users, (task + 1) * kUsers); ++u) {
      for (std::int64_t g = 0; g < groups; ++g) {
        float sums[kItems] = {};
        for (std::int64_t c = 0; c < dim; ++c) {
          const float z = users[u * dim + c];
          const float* neighbours = turned.data() + (g * dim + c) * kItems;
          for (std::int64_t lane = 0; lane < kItems; ++lane) sums[lane] += z * neighbours[lane];
        }
        std::copy(sums, sums + kItems, row.data() + g * kItems);
      }
      if (item_bias)
        for (std::int64_t i = 0; i < n_items; ++i) row[i] += item_bias[i];
      if (exclude_offsets)
        for (std::int64_t q = exclude_offsets[u]; q < exclude_offsets[u + 1]; ++q) row[exclude_items[q]] = none;
      std::int64_t* best = found + u * n;
      std::int64_t kept = 0;
      const auto before = [&](std::int64_t a, std::int64_t b) { return comes_before(row[a], a, row[b], b); };
      if (n >= n_items / 8) {
        std::iota(order.begin(), order.end(), 0);
        kept = std::min(n, n_items);
        std::partial_sort(order.begin(), order.begin() + kept, order.end(), before);
        std::copy(order.begin(), order.begin() + kept, best);
      } else {
        // a heap whose front is the worst of the best so far
        for (std::int64_t i = 0; i < n_items; ++i) {
          if (kept < n) {
            best[kept++] = i;
            std::push_heap(best, best + kept, before);
          } else if (row[i] > row[best[0]]) {  // an equal score comes later in item order, so it does not get in
            std::pop_heap(best, best + kept, before);
            best[kept - 1] = i;
            std::push_heap(best, best + kept, before);
          }
        }
        std::sort_heap(best, best + kept, before);
      }
      for (std::int64_t k = 0; k < n; ++k) {
        const bool there = k < kept && row[best[k]] > none;
        scores[u * n + k] = there ? row[best[k]] : none;
        if (!there) best[k] = -1;
      }
    }
  });
}

}  // namespace mfdmc
