// What all kernels share. Functions are `static`, so that files compiled for different instruction sets never end up
// with one another's copy.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define MFDMC_HOST_DEVICE __host__ __device__
#else
#define MFDMC_HOST_DEVICE
#endif

namespace mfdmc {

// How the views of an entity form its embedding: side by side, or added up.
enum class Combine { concat, sum };

// The parameters of one side (users or items); nothing is owned. S = number of clusters of all views together.
template <typename T>
struct Side {
  const T* assignment_logits;        // [n_entities, S]; the views side by side, ragged
  const T* centers;                  // [S, view_dim]
  const T* bias;                     // [n_entities], or null
  const std::int64_t* view_offsets;  // [n_views + 1]; view v has the columns view_offsets[v] up to view_offsets[v + 1]
  std::int64_t n_entities;
  std::int64_t total_clusters;  // S
  std::int64_t n_views;
  std::int64_t view_dim;
};

// Length of an embedding.
template <typename T>
static MFDMC_HOST_DEVICE inline std::int64_t embedding_dim(const Side<T>& side, Combine combine) {
  return combine == Combine::concat ? side.n_views * side.view_dim : side.view_dim;
}

}  // namespace mfdmc
