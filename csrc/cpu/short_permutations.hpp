// Random permutations of at most 16 numbers, by Fisher and Yates, one in each lane. Part of the kernels that are
// compiled once for each instruction set; see simd.hpp.
#pragma once

#include "cpu/fused_kernels.hpp"
#include "cpu/simd.hpp"
#include "cpu/split_mix.hpp"

namespace mfdmc {
namespace {

typedef std::uint64_t Words __attribute__((vector_size(MFDMC_VECTOR_BYTES)));
constexpr std::int64_t kWords = MFDMC_VECTOR_BYTES / 8;

// Packed, as exchanging two numbers within a register takes no memory.
void short_permutations(std::uint64_t stream, std::int64_t n, std::int64_t first, std::int64_t n_runs,
                        std::uint64_t* permutations) {
  static_assert(kShortRunsTogether % kWords == 0);
  Words lane;
  for (std::int64_t j = 0; j < kWords; ++j) lane[j] = static_cast<std::uint64_t>(j);
  for (std::int64_t run = 0; run < n_runs; run += kWords) {
    Words random =
        (lane + static_cast<std::uint64_t>(first + run)) * (static_cast<std::uint64_t>(n) * kGolden) + stream;
    Words permutation = Words{} + 0xFEDCBA9876543210u;
    for (std::int64_t k = 0; k < n; ++k) {
      random += kGolden;
      // exchange number k with number j, uniform in 0 ... k; four times j is where it begins
      const Words at = (((mix(random) >> 32) * static_cast<std::uint64_t>(k + 1)) >> 32) << 2;
      const Words differing = ((permutation >> (4 * k)) ^ (permutation >> at)) & 15;
      permutation ^= (differing << (4 * k)) ^ (differing << at);
    }
    std::memcpy(permutations + run, &permutation, sizeof(permutation));
  }
}

}  // namespace
}  // namespace mfdmc
