// A hash as the source of random numbers.
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

}  // namespace
}  // namespace mfdmc
