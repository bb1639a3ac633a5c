// Random numbers of many samples: a thread makes whole quads and writes them with one access where it may.
#include <type_traits>

#include "device.h"

namespace prunefast {
namespace {

constexpr int64_t kBlockElements = 16 * kBlock;  // a thread writes up to sixteen numbers

template <int Kind, typename T, bool vector>
PRUNEFAST_DEVICE void put(T* out, int64_t at, int count, const Quad& quad) {
  alignas(16) T value[4];
  if constexpr (Kind == PRUNEFAST_WORDS) {
    for (int i = 0; i < 4; ++i) value[i] = quad.word[i];
  } else {
    float number[4];
    if constexpr (Kind == PRUNEFAST_UNIFORM) {
      for (int i = 0; i < 4; ++i) number[i] = uniform(quad.word[i]);
    } else {
      normals(quad.word, number);
    }
    for (int i = 0; i < 4; ++i) value[i] = from_float<T>(number[i]);
  }
  if constexpr (vector) {
    using Words = std::conditional_t<sizeof(T) == 4, uint4, uint2>;
    Words words;
    memcpy(&words, value, sizeof words);
    store_words(out + at, words);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i < count) out[at + i] = value[i];
    }
  }
}

template <int Kind, typename T, bool vector>
__global__ void __launch_bounds__(kBlock) philox_kernel(T* out, int64_t elements, int64_t blocks, uint64_t seed,
                                                        uint32_t stream, const int64_t* position) {
  const int64_t sample = blockIdx.x / blocks, block = blockIdx.x % blocks;
  const uint64_t place = (uint64_t)position[sample];
#pragma unroll 1
  for (int part = 0; part < 4; ++part) {
    const int64_t quad = block * (kBlockElements / 4) + part * kBlock + threadIdx.x, element = quad * 4;
    if (element >= elements) return;
    const int64_t left = elements - element;
    put<Kind, T, vector>(out, sample * elements + element, left < 4 ? (int)left : 4,
                         quad_of((uint32_t)quad, stream, place, seed));
  }
}

struct Job {
  void* out;
  int64_t samples, elements;
  uint64_t seed;
  uint32_t stream_word;
  const int64_t* position;
};

template <int Kind, typename T>
int32_t start(const Job& job, void* stream) {
  const int64_t blocks = blocks_for(job.elements, kBlockElements);
  const bool vector = job.elements % 4 == 0 && (uintptr_t)job.out % (4 * sizeof(T)) == 0;
  return check(launch(vector ? philox_kernel<Kind, T, true> : philox_kernel<Kind, T, false>, job.samples * blocks,
                      kBlock, stream, static_cast<T*>(job.out), job.elements, blocks, job.seed, job.stream_word,
                      job.position),
               "philox");
}

}  // namespace
}  // namespace prunefast

int32_t prunefast_cuda_philox(int32_t kind, void* out, int32_t dtype, int64_t samples, int64_t elements, uint64_t seed,
                              uint32_t stream_word, const int64_t* position, int32_t device, void* stream) {
  using namespace prunefast;
  if (samples < 0 || elements < 0 || elements > (int64_t{4} << 32) || (samples && elements && (!out || !position)))
    return fail(PRUNEFAST_BAD_ARGUMENT, "%s", "philox: sizes must be at least 0 and below 2^34 elements a sample");
  if (samples == 0 || elements == 0) return PRUNEFAST_OK;
  const DeviceScope scope(device, "philox");
  if (scope.status()) return scope.status();
  const Job job = {out, samples, elements, seed, stream_word, position};
  if (kind == PRUNEFAST_WORDS) return start<PRUNEFAST_WORDS, uint32_t>(job, stream);
  if (kind == PRUNEFAST_UNIFORM && dtype == PRUNEFAST_FLOAT32) return start<PRUNEFAST_UNIFORM, float>(job, stream);
  if (kind == PRUNEFAST_NORMAL) {
    if (dtype == PRUNEFAST_FLOAT32) return start<PRUNEFAST_NORMAL, float>(job, stream);
    if (dtype == PRUNEFAST_BFLOAT16) return start<PRUNEFAST_NORMAL, bfloat16>(job, stream);
    if (dtype == PRUNEFAST_FLOAT16) return start<PRUNEFAST_NORMAL, float16>(job, stream);
  }
  return fail(PRUNEFAST_BAD_ARGUMENT, "philox: kind %d cannot be written as dtype %d", kind, dtype);
}
