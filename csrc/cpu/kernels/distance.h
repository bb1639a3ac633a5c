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
                        float* out, int64_t score_stride, float* peaks, int64_t peak_stride) {
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
  for (int r = 0; r < Rows; ++r) {
    vf peak = sum[r][0];
#pragma GCC unroll 8
    for (int v = 0; v < Registers; ++v) {
      store(out + r * score_stride + v * kVector, sum[r][v]);
      peak = maximum(sum[r][v], peak);
    }
    peaks[r * peak_stride] = largest(peak);
  }
}

template <int Registers>
void score_panels(const float* x, int64_t rows, int64_t row_stride, const Panels* panels, int64_t first, int64_t last,
                  float* out, int64_t score_stride, float* peaks, int64_t peak_stride) {
  constexpr int block = Registers == 1 ? 2 * kRowBlock : kRowBlock;
  constexpr int64_t width = Registers * kVector;
  for (int64_t p = first; p < last; ++p) {
    const float* panel = panels->values + p * panels->columns * width;
    const float* start = panels->start + p * width;
    float* target = out + (p - first) * width;
    float* peak = peaks + (p - first);
    int64_t r = 0;
    for (; r + block <= rows; r += block)
      score_block<block, Registers>(x + r * row_stride, row_stride, panel, start, panels->columns,
                                    target + r * score_stride, score_stride, peak + r * peak_stride, peak_stride);
    for (; r < rows; ++r)
      score_block<1, Registers>(x + r * row_stride, row_stride, panel, start, panels->columns,
                                target + r * score_stride, score_stride, peak + r * peak_stride, peak_stride);
  }
}

void scores(const float* x, int64_t rows, int64_t row_stride, const Panels* panels, int64_t first, int64_t last,
            float* out, int64_t score_stride, float* peaks, int64_t peak_stride) {
  const auto call = panels->width == kVector       ? score_panels<1>
                    : panels->width == 2 * kVector ? score_panels<2>
                                                   : score_panels<4>;
  call(x, rows, row_stride, panels, first, last, out, score_stride, peaks, peak_stride);
}

// out = x - mean and its squared norm, added in float32: `columns` u covers its rounding.
float centre_row(const float* x, const float* mean, int64_t columns, float* out) {
  vf lanes = {};
  int64_t d = 0;
  for (; d + kVector <= columns; d += kVector) {
    const vf value = load(x + d) - load(mean + d);
    store(out + d, value);
    lanes += value * value;
  }
  float sum = 0;
  for (; d < columns; ++d) {
    out[d] = x[d] - mean[d];
    sum += out[d] * out[d];
  }
  for (int lane = 0; lane < kVector; ++lane) sum += lanes[lane];
  return sum;
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

void best_lower_bounds(const float* score, int64_t panels, int64_t width, const float* bound, float* groups) {
  for (int64_t p = 0; p < panels; ++p) {
    const vf b = splat(bound[p]);
    for (int64_t i = p * width; i < (p + 1) * width; i += kVector) {
      float* group = groups + i % kScoreGroups;
      store(group, maximum(load(score + i) - b, load(group)));
    }
  }
}

int64_t collect(const float* score, int64_t count, float bound, float threshold, int32_t* hits) {
  int64_t found = 0;
  const vf limit = splat(threshold), b = splat(bound);
  for (int64_t i = 0; i < count; i += kVector) {
    uint32_t mask = reaches(load(score + i) + b, limit);
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
