// Tiles of float32 from and to the storage types. Conversions are written on bits, so that they round to nearest even
// on every instruction set and do not depend on the denormal mode of the thread; the loops are simple enough for the
// compiler's vectoriser.
#pragma once

#include "simd.h"
#include "table.h"

namespace prunefast {
namespace {

inline float from_bfloat16(uint16_t h) { return as_float((uint32_t)h << 16); }

inline uint16_t to_bfloat16(float value) {
  const uint32_t bits = as_bits(value);
  const uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  const uint32_t quiet = (bits >> 16) | 0x40u;
  return (uint16_t)((bits & 0x7FFFFFFFu) > 0x7F800000u ? quiet : rounded);
}

inline float from_float16(uint16_t h) {
  const uint32_t magnitude = h & 0x7FFFu;
  const float subnormal = (float)(int32_t)magnitude * 0x1p-24f;
  const uint32_t normal = (magnitude << 13) + (112u << 23) + (magnitude >= 0x7C00u ? 112u << 23 : 0u);
  const uint32_t bits = magnitude < 0x0400u ? as_bits(subnormal) : normal;
  return as_float(bits | ((uint32_t)(h & 0x8000u) << 16));
}

inline uint16_t to_float16(float value) {
  const uint32_t bits = as_bits(value), magnitude = bits & 0x7FFFFFFFu;
  const uint32_t subnormal = as_bits(as_float(magnitude) + 0.5f) - 0x3F000000u;  // 0.5 has float16's smallest step
  const uint32_t normal = (magnitude + 0xFFFu + ((magnitude >> 13) & 1u) - (112u << 23)) >> 13;
  const uint32_t special = magnitude > 0x7F800000u ? 0x7E00u : 0x7C00u;
  const uint32_t half = magnitude >= 0x47800000u ? special : (magnitude < 0x38800000u ? subnormal : normal);
  return (uint16_t)(half | ((bits >> 16) & 0x8000u));
}

inline float from_uint8(uint8_t x) { return (float)(2 * (int32_t)x - 255) / 255.0f; }  // x / 127.5 - 1, rounded once

// The same a register at a time, bfloat16 as uint16_t. Streamed: past the caches; the address is aligned to what is written.
typedef uint16_t vh __attribute__((vector_size(kVector * 2)));

inline float widen_one(float value) { return value; }
inline float widen_one(uint16_t value) { return from_bfloat16(value); }
inline void narrow_one(float value, float* p) { *p = value; }
inline void narrow_one(float value, uint16_t* p) { *p = to_bfloat16(value); }

inline vf widen(const float* p) { return load(p); }
inline vf widen(const uint16_t* p) {
  vh half;
  memcpy(&half, p, sizeof half);
  return (vf)(__builtin_convertvector(half, vu) << 16);
}

template <bool Streamed>
inline void narrow(vf value, float* p) {
#if defined(__AVX512F__)
  if (Streamed) return _mm512_stream_ps(p, (__m512)value);
#elif defined(__AVX2__)
  if (Streamed) return _mm256_stream_ps(p, (__m256)value);
#endif
  store(p, value);
}

template <bool Streamed>
inline void narrow(vf value, uint16_t* p) {
  const vu bits = (vu)value;
  const vu rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16, quiet = (bits >> 16) | 0x40u;
  const vh half = __builtin_convertvector((vi)(bits & 0x7FFFFFFFu) > 0x7F800000 ? quiet : rounded, vh);
#if defined(__AVX512F__)
  if (Streamed) return _mm256_stream_si256((__m256i*)p, (__m256i)half);
#elif defined(__AVX2__)
  if (Streamed) return _mm_stream_si128((__m128i*)p, (__m128i)half);
#endif
  store(p, half);
}

// Streamed stores are seen by other threads in order only after this.
inline void end_of_stream() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

template <typename T, typename Convert>
inline void load_run(float* tile, const T* p, int64_t stride, int64_t count, Convert convert) {
  if (stride == 1) {
    for (int64_t i = 0; i < count; ++i) tile[i] = convert(p[i]);
  } else {
    for (int64_t i = 0; i < count; ++i) tile[i] = convert(p[i * stride]);
  }
}

void load_tile(float* tile, const prunefast_image* image, int64_t offset, int64_t stride, int64_t count) {
  switch (image->dtype) {
    case PRUNEFAST_FLOAT32:
      return load_run(tile, (const float*)image->data + offset, stride, count, [](float v) { return v; });
    case PRUNEFAST_BFLOAT16:
      return load_run(tile, (const uint16_t*)image->data + offset, stride, count, from_bfloat16);
    case PRUNEFAST_FLOAT16:
      return load_run(tile, (const uint16_t*)image->data + offset, stride, count, from_float16);
    default:
      return load_run(tile, (const uint8_t*)image->data + offset, stride, count, from_uint8);
  }
}

template <typename T, typename Convert>
inline void store_run(const float* tile, T* p, int64_t stride, int64_t count, Convert convert) {
  if (stride == 1) {
    for (int64_t i = 0; i < count; ++i) p[i] = convert(tile[i]);
  } else {
    for (int64_t i = 0; i < count; ++i) p[i * stride] = convert(tile[i]);
  }
}

void store_tile(const float* tile, const prunefast_image* image, int64_t offset, int64_t stride, int64_t count) {
  switch (image->dtype) {
    case PRUNEFAST_FLOAT32:
      return store_run(tile, (float*)image->data + offset, stride, count, [](float v) { return v; });
    case PRUNEFAST_BFLOAT16:
      return store_run(tile, (uint16_t*)image->data + offset, stride, count, to_bfloat16);
    default:
      return store_run(tile, (uint16_t*)image->data + offset, stride, count, to_float16);
  }
}

}  // namespace
}  // namespace prunefast
