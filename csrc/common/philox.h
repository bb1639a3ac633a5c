// Philox-4x32-10 (Salmon et al., SC 2011) and the map from words to numbers of docs/ops/philox.md, one number at a time,
// for host and device. csrc/cpu/kernels/philox.h is the same map on vector registers.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__CUDACC__)
#define PRUNEFAST_BOTH __host__ __device__ __forceinline__
#else
#define PRUNEFAST_BOTH inline
#endif

namespace prunefast {

struct Quad {
  uint32_t word[4];
};

PRUNEFAST_BOTH uint32_t high_product(uint32_t a, uint32_t b) {
#if defined(__CUDA_ARCH__)
  return __umulhi(a, b);
#else
  return (uint32_t)(((uint64_t)a * b) >> 32);
#endif
}

PRUNEFAST_BOTH Quad philox(uint32_t quad, uint32_t stream, uint64_t position, uint64_t seed) {
  uint32_t c0 = quad, c1 = stream, c2 = (uint32_t)position, c3 = (uint32_t)(position >> 32);
  uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const uint32_t high0 = high_product(0xD2511F53u, c0), low0 = 0xD2511F53u * c0;
    const uint32_t high1 = high_product(0xCD9E8D57u, c2), low1 = 0xCD9E8D57u * c2;
    c0 = high1 ^ c1 ^ k0;
    c1 = low1;
    c2 = high0 ^ c3 ^ k1;
    c3 = low0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// (k + 1/2) / 2^23 of the upper 23 bits: exact in float32.
PRUNEFAST_BOTH float uniform(uint32_t word) { return (float)((word >> 9) * 2 + 1) * 0x1p-24f; }

PRUNEFAST_BOTH float bits_to_float(uint32_t bits) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(bits);
#else
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
#endif
}

PRUNEFAST_BOTH int32_t float_to_bits(float value) {
#if defined(__CUDA_ARCH__)
  return __float_as_int(value);
#else
  int32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
#endif
}

// Both are good to 2 units in the last place on a device, which the tolerance of the normals covers.
PRUNEFAST_BOTH float quotient(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fdividef(a, b);
#else
  return a / b;
#endif
}

PRUNEFAST_BOTH float square_root(float x) {
#if defined(__CUDA_ARCH__)
  float root;
  asm("sqrt.approx.f32 %0, %1;" : "=f"(root) : "f"(x));
  return root;
#else
  return sqrtf(x);
#endif
}

// sqrt(-2 ln u): exponent and atanh series of the mantissa in [sqrt(1/2), sqrt(2)).
PRUNEFAST_BOTH float radius(float u) {
  const int32_t half_root = 0x3F3504F3;
  const int32_t offset = float_to_bits(u) - half_root;
  const float exponent = (float)(offset >> 23);
  const float below = bits_to_float((uint32_t)((offset & 0x007FFFFF) + half_root)) - 1.0f;
  const float s = quotient(below, below + 2.0f);
  const float s2 = s * s;
  const float series = (((1.0f / 9 * s2 + 1.0f / 7) * s2 + 1.0f / 5) * s2 + 1.0f / 3) * s2 * s;
  const float log_mantissa = 2.0f * (s + series);
  const float log = exponent * 0x1.62ep-1f + (log_mantissa + exponent * 0x1.0bfbe8p-15f);
  return square_root(-2.0f * log);
}

// cos and sin of 2 pi u, by quarter turns.
PRUNEFAST_BOTH void turn(float u, float* cosine, float* sine) {
  const float quarters = u * 4.0f;
  const int32_t q = (int32_t)(quarters + 0.5f);
  const float r = quarters - (float)q;
  const float r2 = r * r;
  const float s =
      r * (1.57079632679489662f +
           r2 * (-0.645964097506246254f +
                 r2 * (0.0796926262461670451f + r2 * (-0.00468175413531868810f + r2 * 0.000160441184787359822f))));
  const float c =
      1.0f +
      r2 * (-1.23370055013616983f +
            r2 * (0.253669507901048014f +
                  r2 * (-0.0208634807633529608f + r2 * (0.000919260274839426580f + r2 * -0.0000252020423730606054f))));
  const float first = q & 1 ? s : c, second = q & 1 ? c : s;
  *cosine = (q + 1) & 2 ? -first : first;
  *sine = q & 2 ? -second : second;
}

// Box-Muller on the pairs (0, 1) and (2, 3), cosine first.
PRUNEFAST_BOTH void normals(const Quad& quad, float* out) {
  float cosine0, sine0, cosine1, sine1;
  turn(uniform(quad.word[1]), &cosine0, &sine0);
  turn(uniform(quad.word[3]), &cosine1, &sine1);
  const float radius0 = radius(uniform(quad.word[0])), radius1 = radius(uniform(quad.word[2]));
  out[0] = radius0 * cosine0;
  out[1] = radius0 * sine0;
  out[2] = radius1 * cosine1;
  out[3] = radius1 * sine1;
}

}  // namespace prunefast
