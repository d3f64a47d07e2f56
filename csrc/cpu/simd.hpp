// Vectors of floats by GNU vector extensions, as wide as the file that includes this is compiled for: it sets
// MFDMC_VECTOR_BYTES and the matching -march. Everything lives in an anonymous namespace, so that code for one
// instruction set can never be linked into another's.
#pragma once

#include <cstdint>
#include <cstring>

#ifdef __AVX2__
#include <immintrin.h>
#endif

#ifndef MFDMC_VECTOR_BYTES
#error "define MFDMC_VECTOR_BYTES to the width of a vector register"
#endif

namespace mfdmc {
namespace {

constexpr std::int64_t kLanes = MFDMC_VECTOR_BYTES / 4;
typedef float Vec __attribute__((vector_size(MFDMC_VECTOR_BYTES)));
typedef std::int32_t IntVec __attribute__((vector_size(MFDMC_VECTOR_BYTES)));

inline Vec splat(float x) { return x - Vec{}; }  // x + 0 would be computed, as -0 + 0 is not -0

inline Vec load(const float* p /* [kLanes], any alignment */) {
  Vec v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}

inline void store(float* p /* [kLanes], any alignment */, Vec v) { std::memcpy(p, &v, sizeof(v)); }

inline Vec maximum(Vec a, Vec b) { return a > b ? a : b; }

inline IntVec bits(Vec v) {
  IntVec i;
  std::memcpy(&i, &v, sizeof(i));
  return i;
}

inline Vec from_bits(IntVec i) {
  Vec v;
  std::memcpy(&v, &i, sizeof(v));
  return v;
}

inline float sum_lanes(Vec v) {
  float total = 0;
  for (std::int64_t lane = 0; lane < kLanes; ++lane) total += v[lane];
  return total;
}

// e^x for x <= 0, relative error below 2e-7; what would be below the smallest normal number becomes that number.
inline Vec exp_negative(Vec x) {
  x = maximum(x, splat(-87.0f));
  // adding and taking away 1.5 * 2^23 rounds to an integer, which then also stands in the low bits
  const Vec magic = splat(12582912.0f);
  const Vec shifted = x * splat(1.44269504f) + magic;
  const Vec n = shifted - magic;
  const Vec r = x - n * splat(0.693145752f) - n * splat(1.42860677e-6f);
  Vec p = splat(1.98756915e-4f);
  p = p * r + splat(1.39819995e-3f);
  p = p * r + splat(8.33345190e-3f);
  p = p * r + splat(4.16657962e-2f);
  p = p * r + splat(1.66666657e-1f);
  p = p * r + splat(5.00000012e-1f);
  p = p * r * r + r + splat(1.0f);
  return from_bits(bits(p) + ((bits(shifted) - bits(magic)) << 23));
}

// ln x for normal x >= 1, absolute error below 2e-7 relative to max(1, |ln x|).
inline Vec log_from_one(Vec x) {
  // x = m 2^e with m in [sqrt(1/2), sqrt(2))
  const IntVec shifted = bits(x) - 0x3f3504f3;
  const IntVec e = shifted >> 23;
  const Vec m = from_bits((shifted & 0x007fffff) + 0x3f3504f3) - splat(1.0f);
  Vec p = splat(7.0376836e-2f);
  p = p * m - splat(1.1514610e-1f);
  p = p * m + splat(1.1676998e-1f);
  p = p * m - splat(1.2420141e-1f);
  p = p * m + splat(1.4249323e-1f);
  p = p * m - splat(1.6668058e-1f);
  p = p * m + splat(2.0000714e-1f);
  p = p * m - splat(2.4999994e-1f);
  p = p * m + splat(3.3333331e-1f);
  const Vec ef = __builtin_convertvector(e, Vec);
  const Vec m2 = m * m;
  return m + (p * m * m2 + ef * splat(-2.12194440e-4f) - m2 * splat(0.5f)) + ef * splat(0.693359375f);
}

// 1 / sqrt(x) and 1 / x for normal x > 0, relative error below 4e-7: the processor's estimate and one Newton step, as the
// exact instructions occupy the divider for many cycles.
inline Vec inverse_sqrt(Vec x) {
#if defined(__AVX512F__)
  const Vec y = (Vec)_mm512_rsqrt14_ps((__m512)x);
#elif defined(__AVX2__)
  const Vec y = (Vec)_mm256_rsqrt_ps((__m256)x);
#else
  Vec y;
  for (std::int64_t lane = 0; lane < kLanes; ++lane) y[lane] = 1.0f / __builtin_sqrtf(x[lane]);
#endif
  return y * (splat(1.5f) - splat(0.5f) * x * y * y);
}

inline Vec inverse(Vec x) {
#if defined(__AVX512F__)
  const Vec y = (Vec)_mm512_rcp14_ps((__m512)x);
#elif defined(__AVX2__)
  const Vec y = (Vec)_mm256_rcp_ps((__m256)x);
#else
  const Vec y = splat(1.0f) / x;
#endif
  return y * (splat(2.0f) - x * y);
}

// One stage of `transpose`: swaps the lanes and rows whose numbers differ in the bit `step`.
template <std::int64_t step>
inline void transpose_stage(Vec* rows /* [kLanes] */) {
  IntVec low{}, high{};
#pragma GCC unroll 16
  for (std::int64_t j = 0; j < kLanes; ++j) {
    low[j] = static_cast<std::int32_t>(j & step ? kLanes + (j ^ step) : j);
    high[j] = static_cast<std::int32_t>(j & step ? kLanes + j : j | step);
  }
#pragma GCC unroll 16
  for (std::int64_t i = 0; i < kLanes; ++i) {
    if (i & step) continue;
    const Vec a = rows[i], b = rows[i | step];
    rows[i] = __builtin_shuffle(a, b, low);
    rows[i | step] = __builtin_shuffle(a, b, high);
  }
  if constexpr (2 * step < kLanes) transpose_stage<2 * step>(rows);
}

// In place: row i, lane j <-> row j, lane i.
inline void transpose(Vec* rows /* [kLanes] */) { transpose_stage<1>(rows); }

}  // namespace
}  // namespace mfdmc
