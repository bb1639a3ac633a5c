// Random words and numbers by registers: the operations that the map of csrc/common/philox.h is made of, and the order in
// which its results go to memory.
#pragma once

#include "simd.h"
#include "table.h"

namespace prunefast {
namespace {

inline vf number(vi value) { return __builtin_convertvector(value, vf); }
inline vf number(vu below_2_to_31) { return number((vi)below_2_to_31); }
inline vi truncated(vf value) { return __builtin_convertvector(value, vi); }
inline vi bits_of(vf value) { return (vi)value; }
inline vf with_bits(vi bits) { return (vf)bits; }
inline vf quotient(vf a, vf b) { return a / b; }
inline vf either(vi first, vf a, vf b) { return (vf)((-first & (vi)a) | (~-first & (vi)b)); }
inline vf negated_if(vi two, vf value) { return (vf)((vu)value ^ ((vu)two << 30)); }

}  // namespace
}  // namespace prunefast

#include "../../common/philox.h"

namespace prunefast {
namespace {

constexpr int kSet = kVector / 2;  // quads in one set of 64-bit lanes

// Four words of kSet consecutive quads.
inline Words<vw> philox(uint64_t first_quad, PhiloxKey key) {
  vw quad;
  for (int i = 0; i < kSet; ++i) quad[i] = first_quad + (uint64_t)i;
  const uint64_t position = (uint64_t)key.position;
  return philox(quad, splat((uint64_t)key.stream), splat(position & 0xFFFFFFFFu), splat(position >> 32), key.seed);
}

// Words of two sets in one register of 32-bit lanes: first set in the even lanes, second in the odd ones.
inline vu pack(vw first, vw second) { return (vu)((first & 0xFFFFFFFFu) | (second << 32)); }

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
    const Words<vw> a = philox((uint64_t)(first_quad + quad), key);
    const Words<vw> b = philox((uint64_t)(first_quad + quad + kSet), key);
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

void quad_normals(float* out, int64_t first_quad, int64_t quads, PhiloxKey key) {
  each_block(first_quad, quads, key, [=](int64_t at, vu w0, vu w1, vu w2, vu w3) {
    const vu word[4] = {w0, w1, w2, w3};
    vf normal[4];
    normals(word, normal);
    store_quads(out + at, (vu)normal[0], (vu)normal[1], (vu)normal[2], (vu)normal[3]);
  });
}

}  // namespace
}  // namespace prunefast
