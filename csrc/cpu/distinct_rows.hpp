#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace mfdmc {

// The distinct rows among the indices of a batch, in order of first occurrence, and the way back from a row to its
// position. Time and memory are O(batch), not O(table): one pair of a huge table costs as little as one of a small one.
class DistinctRows {
 public:
  // Throws std::out_of_range if an index is not in [0, n_rows); `name` is what the message calls `indices`.
  DistinctRows(const char* name, const std::int64_t* indices /* [n] */, std::int64_t n, std::int64_t n_rows) {
    int bits = 1;
    while ((std::int64_t{1} << bits) < 2 * n) ++bits;  // at most half full, so probing ends soon
    direct_ = n_rows <= (std::int64_t{1} << bits);
    shift_ = 64 - bits;
    mask_ = (std::uint64_t{1} << bits) - 1;
    slots_.assign(direct_ ? n_rows : std::int64_t{1} << bits, -1);
    for (std::int64_t i = 0; i < n; ++i) {
      const std::int64_t row = indices[i];
      if (row < 0 || row >= n_rows)
        throw std::out_of_range(std::string(name) + "[" + std::to_string(i) + "] is " + std::to_string(row) +
                                ", outside [0, " + std::to_string(n_rows) + ")");
      std::int64_t& position = slots_[slot(row)];
      if (position < 0) {
        position = static_cast<std::int64_t>(rows_.size());
        rows_.push_back(row);
      }
    }
  }

  const std::vector<std::int64_t>& rows() const { return rows_; }

  // The position in rows() of a row that occurs in the batch.
  std::int64_t position(std::int64_t row) const { return slots_[slot(row)]; }

 private:
  // The slot that holds `row`, or the free one where it belongs.
  std::size_t slot(std::int64_t row) const {
    if (direct_) return static_cast<std::size_t>(row);
    std::uint64_t s = (static_cast<std::uint64_t>(row) * 0x9E3779B97F4A7C15u) >> shift_;  // Fibonacci hashing
    while (slots_[s] >= 0 && rows_[slots_[s]] != row) s = (s + 1) & mask_;
    return s;
  }

  bool direct_;  // the table has few rows: a row is its own slot
  int shift_;
  std::uint64_t mask_;
  std::vector<std::int64_t> slots_;  // position in rows_, or -1
  std::vector<std::int64_t> rows_;
};

}  // namespace mfdmc
