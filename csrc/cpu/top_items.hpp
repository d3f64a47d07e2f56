#pragma once

#include <cstdint>

namespace mfdmc {

// For each user the n items with the highest z_u . z_i + b_i, best first, equal scores in item order; items of
// exclude_items[exclude_offsets[u] ... exclude_offsets[u + 1]) are left out. Where fewer are left, the tail is item -1
// with score -infinity. Each user is worked on by one thread in a fixed order: the result does not depend on n_threads.
void top_items(const float* users /* [n_users, dim] */, std::int64_t n_users, const float* items /* [n_items, dim] */,
               std::int64_t n_items, std::int64_t dim, const float* item_bias /* [n_items], or null */,
               const std::int64_t* exclude_offsets /* [n_users + 1], or null */,
               const std::int64_t* exclude_items /* checked */, std::int64_t n, int n_threads,
               std::int64_t* found /* [n_users, n] */, float* scores /* [n_users, n] */);

}  // namespace mfdmc
