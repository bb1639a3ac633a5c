// Philox-4x32-10 (Salmon et al., SC 2011) and the map from words to numbers of docs/ops/philox.md, written once: for one
// number at a time on host and device, and for registers of numbers in csrc/cpu/kernels/philox.h, which declares its
// overloads of the few operations below before it includes this file. The unnamed namespace keeps each copy in its own
// translation unit.
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
namespace {

// ---- one number at a time

// Low 32 bits of each multiplied to 64 bits.
PRUNEFAST_BOTH uint64_t multiply_words(uint64_t a, uint64_t b) { return (uint64_t)(uint32_t)a * (uint32_t)b; }

PRUNEFAST_BOTH float number(int32_t value) { return (float)value; }
PRUNEFAST_BOTH float number(uint32_t below_2_to_31) { return (float)(int32_t)below_2_to_31; }
PRUNEFAST_BOTH int32_t truncated(float value) { return (int32_t)value; }

PRUNEFAST_BOTH int32_t bits_of(float value) {
#if defined(__CUDA_ARCH__)
  return __float_as_int(value);
#else
  int32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
#endif
}

PRUNEFAST_BOTH float with_bits(int32_t bits) {
#if defined(__CUDA_ARCH__)
  return __int_as_float(bits);
#else
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
#endif
}

PRUNEFAST_BOTH float either(int32_t first, float a, float b) { return first ? a : b; }    // `first`: 0 or 1
PRUNEFAST_BOTH float negated_if(int32_t two, float value) { return two ? -value : value; }  // `two`: 0 or 2

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

// ---- the map

template <typename Word>
struct Words {
  Word word[4];
};

// Counter words in 64-bit lanes whose upper halves may hold anything, in and out: the multiplication ignores them, so
// nothing is masked.
template <typename Word>
PRUNEFAST_BOTH Words<Word> philox(Word c0, Word c1, Word c2, Word c3, uint64_t seed) {
  uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
#if defined(__CUDACC__)
#pragma unroll
#else
#pragma GCC unroll 10
#endif
  for (int round = 0; round < 10; ++round) {
    const Word product0 = multiply_words(Word{} + (uint64_t)0xD2511F53u, c0);
    const Word product1 = multiply_words(Word{} + (uint64_t)0xCD9E8D57u, c2);
    c0 = (product1 >> 32) ^ c1 ^ (uint64_t)k0;
    c2 = (product0 >> 32) ^ c3 ^ (uint64_t)k1;
    c1 = product1;
    c3 = product0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// (k + 1/2) / 2^23 of the upper 23 bits: exact in float32.
template <typename Word>
PRUNEFAST_BOTH auto uniform(Word word) {
  return number((word >> 9) * 2u + 1u) * 0x1p-24f;
}

// sqrt(-2 ln u). With u = 2^e m, m in [sqrt(1/2), sqrt(2)): ln u = e ln 2 + 2 atanh(s), s = (m - 1) / (m + 1), |s| <
// 0.172; the series stops where its next term is below 2e-9 of the sum. Relative error about 2^-23 everywhere: m - 1 is
// exact near 1. ln 2 is in two parts, the first exact times e.
template <typename Float>
PRUNEFAST_BOTH Float radius(Float u) {
  const int32_t half_root = 0x3F3504F3;
  const auto offset = bits_of(u) - half_root;
  const Float exponent = number(offset >> 23);
  const Float below = with_bits((offset & 0x007FFFFF) + half_root) - 1.0f;
  const Float s = quotient(below, below + 2.0f);
  const Float s2 = s * s;
  const Float series = (((1.0f / 9 * s2 + 1.0f / 7) * s2 + 1.0f / 5) * s2 + 1.0f / 3) * s2 * s;
  const Float log_mantissa = 2.0f * (s + series);
  const Float log = exponent * 0x1.62ep-1f + (log_mantissa + exponent * 0x1.0bfbe8p-15f);
  return square_root(-2.0f * log);
}

// cos and sin of 2 pi u. 4 u = q + r with q an integer, |r| <= 1/2, exactly; polynomials of pi r / 2 to 3e-9.
template <typename Float>
PRUNEFAST_BOTH void turn(Float u, Float* cosine, Float* sine) {
  const Float quarters = u * 4.0f;
  const auto q = truncated(quarters + 0.5f);
  const Float r = quarters - number(q);
  const Float r2 = r * r;
  const Float s =
      r * (1.57079632679489662f +
           r2 * (-0.645964097506246254f +
                 r2 * (0.0796926262461670451f + r2 * (-0.00468175413531868810f + r2 * 0.000160441184787359822f))));
  const Float c =
      1.0f +
      r2 * (-1.23370055013616983f +
            r2 * (0.253669507901048014f +
                  r2 * (-0.0208634807633529608f + r2 * (0.000919260274839426580f + r2 * -0.0000252020423730606054f))));
  *cosine = negated_if((q + 1) & 2, either(q & 1, s, c));
  *sine = negated_if(q & 2, either(q & 1, c, s));
}

// Box-Muller on the pairs (0, 1) and (2, 3), cosine first.
template <typename Word, typename Float>
PRUNEFAST_BOTH void normals(const Word* word, Float* out) {
  Float cosine0, sine0, cosine1, sine1;
  turn(uniform(word[1]), &cosine0, &sine0);
  turn(uniform(word[3]), &cosine1, &sine1);
  const Float radius0 = radius(uniform(word[0])), radius1 = radius(uniform(word[2]));
  out[0] = radius0 * cosine0;
  out[1] = radius0 * sine0;
  out[2] = radius1 * cosine1;
  out[3] = radius1 * sine1;
}

}  // namespace
}  // namespace prunefast
