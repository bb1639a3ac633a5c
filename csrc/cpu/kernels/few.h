// Float32 squared distances to a few rows of y. A register holds one column of many rows of x, so that the distances,
// the least of them and who comes near it are found lane by lane: nothing is centred, packed or reduced across a
// register, and x is read once.
#pragma once

#include "simd.h"
#include "table.h"

namespace prunefast {
namespace {

// Rows of y by registers of rows of x that are added up at a time; with the operands they fill the register file.
#if defined(__AVX512F__)
constexpr int kFewAtATime = 8;
#else
constexpr int kFewAtATime = 4;
#endif

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

// Distances of Registers * kVector turned rows of x to Others rows of y, whose columns lie y_stride apart.
template <int Registers, int Others>
inline void few_distances(const float* turned, const float* y, int64_t y_stride, int64_t columns, float* out) {
  vf sum[Others][Registers] = {};
  for (int64_t d = 0; d < columns; ++d) {
    vf value[Registers];
#pragma GCC unroll 2
    for (int v = 0; v < Registers; ++v) value[v] = load(turned + (d * Registers + v) * kVector);
#pragma GCC unroll 8
    for (int j = 0; j < Others; ++j) {
      const vf other = splat(y[d * y_stride + j]);
#pragma GCC unroll 2
      for (int v = 0; v < Registers; ++v) {
        const vf difference = value[v] - other;
        sum[j][v] = fma(difference, difference, sum[j][v]);
      }
    }
  }
#pragma GCC unroll 8
  for (int j = 0; j < Others; ++j)
#pragma GCC unroll 2
    for (int v = 0; v < Registers; ++v) store(out + (j * Registers + v) * kVector, sum[j][v]);
}

// Who of kVector rows of x is within `reach` of its least distance, of distances `stride` apart.
inline void few_reached(const float* distance, int64_t stride, int64_t others, const FewBound& bound, int64_t rows,
                        Finalists* out) {
  vf least = splat(__builtin_inff());
  for (int64_t j = 0; j < others; ++j) {
    const vf mine = load(distance + j * stride);
    least = mine < least ? mine : least;
  }
  const vf limit = least * splat(bound.ratio) + splat(bound.slack);
  vi count = {}, last = {};
  for (int64_t j = 0; j < others; ++j) {
    const vi reached = load(distance + j * stride) <= limit;
    count -= reached;
    last = reached ? vi{} + (int32_t)j : last;
  }
  count = least < splat(__builtin_inff()) ? count : vi{};
  int32_t counts[kVector], lasts[kVector];
  store(counts, count);
  store(lasts, last);
  for (int64_t r = 0; r < rows; ++r) {
    out[r].count = counts[r] <= kFinalists ? counts[r] : 0;
    out[r].column[0] = lasts[r];
    if (out[r].count < 2) continue;
    float limits[kVector];
    store(limits, limit);
    int32_t found = 0;
    for (int64_t j = 0; j < others; ++j)
      if (distance[j * stride + r] <= limits[r]) out[r].column[found++] = (int32_t)j;
  }
}

template <int Registers>
void few_block(const float* x, int64_t x_stride, int64_t rows, const float* y, int64_t others, int64_t columns,
               const FewBound& bound, float* turned, Finalists* out) {
  constexpr int64_t width = Registers * kVector;
  const float* row[width];  // past the last row: that row again
  for (int64_t r = 0; r < width; ++r) row[r] = x + (r < rows ? r : rows - 1) * x_stride;
  for (int v = 0; v < Registers; ++v) turn(row + v * kVector, columns, turned + v * kVector, width);
  float* distance = turned + columns * width;
  int64_t j = 0;
  for (; j + kFewAtATime <= others; j += kFewAtATime)
    few_distances<Registers, kFewAtATime>(turned, y + j, others, columns, distance + j * width);
  for (; j + 2 <= others; j += 2) few_distances<Registers, 2>(turned, y + j, others, columns, distance + j * width);
  if (j < others) few_distances<Registers, 1>(turned, y + j, others, columns, distance + j * width);
  for (int v = 0; v < Registers && v * kVector < rows; ++v) {
    const int64_t left = rows - v * kVector;
    few_reached(distance + v * kVector, width, others, bound, left < kVector ? left : kVector, out + v * kVector);
  }
}

void few_finalists(const float* x, int64_t x_stride, int64_t rows, const float* y, int64_t others, int64_t columns,
                   const FewBound* bound, float* room, Finalists* out) {
  for (int64_t first = 0; first < rows; first += 2 * kVector) {
    const int64_t count = rows - first < 2 * kVector ? rows - first : 2 * kVector;
    const auto block = count > kVector ? few_block<2> : few_block<1>;
    block(x + first * x_stride, x_stride, count, y, others, columns, *bound, room, out + first);
  }
}

}  // namespace
}  // namespace prunefast
