// The operations of the CUDA module on raw device pointers. Nothing here is checked but what the host can see: pointers
// come from mfdmc_fast.ops.cuda, which knows devices, dtypes, layouts and sizes. All of them return before the device
// is done; all are deterministic.
#pragma once

#include <cstdint>
#include <string>

#include "mfdmc/side.hpp"

namespace mfdmc::cuda {

// Where kernels run.
struct Queue {
  int device;
  void* stream;
};

// Why no kernel can run on this machine; empty where they can.
std::string device_problem();

// Clusters of a side, or numbers of its embeddings, that fit in shared memory.
constexpr int kMaxColumns = 1024;

// Some distinct entities of one side.
struct Entities {
  const float* assignment_logits;    // [n, S]
  const float* centers;              // [S, view_dim]
  const float* bias;                 // [n], or null
  const std::int32_t* view_offsets;  // [V + 1]; view v has the clusters view_offsets[v] up to view_offsets[v + 1]
  const std::int32_t* view_of;       // [S] the view of each cluster
  const std::int64_t* rows;          // [n_rows] of the tables
  std::int64_t n_rows;
  int total_clusters, n_views, view_dim;
  bool sum_views;
};

static MFDMC_HOST_DEVICE inline int embedding_dim(const Entities& side) {
  return side.sum_views ? side.view_dim : side.n_views * side.view_dim;
}

// Writes the embeddings of the entities, [n_rows, D].
void embed(const Entities& side, float* embeddings, Queue queue);

// Writes sums of the entities' assignment weights to parts [kUsageParts, S], which add up to those of all of them.
constexpr int kUsageParts = 256;
void cluster_usage(const Entities& side, double* parts, Queue queue);

struct PairScores {
  const float* users;                 // [R_user, dim] embeddings of distinct users
  const float* items;                 // [R_item, dim]
  const float* user_bias;             // [R_user], or null on both sides
  const float* item_bias;             // [R_item]
  const std::int64_t* user_position;  // [n_pairs] rows of `users`
  const std::int64_t* item_position;  // [n_pairs]
  std::int64_t n_pairs;
  int dim;
  float global_mean;
  float* predictions;  // [n_pairs]
};

// predictions[b] = global_mean + bias_u + bias_i + z_u . z_i
void score_pairs(const PairScores& call, Queue queue);

// The ratings of a batch as one side sees them: row by row, and those of a row in chunks of at most kChunk.
struct SideBatch {
  const std::int64_t* row_offsets;    // [n_rows + 1] row r has the ratings row_offsets[r] up to row_offsets[r + 1]
  const std::int64_t* chunk_offsets;  // [n_rows + 1] and the chunks chunk_offsets[r] up to chunk_offsets[r + 1]
  const std::int32_t* chunk_row;      // [n_chunks]
  const std::int64_t* partner;        // [n_ratings] the other side's row of each rating
  const float* ratings;               // [n_ratings]
  const float* l2_scale;              // [n] of the table, or null: 1
  std::int64_t n_ratings, n_chunks;
};

constexpr int kChunk = 256;

// Adds nothing up over blocks: each writes its part of proximity, entropy, l2 and bias_l2 to terms [n_blocks, 4].
std::int64_t forward_blocks(const Entities& side);
void entity_forward(const Entities& side, const SideBatch& batch, float* embeddings /* [n_rows, D] */, float* terms,
                    Queue queue);

struct RatingPass {
  const float* own;         // [n_rows, dim] embeddings of this side
  const float* other;       // [R, dim]
  const float* own_bias;    // [n_rows], or null on both sides
  const float* other_bias;  // [R]
  int dim;
  float global_mean;
  float* gradients;  // [n_chunks, dim + 1] of mse at the embedding and at the bias
  float* squares;    // [n_chunks] sums of squared errors, or null
};

// Errors of the ratings and what each chunk of them adds to the gradients of its row. Either side runs it and computes
// the errors anew, in the same bits, so that no sum is ever shared between threads.
void rating_pass(const SideBatch& batch, const RatingPass& call, Queue queue);

struct EntityBackward {
  const float* chunk_gradients;  // [n_chunks, dim + 1]
  float proximity, entropy, l2, bias_l2;  // weights of the terms
  float* logits;                 // [n, S] gradients; only the rows of the batch are written
  float* bias;                   // [n], or null
  float* center_parts;           // [n_blocks, S, view_dim + 1] sums of w h and of 2 a w
};

std::int64_t backward_blocks(const Entities& side);
void entity_backward(const Entities& side, const SideBatch& batch, const EntityBackward& call, Queue queue);

struct CenterGradients {
  const float* parts;  // [n_parts, S, view_dim + 1], as of entity_backward
  std::int64_t n_parts;
  float spread, margin;  // weight of the spread term
  float* sums;           // [S, view_dim + 1] scratch
  float* gradients;      // [S, view_dim]
  float* spread_parts;   // [S]; they add up to the spread of this side
};

// Sums up the parts in their order and adds the gradient of the spread.
void center_gradients(const Entities& side, const CenterGradients& call, Queue queue);

struct CompactColumns {
  float* table;              // [n_rows, columns]; becomes [n_rows, kept] at its front
  const std::int64_t* keep;  // [kept], ascending
  std::int64_t n_rows;
  int columns, kept;  // at most kMaxColumns
};

std::int64_t compaction_tiles(const CompactColumns& call);
void compact_columns(const CompactColumns& call, std::int32_t* progress /* [1 + compaction_tiles()] zeros; scratch */,
                     Queue queue);
#ifdef MFDMC_EMULATE
// The same with the reads and writes of blocks in a random order that their waiting allows.
void compact_in_any_order(const CompactColumns& call, std::uint64_t seed);
#endif

struct TopItems {
  const float* users;                   // [n_users, dim] embeddings
  const float* items;                   // [n_items, dim]
  const float* item_bias;               // [n_items], or null
  const std::int64_t* exclude_offsets;  // [n_users + 1], or null
  const std::int32_t* exclude_items;    // ascending for each user; may repeat
  std::int64_t n_users;
  int n_items, dim;
  int n;                      // items a user wants in all
  int first, last;            // places [first, last) of them, at most kMostListed; those before are there
  int splits;                 // parts of the items that blocks of their own go through; the result is the same
  float* part_scores;         // [n_users, splits, last - first] scratch
  std::int32_t* part_items;   // [n_users, splits, last - first] scratch
  std::int64_t* found;        // [n_users, n]
  float* scores;              // [n_users, n]
};

// Longest list of best items that is kept in shared memory.
constexpr int kMostListed = 128;

// Writes places [first, last) of each user's best items by z_u . z_i + b_i, in the order of `comes_before`, without the
// excluded ones; item -1 with score -infinity where none is left.
void top_items(const TopItems& call, Queue queue);

}  // namespace mfdmc::cuda
