// Mean, covariance and squared Mahalanobis distances in float64, from rows of float32 or float64. The products run over
// packed panels that stay in the caches; nothing the size of the data is kept.
#include <algorithm>
#include <vector>

#include "aligned.h"
#include "kernels/table.h"
#include "parallel.h"
#include "status.h"

namespace prunefast {
namespace {

constexpr int64_t kDepth = 256;            // of one product: two panels of it (100 KB) in the second-level cache
constexpr int64_t kPackedBytes = 8 << 20;  // of centred rows at a time: in the last-level cache
constexpr int64_t kGroup = 4;              // panels by panels of one block of the covariance
constexpr int64_t kPanelsAtOnce = 8;       // panels of rows that share a piece of the factor
constexpr int64_t kSlices = 64;            // parts of the rows in the mean: part of the order of summation
constexpr int64_t kThreadWork = 1 << 20;   // multiply-adds below which a second thread does not pay

int64_t pieces(int64_t count, int64_t size) { return (count + size - 1) / size; }

// Reads rows as float64, whatever they are stored as.
class Rows {
 public:
  explicit Rows(const prunefast_rows& args) : args_(args) {}

  // body(values of row i) with a pointer to float or double.
  template <typename Body>
  void visit(int64_t i, Body body) const {
    const int64_t offset = (args_.row ? args_.row[i] : i) * args_.row_stride;
    if (args_.dtype == PRUNEFAST_FLOAT64)
      body(static_cast<const double*>(args_.x) + offset);
    else
      body(static_cast<const float*>(args_.x) + offset);
  }

 private:
  const prunefast_rows& args_;
};

int32_t check(const prunefast_rows& args, const char* op) {
  if (args.rows < 0 || args.columns < 1 || (args.dtype != PRUNEFAST_FLOAT32 && args.dtype != PRUNEFAST_FLOAT64))
    return fail(PRUNEFAST_BAD_ARGUMENT, "%s: bad sizes or dtype %d", op, args.dtype);
  return PRUNEFAST_OK;
}

int threads_of(const prunefast_rows& args, int64_t work) { return threads_for(args.threads, work / kThreadWork + 1); }

void find_mean(const prunefast_rows& args, double* mean) {
  const Rows rows(args);
  const int64_t columns = args.columns, step = pieces(args.rows, kSlices), slices = pieces(args.rows, step);
  std::vector<double> sums(static_cast<size_t>(slices * columns), 0.0);
  parallel_blocks(slices, threads_of(args, args.rows * columns), [&](int64_t slice, int) {
    double* const sum = &sums[slice * columns];
    for (int64_t i = slice * step; i < std::min((slice + 1) * step, args.rows); ++i)
      rows.visit(i, [&](const auto* x) {
        for (int64_t d = 0; d < columns; ++d) sum[d] += static_cast<double>(x[d]);
      });
  });
  for (int64_t d = 0; d < columns; ++d) {
    double sum = 0;
    for (int64_t slice = 0; slice < slices; ++slice) sum += sums[slice * columns + d];
    mean[d] = sum / static_cast<double>(args.rows);
  }
}

// The covariance as tiles of its upper triangle, panel by panel.
class Covariance {
 public:
  Covariance(const prunefast_rows& args, const double* mean)
      : args_(args), mean_(mean), panel_(kernels().panel), panels_(pieces(args.columns, panel_)),
        tiles_(aligned<double>(panels_ * (panels_ + 1) / 2 * panel_ * panel_)) {
    std::fill_n(tiles_.get(), panels_ * (panels_ + 1) / 2 * panel_ * panel_, 0.0);
  }

  void add_all() {
    const int64_t fit = kPackedBytes / static_cast<int64_t>(sizeof(double)) / (panels_ * panel_);
    const int64_t step = std::min(std::max<int64_t>(fit / kDepth, 1), pieces(args_.rows, kDepth)) * kDepth;
    packed_ = aligned<double>(step * panels_ * panel_);
    const int64_t groups = pieces(panels_, kGroup), triangle = groups * (groups + 1) / 2;
    for (int64_t first = 0; first < args_.rows; first += step) {
      const int64_t count = std::min(step, args_.rows - first), blocks = pieces(count, kDepth);
      const int threads = threads_of(args_, count * args_.columns * args_.columns / 2);
      const auto depth = [&](int64_t block) { return std::min(kDepth, count - block * kDepth); };
      parallel_blocks(blocks, threads, [&](int64_t b, int) { pack(first + b * kDepth, depth(b), block(b)); });
      parallel_blocks(triangle, threads, [&](int64_t pair, int) {
        int64_t right = 0;
        while ((right + 1) * (right + 2) / 2 <= pair) ++right;
        for (int64_t b = 0; b < blocks; ++b) add(block(b), depth(b), pair - right * (right + 1) / 2, right);
      });
    }
  }

  void write(double* out) const {
    const double count = static_cast<double>(args_.rows);
    for (int64_t i = 0; i < args_.columns; ++i)
      for (int64_t j = i; j < args_.columns; ++j)
        out[i * args_.columns + j] = out[j * args_.columns + i] =
            tile(i / panel_, j / panel_)[i % panel_ * panel_ + j % panel_] / count;
  }

 private:
  double* tile(int64_t upper, int64_t right) const {
    return tiles_.get() + (right * (right + 1) / 2 + upper) * panel_ * panel_;
  }

  double* block(int64_t b) const { return packed_.get() + b * kDepth * panels_ * panel_; }

