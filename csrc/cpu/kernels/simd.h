// One register type a translation unit, sized by the flags it is compiled with. GCC's vector extensions give the
// operators; the few instructions they lack are here. Everything lives in an unnamed namespace: no code leaves its
// translation unit.
//
// The build sets -ffp-contract=off: a fused multiply-add appears only where `fma` is written (the score kernel, whose
// rounding is covered by the error bound, and the float64 products of Gaussians). Everything else gives the same bits on every instruction set.
#pragma once

#include <stdint.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace prunefast {
namespace {

#if defined(__AVX512F__)
constexpr int kVector = 16;
#elif defined(__AVX2__)
constexpr int kVector = 8;
#else
constexpr int kVector = 4;
#endif

constexpr int kDoubles = kVector / 2;

typedef float vf __attribute__((vector_size(kVector * 4)));
typedef double vd __attribute__((vector_size(kVector * 4)));
typedef int32_t vi __attribute__((vector_size(kVector * 4)));
typedef uint32_t vu __attribute__((vector_size(kVector * 4)));
typedef uint64_t vw __attribute__((vector_size(kVector * 4)));  // words in 64-bit lanes, half as many

// minus zero, which folds away; plus zero would not, for the sake of -0
inline vf splat(float value) { return value - vf{}; }
inline vd splat(double value) { return value - vd{}; }
inline vu splat(uint32_t value) { return vu{} + value; }
inline vw splat(uint64_t value) { return vw{} + value; }

inline vf load(const float* p) {
  vf value;
  memcpy(&value, p, sizeof value);
  return value;
}
inline vd load(const double* p) {
  vd value;
  memcpy(&value, p, sizeof value);
  return value;
}
template <typename V>
inline void store(void* p, V value) {
  memcpy(p, &value, sizeof value);
}

// Low 32 bits of each 64-bit lane multiplied to 64 bits; the high halves of the inputs are ignored.
inline vw multiply_words(vw a, vw b) {
#if defined(__AVX512F__)
  return (vw)_mm512_mul_epu32((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return (vw)_mm256_mul_epu32((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
  return (vw)_mm_mul_epu32((__m128i)a, (__m128i)b);
#else
  return (a & 0xFFFFFFFFu) * (b & 0xFFFFFFFFu);
#endif
}

inline vf square_root(vf x) {
#if defined(__AVX512F__)
  return (vf)_mm512_sqrt_ps((__m512)x);
#elif defined(__AVX2__)
  return (vf)_mm256_sqrt_ps((__m256)x);
#elif defined(__SSE2__)
  return (vf)_mm_sqrt_ps((__m128)x);
#else
  for (int i = 0; i < kVector; ++i) x[i] = __builtin_sqrtf(x[i]);
  return x;
#endif
}

inline vf fma(vf a, vf b, vf c) {
#if defined(__AVX512F__)
  return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__)
  return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}

inline vd fma(vd a, vd b, vd c) {
#if defined(__AVX512F__)
  return (vd)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif defined(__AVX2__)
  return (vd)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#else
  return a * b + c;
#endif
}

inline vd negated_fma(vd a, vd b, vd c) {  // c - a b
#if defined(__AVX512F__)
  return (vd)_mm512_fnmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif defined(__AVX2__)
  return (vd)_mm256_fnmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#else
  return c - a * b;
#endif
}

inline vf maximum(vf a, vf b) { return a > b ? a : b; }

inline float largest(vf values) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps((__m512)values);
#else
  float lanes[kVector];
  memcpy(lanes, &values, sizeof lanes);
  for (int half = kVector / 2; half; half /= 2)
    for (int i = 0; i < half; ++i) lanes[i] = lanes[i] > lanes[i + half] ? lanes[i] : lanes[i + half];
  return lanes[0];
#endif
}

// One bit a lane where a >= b.
inline uint32_t reaches(vf a, vf b) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_GE_OQ);
#elif defined(__AVX2__)
  return (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps((__m256)a, (__m256)b, _CMP_GE_OQ));
#elif defined(__SSE2__)
  return (uint32_t)_mm_movemask_ps(_mm_cmpge_ps((__m128)a, (__m128)b));
#else
  uint32_t mask = 0;
  for (int i = 0; i < kVector; ++i) mask |= (uint32_t)(a[i] >= b[i]) << i;
  return mask;
#endif
}

inline float as_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}
inline uint32_t as_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

}  // namespace
}  // namespace prunefast
