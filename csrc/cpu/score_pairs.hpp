#pragma once

#include <cstdint>

#include "mfdmc/side.hpp"

namespace mfdmc {

// predictions[b] = global_mean + bias_u + bias_i + z_u . z_i for the pairs (u, i) = (user_idx[b], item_idx[b]).
//
// An entity pass computes z once for each distinct user and item of the batch, a rating pass the dot products, in
// double. Every number is computed by one thread in a fixed order: the result does not depend on n_threads.
// Throws std::out_of_range, before anything is written, if an index lies outside its side.
template <typename T>
void score_pairs(const Side<T>& user, const Side<T>& item, double global_mean,
                 const std::int64_t* user_idx /* [n_pairs] */, const std::int64_t* item_idx /* [n_pairs] */,
                 std::int64_t n_pairs, Combine combine, int n_threads, T* predictions /* [n_pairs] */);

}  // namespace mfdmc
