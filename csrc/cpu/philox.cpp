// Random numbers of many samples: blocks of quads, cut where the last quad of a sample is not whole.
#include <algorithm>
#include <cstring>

#include "kernels/table.h"
#include "parallel.h"
#include "status.h"

namespace prunefast {
namespace {

constexpr int64_t kBlockQuads = 16 * kTile / 4;  // 64 KB of floats: enough work to hand to a thread

bool fits(int32_t kind, int32_t dtype) {
  const bool half = dtype == PRUNEFAST_BFLOAT16 || dtype == PRUNEFAST_FLOAT16;
  return kind == PRUNEFAST_WORDS || dtype == PRUNEFAST_FLOAT32 || (kind == PRUNEFAST_NORMAL && half);
}

void fill(int32_t kind, void* out, int32_t dtype, int64_t element, int64_t count, const PhiloxKey& key) {
  alignas(64) float tile[kTile + kTilePad];
  const Kernels& set = kernels();
  const prunefast_image image = {out, {0, 0, 0, 1}, dtype};
  for (int64_t done = 0; done < count; done += kTile) {
    const int64_t part = std::min(kTile, count - done), quad = (element + done) / 4, quads = (part + 3) / 4;
    if (kind == PRUNEFAST_WORDS) {
      uint32_t words[kTile + kTilePad];
      set.quad_words(words, quad, quads, key);
      std::memcpy(static_cast<uint32_t*>(out) + done, words, static_cast<size_t>(part) * sizeof(uint32_t));
    } else {
      (kind == PRUNEFAST_NORMAL ? set.quad_normals : set.quad_uniforms)(tile, quad, quads, key);
      set.store(tile, &image, done, 1, part);
    }
  }
}

}  // namespace
}  // namespace prunefast

int32_t prunefast_philox(int32_t kind, void* out, int32_t dtype, int64_t samples, int64_t elements, uint64_t seed,
                         uint32_t stream, const int64_t* position, int32_t threads) {
  using namespace prunefast;
  return guarded([&]() -> int32_t {
    if (kind < PRUNEFAST_WORDS || kind > PRUNEFAST_NORMAL || !fits(kind, dtype))
      return fail(PRUNEFAST_BAD_ARGUMENT, "philox: kind %d cannot be written as dtype %d", kind, dtype);
    if (samples < 0 || elements < 0 || elements > (int64_t{4} << 32) || (samples && elements && (!out || !position)))
      return fail(PRUNEFAST_BAD_ARGUMENT, "%s", "philox: sizes must be at least 0 and below 2^34 elements a sample");
    const int64_t width = kind == PRUNEFAST_WORDS || dtype == PRUNEFAST_FLOAT32 ? 4 : 2;
    const int64_t block = 4 * kBlockQuads, per_sample = (elements + block - 1) / block, blocks = samples * per_sample;
    parallel_blocks(blocks, threads_for(threads, (samples * elements + block - 1) / block), [&](int64_t b, int) {
      const int64_t sample = b / per_sample, element = b % per_sample * block;
      char* target = static_cast<char*>(out) + (sample * elements + element) * width;
      fill(kind, target, dtype, element, std::min(block, elements - element),
           PhiloxKey{seed, stream, position[sample]});
    });
    return PRUNEFAST_OK;
  });
}
