// What every kernel file shares: number formats, 16-byte accesses, sums over a block in a fixed order, launches.
//
// The same sources compile as plain C++ against emulation.h, which runs the threads of a block one after the other: the
// tests use that to check arithmetic and indexing on a machine without a GPU.
#pragma once

#include <stdint.h>

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#else
#include "emulation.h"
#endif

#include "philox.h"
#include "prunefast/prunefast_cuda.h"
#include "status.h"

#define PRUNEFAST_DEVICE __device__ __forceinline__

namespace prunefast {

constexpr int kBlock = 256;  // threads: eight warps, eight blocks a multiprocessor at 32 registers, four at 64
constexpr int kWarp = 32;
constexpr int64_t kMaxGrid = 0x7FFFFFFF;

using bfloat16 = __nv_bfloat16;
using float16 = __half;

inline int64_t blocks_for(int64_t work, int64_t each) { return (work + each - 1) / each; }

// A status of this library for one of the CUDA runtime, with a text.
int32_t check(cudaError_t error, const char* op);

// Makes `device` current for a call, and puts back what was current.
class DeviceScope {
 public:
  DeviceScope(int32_t device, const char* op);
  ~DeviceScope();
  int32_t status() const { return status_; }

 private:
  int previous_ = -1;
  int32_t status_;
};

#if defined(__CUDACC__)
template <typename Kernel, typename... Values>
cudaError_t launch(Kernel kernel, int64_t blocks, int threads, void* stream, const Values&... values) {
  if (blocks > kMaxGrid) return cudaErrorInvalidConfiguration;
  kernel<<<(unsigned)blocks, threads, 0, (cudaStream_t)stream>>>(values...);
  return cudaGetLastError();
}
#else
template <typename Kernel, typename... Values>
cudaError_t launch(Kernel kernel, int64_t blocks, int threads, void*, const Values&... values) {
  if (blocks > kMaxGrid) return cudaErrorInvalidConfiguration;
  emulation::run(blocks, threads, [&] { kernel(values...); });
  return cudaSuccess;
}
#endif

// ---- numbers

template <typename T>
struct Format;
template <>
struct Format<float> {
  static constexpr int32_t dtype = PRUNEFAST_FLOAT32;
};
template <>
struct Format<bfloat16> {
  static constexpr int32_t dtype = PRUNEFAST_BFLOAT16;
};
template <>
struct Format<float16> {
  static constexpr int32_t dtype = PRUNEFAST_FLOAT16;
};

PRUNEFAST_DEVICE float to_float(float value) { return value; }
PRUNEFAST_DEVICE float to_float(bfloat16 value) { return __bfloat162float(value); }
PRUNEFAST_DEVICE float to_float(float16 value) { return __half2float(value); }
// A pixel: (2 x - 255) / 255, the quotient corrected to the nearest float32 for each of the 256 values.
PRUNEFAST_DEVICE float to_float(uint8_t value) {
  const float numerator = 2.0f * (float)value - 255.0f;
  const float quotient = numerator * (1.0f / 255);
  return fmaf(fmaf(-255.0f, quotient, numerator), 1.0f / 255, quotient);
}

template <typename T>
PRUNEFAST_DEVICE T from_float(float value);
template <>
PRUNEFAST_DEVICE float from_float<float>(float value) {
  return value;
}
template <>
PRUNEFAST_DEVICE bfloat16 from_float<bfloat16>(float value) {
  return __float2bfloat16_rn(value);
}
template <>
PRUNEFAST_DEVICE float16 from_float<float16>(float value) {
  return __float2half_rn(value);
}

// One number of a small table whose format is known at run time.
PRUNEFAST_DEVICE float read(const void* data, int32_t dtype, int64_t at) {
  if (dtype == PRUNEFAST_FLOAT32) return static_cast<const float*>(data)[at];
  if (dtype == PRUNEFAST_BFLOAT16) return to_float(static_cast<const bfloat16*>(data)[at]);
  return to_float(static_cast<const float16*>(data)[at]);
}

// ---- accesses of 16 bytes

// One store of 16 or 8 bytes. Spelt out: the compiler cuts some assignments of a uint4 into four stores.
PRUNEFAST_DEVICE void store_words(void* to, uint4 words) {
#if defined(__CUDA_ARCH__)
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)), "r"(words.x),
               "r"(words.y), "r"(words.z), "r"(words.w)
               : "memory");
#else
  memcpy(to, &words, sizeof words);
#endif
}

PRUNEFAST_DEVICE void store_words(void* to, uint2 words) {
#if defined(__CUDA_ARCH__)
  asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(__cvta_generic_to_global(to)), "r"(words.x), "r"(words.y)
               : "memory");
#else
  memcpy(to, &words, sizeof words);
#endif
}

template <typename T>
struct alignas(16) Vector {
  static constexpr int size = 16 / sizeof(T);
  T value[size];
};

template <typename T>
PRUNEFAST_DEVICE void load_vector(const T* from, float* out) {
  const uint4 bits = *reinterpret_cast<const uint4*>(from);
  Vector<T> vector;
  memcpy(&vector, &bits, 16);
#pragma unroll
  for (int i = 0; i < Vector<T>::size; ++i) out[i] = to_float(vector.value[i]);
}

template <typename T>
PRUNEFAST_DEVICE void store_vector(T* to, const float* in) {
  Vector<T> vector;
#pragma unroll
  for (int i = 0; i < Vector<T>::size; ++i) vector.value[i] = from_float<T>(in[i]);
  uint4 bits;
  memcpy(&bits, &vector, 16);
  store_words(to, bits);
}

// ---- random numbers

struct Quad {
  uint32_t word[4];
};

PRUNEFAST_DEVICE Quad quad_of(uint32_t quad, uint32_t stream, uint64_t position, uint64_t seed) {
  const Words<uint64_t> words =
      philox<uint64_t>(quad, stream, (uint32_t)position, (uint32_t)(position >> 32), seed);
  return {{(uint32_t)words.word[0], (uint32_t)words.word[1], (uint32_t)words.word[2], (uint32_t)words.word[3]}};
}

// ---- sums

// Lane 0 gets the sum over its warp, always in the same order.
template <typename T>
PRUNEFAST_DEVICE T warp_sum(T value) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) value += __shfl_down_sync(0xFFFFFFFFu, value, step);
  return value;
}

// Thread 0 gets the sum over its block of kBlock threads. `shared`: kBlock / kWarp values.
template <typename T>
PRUNEFAST_DEVICE T block_sum(T value, T* shared) {
  value = warp_sum(value);
  if (threadIdx.x % kWarp == 0) shared[threadIdx.x / kWarp] = value;
  __syncthreads();
  T sum = 0;
  if (threadIdx.x == 0) {
#pragma unroll
    for (int i = 0; i < kBlock / kWarp; ++i) sum += shared[i];
  }
  return sum;
}

}  // namespace prunefast
