// Rows as columns: what a register then holds belongs to as many rows, and a sum over their columns stays in its lane.
#pragma once

#include "simd.h"

namespace prunefast {
namespace {

#if defined(__AVX512F__)
inline vf four_of_each(const float* const* row, int64_t d) {
  __m512 value = _mm512_castps128_ps512(_mm_loadu_ps(row[0] + d));
  value = _mm512_insertf32x4(value, _mm_loadu_ps(row[4] + d), 1);
  value = _mm512_insertf32x4(value, _mm_loadu_ps(row[8] + d), 2);
  return (vf)_mm512_insertf32x4(value, _mm_loadu_ps(row[12] + d), 3);
}
inline vf low_singles(vf a, vf b) { return (vf)_mm512_unpacklo_ps((__m512)a, (__m512)b); }
inline vf high_singles(vf a, vf b) { return (vf)_mm512_unpackhi_ps((__m512)a, (__m512)b); }
inline vf low_pairs(vf a, vf b) { return (vf)_mm512_unpacklo_pd((__m512d)a, (__m512d)b); }
inline vf high_pairs(vf a, vf b) { return (vf)_mm512_unpackhi_pd((__m512d)a, (__m512d)b); }
#elif defined(__AVX2__)
inline vf four_of_each(const float* const* row, int64_t d) {
  const __m256 value = _mm256_castps128_ps256(_mm_loadu_ps(row[0] + d));
  return (vf)_mm256_insertf128_ps(value, _mm_loadu_ps(row[4] + d), 1);
}
inline vf low_singles(vf a, vf b) { return (vf)_mm256_unpacklo_ps((__m256)a, (__m256)b); }
inline vf high_singles(vf a, vf b) { return (vf)_mm256_unpackhi_ps((__m256)a, (__m256)b); }
inline vf low_pairs(vf a, vf b) { return (vf)_mm256_unpacklo_pd((__m256d)a, (__m256d)b); }
inline vf high_pairs(vf a, vf b) { return (vf)_mm256_unpackhi_pd((__m256d)a, (__m256d)b); }
#else
inline vf four_of_each(const float* const* row, int64_t d) { return load(row[0] + d); }
inline vf low_singles(vf a, vf b) { return vf{a[0], b[0], a[1], b[1]}; }
inline vf high_singles(vf a, vf b) { return vf{a[2], b[2], a[3], b[3]}; }
inline vf low_pairs(vf a, vf b) { return vf{a[0], a[1], b[0], b[1]}; }
inline vf high_pairs(vf a, vf b) { return vf{a[2], a[3], b[2], b[3]}; }
#endif

// Rows of x, kVector of them, as columns: column d at turned + d * stride.
inline void turn(const float* const* row, int64_t columns, float* turned, int64_t stride) {
  int64_t d = 0;
  for (; d + 4 <= columns; d += 4) {
    vf four[4];
    for (int i = 0; i < 4; ++i) four[i] = four_of_each(row + i, d);
    const vf left = low_singles(four[0], four[1]), right = low_singles(four[2], four[3]);
    const vf left_high = high_singles(four[0], four[1]), right_high = high_singles(four[2], four[3]);
    store(turned + d * stride, low_pairs(left, right));
    store(turned + (d + 1) * stride, high_pairs(left, right));
    store(turned + (d + 2) * stride, low_pairs(left_high, right_high));
    store(turned + (d + 3) * stride, high_pairs(left_high, right_high));
  }
  for (; d < columns; ++d)
    for (int r = 0; r < kVector; ++r) turned[d * stride + r] = row[r][d];
}

}  // namespace
}  // namespace prunefast