  // Rows less the mean, as [panel][row][column of the panel]; zeros past the last column.
  void pack(int64_t first, int64_t count, double* out) const {
    const Rows rows(args_);
    for (int64_t i = 0; i < count; ++i)
      rows.visit(first + i, [&](const auto* x) {
        for (int64_t p = 0; p < panels_; ++p) {
          double* const target = out + (p * kDepth + i) * panel_;
          const int64_t start = p * panel_, width = std::min(panel_, args_.columns - start);
          for (int64_t d = 0; d < width; ++d) target[d] = static_cast<double>(x[start + d]) - mean_[start + d];
          std::fill(target + width, target + panel_, 0.0);
        }
      });
  }

  void add(const double* packed, int64_t depth, int64_t upper_group, int64_t right_group) {
    const int64_t size = kDepth * panel_;
    for (int64_t j = right_group * kGroup; j < std::min((right_group + 1) * kGroup, panels_); ++j)
      for (int64_t i = upper_group * kGroup; i < std::min((upper_group + 1) * kGroup, j + 1); ++i)
        kernels().add_products(tile(i, j), packed + i * size, packed + j * size, depth);
  }

  const prunefast_rows& args_;
  const double* const mean_;
  const int64_t panel_, panels_;
  const Aligned<double> tiles_;
  Aligned<double> packed_;
};

// |L^-1 (x - mean)|^2 by forward substitution: a panel of rows lies across the registers, so that a row's sum stays in
// its lane.
class Whitening {
 public:
  Whitening(const prunefast_rows& args, const double* mean, const double* factor)
      : args_(args), mean_(mean), panel_(kernels().panel), block_(kernels().factor_rows),
        blocks_(pieces(args.columns, block_)), factor_(aligned<double>(start(blocks_))) {
    for (int64_t b = 0; b < blocks_; ++b)
      for (int64_t d = 0; d < (b + 1) * block_; ++d)
        for (int64_t r = 0; r < block_; ++r) {
          const int64_t i = b * block_ + r;
          const double value = i < args.columns && d <= i ? factor[i * args.columns + d] : i == d;
          factor_[start(b) + d * block_ + r] = i == d ? 1 / value : value;
        }
  }

  // Doubles that one thread works on.
  int64_t workspace() const { return kPanelsAtOnce * (blocks_ * block_ + 1) * panel_; }
  int64_t rows_at_once() const { return kPanelsAtOnce * panel_; }

  void run(int64_t first, int64_t count, double* work, double* squared) const {
    const int64_t panels = pieces(count, panel_), depth = blocks_ * block_;
    double* const sums = work + kPanelsAtOnce * depth * panel_;
    const auto values = [&](int64_t p) { return work + p * depth * panel_; };
    for (int64_t p = 0; p < panels; ++p)
      pack(first + p * panel_, std::min(panel_, count - p * panel_), values(p));
    std::fill_n(sums, panels * panel_, 0.0);
    // The factor by squares that stay in the second-level cache, used for all panels.
    const int64_t side = kDepth / block_;
    for (int64_t lower = 0; lower < blocks_; lower += side) {
      const int64_t last = std::min(lower + side, blocks_);
      for (int64_t left = 0; left <= lower; left += side)
        for (int64_t p = 0; p < panels; ++p)
          for (int64_t b = lower; b < last; ++b)
            kernels().substitute(values(p), &factor_[start(b)], left * block_, std::min(left + side, b) * block_,
                                 b * block_, left == lower, sums + p * panel_);
    }
    std::copy_n(sums, count, squared + first);
  }

 private:
  int64_t start(int64_t b) const { return block_ * block_ * (b * (b + 1) / 2); }

  // Rows less the mean, as [column][row of the panel]; zeros past the last of either.
  void pack(int64_t first, int64_t count, double* out) const {
    const Rows rows(args_);
    if (count < panel_) std::fill_n(out, blocks_ * block_ * panel_, 0.0);
    std::fill(out + args_.columns * panel_, out + blocks_ * block_ * panel_, 0.0);
    for (int64_t i = 0; i < count; ++i)
      rows.visit(first + i, [&](const auto* x) {
        for (int64_t d = 0; d < args_.columns; ++d) out[d * panel_ + i] = static_cast<double>(x[d]) - mean_[d];
      });
  }

  const prunefast_rows& args_;
  const double* const mean_;
  const int64_t panel_, block_, blocks_;
  const Aligned<double> factor_;
};

}  // namespace
}  // namespace prunefast

int32_t prunefast_moments(const prunefast_rows* x, double* mean, double* covariance) {
  using namespace prunefast;
  return guarded([&]() -> int32_t {
    if (const int32_t status = check(*x, "moments")) return status;
    if (!x->rows) return fail(PRUNEFAST_BAD_ARGUMENT, "%s", "moments: no rows");
    find_mean(*x, mean);
    Covariance sum(*x, mean);
    sum.add_all();
    sum.write(covariance);
    return PRUNEFAST_OK;
  });
}

int32_t prunefast_mahalanobis(const prunefast_rows* x, const double* mean, const double* factor, double* squared) {
  using namespace prunefast;
  return guarded([&]() -> int32_t {
    if (const int32_t status = check(*x, "mahalanobis")) return status;
    const Whitening whitening(*x, mean, factor);
    const int64_t step = whitening.rows_at_once();
    const int threads = threads_of(*x, x->rows * x->columns * x->columns / 2);
    const Aligned<double> work = aligned<double>(threads * whitening.workspace());
    parallel_blocks(pieces(x->rows, step), threads, [&](int64_t block, int thread) {
      whitening.run(block * step, std::min(step, x->rows - block * step),
                    work.get() + thread * whitening.workspace(), squared);
    });
    return PRUNEFAST_OK;
  });
}
