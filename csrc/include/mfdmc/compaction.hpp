// Which rows of a table stand in one another's way when its columns are compacted in place.
#pragma once

#include <cstdint>

#include "mfdmc/side.hpp"

namespace mfdmc {

// A table [n_rows, columns] becomes [n_rows, kept] at the front of its own memory; rows are moved in tiles.
struct Compaction {
  std::int64_t n_rows;
  int columns, kept;  // kept <= columns
  int rows_of_tile;

  MFDMC_HOST_DEVICE std::int64_t n_tiles() const { return (n_rows + rows_of_tile - 1) / rows_of_tile; }

  MFDMC_HOST_DEVICE std::int64_t first_row(std::int64_t tile) const { return tile * rows_of_tile; }

  MFDMC_HOST_DEVICE std::int64_t end_row(std::int64_t tile) const {
    return n_rows - first_row(tile) < rows_of_tile ? n_rows : first_row(tile) + rows_of_tile;
  }

  // Before a tile may be written, tiles [first_in_the_way(tile), tile] must have been read: it goes to the numbers
  // [first_row * kept, end_row * kept), none of which lies behind the tile itself, as kept <= columns. A tile is thus
  // never waited for by an earlier one, and what is still to be read is never overwritten.
  MFDMC_HOST_DEVICE std::int64_t first_in_the_way(std::int64_t tile) const {
    return first_row(tile) * kept / (static_cast<std::int64_t>(rows_of_tile) * columns);
  }

  // One behind the last of them, except the tile itself.
  MFDMC_HOST_DEVICE std::int64_t end_in_the_way(std::int64_t tile) const {
    const std::int64_t last = (end_row(tile) * kept - 1) / (static_cast<std::int64_t>(rows_of_tile) * columns);
    return last < tile ? last + 1 : tile;
  }
};

}  // namespace mfdmc
