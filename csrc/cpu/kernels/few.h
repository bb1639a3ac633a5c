// Float32 squared distances to a few rows of y. A register holds one column of many rows of x, so that the distances,
// the least of them and who comes near it are found lane by lane: nothing is centred, packed or reduced across a
// register, and x is read once.
#pragma once

#include "distance.h"

namespace prunefast {
namespace {

// Rows of y that are added up at a time, each in a register.
#if defined(__AVX512F__)
constexpr int kFewAtATime = 16;
#else
constexpr int kFewAtATime = 12;
#endif

// Distances of kVector turned rows of x to Others rows of y, whose columns lie y_stride apart.
template <int Others>
void few_distances(const float* turned, const float* y, int64_t y_stride, int64_t columns, float* out) {
  vf sum[Others] = {};
  for (int64_t d = 0; d < columns; ++d) {
    const vf value = load(turned + d * kVector);
#pragma GCC unroll 16
    for (int j = 0; j < Others; ++j) {
      const vf difference = value - splat(y[d * y_stride + j]);
      sum[j] = fma(difference, difference, sum[j]);
    }
  }
#pragma GCC unroll 16
  for (int j = 0; j < Others; ++j) store(out + j * kVector, sum[j]);
}

constexpr decltype(&few_distances<1>) few_blocks[] = {
    few_distances<1>,  few_distances<2>,  few_distances<3>,  few_distances<4>,  few_distances<5>,  few_distances<6>,
    few_distances<7>,  few_distances<8>,  few_distances<9>,  few_distances<10>, few_distances<11>, few_distances<12>,
#if defined(__AVX512F__)
    few_distances<13>, few_distances<14>, few_distances<15>, few_distances<16>,
#endif
};

// Who comes near the least distance of kVector rows of x.
inline void few_reached(const float* distance, int64_t others, const FewBound& bound, int64_t rows, Finalists* out) {
  const vf none = splat(__builtin_inff());
  vf least = none;
  for (int64_t j = 0; j < others; ++j) {
    const vf mine = load(distance + j * kVector);
    least = mine < least ? mine : least;
  }
  const vf limit = least < none ? least * splat(bound.ratio) + splat(bound.slack) : -none;
  Reached reached;
  for (int64_t j = 0; j < others; ++j) reached.add(-load(distance + j * kVector), -limit, j);
  reached.list(rows, others, out);
}

void few_finalists(const float* x, int64_t x_stride, int64_t rows, const float* y, int64_t others, int64_t columns,
                   const FewBound* bound, float* room, Finalists* out) {
  const int64_t blocks = (others + kFewAtATime - 1) / kFewAtATime, most = (others + blocks - 1) / blocks;
  float* distance = room + columns * kVector;
  for (int64_t first = 0; first < rows; first += kVector) {
    const int64_t count = rows - first < kVector ? rows - first : kVector;
    const float* row[kVector];  // past the last row: that row again
    for (int64_t r = 0; r < kVector; ++r) row[r] = x + (first + (r < count ? r : count - 1)) * x_stride;
    turn(row, columns, room, kVector);
    for (int64_t j = 0; j < others; j += most)
      few_blocks[(others - j < most ? others - j : most) - 1](room, y + j, others, columns, distance + j * kVector);
    few_reached(distance, others, *bound, count, out + first);
  }
}

}  // namespace
}  // namespace prunefast
