// Tiles: kLanes rows of a table turned column-major, so that every lane is an entity, and back. Part of the kernels that
// are compiled once for each instruction set; see simd.hpp.
#pragma once

#include "cpu/fused_kernels.hpp"
#include "cpu/simd.hpp"

namespace mfdmc {
namespace {

// No function of the standard library that is a template or inline: its copy from here, made for this instruction set,
// could end up in code for every processor.
inline std::int64_t least(std::int64_t a, std::int64_t b) { return a < b ? a : b; }

// A matrix of tile-many rows, row-major with any stride, to column-major [columns][kLanes]; missing rows repeat the last.
// Whole blocks have loops of fixed length, which the compiler unrolls instead of calling memset and memcpy.
template <typename RowOf>
inline void load_transposed(RowOf row_of, std::int64_t n_rows, std::int64_t columns, Vec* out /* [columns] */) {
  const float* rows[kLanes];
  for (std::int64_t r = 0; r < kLanes; ++r) rows[r] = row_of(least(r, n_rows - 1));  // what is repeated is not used
  Vec block[kLanes];
  std::int64_t c = 0;
  for (; c + kLanes <= columns; c += kLanes) {
#pragma GCC unroll 16
    for (std::int64_t r = 0; r < kLanes; ++r) block[r] = load(rows[r] + c);
    transpose(block);
#pragma GCC unroll 16
    for (std::int64_t r = 0; r < kLanes; ++r) out[c + r] = block[r];
  }
  if (c == columns) return;
#pragma GCC unroll 16
  for (std::int64_t r = 0; r < kLanes; ++r) block[r] = load_part(rows[r] + c, columns - c);
  transpose(block);
  for (std::int64_t r = 0; c + r < columns; ++r) out[c + r] = block[r];
}

// The inverse, handing over instead of storing: calls use(row, column, vector, n) for n numbers of a row at a time.
// `n` is kLanes except at the end of a row, where lanes beyond it are zero.
template <typename Use>
inline void for_rows(const Vec* in /* [columns] */, std::int64_t n_rows, std::int64_t columns, Use use) {
  Vec block[kLanes];
  for (std::int64_t c = 0; c < columns; c += kLanes) {
    const std::int64_t n = least(kLanes, columns - c);
    if (n == kLanes) {
#pragma GCC unroll 16
      for (std::int64_t r = 0; r < kLanes; ++r) block[r] = in[c + r];
    } else {
      for (std::int64_t r = 0; r < kLanes; ++r) block[r] = r < n ? in[c + r] : Vec{};
    }
    transpose(block);
    if (n == kLanes && n_rows == kLanes) {
#pragma GCC unroll 16
      for (std::int64_t r = 0; r < kLanes; ++r) use(r, c, block[r], kLanes);
    } else {
      for (std::int64_t r = 0; r < n_rows; ++r) use(r, c, block[r], n);
    }
  }
}

// Asks for a row of n numbers ahead of its use: rows lie anywhere in the table, out of the hardware's sight.
inline void prefetch(const float* row, std::int64_t n) {
  for (std::int64_t j = 0; j < n; j += 16) __builtin_prefetch(row + j);
}

// One number of each row of a tile; lanes without a row get the last row's.
inline Vec gather(const float* numbers, const std::int64_t* rows, std::int64_t n_rows) {
  alignas(64) float lanes[kLanes];
  for (std::int64_t r = 0; r < kLanes; ++r) lanes[r] = numbers[rows[least(r, n_rows - 1)]];
  return load(lanes);
}

inline void scatter(float* numbers, const std::int64_t* rows, std::int64_t n_rows, Vec v) {
  alignas(64) float lanes[kLanes];
  store(lanes, v);
  for (std::int64_t r = 0; r < n_rows; ++r) numbers[rows[r]] = lanes[r];
}

// Share of the batch's ratings that each row of a tile has; zero for missing rows.
inline Vec tile_shares(const BatchSide& batch, std::int64_t tile, std::int64_t n_rows, std::int64_t batch_size) {
  alignas(64) float counts[kLanes];
  const std::int64_t* const offsets = batch.offsets + tile;
  for (std::int64_t r = 0; r < kLanes; ++r)
    counts[r] = r < n_rows ? static_cast<float>(offsets[r + 1] - offsets[r]) : 0.0f;
  return load(counts) * splat(1.0f / static_cast<float>(batch_size));
}

// Sums over the lanes of n vectors in memory.
inline void sum_all_lanes(const float* vectors /* [n, kLanes] */, std::int64_t n, float* sums /* [n] */) {
  Vec block[kLanes];
  for (std::int64_t j = 0; j < n; j += kLanes) {
    const std::int64_t width = least(kLanes, n - j);
    for (std::int64_t r = 0; r < kLanes; ++r) block[r] = r < width ? load(vectors + (j + r) * kLanes) : Vec{};
    const Vec total = sums_of_rows(block);
    store_part(sums + j, total, width);
  }
}

}  // namespace
}  // namespace mfdmc
