// A hash as the source of random numbers: any number of a sequence can be computed by itself, so results do not depend on
// threads.
#pragma once

#include <cstdint>

namespace mfdmc {
namespace {  // one copy for each instruction set that includes it

constexpr std::uint64_t kGolden = 0x9E3779B97F4A7C15u;

// The finalizer of SplitMix64 (Steele, Lea and Flood, 2014), of a number or of a vector of them.
template <typename Word>
inline Word mix(Word x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

// Number `index` of SplitMix64's sequence that begins at `key`.
inline std::uint64_t random_at(std::uint64_t key, std::int64_t index) {
  return mix(key + (static_cast<std::uint64_t>(index) + 1) * kGolden);
}

}  // namespace
}  // namespace mfdmc
