// Sums of rows by class. Threads share the columns, never the rows: each sum is added up in the order of the rows.
#include <algorithm>

#include "kernels/table.h"
#include "parallel.h"
#include "status.h"

namespace {
constexpr int64_t kColumns = 64;          // of one block: four cache lines of a row
constexpr int64_t kThreadWork = 1 << 16;  // values below which a second thread does not pay
}  // namespace

int32_t prunefast_class_sums(const float* x, int64_t rows, int64_t columns, int64_t x_row_stride, const int64_t* labels,
                             int64_t classes, double* sums, int64_t* counts, int32_t add, int32_t threads) {
  using namespace prunefast;
  return guarded([&]() -> int32_t {
    if (rows < 0 || columns < 0 || classes < 0) return fail(PRUNEFAST_BAD_ARGUMENT, "%s", "class_sums: negative size");
    for (int64_t i = 0; i < rows; ++i) {
      if (labels[i] < 0 || labels[i] >= classes)
        return fail(PRUNEFAST_OUT_OF_RANGE, "labels: label %lld of row %lld is outside 0 .. %lld", (long long)labels[i],
                    (long long)i, (long long)(classes - 1));
    }
    if (!add) {
      std::fill(sums, sums + classes * columns, 0.0);
      std::fill(counts, counts + classes, 0);
    }
    for (int64_t i = 0; i < rows; ++i) ++counts[labels[i]];
    const int64_t blocks = (columns + kColumns - 1) / kColumns;
    const Kernels& set = kernels();
    parallel_blocks(blocks, threads_for(threads, rows * columns / kThreadWork), [&](int64_t block, int) {
      const int64_t first = block * kColumns, width = std::min(kColumns, columns - first);
      for (int64_t i = 0; i < rows; ++i)
        set.add_row(sums + labels[i] * columns + first, x + i * x_row_stride + first, width);
    });
    return PRUNEFAST_OK;
  });
}
