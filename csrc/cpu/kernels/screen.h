// Scores x . y - |y|^2 / 2 by a register-blocked product over packed panels, in any format that has four functions:
// begin (the accumulator), multiply_add, finish (the float32 score) and the conversion of a row.
#pragma once

#include "table.h"
#include "turn.h"

namespace prunefast {
namespace {

// Rows x registers of one block: accumulators, one row of the panel and a broadcast fit the register file (32, 16 and
// 16 registers).
#if defined(__AVX512F__)
constexpr int kRowBlock = 6;
#else
constexpr int kRowBlock = 3;
#endif

// Rows of y by registers of rows of x of one block of turned scores.
#if defined(__AVX512F__)
constexpr int kTurnedOthers = 8;
#else
constexpr int kTurnedOthers = 4;
#endif
constexpr int kTurnedRegisters = 3;

inline vu load_words(const uint32_t* p) {
  vu value;
  memcpy(&value, p, sizeof value);
  return value;
}

// A register of centred values; zeros after the last column.
inline vf centred(const float* x, const float* mean, int64_t d, int64_t columns) {
  if (d + kVector <= columns) return load(x + d) - load(mean + d);
  vf value = {};
  for (int64_t i = 0; d + i < columns; ++i) value[i] = x[d + i] - mean[d + i];
  return value;
}

// The sum of the lanes, in pairs: half as deep a chain of additions each time.
inline float total(vf values) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)values);
#else
  float lanes[kVector];
  memcpy(lanes, &values, sizeof lanes);
  for (int half = kVector / 2; half; half /= 2)
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  return lanes[0];
#endif
}

inline int32_t total(vi values) {
  int32_t lanes[kVector], sum = 0;
  memcpy(lanes, &values, sizeof lanes);
  for (int lane = 0; lane < kVector; ++lane) sum += lanes[lane];
  return sum;
}

inline int64_t packed_columns(int64_t columns) {
  return (columns + kPackedColumns - 1) / kPackedColumns * kPackedColumns;
}

struct Float32 {
  static constexpr bool kScaled = false;
  typedef vf Sum;
  static vf begin(const Panels& panels, int64_t at) { return load(panels.start + at); }
  static vf begin_one(const Panels& panels, int64_t at) { return splat(panels.start[at]); }
  static vf multiply_add(vu x, vu y, vf sum) { return fma((vf)x, (vf)y, sum); }
  static vf finish(vf sum, const Panels&, int64_t, vf) { return sum; }
  static vf finish_one(vf sum, const Panels&, int64_t, vf) { return sum; }

  static PackedRow pack(const float* x, const float* mean, int64_t columns, bool, uint32_t* out) {
    vf square = {};
    for (int64_t d = 0; d < packed_columns(columns); d += kVector) {
      const vf value = centred(x, mean, d, columns);
      store(out + d, value);
      square += value * value;
    }
    return {total(square), 0, 0, 0};
  }
};

// Rows of integers: x = scale X + what is lost, the scale a row's own. The product of integers is exact.
inline float step_of(float size, float limit) {
  return size < 0x1p-60f ? 0 : size / limit;  // a row that small is packed as zeros and lost as a whole
}

inline vf rounded(vf value) {
  const vf magic = splat(0x1.8p23f);  // to the nearest integer, below 2^22
  return (value + magic) - magic;
}

template <typename Narrow>  // a vector of kVector narrow integers
inline PackedRow pack_integers(const float* x, const float* mean, int64_t columns, float scale, float square,
                               bool summed, Narrow flip, Narrow* out) {
  const vf inverse = splat(scale > 0 ? 1 / scale : 0), step = splat(scale);
  vf lost = {};
  vi sum = {};
  for (int64_t d = 0; d < packed_columns(columns); d += kVector) {
    const vf value = centred(x, mean, d, columns), whole = rounded(value * inverse), rest = value - whole * step;
    const vi integers = __builtin_convertvector(whole, vi);
    lost += rest * rest;
    if (summed) sum += integers;
    store(out++, __builtin_convertvector(integers, Narrow) ^ flip);
  }
  return {square, total(lost), scale, summed ? total(sum) : 0};
}

struct Extent {
  float square, largest;
};

inline Extent extent(const float* x, const float* mean, int64_t columns) {
  vf square = {}, largest = {};
  for (int64_t d = 0; d < columns; d += kVector) {
    const vf value = centred(x, mean, d, columns);
    square += value * value;
    largest = maximum(maximum(value, -value), largest);
  }
  return {total(square), prunefast::largest(largest)};
}

