// 3 x 3 convolutions by Winograd's F(2x2, 3x3) and its transpose (Lavin & Gray 2016) with VDPBF16PS: 16 products where
// 36 are counted. CMakeLists.txt gives this file its flags.
//
// One dimension: y = A^T ((G g) * (B^T d)) of a tile d of 4 inputs, 3 taps g and 2 outputs y, with
//     B^T d = (d0 - d2, d1 + d2, d2 - d1, d3 - d1),  A^T m = (m0 + m1 + m2, m1 - m2 + m3),
//     G g = (g0, (g0 + g1 + g2) / 2, (g0 - g1 + g2) / 2, g2);
// the last row of B has the other sign than in the paper, so that A's has none. The gradient of g is
// G^T ((A dy) * (B^T d)). Two dimensions are one after the other. Transforms are float32, their results are rounded to
// bfloat16 once; products are summed in float32, in the order of the channels or of the tiles.
#include "simd.h"
#include "table.h"

namespace prunefast {
namespace {

typedef __m512i Words;  // 16 pairs of bfloat16

constexpr int64_t kPairs = kConvChannels / 2;  // words of channels that are packed together

inline vf low_half(Words x) { return (vf)_mm512_slli_epi32(x, 16); }
inline vf high_half(Words x) { return (vf)_mm512_and_si512(x, _mm512_set1_epi32(-65536)); }
inline vf widen(const uint16_t* p) {
  return (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16);
}
inline Words narrow(vf first, vf second) { return (Words)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first); }

// Lane by lane (first, second).
inline Words interleave(vf first, vf second) {
  const Words order = _mm512_set_epi32(0x1f000f, 0x1e000e, 0x1d000d, 0x1c000c, 0x1b000b, 0x1a000a, 0x190009, 0x180008,
                                       0x170007, 0x160006, 0x150005, 0x140004, 0x130003, 0x120002, 0x110001, 0x100000);
  return _mm512_permutexvar_epi16(order, narrow(first, second));
}

inline void prefetch(const void* p) { _mm_prefetch((const char*)p, _MM_HINT_T1); }  // to the second-level cache

// V = B^T d B of 16 values d[row][column].
inline void transform_input(const vf d[16], vf v[16]) {
  vf t[16];
  for (int c = 0; c < 4; ++c) {
    t[c] = d[c] - d[8 + c], t[4 + c] = d[4 + c] + d[8 + c];
    t[8 + c] = d[8 + c] - d[4 + c], t[12 + c] = d[12 + c] - d[4 + c];
  }
  for (int r = 0; r < 16; r += 4) {
    v[r] = t[r] - t[r + 2], v[r + 1] = t[r + 1] + t[r + 2];
    v[r + 2] = t[r + 2] - t[r + 1], v[r + 3] = t[r + 3] - t[r + 1];
  }
}

// Where the pixels of a tile lie; those outside the image are a pixel of zeros.
template <int Size>
inline void locate(const ConvShape& s, const uint16_t* x, int64_t channels, const uint16_t* zeros, int64_t tile,
                   int64_t border, const uint16_t** at) {
  const int64_t across = (s.width + 1) / 2, down = (s.height + 1) / 2;
  const int64_t sample = tile / (across * down);
  const int64_t top = tile / across % down * 2 - border, left = tile % across * 2 - border;
  for (int64_t r = 0; r < Size; ++r)
    for (int64_t c = 0; c < Size; ++c) {
      const int64_t row = top + r, column = left + c;
      const bool inside = sample < s.samples && row >= 0 && row < s.height && column >= 0 && column < s.width;
      at[r * Size + c] = inside ? x + ((sample * s.height + row) * s.width + column) * channels : zeros;
    }
}

void conv_input(const ConvShape* s, const uint16_t* x, const uint16_t* zeros, int64_t first, int64_t count,
                uint16_t* out, int64_t plane) {
  const int64_t channels = s->inputs;
  for (int64_t tile = 0; tile < count; ++tile) {
    const uint16_t* at[16];
    locate<4>(*s, x, channels, zeros, first + tile, 1, at);
    uint16_t* row = out + tile * channels;
    for (int64_t c = 0; c < channels; c += kConvChannels) {
      vf even[16], odd[16];
      for (int i = 0; i < 16; ++i) {
        const Words pixels = _mm512_loadu_si512(at[i] + c);
        even[i] = low_half(pixels), odd[i] = high_half(pixels);
      }
      transform_input(even, even);
      transform_input(odd, odd);
      for (int i = 0; i < 16; ++i) _mm512_storeu_si512(row + i * plane + c, narrow(even[i], odd[i]));
    }
  }
}

void conv_input_pairs(const ConvShape* s, const uint16_t* x, const uint16_t* zeros, int64_t first, int64_t pairs,
                      int64_t room, uint32_t* out, int64_t plane) {
  for (int64_t pair = 0; pair < pairs; ++pair) {
    const uint16_t* at[2][16];
    for (int64_t i = 0; i < 2; ++i) locate<4>(*s, x, s->inputs, zeros, first + 2 * pair + i, 1, at[i]);
    for (int64_t c = 0; c < s->inputs; c += 16) {
      vf v[2][16];
      for (int i = 0; i < 2; ++i) {
        for (int j = 0; j < 16; ++j) v[i][j] = widen(at[i][j] + c);
        transform_input(v[i], v[i]);
      }
      uint32_t* row = out + c * room + pair * 16;
      for (int j = 0; j < 16; ++j) _mm512_storeu_si512(row + j * plane, interleave(v[0][j], v[1][j]));
    }
  }
}

void conv_gradient_pairs(const ConvShape* s, const uint16_t* dy, const uint16_t* zeros, int64_t first, int64_t pairs,
                         int64_t room, uint32_t* out, int64_t plane) {
  for (int64_t pair = 0; pair < pairs; ++pair) {
    const uint16_t* at[2][4];
    for (int64_t i = 0; i < 2; ++i) locate<2>(*s, dy, s->outputs, zeros, first + 2 * pair + i, 0, at[i]);
    for (int64_t c = 0; c < s->outputs; c += 16) {
      vf v[2][16];
      for (int i = 0; i < 2; ++i) {
        const vf a = widen(at[i][0] + c), b = widen(at[i][1] + c), d = widen(at[i][2] + c), e = widen(at[i][3] + c);
        const vf left[4] = {a, a + d, a - d, d}, right[4] = {b, b + e, b - e, e};
        for (int r = 0; r < 4; ++r) {
          v[i][4 * r] = left[r], v[i][4 * r + 1] = left[r] + right[r];
          v[i][4 * r + 2] = left[r] - right[r], v[i][4 * r + 3] = right[r];
        }
      }
      uint32_t* row = out + c * room + pair * 16;
      for (int j = 0; j < 16; ++j) _mm512_storeu_si512(row + j * plane, interleave(v[0][j], v[1][j]));
    }
  }
}

// 16 rows of 16 become 16 columns.
inline void transpose(vf m[16]) {
  __m512 a[16], b[16];
  for (int i = 0; i < 16; i += 2) {
    a[i] = _mm512_unpacklo_ps((__m512)m[i], (__m512)m[i + 1]);
    a[i + 1] = _mm512_unpackhi_ps((__m512)m[i], (__m512)m[i + 1]);
  }
  for (int i = 0; i < 16; i += 4)
    for (int j = 0; j < 2; ++j) {
      b[i + 2 * j] = (__m512)_mm512_unpacklo_pd((__m512d)a[i + j], (__m512d)a[i + j + 2]);
      b[i + 2 * j + 1] = (__m512)_mm512_unpackhi_pd((__m512d)a[i + j], (__m512d)a[i + j + 2]);
    }
  for (int i = 0; i < 16; i += 8)
    for (int j = 0; j < 4; ++j) {
      a[i + j] = _mm512_shuffle_f32x4(b[i + j], b[i + j + 4], 0x88);
      a[i + j + 4] = _mm512_shuffle_f32x4(b[i + j], b[i + j + 4], 0xdd);
    }
  for (int j = 0; j < 8; ++j) {
    m[j] = (vf)_mm512_shuffle_f32x4(a[j], a[j + 8], 0x88);
    m[j + 8] = (vf)_mm512_shuffle_f32x4(a[j], a[j + 8], 0xdd);
  }
}

// U = G g G^T of 9 taps.
inline void transform_filter(const vf* g, vf u[16]) {
  const vf half = splat(0.5f);
  vf t[12];
  for (int c = 0; c < 3; ++c) {
    const vf sum = (g[c] + g[6 + c]) * half, middle = g[3 + c] * half;
    t[c] = g[c], t[3 + c] = sum + middle, t[6 + c] = sum - middle, t[9 + c] = g[6 + c];
  }
  for (int r = 0; r < 4; ++r) {
    const vf sum = (t[3 * r] + t[3 * r + 2]) * half, middle = t[3 * r + 1] * half;
    u[4 * r] = t[3 * r], u[4 * r + 1] = sum + middle, u[4 * r + 2] = sum - middle, u[4 * r + 3] = t[3 * r + 2];
  }
}

void conv_filters(const float* weight, int64_t inputs, bool backward, int64_t depth, int64_t panel, uint32_t* out,
                  int64_t plane) {
  vf g[kConvChannels][9];
  for (int64_t k = 0; k < depth; k += kConvChannels) {
    for (int64_t tap = 0; tap < 9; ++tap) {
      if (backward) {  // the turned filters, from outputs to inputs
        for (int64_t i = 0; i < kConvChannels; ++i)
          g[i][8 - tap] = load(weight + ((k + i) * 9 + tap) * inputs + panel * 16);
        continue;
      }
      for (int64_t half = 0; half < kConvChannels; half += 16) {
        vf m[16];
        for (int64_t i = 0; i < 16; ++i) m[i] = load(weight + ((panel * 16 + i) * 9 + tap) * inputs + k + half);
        transpose(m);
        for (int64_t i = 0; i < 16; ++i) g[half + i][tap] = m[i];
      }
    }
    for (int64_t word = 0; word < kPairs; ++word) {  // conv_input stores even channels before odd ones
      const int64_t channel = word % (kPairs / 2) * 4 + word / (kPairs / 2);
      vf u[2][16];
      transform_filter(g[channel], u[0]);
      transform_filter(g[channel + 2], u[1]);
      for (int i = 0; i < 16; ++i)
        _mm512_storeu_si512(out + i * plane + (k / 2 + word) * 16, interleave(u[0][i], u[1][i]));
    }
  }
}

// out [Rows][Columns of 16] = or += sum over `depth` words; a word is two products.
template <int Rows, int Columns, int Step>
inline void multiply(const uint32_t* a, int64_t a_row, const uint32_t* b, int64_t b_panel, int64_t depth, bool add,
                     float* out, int64_t out_row) {
  __m512 sum[Rows][Columns];
  for (int r = 0; r < Rows; ++r)
    for (int c = 0; c < Columns; ++c)
      sum[r][c] = add ? _mm512_loadu_ps(out + r * out_row + c * 16) : _mm512_setzero_ps();
#pragma GCC unroll 2
  for (int64_t k = 0; k < depth; ++k) {
    Words y[Columns];
    for (int c = 0; c < Columns; ++c) y[c] = _mm512_loadu_si512(b + c * b_panel + k * 16);
    for (int r = 0; r < Rows; ++r) {
      const Words x = _mm512_set1_epi32((int32_t)a[r * a_row + k * Step]);
      for (int c = 0; c < Columns; ++c) sum[r][c] = _mm512_dpbf16_ps(sum[r][c], (__m512bh)x, (__m512bh)y[c]);
    }
  }
  for (int r = 0; r < Rows; ++r)
    for (int c = 0; c < Columns; ++c) _mm512_storeu_ps(out + r * out_row + c * 16, sum[r][c]);
}

template <int Rows, int Columns, int Step, typename... Arguments>
inline void multiply_some(int64_t rows, Arguments... arguments) {
  if constexpr (Rows > 1)
    if (rows < Rows) return multiply_some<Rows - 1, Columns, Step>(rows, arguments...);
  multiply<Rows, Columns, Step>(arguments...);
}

// Any number of rows, six or little less at a time: 24 sums, 4 operands and one more fill the registers.
template <int Columns, int Step>
inline void multiply_rows(int64_t rows, const uint32_t* a, int64_t a_row, const uint32_t* b, int64_t b_panel,
                          int64_t depth, bool add, float* out, int64_t out_row) {
  while (rows > 0) {
    const int64_t passes = (rows + 5) / 6, now = (rows + passes - 1) / passes;
    multiply_some<6, Columns, Step>(now, a, a_row, b, b_panel, depth, add, out, out_row);
    a += now * a_row, out += now * out_row, rows -= now;
  }
}

void conv_products(const uint16_t* v, int64_t rows, int64_t channels, const uint32_t* filters, int64_t panels,
                   float* out) {
  const int64_t words = channels / 2;
  const uint32_t* a = (const uint32_t*)v;
  if (panels == 4)
    multiply_rows<4, 1>(rows, a, words, filters, words * 16, words, false, out, kConvColumns);
  else
    multiply_rows<2, 1>(rows, a, words, filters, words * 16, words, false, out, kConvColumns);
}

void conv_pair_products(const uint32_t* w, const uint32_t* v, int64_t panels, int64_t pairs, int64_t room, bool add,
                        float* out) {
  for (int64_t i = 0; i < 16 * kConvColumns; i += 16) prefetch(out + 16 * kConvColumns + i);  // of the next call
  if (panels == 4)
    multiply_rows<4, 16>(16, w, 1, v, room * 16, pairs, add, out, kConvColumns);
  else
    multiply_rows<2, 16>(16, w, 1, v, room * 16, pairs, add, out, kConvColumns);
}

void conv_output(const ConvShape* s, const float* products, int64_t plane, int64_t first, int64_t count,
                 int64_t panels, const float* bias, uint16_t* y, int64_t from) {
  const int64_t across = (s->width + 1) / 2, down = (s->height + 1) / 2;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t tile = first + i, sample = tile / (across * down);
    const int64_t row = tile / across % down * 2, column = tile % across * 2;
    uint16_t* pixel = y + ((sample * s->height + row) * s->width + column) * s->outputs + from;
    const bool right = column + 1 < s->width, below = row + 1 < s->height;
    for (int64_t c = 0; c < panels * 16; c += 32) {
      vf result[2][4];
      for (int h = 0; h < 2; ++h) {
        const float* m = products + i * kConvColumns + c + h * 16;
        vf t[8];
        for (int j = 0; j < 4; ++j) {
          const vf a = load(m + j * plane), b = load(m + (4 + j) * plane), d = load(m + (8 + j) * plane),
                   e = load(m + (12 + j) * plane);
          const vf sum = b + d, difference = b - d;
          t[j] = a + sum, t[4 + j] = difference + e;
        }
        const vf start = bias ? load(bias + from + c + h * 16) : vf{};
        for (int r = 0; r < 2; ++r) {
          const vf* q = t + 4 * r;
          result[h][2 * r] = start + (q[0] + (q[1] + q[2]));
          result[h][2 * r + 1] = start + ((q[1] - q[2]) + q[3]);
        }
      }
      const auto put = [&](int k, int64_t offset) {
        _mm512_storeu_si512(pixel + offset + c, narrow(result[0][k], result[1][k]));
      };
      put(0, 0);
      if (right) put(1, s->outputs);
      if (below) put(2, s->width * s->outputs);
      if (right && below) put(3, (s->width + 1) * s->outputs);
    }
  }
}

