// Screening scores from bfloat16 pairs (VDPBF16PS) and the conversion with what it loses; CMakeLists.txt gives this
// file its flags.
#include "simd.h"
#include "table.h"

namespace prunefast {
namespace {

inline __m512bh pairs_of(const uint32_t* p) { return (__m512bh)_mm512_loadu_si512(p); }

template <int Rows, int Registers>
inline void narrow_block(const uint32_t* x, int64_t row_stride, const uint32_t* panel, const float* start,
                         int64_t pairs, float* out, int64_t score_stride, float* peaks, int64_t peak_stride) {
  __m512 sum[Rows][Registers];
#pragma GCC unroll 12
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < Registers; ++v) sum[r][v] = _mm512_loadu_ps(start + v * kVector);
  for (int64_t d = 0; d < pairs; ++d) {
    __m512bh y[Registers];
#pragma GCC unroll 4
    for (int v = 0; v < Registers; ++v) y[v] = pairs_of(panel + (d * Registers + v) * kVector);
#pragma GCC unroll 12
    for (int r = 0; r < Rows; ++r) {
      const __m512bh broadcast = (__m512bh)_mm512_set1_epi32((int32_t)x[r * row_stride + d]);
#pragma GCC unroll 4
      for (int v = 0; v < Registers; ++v) sum[r][v] = _mm512_dpbf16_ps(sum[r][v], broadcast, y[v]);
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < Rows; ++r) {
    vf peak = (vf)sum[r][0];
#pragma GCC unroll 4
    for (int v = 0; v < Registers; ++v) {
      store(out + r * score_stride + v * kVector, sum[r][v]);
      peak = maximum((vf)sum[r][v], peak);
    }
    peaks[r * peak_stride] = largest(peak);
  }
}

template <int Registers>
void narrow_panels(const uint32_t* x, int64_t rows, int64_t row_stride, const NarrowPanels* panels, int64_t first,
                   int64_t last, float* out, int64_t score_stride, float* peaks, int64_t peak_stride) {
  constexpr int64_t width = Registers * kVector;
  constexpr int block = Registers == 4 ? 6 : 12;
  for (int64_t p = first; p < last; ++p) {
    const uint32_t* panel = panels->values + p * panels->pairs * width;
    const float* start = panels->start + p * width;
    float* target = out + (p - first) * width;
    float* peak = peaks + (p - first);
    int64_t r = 0;
    for (; r + block <= rows; r += block)
      narrow_block<block, Registers>(x + r * row_stride, row_stride, panel, start, panels->pairs,
                                     target + r * score_stride, score_stride, peak + r * peak_stride, peak_stride);
    for (; r < rows; ++r)
      narrow_block<1, Registers>(x + r * row_stride, row_stride, panel, start, panels->pairs, target + r * score_stride,
                                 score_stride, peak + r * peak_stride, peak_stride);
  }
}

void narrow_scores(const uint32_t* x, int64_t rows, int64_t row_stride, const NarrowPanels* panels, int64_t first,
                   int64_t last, float* out, int64_t score_stride, float* peaks, int64_t peak_stride) {
  const auto call = panels->width == kVector       ? narrow_panels<1>
                    : panels->width == 2 * kVector ? narrow_panels<2>
                                                   : narrow_panels<4>;
  call(x, rows, row_stride, panels, first, last, out, score_stride, peaks, peak_stride);
}

// Squares are added in float32; `columns` u covers their rounding, and the caller adds it.
void narrow(const float* x, const float* mean, int64_t columns, uint32_t* out, float* squared, float* lost) {
  __m512 square[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()}, loss[2] = {square[0], square[0]};
  for (int64_t d = 0; d < columns; d += 2 * kVector) {
    __m512 value[2];
    for (int half = 0; half < 2; ++half) {
      const int64_t left = columns - d - half * kVector;
      const __mmask16 mask = left >= kVector ? 0xFFFF : left > 0 ? (__mmask16)((1u << left) - 1) : 0;
      const int64_t at = mask ? d + half * kVector : 0;
      value[half] = _mm512_sub_ps(_mm512_maskz_loadu_ps(mask, x + at), _mm512_maskz_loadu_ps(mask, mean + at));
      square[half] = _mm512_fmadd_ps(value[half], value[half], square[half]);
    }
    const __m512i packed = (__m512i)_mm512_cvtne2ps_pbh(value[1], value[0]);
    _mm512_storeu_si512(out + d / 2, packed);
    const __m256i half_bits[2] = {_mm512_castsi512_si256(packed), _mm512_extracti64x4_epi64(packed, 1)};
    for (int half = 0; half < 2; ++half) {
      const __m512 kept = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half_bits[half]), 16));
      const __m512 rest = _mm512_sub_ps(value[half], kept);
      loss[half] = _mm512_fmadd_ps(rest, rest, loss[half]);
    }
  }
  *squared = _mm512_reduce_add_ps(_mm512_add_ps(square[0], square[1]));
  *lost = _mm512_reduce_add_ps(_mm512_add_ps(loss[0], loss[1]));
}

}  // namespace

extern const NarrowKernels kernels_avx512bf16 = {narrow_scores, narrow};

}  // namespace prunefast