#if defined(__AVX2__)
typedef int16_t vs __attribute__((vector_size(kVector * 2)));

// Sixteen bits, with a scale that keeps the sum of products below 2^31 (Cauchy and Schwarz).
struct Int16 {
  static constexpr bool kScaled = true;
  typedef vi Sum;
  static vi begin(const Panels&, int64_t) { return vi{}; }
  static vi begin_one(const Panels&, int64_t) { return vi{}; }
  static vi multiply_add(vu x, vu y, vi sum) {  // unsigned: a row with NaN, whose scores nobody reads, may overflow
#if defined(__AVX512F__)
    return (vi)((vu)sum + (vu)_mm512_madd_epi16((__m512i)x, (__m512i)y));
#else
    return (vi)((vu)sum + (vu)_mm256_madd_epi16((__m256i)x, (__m256i)y));
#endif
  }
  static vf finish(vi sum, const Panels& panels, int64_t at, vf scale) {
    return fma(__builtin_convertvector(sum, vf) * load(panels.scale + at), scale, load(panels.start + at));
  }
  static vf finish_one(vi sum, const Panels& panels, int64_t at, vf scale) {
    return fma(__builtin_convertvector(sum, vf) * splat(panels.scale[at]), scale, splat(panels.start[at]));
  }

  static PackedRow pack(const float* x, const float* mean, int64_t columns, bool, uint32_t* out) {
    const Extent e = extent(x, mean, columns);
    // Rounded to integers a row is at most sqrt(columns) / 2 longer; 46,340^2 < 2^31.
    const float norm = __builtin_sqrtf(e.square * 1.01f);
    const float scale = step_of(norm, 46000.0f - 0.5f * __builtin_sqrtf((float)columns));
    const float least = step_of(e.largest, 32767.0f);
    return pack_integers(x, mean, columns, scale > least ? scale : least, e.square, false, vs{}, (vs*)out);
  }
};
#endif

template <typename Format, int Rows, int Registers>
inline void score_block(const uint32_t* x, const float* scale, int64_t row_stride, const Panels& panels, int64_t panel,
                        float* out, int64_t score_stride, float* peaks, int64_t peak_stride) {
  constexpr int64_t width = Registers * kVector;
  const uint32_t* values = panels.values + panel * panels.words * width;
  typename Format::Sum sum[Rows][Registers];
#pragma GCC unroll 12
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < Registers; ++v) sum[r][v] = Format::begin(panels, panel * width + v * kVector);
  for (int64_t word = 0; word < panels.words; ++word) {
    vu y[Registers];
#pragma GCC unroll 4
    for (int v = 0; v < Registers; ++v) y[v] = load_words(values + (word * Registers + v) * kVector);
#pragma GCC unroll 12
    for (int r = 0; r < Rows; ++r) {
      const vu broadcast = splat(x[r * row_stride + word]);
#pragma GCC unroll 4
      for (int v = 0; v < Registers; ++v) sum[r][v] = Format::multiply_add(broadcast, y[v], sum[r][v]);
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < Rows; ++r) {
    const vf step = Format::kScaled ? splat(scale[r]) : vf{};
    vf peak = {};
#pragma GCC unroll 4
    for (int v = 0; v < Registers; ++v) {
      const vf score = Format::finish(sum[r][v], panels, panel * width + v * kVector, step);
      store(out + r * score_stride + v * kVector, score);
      peak = v ? maximum(score, peak) : score;
    }
    peaks[r * peak_stride] = largest(peak);
  }
}

template <typename Format, int Registers>
void score_panels(const uint32_t* x, const float* scale, int64_t rows, int64_t row_stride, const Panels& panels,
                  int64_t first, int64_t last, float* out, int64_t score_stride, float* peaks, int64_t peak_stride) {
  constexpr int block = Registers == 4 ? kRowBlock : 2 * kRowBlock;
  for (int64_t p = first; p < last; ++p) {
    float* target = out + (p - first) * Registers * kVector;
    float* peak = peaks + (p - first);
    int64_t r = 0;
    for (; r + block <= rows; r += block)
      score_block<Format, block, Registers>(x + r * row_stride, scale + r, row_stride, panels, p,
                                            target + r * score_stride, score_stride, peak + r * peak_stride,
                                            peak_stride);
    for (; r < rows; ++r)
      score_block<Format, 1, Registers>(x + r * row_stride, scale + r, row_stride, panels, p, target + r * score_stride,
                                        score_stride, peak + r * peak_stride, peak_stride);
  }
}

