// The order of recommendations.
#pragma once

#include <cstdint>

#include "mfdmc/side.hpp"

namespace mfdmc {

// Whether an item with one score comes before an item with another: the higher score first, equal scores in item order.
template <typename Item>
static MFDMC_HOST_DEVICE inline bool comes_before(float score, Item item, float other_score, Item other_item) {
  return score > other_score || (score == other_score && item < other_item);
}

}  // namespace mfdmc
