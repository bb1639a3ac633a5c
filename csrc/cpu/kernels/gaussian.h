// Float64 products for Gaussians: sums of outer products, and forward substitution. Every result is one chain of
// multiply-adds in the order of its depth, fused where the instruction set has that: AVX2 and AVX-512 give the same bits.
#pragma once

#include "simd.h"
#include "table.h"

namespace prunefast {
namespace {

// A block of accumulators, kFactorRows x three registers, with three registers of one operand and a broadcast of the
// other, fills the register file (32, 16 and 16 registers).
constexpr int kRegisters = 3;
constexpr int kPanel = kRegisters * kDoubles;
#if defined(__AVX512F__)
constexpr int kFactorRows = 8;
#elif defined(__AVX2__)
constexpr int kFactorRows = 4;
#else
constexpr int kFactorRows = 3;
#endif
static_assert(kPanel % kFactorRows == 0, "a panel is cut into whole blocks");

struct Block {
  vd value[kFactorRows][kRegisters];
};

inline void read(Block& block, const double* p) {
#pragma GCC unroll 8
  for (int r = 0; r < kFactorRows; ++r)
#pragma GCC unroll 3
    for (int v = 0; v < kRegisters; ++v) block.value[r][v] = load(p + r * kPanel + v * kDoubles);
}

inline void write(const Block& block, double* p) {
#pragma GCC unroll 8
  for (int r = 0; r < kFactorRows; ++r)
#pragma GCC unroll 3
    for (int v = 0; v < kRegisters; ++v) store(p + r * kPanel + v * kDoubles, block.value[r][v]);
}

// block[r] += (or -=) sum over d of left[d * left_stride + r] right[d * kPanel ...].
template <bool Subtract>
inline void multiply_add(Block& block, const double* left, int64_t left_stride, const double* right, int64_t depth) {
  for (int64_t d = 0; d < depth; ++d, left += left_stride, right += kPanel) {
    vd b[kRegisters];
#pragma GCC unroll 3
    for (int v = 0; v < kRegisters; ++v) b[v] = load(right + v * kDoubles);
#pragma GCC unroll 8
    for (int r = 0; r < kFactorRows; ++r) {
      const vd a = splat(left[r]);
#pragma GCC unroll 3
      for (int v = 0; v < kRegisters; ++v)
        block.value[r][v] = Subtract ? negated_fma(a, b[v], block.value[r][v]) : fma(a, b[v], block.value[r][v]);
    }
  }
}

void add_products(double* tile, const double* left, const double* right, int64_t depth) {
  for (int first = 0; first < kPanel; first += kFactorRows) {
    Block block;
    read(block, tile + first * kPanel);
    multiply_add<false>(block, left + first, kPanel, right, depth);
    write(block, tile + first * kPanel);
  }
}

void substitute(double* values, const double* factor, int64_t begin, int64_t end, int64_t column, bool last,
                double* squared) {
  double* const mine = values + column * kPanel;
  Block block;
  read(block, mine);
  multiply_add<true>(block, factor + begin * kFactorRows, kFactorRows, values + begin * kPanel, end - begin);
  if (last) {
    const double* const triangle = factor + column * kFactorRows;  // [column][row], reciprocals on the diagonal
#pragma GCC unroll 8
    for (int r = 0; r < kFactorRows; ++r) {
#pragma GCC unroll 8
      for (int d = 0; d < r; ++d)
#pragma GCC unroll 3
        for (int v = 0; v < kRegisters; ++v)
          block.value[r][v] = negated_fma(splat(triangle[d * kFactorRows + r]), block.value[d][v], block.value[r][v]);
#pragma GCC unroll 3
      for (int v = 0; v < kRegisters; ++v) {
        block.value[r][v] *= splat(triangle[r * kFactorRows + r]);
        double* const sum = squared + v * kDoubles;
        store(sum, fma(block.value[r][v], block.value[r][v], load(sum)));
      }
    }
  }
  write(block, mine);
}

}  // namespace
}  // namespace prunefast
