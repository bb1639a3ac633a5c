// Sums of rows by class. A class is cut into parts of its sorted rows; a block sums one part of one class over 128
// columns, and a second kernel adds the parts in their order: no atomics, and a class of any size keeps many blocks busy.
#include "device.h"

namespace prunefast {
namespace {

constexpr int64_t kColumns = 4 * kWarp;  // of a block: 16 bytes a lane
constexpr int kRowLanes = kBlock / kWarp;

// A function of the sizes only: part of the order of summation.
int64_t parts_of(int64_t classes) {
  if (classes > 4096) return 1;
  const int64_t wanted = 4096 / (classes > 0 ? classes : 1);
  return wanted < 4 ? 4 : wanted > 256 ? 256 : wanted;
}

template <bool vector>
__global__ void __launch_bounds__(kBlock) part_kernel(const float* x, int64_t columns, int64_t x_row_stride,
                                                      const int64_t* order, const int64_t* start, int64_t parts,
                                                      int64_t column_blocks, double* partial) {
  __shared__ double shared[kRowLanes][kColumns];
  const int64_t job = blockIdx.x / column_blocks, part = job % parts, label = job / parts;
  const int lane = threadIdx.x % kWarp, row_lane = threadIdx.x / kWarp;
  const int64_t column = blockIdx.x % column_blocks * kColumns + lane * 4;
  const int64_t first = start[label], count = start[label + 1] - first;
  const int64_t begin = first + count * part / parts, end = first + count * (part + 1) / parts;
  double sum[4] = {0, 0, 0, 0};
#pragma unroll 4
  for (int64_t i = begin + row_lane; i < end; i += kRowLanes) {
    const float* row = x + order[i] * x_row_stride;
    float value[4] = {0, 0, 0, 0};
    if (vector) {
      if (column < columns) load_vector(row + column, value);
    } else {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        if (column + k < columns) value[k] = row[column + k];
      }
    }
#pragma unroll
    for (int k = 0; k < 4; ++k) sum[k] += (double)value[k];
  }
#pragma unroll
  for (int k = 0; k < 4; ++k) shared[row_lane][lane * 4 + k] = sum[k];
  __syncthreads();
  const int64_t mine = blockIdx.x % column_blocks * kColumns + threadIdx.x;
  if (threadIdx.x >= kColumns || mine >= columns) return;
  double total = 0;
#pragma unroll
  for (int r = 0; r < kRowLanes; ++r) total += shared[r][threadIdx.x];
  partial[job * columns + mine] = total;
}

__global__ void __launch_bounds__(kBlock) combine_kernel(const double* partial, int64_t columns, int64_t classes,
                                                         int64_t parts, double* sums) {
  const int64_t i = (int64_t)blockIdx.x * kBlock + threadIdx.x;
  if (i >= classes * columns) return;
  const int64_t label = i / columns, column = i % columns;
  double total = 0;
  for (int64_t part = 0; part < parts; ++part) total += partial[(label * parts + part) * columns + column];
  sums[i] = total;
}

}  // namespace
}  // namespace prunefast

int64_t prunefast_cuda_class_sums_workspace(int64_t columns, int64_t classes) {
  return classes * prunefast::parts_of(classes) * columns * (int64_t)sizeof(double);
}

int32_t prunefast_cuda_class_sums(const float* x, int64_t columns, int64_t x_row_stride, const int64_t* order,
                                  const int64_t* start, int64_t classes, double* sums, void* workspace, int32_t device,
                                  void* stream) {
  using namespace prunefast;
  if (columns < 0 || classes < 0) return fail(PRUNEFAST_BAD_ARGUMENT, "%s", "class_sums: negative size");
  if (columns == 0 || classes == 0) return PRUNEFAST_OK;
  if (!start || !sums || !workspace)
    return fail(PRUNEFAST_BAD_ARGUMENT, "%s", "class_sums: start, sums and workspace are needed");
  const DeviceScope scope(device, "class_sums");
  if (scope.status()) return scope.status();
  const int64_t parts = parts_of(classes), column_blocks = blocks_for(columns, kColumns);
  const bool vector = columns % 4 == 0 && x_row_stride % 4 == 0 && (uintptr_t)x % 16 == 0;
  double* partial = static_cast<double*>(workspace);
  cudaError_t error = launch(vector ? part_kernel<true> : part_kernel<false>, classes * parts * column_blocks, kBlock,
                             stream, x, columns, x_row_stride, order, start, parts, column_blocks, partial);
  if (error == cudaSuccess)
    error = launch(combine_kernel, blocks_for(classes * columns, kBlock), kBlock, stream,
                   static_cast<const double*>(partial), columns, classes, parts, sums);
  return check(error, "class_sums");
}