// dg = G^T dU G.
void conv_filter_gradient(const float* products, int64_t plane, int64_t count, int64_t inputs, float* out) {
  const vf half = splat(0.5f);
  for (int64_t c = 0; c < count; c += 16) {
    vf t[12];
    for (int j = 0; j < 4; ++j) {
      const vf a = load(products + j * plane + c), b = load(products + (4 + j) * plane + c),
               d = load(products + (8 + j) * plane + c), e = load(products + (12 + j) * plane + c);
      const vf sum = (b + d) * half;
      t[j] = a + sum, t[4 + j] = (b - d) * half, t[8 + j] = sum + e;
    }
    for (int r = 0; r < 3; ++r) {
      const vf* q = t + 4 * r;
      const vf sum = (q[1] + q[2]) * half;
      store(out + 3 * r * inputs + c, q[0] + sum);
      store(out + (3 * r + 1) * inputs + c, (q[1] - q[2]) * half);
      store(out + (3 * r + 2) * inputs + c, sum + q[3]);
    }
  }
}

}  // namespace

extern const ConvKernels kernels_avx512conv = {conv_filters,       conv_input,           conv_products,
                                               conv_output,        conv_input_pairs,     conv_gradient_pairs,
                                               conv_pair_products, conv_filter_gradient};

}  // namespace prunefast
