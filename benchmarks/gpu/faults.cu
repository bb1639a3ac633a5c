// A kernel for each fault that compute-sanitizer must find before its silence about ours means anything:
// faults memcheck | racecheck | initcheck | synccheck. Exit status 0: the program itself ran through.
#include <cstdio>
#include <cstring>

__global__ void out_of_bounds(int* data, int size) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i <= size) data[i] = i;  // one too far
}

__global__ void race(int* out) {
  __shared__ int shared[64];
  shared[threadIdx.x] = threadIdx.x;
  out[threadIdx.x] = shared[63 - threadIdx.x];  // no barrier between
}

__global__ void uninitialised(const int* in, int* out) { out[threadIdx.x] = in[threadIdx.x] + 1; }

__global__ void divergent(int* out) {
  if (threadIdx.x < 16) __syncthreads();  // half of a warp
  out[threadIdx.x] = threadIdx.x;
}

int main(int count, char** words) {
  const char* fault = count > 1 ? words[1] : "";
  int *a = nullptr, *b = nullptr;
  if (cudaMalloc(&a, 64 * sizeof(int)) || cudaMalloc(&b, 64 * sizeof(int))) return 2;
  if (!strcmp(fault, "memcheck")) out_of_bounds<<<1, 128>>>(a, 64);
  if (!strcmp(fault, "racecheck")) race<<<1, 64>>>(a);
  if (!strcmp(fault, "initcheck")) uninitialised<<<1, 64>>>(a, b);
  if (!strcmp(fault, "synccheck")) divergent<<<1, 32>>>(a);
  const cudaError_t error = cudaDeviceSynchronize();
  printf("%s: %s\n", fault, cudaGetErrorString(error));
  return 0;
}
