// Screening in int8 (VPDPBUSD) and bfloat16 (VDPBF16PS), four and two dimensions a word; CMakeLists.txt gives this file
// its flags.
#include "screen.h"

namespace prunefast {
namespace {

typedef int8_t vb __attribute__((vector_size(kVector)));

// The instruction multiplies unsigned by signed bytes: rows of x are stored 128 higher, and sums start 128 (sum of Y)
// lower.
struct Int8 {
  static constexpr bool kScaled = true;
  typedef vi Sum;
  static vi begin(const Panels& panels, int64_t at) { return (vi)_mm512_loadu_si512(panels.offset + at); }
  static vi begin_one(const Panels& panels, int64_t at) { return vi{} + panels.offset[at]; }
  static vi multiply_add(vu x, vu y, vi sum) {
    return (vi)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)x, (__m512i)y);
  }
  static vf finish(vi sum, const Panels& panels, int64_t at, vf scale) { return Int16::finish(sum, panels, at, scale); }
  static vf finish_one(vi sum, const Panels& panels, int64_t at, vf scale) {
    return Int16::finish_one(sum, panels, at, scale);
  }

  static PackedRow pack(const float* x, const float* mean, int64_t columns, bool other, uint32_t* out) {
    const Extent e = extent(x, mean, columns);
    const vb flip = (vb)_mm_set1_epi8(other ? 0 : -128);
    PackedRow row = pack_integers(x, mean, columns, step_of(e.largest, 127.0f), e.square, other, flip, (vb*)out);
    row.offset *= -128;
    return row;
  }
};

struct Bfloat16 {
  static constexpr bool kScaled = false;
  typedef vf Sum;
  static vf begin(const Panels& panels, int64_t at) { return Float32::begin(panels, at); }
  static vf begin_one(const Panels& panels, int64_t at) { return Float32::begin_one(panels, at); }
  static vf multiply_add(vu x, vu y, vf sum) {
    return (vf)_mm512_dpbf16_ps((__m512)sum, (__m512bh)x, (__m512bh)y);
  }
  static vf finish(vf sum, const Panels&, int64_t, vf) { return sum; }
  static vf finish_one(vf sum, const Panels&, int64_t, vf) { return sum; }

  static PackedRow pack(const float* x, const float* mean, int64_t columns, bool, uint32_t* out) {
    vf square = {}, lost = {};
    for (int64_t d = 0; d < columns; d += 2 * kVector) {
      const vf low = centred(x, mean, d, columns), high = centred(x, mean, d + kVector, columns);
      const __m512i packed = (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
      _mm512_storeu_si512(out + d / 2, packed);
      const auto rest = [](vf value, __m256i kept) {
        return value - (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(kept), 16);
      };
      const vf low_rest = rest(low, _mm512_castsi512_si256(packed));
      const vf high_rest = rest(high, _mm512_extracti64x4_epi64(packed, 1));
      square += low * low + high * high;
      lost += low_rest * low_rest + high_rest * high_rest;
    }
    return {total(square), total(lost), 0, 0};
  }
};

constexpr Screening int8_screening = {4, false, 1 << 16, 256, Int8::pack, pack_rows<Int8>, scores<Int8>,
                                      turned_scores<Int8>};
constexpr Screening bfloat16_screening = {2, false, kAnyColumns, 17, Bfloat16::pack, pack_rows<Bfloat16>,
                                          scores<Bfloat16>, turned_scores<Bfloat16>};

}  // namespace

extern const Screening* const screenings_avx512bf16[] = {&int8_screening, &bfloat16_screening, &float32_screening,
                                                         nullptr};

}  // namespace prunefast
