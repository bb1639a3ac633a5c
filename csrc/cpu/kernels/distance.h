// Norms, the scans of the screened scores and direct distances.
#pragma once

#include "screen.h"

namespace prunefast {
namespace {

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

inline vf bound_at(const ScoreBounds& b, int64_t i) {
  return load(b.gain + i) * splat(b.norm) + (load(b.lost + i) * splat(b.rest) + load(b.fixed + i));
}

void best_lower_bounds(const float* score, int64_t width, const ScoreBounds* bounds, float* groups) {
  for (int64_t i = 0; i < width; i += kVector)
    store(groups + i, maximum(load(score + i) - bound_at(*bounds, i), load(groups + i)));
}

inline float bound_of(const ScoreBounds& b, int64_t i, float norm, float rest) {
  return b.gain[i] * norm + (b.lost[i] * rest + b.fixed[i]);
}

void finalists(const float* score, int64_t score_stride, const float* peak, int64_t peak_stride, int64_t rows,
               int64_t panels, int64_t width, const ScoreBounds* bounds, const float* norm, const float* rest,
               Finalists* out) {
  for (int64_t r = 0; r < rows; ++r, score += score_stride, peak += peak_stride) {
    float threshold = -__builtin_inff();
    for (int64_t p = 0; p < panels; ++p) {
      const float lower = peak[p] - bound_of(*bounds, p, norm[r], rest[r]);
      threshold = lower > threshold ? lower : threshold;
    }
    const vf limit = splat(threshold);
    int32_t found = 0;
    for (int64_t p = 0; p < panels && found <= kFinalists; ++p) {
      const float bound = bound_of(*bounds, p, norm[r], rest[r]);
      // Which of few panels is looked into cannot be foreseen: looking into all of them costs less than a wrong guess.
      if (panels > kForeseen && !(peak[p] + bound >= threshold)) continue;
      uint64_t reached = 0;
      for (int64_t i = 0; i < width; i += kVector)
        reached |= (uint64_t)reaches(load(score + p * width + i) + splat(bound), limit) << i;
      for (; reached && found <= kFinalists; reached &= reached - 1)
        out[r].column[found++] = (int32_t)(p * width + __builtin_ctzll(reached));
    }
    out[r].count = found <= kFinalists ? found : 0;
  }
}

// Which rows of y reached a lane, found one after the other: how many and the last of them, enough where there is one,
// and for the other lanes a bit each and a summary of every kReachedRun.
struct Reached {
  static constexpr int64_t kReachedRun = 16;
  vi count = {}, last = {};
  uint16_t bits[kTurnedMost];
  uint32_t runs[(kTurnedMost + kReachedRun - 1) / kReachedRun];

  void add(vf value, vf limit, int64_t j) {
    const vi reached = value >= limit;
    count -= reached;
    last = reached ? vi{} + (int32_t)j : last;
    const uint32_t mine = reaches(value, limit), before = j % kReachedRun ? runs[j / kReachedRun] : 0;
    bits[j] = (uint16_t)mine;
    runs[j / kReachedRun] = before | mine;
  }

