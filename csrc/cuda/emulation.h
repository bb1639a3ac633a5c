// CUDA's words for a plain C++ compiler: enough to run the kernels of this directory on a CPU, for tests only.
//
// The threads of a block are fibres that one system thread resumes in turn; they change places at barriers and warp
// exchanges only. So arithmetic, indexing, launch sizes and the order of sums are those of the device code; what is not
// shown are races, missing barriers within a warp, the device's own rounding (contracted multiply-adds, approximate
// quotients) and speed.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#include <functional>

#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __forceinline__ inline
#define __launch_bounds__(...)

struct uint4 {
  uint32_t x, y, z, w;
} __attribute__((aligned(16)));
struct uint2 {
  uint32_t x, y;
} __attribute__((aligned(8)));

typedef int cudaError_t;
typedef void* cudaStream_t;
enum {
  cudaSuccess = 0,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorInsufficientDriver = 35,
  cudaErrorNoDevice = 100,
  cudaErrorNoKernelImageForDevice = 209,
  CUDART_VERSION = 0
};
inline const char* cudaGetErrorString(cudaError_t) { return "emulated"; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0; }
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaGetDeviceCount(int* count) { return *count = 0; }
inline cudaError_t cudaDriverGetVersion(int* version) { return *version = 0; }

namespace emulation {

struct Index {
  unsigned x;
};
extern Index thread_index, block_index, block_size, grid_size;

void run(int64_t blocks, int threads, const std::function<void()>& body);
void block_barrier();
void warp_barrier();
extern unsigned char exchange[1024][16];

template <typename T>
T shuffle_down(T value, unsigned step) {
  const unsigned self = thread_index.x, lane = self % 32;
  memcpy(exchange[self], &value, sizeof value);
  warp_barrier();
  T other = value;
  if (lane + step < 32) memcpy(&other, exchange[self + step], sizeof other);
  warp_barrier();
  return other;
}

}  // namespace emulation

#define threadIdx emulation::thread_index
#define blockIdx emulation::block_index
#define blockDim emulation::block_size
#define gridDim emulation::grid_size
#define __syncthreads() emulation::block_barrier()
#define __shfl_down_sync(mask, value, step) emulation::shuffle_down(value, step)

struct __nv_bfloat16 {
  uint16_t bits;
};
inline float __bfloat162float(__nv_bfloat16 value) {
  const uint32_t bits = (uint32_t)value.bits << 16;
  float result;
  memcpy(&result, &bits, sizeof result);
  return result;
}
inline __nv_bfloat16 __float2bfloat16_rn(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  if (value != value) return {0x7FFF};
  return {(uint16_t)((bits + 0x7FFF + (bits >> 16 & 1)) >> 16)};
}

struct __half {
  _Float16 value;
};
inline float __half2float(__half value) { return (float)value.value; }
inline __half __float2half_rn(float value) { return {(_Float16)value}; }
inline float __expf(float x) { return expf(x); }
inline float __fdividef(float a, float b) { return a / b; }
