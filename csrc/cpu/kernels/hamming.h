// Rows of hashes within a number of bits of a few query rows: xor, count, compare, a register of rows at a time.
#pragma once

#include "simd.h"
#include "table.h"

namespace prunefast {
namespace {

#if defined(__AVX512BW__)
typedef __m512i hv;
inline hv hamming_load(const uint64_t* p) { return _mm512_loadu_si512(p); }
inline hv hamming_splat(uint64_t value) { return _mm512_set1_epi64((int64_t)value); }
inline hv hamming_xor(hv a, hv b) { return _mm512_xor_si512(a, b); }
inline hv hamming_add(hv a, hv b) { return _mm512_add_epi64(a, b); }
inline uint32_t hamming_within(hv count, hv limit) { return _mm512_cmple_epi64_mask(count, limit); }
inline hv bits_set(hv value) {
#if defined(__AVX512VPOPCNTDQ__)
  return _mm512_popcnt_epi64(value);
#else  // bits of each nibble by table, then the sum of each lane's bytes (Mula et al., arXiv 1611.07612)
  const hv table = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
  const hv nibble = _mm512_set1_epi8(15);
  const hv low = _mm512_shuffle_epi8(table, _mm512_and_si512(value, nibble));
  const hv high = _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi16(value, 4), nibble));
  return _mm512_sad_epu8(_mm512_add_epi8(low, high), _mm512_setzero_si512());
#endif
}
#elif defined(__AVX2__)
typedef __m256i hv;
inline hv hamming_load(const uint64_t* p) { return _mm256_loadu_si256((const __m256i*)p); }
inline hv hamming_splat(uint64_t value) { return _mm256_set1_epi64x((int64_t)value); }
inline hv hamming_xor(hv a, hv b) { return _mm256_xor_si256(a, b); }
inline hv hamming_add(hv a, hv b) { return _mm256_add_epi64(a, b); }
inline uint32_t hamming_within(hv count, hv limit) {
  return 15u & ~(uint32_t)_mm256_movemask_pd(_mm256_castsi256_pd(_mm256_cmpgt_epi64(count, limit)));
}
inline hv bits_set(hv value) {
  const hv table = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
  const hv nibble = _mm256_set1_epi8(15);
  const hv low = _mm256_shuffle_epi8(table, _mm256_and_si256(value, nibble));
  const hv high = _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(value, 4), nibble));
  return _mm256_sad_epu8(_mm256_add_epi8(low, high), _mm256_setzero_si256());
}
#else
typedef uint64_t hv;
inline hv hamming_load(const uint64_t* p) { return *p; }
inline hv hamming_splat(uint64_t value) { return value; }
inline hv hamming_xor(hv a, hv b) { return a ^ b; }
inline hv hamming_add(hv a, hv b) { return a + b; }
inline uint32_t hamming_within(hv count, hv limit) { return count <= limit; }
inline hv bits_set(hv value) { return (hv)__builtin_popcountll(value); }
#endif

template <int Rows>
inline int64_t scan_rows(const uint64_t* x, int64_t words, const uint64_t* y, int64_t y_stride, int64_t count,
                         int32_t threshold, int32_t* hits) {
  constexpr int64_t lanes = sizeof(hv) / sizeof(uint64_t);
  const hv limit = hamming_splat((uint64_t)threshold);
  int64_t found = 0, j = 0;
  for (; j + lanes <= count; j += lanes) {
    hv bits[Rows];
    const hv first = hamming_load(y + j);
#pragma GCC unroll 4
    for (int r = 0; r < Rows; ++r) bits[r] = bits_set(hamming_xor(first, hamming_splat(x[r * words])));
    for (int64_t w = 1; w < words; ++w) {
      const hv next = hamming_load(y + w * y_stride + j);
#pragma GCC unroll 4
      for (int r = 0; r < Rows; ++r)
        bits[r] = hamming_add(bits[r], bits_set(hamming_xor(next, hamming_splat(x[r * words + w]))));
    }
#pragma GCC unroll 4
    for (int r = 0; r < Rows; ++r)
      for (uint32_t mask = hamming_within(bits[r], limit); mask; mask &= mask - 1)
        hits[found++] = (int32_t)(r * count + j + __builtin_ctz(mask));
  }
  for (; j < count; ++j)
    for (int r = 0; r < Rows; ++r) {
      int32_t bits = 0;
      for (int64_t w = 0; w < words; ++w) bits += __builtin_popcountll(x[r * words + w] ^ y[w * y_stride + j]);
      if (bits <= threshold) hits[found++] = (int32_t)(r * count + j);
    }
  return found;
}

inline int64_t hamming_scan(const uint64_t* x, int64_t rows, int64_t words, const uint64_t* y, int64_t y_stride,
                            int64_t count, int32_t threshold, int32_t* hits) {
  return rows == kHammingRows ? scan_rows<kHammingRows>(x, words, y, y_stride, count, threshold, hits)
                              : scan_rows<1>(x, words, y, y_stride, count, threshold, hits);
}

}  // namespace
}  // namespace prunefast
