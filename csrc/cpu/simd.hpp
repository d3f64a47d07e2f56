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

// The first `n` <= kLanes numbers; zero in the other lanes.
inline Vec load_part(const float* p /* [n] */, std::int64_t n) {
  if (n == kLanes) return load(p);
#if defined(__AVX512F__)
  return (Vec)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p);
#else
  Vec v{};
  for (std::int64_t lane = 0; lane < n; ++lane) v[lane] = p[lane];
  return v;
#endif
}

// The first `n` <= kLanes lanes. In pieces, as some processors take twenty cycles for a masked store.
inline void store_part(float* p /* [n] */, Vec v, std::int64_t n) {
  if (n == kLanes) return store(p, v);
#if defined(__AVX2__)
#if defined(__AVX512F__)
  __m256 eight = _mm512_castps512_ps256((__m512)v);
  if (n & 8) {
    _mm256_storeu_ps(p, eight);
    p += 8;
    eight = _mm512_extractf32x8_ps((__m512)v, 1);
  }
#else
  const __m256 eight = (__m256)v;
#endif
  __m128 four = _mm256_castps256_ps128(eight);
  if (n & 4) {
    _mm_storeu_ps(p, four);
    p += 4;
    four = _mm256_extractf128_ps(eight, 1);
  }
  if (n & 2) {
    _mm_storel_pi(reinterpret_cast<__m64*>(p), four);
    p += 2;
    four = _mm_movehl_ps(four, four);
  }
  if (n & 1) _mm_store_ss(p, four);
#else
  for (std::int64_t lane = 0; lane < n; ++lane) p[lane] = v[lane];
#endif
}

inline Vec maximum(Vec a, Vec b) {
#if defined(__AVX512F__)
  return (Vec)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (Vec)_mm256_max_ps((__m256)a, (__m256)b);
#else
  return a > b ? a : b;
#endif
}

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

// By halves: the upper lanes onto the lower.
template <std::int64_t half = kLanes / 2>
inline float sum_lanes(Vec v) {
  IntVec upper{};
#pragma GCC unroll 16
  for (std::int64_t lane = 0; lane < kLanes; ++lane) upper[lane] = static_cast<std::int32_t>((lane + half) % kLanes);
  v += __builtin_shuffle(v, upper);
  if constexpr (half > 1) return sum_lanes<half / 2>(v);
  return v[0];
}

// e^x for x <= 0, relative error below 2e-7 + 2e-8 |x|; what would be below the smallest normal number becomes about
// that.
inline Vec exp_negative(Vec x) {
  x = maximum(x, splat(-87.0f));
  // x / ln 2 = n + r: adding 1.5 * 2^23 rounds to an integer, which then also stands in the low bits
  const Vec magic = splat(12582912.0f), inverse_ln2 = splat(1.44269504f);
  const Vec shifted = x * inverse_ln2 + magic;
  const Vec r = x * inverse_ln2 - (shifted - magic);
  Vec p = splat(1.326472731e-3f);  // 2^r for |r| <= 1/2
  p = p * r + splat(9.671512991e-3f);
  p = p * r + splat(5.550733581e-2f);
  p = p * r + splat(2.402224243e-1f);
  p = p * r + splat(6.931470037e-1f);
  p = p * r + splat(1.0f);
  return from_bits(bits(p) + (bits(shifted) << 23));
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

// 1 / sqrt(x) and 1 / x for normal x > 0, relative error below 4e-7: the processor's estimate and one Newton step, as
// the exact instructions occupy the divider for many cycles.
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

// Lanes of two vectors, those whose number has the bit `step` swapped for the other's: a stage of a transpose.
template <std::int64_t step>
inline void exchange(Vec& a, Vec& b) {
  IntVec low{}, high{};
#pragma GCC unroll 16
  for (std::int64_t j = 0; j < kLanes; ++j) {
    low[j] = static_cast<std::int32_t>(j & step ? kLanes + (j ^ step) : j);
    high[j] = static_cast<std::int32_t>(j & step ? kLanes + j : j | step);
  }
  const Vec x = a, y = b;
  a = __builtin_shuffle(x, y, low);
  b = __builtin_shuffle(x, y, high);
}

// In place: row i, lane j <-> row j, lane i.
template <std::int64_t step = 1>
inline void transpose(Vec* rows /* [kLanes] */) {
#pragma GCC unroll 16
  for (std::int64_t i = 0; i < kLanes; ++i)
    if (!(i & step)) exchange<step>(rows[i], rows[i | step]);
  if constexpr (2 * step < kLanes) transpose<2 * step>(rows);
}

// The sum of the lanes of row i in lane i; overwrites the rows.
template <std::int64_t step = 1>
inline Vec sums_of_rows(Vec* rows /* [kLanes] */) {
#pragma GCC unroll 16
  for (std::int64_t i = 0; i < kLanes; i += 2 * step) {
    exchange<step>(rows[i], rows[i | step]);
    rows[i] += rows[i | step];
  }
  if constexpr (2 * step < kLanes) return sums_of_rows<2 * step>(rows);
  return rows[0];
}

}  // namespace
}  // namespace mfdmc