  void list(int64_t lanes, int64_t others, Finalists* out) const {
    int32_t counts[kVector], lasts[kVector];
    store(counts, count);
    store(lasts, last);
    for (int64_t r = 0; r < lanes; ++r) {
      out[r].count = counts[r] <= kFinalists ? counts[r] : 0;
      out[r].column[0] = lasts[r];
      if (out[r].count < 2) continue;
      int32_t found = 0;
      for (int64_t run = 0; run < others; run += kReachedRun) {
        if (!(runs[run / kReachedRun] >> r & 1)) continue;
        for (int64_t j = run; j < run + kReachedRun && found < out[r].count; ++j)
          if (bits[j] >> r & 1) out[r].column[found++] = (int32_t)j;
      }
    }
  }
};

void turned_finalists(const float* score, int64_t others, int64_t rows, int64_t width, const ScoreBounds* panels,
               const float* norm, const float* rest, Finalists* out) {
  for (int64_t first = 0; first < rows; first += kVector) {
    const float* mine = score + first;
    vf bound[(kTurnedMost + kVector - 1) / kVector], limit = splat(-__builtin_inff());
    for (int64_t j = 0, p = 0; j < others; j += width, ++p) {
      bound[p] = splat(panels->gain[p]) * load(norm + first) +
                 (splat(panels->lost[p]) * load(rest + first) + splat(panels->fixed[p]));
      vf peak = splat(-__builtin_inff());
      for (int64_t i = j; i < j + width && i < others; ++i) peak = maximum(load(mine + i * kBlockRows), peak);
      limit = maximum(peak - bound[p], limit);
    }
    Reached reached;
    for (int64_t j = 0, p = 0; j < others; j += width, ++p)
      for (int64_t i = j; i < j + width && i < others; ++i)
        reached.add(load(mine + i * kBlockRows) + bound[p], limit, i);
    reached.list(rows - first < kVector ? rows - first : kVector, others, out + first);
  }
}

int64_t collect(const float* score, int64_t width, const ScoreBounds* bounds, float threshold, int32_t* hits) {
  int64_t found = 0;
  const vf limit = splat(threshold);
  for (int64_t i = 0; i < width; i += kVector) {
    uint32_t mask = reaches(load(score + i) + bound_at(*bounds, i), limit);
    for (; mask; mask &= mask - 1) hits[found++] = (int32_t)(i + __builtin_ctz(mask));
  }
  return found;
}

float quick_squared(const float* x, const float* y, int64_t columns) {
  vf sum[4] = {};
  int64_t d = 0;
  for (; d + 4 * kVector <= columns; d += 4 * kVector) {
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      const vf difference = load(x + d + v * kVector) - load(y + d + v * kVector);
      sum[v] = fma(difference, difference, sum[v]);
    }
  }
  for (; d + kVector <= columns; d += kVector) {
    const vf difference = load(x + d) - load(y + d);
    sum[0] = fma(difference, difference, sum[0]);
  }
  float rest = 0;
  for (; d < columns; ++d) rest += (x[d] - y[d]) * (x[d] - y[d]);
  return total((sum[0] + sum[1]) + (sum[2] + sum[3])) + rest;
}

// Float64 sums in sixteen lanes: the same order on every instruction set, so the same distance. The last columns are
// filled up with zeros, which add nothing.
inline vd load_wide(const float* p) {
#if defined(__AVX512F__)
  return (vd)_mm512_cvtps_pd(_mm256_loadu_ps(p));
#elif defined(__AVX2__)
  return (vd)_mm256_cvtps_pd(_mm_loadu_ps(p));
#else
  vd wide;
  for (int lane = 0; lane < kDoubles; ++lane) wide[lane] = (double)p[lane];
  return wide;
#endif
}

inline double total(const vd (&sum)[16 / kDoubles]) {
#if defined(__AVX512F__)
  const __m512d eight = (__m512d)(sum[0] + sum[1]);
  const __m256d four = _mm256_add_pd(_mm512_castpd512_pd256(eight), _mm512_extractf64x4_pd(eight, 1));
  const __m128d two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd(four, 1));
  return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
#else
  double lanes[16];
  memcpy(lanes, sum, sizeof lanes);
  for (int half = 8; half; half /= 2)
    for (int lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
  return lanes[0];
#endif
}

template <typename Term>
__attribute__((always_inline)) inline double direct(const float* x, const float* y, int64_t columns, Term term) {
  vd sum[16 / kDoubles] = {};
  const auto add = [&](const float* a, const float* b) __attribute__((always_inline)) {
#pragma GCC unroll 8
    for (int part = 0; part < 16 / kDoubles; ++part)
      sum[part] += term(load_wide(a + part * kDoubles), load_wide(b + part * kDoubles));
  };
  int64_t d = 0;
  for (; d + 16 <= columns; d += 16) add(x + d, y + d);
  if (d < columns) {
    float a[16] = {0}, b[16] = {0};
    memcpy(a, x + d, (columns - d) * sizeof *x);
    memcpy(b, y + d, (columns - d) * sizeof *y);
    add(a, b);
  }
  return total(sum);
}

double direct_squared(const float* x, const float* y, int64_t columns) {
  return direct(x, y, columns, [](vd a, vd b) { return (a - b) * (a - b); });
}

double direct_inner(const float* x, const float* y, int64_t columns) {
  return direct(x, y, columns, [](vd a, vd b) { return a * b; });
}

void decide(const float* x, int64_t x_stride, int64_t rows, const float* y, int64_t y_stride, int64_t columns, bool inner,
            const Finalists* finalists, int64_t* index, float* distance) {
  for (int64_t r = 0; r < rows; ++r) {
    const float* row = x + r * x_stride;
    for (int64_t d = 0; d < columns; d += 16) __builtin_prefetch(row + rows * x_stride + d, 0, 2);
    if (!finalists[r].count) continue;
    double least = __builtin_inf();
    for (int32_t i = 0; i < finalists[r].count; ++i) {
      const int32_t j = finalists[r].column[i];
      const float* other = y + j * y_stride;
      const double value = inner ? -direct_inner(row, other, columns) : direct_squared(row, other, columns);
      if (i && !(value < least)) continue;
      least = value;
      index[r] = j;
    }
    distance[r] = (float)least;
  }
}

void add_row(double* sum, const float* x, int64_t columns) {
  for (int64_t d = 0; d < columns; ++d) sum[d] += (double)x[d];
}

}  // namespace
}  // namespace prunefast