template <typename Format>
void scores(const uint32_t* x, const float* scale, int64_t rows, int64_t row_stride, const Panels* panels,
            int64_t first, int64_t last, float* out, int64_t score_stride, float* peaks, int64_t peak_stride) {
  const auto call = panels->width == kVector       ? score_panels<Format, 1>
                    : panels->width == 2 * kVector ? score_panels<Format, 2>
                                                   : score_panels<Format, 4>;
  call(x, scale, rows, row_stride, *panels, first, last, out, score_stride, peaks, peak_stride);
}

// The same scores the other way round: rows of x down the lanes, rows of y one after the other. The largest of a row and
// who comes near it are then found lane by lane, and no column is padding.
template <typename Format, int Others>
inline void turned_block(const uint32_t* x, const float* scale, const Panels& panels, int64_t panel, float* out) {
  constexpr int registers = kTurnedRegisters;
  const uint32_t* values = panels.values + panel * panels.words * panels.width;
  const int64_t first = panel * panels.width;
  typename Format::Sum sum[Others][registers];
#pragma GCC unroll 8
  for (int j = 0; j < Others; ++j)
#pragma GCC unroll 4
    for (int v = 0; v < registers; ++v) sum[j][v] = Format::begin_one(panels, first + j);
  for (int64_t word = 0; word < panels.words; ++word) {
    vu value[registers];
#pragma GCC unroll 4
    for (int v = 0; v < registers; ++v) value[v] = load_words(x + (word * registers + v) * kVector);
#pragma GCC unroll 8
    for (int j = 0; j < Others; ++j) {
      const vu other = splat(values[word * panels.width + j]);
#pragma GCC unroll 4
      for (int v = 0; v < registers; ++v) sum[j][v] = Format::multiply_add(value[v], other, sum[j][v]);
    }
  }
#pragma GCC unroll 8
  for (int j = 0; j < Others; ++j)
#pragma GCC unroll 4
    for (int v = 0; v < registers; ++v)
      store(out + (first + j) * kBlockRows + v * kVector,
            Format::finish_one(sum[j][v], panels, first + j, load(scale + v * kVector)));
}

template <typename Format>
void turned_scores(const uint32_t* x, const float* scale, int64_t rows, int64_t row_stride, const Panels* panels,
                   int64_t others, uint32_t* room, float* out) {
  constexpr int64_t width = kTurnedRegisters * kVector;
  static_assert(kBlockRows % width == 0);
  float* turned = (float*)room;
  for (int64_t first = 0; first < rows; first += width) {
    const float* row[width];  // past the last row: that row again
    for (int64_t r = 0; r < width; ++r) {
      const int64_t mine = first + r < rows ? first + r : rows - 1;
      row[r] = (const float*)(x + mine * row_stride);
    }
    for (int v = 0; v < kTurnedRegisters; ++v)
      turn(row + v * kVector, (panels->words + 3) / 4 * 4, turned + v * kVector, width);
    for (int64_t j = 0; j < others; j += kTurnedOthers) {
      const auto block = others - j > kTurnedOthers / 2 ? turned_block<Format, kTurnedOthers>
                                                        : turned_block<Format, kTurnedOthers / 2>;
      block(room, scale + first, *panels, j / kTurnedOthers, out + first);
    }
  }
}

template <typename Format>
void pack_rows(const float* x, int64_t x_stride, int64_t rows, const float* mean, int64_t columns, uint32_t* out,
               int64_t row_stride, PackedRow* about) {
  for (int64_t r = 0; r < rows; ++r)
    about[r] = Format::pack(x + r * x_stride, mean, columns, false, out + r * row_stride);
}

constexpr int64_t kAnyColumns = INT64_MAX;
constexpr Screening float32_screening = {1, true, kAnyColumns, 0, Float32::pack, pack_rows<Float32>,
                                         scores<Float32>, turned_scores<Float32>};
#if defined(__AVX2__)
constexpr Screening int16_screening = {2, false, 1 << 20, 17, Int16::pack, pack_rows<Int16>, scores<Int16>,
                                       turned_scores<Int16>};
#endif

}  // namespace
}  // namespace prunefast
