// Philox-4x32-10 (Salmon et al., SC 2011) and the map from words to numbers of docs/ops/philox.md.
#pragma once

#include "simd.h"
#include "table.h"

namespace prunefast {
namespace {

constexpr int kSet = kVector / 2;  // quads in one set of 64-bit lanes

struct Words {
  vw word[4];
};

// Four words of kSet consecutive quads. Each word sits in a 64-bit lane whose upper half may hold anything: the
// multiplication ignores it, so nothing is masked until the words are packed.
inline Words philox(uint64_t first_quad, PhiloxKey key) {
  vw counter0;
  for (int i = 0; i < kSet; ++i) counter0[i] = first_quad + (uint64_t)i;
  vw counter1 = splat((uint64_t)key.stream);
  vw counter2 = splat((uint64_t)key.position & 0xFFFFFFFFu);
  vw counter3 = splat((uint64_t)key.position >> 32);
  uint32_t key0 = (uint32_t)key.seed, key1 = (uint32_t)(key.seed >> 32);
#pragma GCC unroll 10
  for (int round = 0; round < 10; ++round) {
    const vw product0 = multiply_words(splat((uint64_t)0xD2511F53u), counter0);
    const vw product1 = multiply_words(splat((uint64_t)0xCD9E8D57u), counter2);
    counter0 = (product1 >> 32) ^ counter1 ^ (uint64_t)key0;
    counter2 = (product0 >> 32) ^ counter3 ^ (uint64_t)key1;
    counter1 = product1;
    counter3 = product0;
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return {{counter0, counter1, counter2, counter3}};
}

// Words of two sets in one register of 32-bit lanes: first set in the even lanes, second in the odd ones.
inline vu pack(vw first, vw second) { return (vu)((first & 0xFFFFFFFFu) | (second << 32)); }

// (k + 1/2) / 2^23 of the upper 23 bits: exact in float32.
inline vf uniform(vu word) {
  const vi odd = (vi)((word >> 9) * 2u + 1u);
  return __builtin_convertvector(odd, vf) * 0x1p-24f;
}

// sqrt(-2 ln u). With u = 2^e m, m in [sqrt(1/2), sqrt(2)): ln u = e ln 2 + 2 atanh(s), s = (m - 1) / (m + 1), |s| <
// 0.172; the series stops where its next term is below 2e-9 of the sum. Relative error about 2^-23 everywhere: m - 1 is
// exact near 1.
inline vf radius(vf u) {
  const vi half_root = (vi)splat((uint32_t)0x3F3504F3);
  const vi offset = (vi)u - half_root;
  const vf exponent = __builtin_convertvector(offset >> 23, vf);
  const vf mantissa = (vf)((offset & 0x007FFFFF) + half_root);
  const vf below = mantissa - 1.0f;
  const vf s = below / (below + 2.0f);
  const vf s2 = s * s;
  const vf series = (((1.0f / 9 * s2 + 1.0f / 7) * s2 + 1.0f / 5) * s2 + 1.0f / 3) * s2 * s;
  const vf log_mantissa = 2.0f * (s + series);
  const vf log = exponent * 0x1.62ep-1f +
                 (log_mantissa + exponent * 0x1.0bfbe8p-15f);  // ln 2 in two parts, the first exact times e
  return square_root(-2.0f * log);
}

// cos and sin of 2 pi u. 4 u = q + r with q an integer, |r| <= 1/2, exactly; polynomials of pi r / 2 to 3e-9.
inline void turn(vf u, vf* cosine, vf* sine) {
  const vf quarters = u * 4.0f;
  const vi q = __builtin_convertvector(quarters + 0.5f, vi);
  const vf r = quarters - __builtin_convertvector(q, vf);
  const vf r2 = r * r;
  const vf s =
      r * (1.57079632679489662f +
           r2 * (-0.645964097506246254f +
                 r2 * (0.0796926262461670451f + r2 * (-0.00468175413531868810f + r2 * 0.000160441184787359822f))));
  const vf c =
      1.0f +
      r2 * (-1.23370055013616983f +
            r2 * (0.253669507901048014f +
                  r2 * (-0.0208634807633529608f + r2 * (0.000919260274839426580f + r2 * -0.0000252020423730606054f))));
  const vi swapped = -(q & 1);
  const vi low = (swapped & (vi)s) | (~swapped & (vi)c);
  const vi high = (swapped & (vi)c) | (~swapped & (vi)s);
  *cosine = (vf)((vu)low ^ ((vu)((q + 1) & 2) << 30));
  *sine = (vf)((vu)high ^ ((vu)(q & 2) << 30));
}

// Four registers, one a word, lanes alternating between two sets of quads -> memory order, quad after quad.
inline void store_quads(void* out, vu w0, vu w1, vu w2, vu w3) {
  const vw low = splat((uint64_t)0xFFFFFFFFu);
  const vw first01 = ((vw)w0 & low) | ((vw)w1 << 32), first23 = ((vw)w2 & low) | ((vw)w3 << 32);
  const vw second01 = ((vw)w0 >> 32) | ((vw)w1 & ~low), second23 = ((vw)w2 >> 32) | ((vw)w3 & ~low);
#if defined(__AVX512F__)
  const vw lower = {0, 8, 1, 9, 2, 10, 3, 11}, upper = {4, 12, 5, 13, 6, 14, 7, 15};
#elif defined(__AVX2__)
  const vw lower = {0, 4, 1, 5}, upper = {2, 6, 3, 7};
#else
  const vw lower = {0, 2}, upper = {1, 3};
#endif
  char* p = (char*)out;
  store(p, __builtin_shuffle(first01, first23, lower));
  store(p + sizeof(vw), __builtin_shuffle(first01, first23, upper));
  store(p + 2 * sizeof(vw), __builtin_shuffle(second01, second23, lower));
  store(p + 3 * sizeof(vw), __builtin_shuffle(second01, second23, upper));
}

template <typename Store>
inline void each_block(int64_t first_quad, int64_t quads, PhiloxKey key, Store store_block) {
  for (int64_t quad = 0; quad < quads; quad += kVector) {
    const Words a = philox((uint64_t)(first_quad + quad), key);
    const Words b = philox((uint64_t)(first_quad + quad + kSet), key);
    store_block(quad * 4, pack(a.word[0], b.word[0]), pack(a.word[1], b.word[1]), pack(a.word[2], b.word[2]),
                pack(a.word[3], b.word[3]));
  }
}

void quad_words(uint32_t* out, int64_t first_quad, int64_t quads, PhiloxKey key) {
  each_block(first_quad, quads, key,
             [=](int64_t at, vu w0, vu w1, vu w2, vu w3) { store_quads(out + at, w0, w1, w2, w3); });
}

void quad_uniforms(float* out, int64_t first_quad, int64_t quads, PhiloxKey key) {
  each_block(first_quad, quads, key, [=](int64_t at, vu w0, vu w1, vu w2, vu w3) {
    store_quads(out + at, (vu)uniform(w0), (vu)uniform(w1), (vu)uniform(w2), (vu)uniform(w3));
  });
}

// Box-Muller on the pairs (0, 1) and (2, 3), cosine first.
void quad_normals(float* out, int64_t first_quad, int64_t quads, PhiloxKey key) {
  each_block(first_quad, quads, key, [=](int64_t at, vu w0, vu w1, vu w2, vu w3) {
    vf cosine0, sine0, cosine1, sine1;
    turn(uniform(w1), &cosine0, &sine0);
    turn(uniform(w3), &cosine1, &sine1);
    const vf radius0 = radius(uniform(w0)), radius1 = radius(uniform(w2));
    store_quads(out + at, (vu)(radius0 * cosine0), (vu)(radius0 * sine0), (vu)(radius1 * cosine1),
                (vu)(radius1 * sine1));
  });
}

}  // namespace
}  // namespace prunefast
