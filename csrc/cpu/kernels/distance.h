// Scores x . y - |y|^2 / 2 by a register-blocked product over packed panels, the scans of their bounds, and direct
// distances.
#pragma once

#include "simd.h"
#include "table.h"

namespace prunefast {
namespace {

// Rows x registers of one block: accumulators, one row of the panel and a broadcast fit the register file (32, 16 and
// 16 registers).
#if defined(__AVX512F__)
constexpr int kRowBlock = 6;
#else
constexpr int kRowBlock = 3;
#endif

template <int Rows, int Registers>
inline void score_block(const float* x, int64_t row_stride, const float* panel, const float* start, int64_t columns,
                        float* out, int64_t score_stride) {
  vf sum[Rows][Registers];
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < Registers; ++v) sum[r][v] = load(start + v * kVector);
  for (int64_t d = 0; d < columns; ++d) {
    vf y[Registers];
#pragma GCC unroll 8
    for (int v = 0; v < Registers; ++v) y[v] = load(panel + (d * Registers + v) * kVector);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      const vf broadcast = splat(x[r * row_stride + d]);
#pragma GCC unroll 8
      for (int v = 0; v < Registers; ++v) sum[r][v] = fma(broadcast, y[v], sum[r][v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < Registers; ++v) store(out + r * score_stride + v * kVector, sum[r][v]);
}

template <int Registers>
void score_panels(const float* x, int64_t rows, int64_t row_stride, const Panels* panels, int64_t first, int64_t last,
                  float* out, int64_t score_stride) {
  constexpr int64_t width = Registers * kVector;
  for (int64_t p = first; p < last; ++p) {
    const float* panel = panels->values + p * panels->columns * width;
    const float* start = panels->start + p * width;
    float* target = out + (p - first) * width;
    int64_t r = 0;
    for (; r + kRowBlock <= rows; r += kRowBlock)
      score_block<kRowBlock, Registers>(x + r * row_stride, row_stride, panel, start, panels->columns,
                                        target + r * score_stride, score_stride);
    for (; r < rows; ++r)
      score_block<1, Registers>(x + r * row_stride, row_stride, panel, start, panels->columns,
                                target + r * score_stride, score_stride);
  }
}

void scores(const float* x, int64_t rows, int64_t row_stride, const Panels* panels, int64_t first, int64_t last,
            float* out, int64_t score_stride) {
  if (panels->width == kVector) return score_panels<1>(x, rows, row_stride, panels, first, last, out, score_stride);
  if (panels->width == 2 * kVector) return score_panels<2>(x, rows, row_stride, panels, first, last, out, score_stride);
  score_panels<4>(x, rows, row_stride, panels, first, last, out, score_stride);
}

double centre(const float* x, const float* mean, int64_t columns, float* out) {
  double lanes[8] = {0};
  int64_t d = 0;
  for (; d + 8 <= columns; d += 8) {
    for (int lane = 0; lane < 8; ++lane) {
      out[d + lane] = x[d + lane] - mean[d + lane];
      lanes[lane] += (double)out[d + lane] * (double)out[d + lane];
    }
  }
  for (int lane = 0; d < columns; ++d, ++lane) {
    out[d] = x[d] - mean[d];
    lanes[lane] += (double)out[d] * (double)out[d];
  }
  double sum = 0;
  for (int lane = 0; lane < 8; ++lane) sum += lanes[lane];
  return sum;
}

void best_lower_bounds(const float* score, const float* slack, const float* slack_self, float norm, int64_t count,
                       float* groups) {
  constexpr int registers = kScoreGroups / kVector;
  vf best[registers];
  for (int v = 0; v < registers; ++v) best[v] = load(groups + v * kVector);
  int64_t i = 0;
  for (; i + kScoreGroups <= count; i += kScoreGroups) {
    for (int v = 0; v < registers; ++v) {
      const int64_t j = i + v * kVector;
      best[v] = maximum(load(score + j) - (load(slack + j) * norm + load(slack_self + j)), best[v]);
    }
  }
  for (int v = 0; i < count; i += kVector, ++v)
    best[v] = maximum(load(score + i) - (load(slack + i) * norm + load(slack_self + i)), best[v]);
  for (int v = 0; v < registers; ++v) store(groups + v * kVector, best[v]);
}

int64_t collect(const float* score, const float* slack, const float* slack_self, float norm, int64_t count,
                float threshold, int32_t* hits) {
  int64_t found = 0;
  const vf limit = splat(threshold);
  for (int64_t i = 0; i < count; i += kVector) {
    uint32_t mask = reaches(load(score + i) + (load(slack + i) * norm + load(slack_self + i)), limit);
    for (; mask; mask &= mask - 1) hits[found++] = (int32_t)(i + __builtin_ctz(mask));
  }
  return found;
}

// Float64 sums in sixteen lanes: the same order on every instruction set, so the same distance.
template <typename Term>
inline double direct(const float* x, const float* y, int64_t columns, Term term) {
  double lanes[16] = {0};
  int64_t d = 0;
  for (; d + 16 <= columns; d += 16)
    for (int lane = 0; lane < 16; ++lane) lanes[lane] += term((double)x[d + lane], (double)y[d + lane]);
  for (int lane = 0; d < columns; ++d, ++lane) lanes[lane] += term((double)x[d], (double)y[d]);
  for (int half = 8; half; half /= 2)
    for (int lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
  return lanes[0];
}

double direct_squared(const float* x, const float* y, int64_t columns) {
  return direct(x, y, columns, [](double a, double b) { return (a - b) * (a - b); });
}

double direct_inner(const float* x, const float* y, int64_t columns) {
  return direct(x, y, columns, [](double a, double b) { return a * b; });
}

void add_row(double* sum, const float* x, int64_t columns) {
  for (int64_t d = 0; d < columns; ++d) sum[d] += (double)x[d];
}

}  // namespace
}  // namespace prunefast
