// The streaming kernels: one pass over prediction, clean image and noise, a tile of each at a time in the first-level
// cache.
#pragma once

#include "convert.h"
#include "philox.h"

namespace prunefast {
namespace {

struct Tile {
  alignas(64) float data[kTile + kTilePad];
};

// Where a run of pixels lies: `element` in the logical order (channel, y, x) of the output, for the random noise.
struct Run {
  int64_t channel, y, x, element, count;
};

inline int64_t at(const prunefast_image& image, int64_t sample, int64_t channel, int64_t y, int64_t x) {
  return sample * image.stride[0] + channel * image.stride[1] + y * image.stride[2] + x * image.stride[3];
}

// Calls `body` for runs of at most kTile elements of a chunk. In a flat plan a run is any range of elements, kept in
// `element`.
template <typename Body>
inline void each_run(const ImagePlan& plan, int64_t channels, int64_t begin, int64_t end, Body body) {
  const int64_t height = plan.images.height, width = plan.images.width;
  if (plan.layout == Layout::flat) {
    for (int64_t element = begin; element < end; element += kTile)
      body(Run{0, 0, 0, element, end - element < kTile ? end - element : kTile});
    return;
  }
  for (int64_t row = begin; row < end; ++row) {
    const bool pixel = plan.layout == Layout::pixel_major;
    const int64_t channel = pixel ? row % channels : row / height, y = pixel ? row / channels : row % height;
    for (int64_t x = 0; x < width; x += kTile)
      body(Run{channel, y, x, (channel * height + y) * width + x, width - x < kTile ? width - x : kTile});
  }
}

// `count` values at `offset`: where they lie when nothing is to be converted or gathered, else in `tile`.
inline const float* view(float* tile, const prunefast_image& image, int64_t offset, int64_t stride, int64_t count) {
  if (image.dtype == PRUNEFAST_FLOAT32 && stride == 1) return (const float*)image.data + offset;
  load_tile(tile, &image, offset, stride, count);
  return tile;
}

inline int64_t offset_of(const ImagePlan& plan, const prunefast_image& image, int64_t sample, const Run& run) {
  if (plan.layout == Layout::flat) return sample * image.stride[0] + run.element;
  return at(image, sample, run.channel, run.y, run.x);
}

inline const float* load_operand(float* tile, const ImagePlan& plan, const prunefast_image& image, int64_t sample,
                                 const Run& run) {
  const int64_t stride = plan.layout == Layout::flat ? 1 : image.stride[3];
  return view(tile, image, offset_of(plan, image, sample, run), stride, run.count);
}

inline void store_operand(const float* tile, const ImagePlan& plan, const prunefast_image& image, int64_t sample,
                          const Run& run) {
  const int64_t stride = plan.layout == Layout::flat ? 1 : image.stride[3];
  store_tile(tile, &image, offset_of(plan, image, sample, run), stride, run.count);
}

// The clean image: mirrored, then cut. A flat plan has neither.
inline const float* load_clean(float* tile, const ImagePlan& plan, int64_t sample, const Run& run) {
  const prunefast_image_args& args = plan.images;
  if (plan.layout == Layout::flat) return load_operand(tile, plan, args.x0, sample, run);
  const int64_t top = args.corner ? args.corner[2 * sample] : 0, left = args.corner ? args.corner[2 * sample + 1] : 0;
  const bool mirrored = args.flip && args.flip[sample];
  const int64_t x = mirrored ? args.image_width - 1 - (left + run.x) : left + run.x;
  return view(tile, args.x0, at(args.x0, sample, run.channel, top + run.y, x),
              mirrored ? -args.x0.stride[3] : args.x0.stride[3], run.count);
}

// The noise of a run, in `tile` or behind its first few elements: a quad begins where the run may not.
inline const float* load_noise(float* tile, const ImagePlan& plan, int64_t sample, const Run& run) {
  const prunefast_image_args& args = plan.images;
  if (args.noise.data) return load_operand(tile, plan, args.noise, sample, run);
  const int64_t skip = run.element % 4, quads = (skip + run.count + 3) / 4;
  quad_normals(tile, run.element / 4, quads, PhiloxKey{args.seed, 0, args.position[sample]});
  return tile + skip;
}

// Sum of squared differences of a tile in sixteen float lanes of at most 64 terms, folded in float64: the same order
// everywhere. The scaled differences are written in the type of `pred`: float32, or bfloat16 as uint16_t.
template <typename T, bool Streamed>
inline double tile_loss(const T* pred, const float* clean, const float* noise, T* out, int64_t count, float a, float b,
                        float scale) {
  constexpr int parts = 16 / kVector;
  vf sum[parts] = {};
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) {
#pragma GCC unroll 4
    for (int part = 0; part < parts; ++part) {
      const int64_t at = i + part * kVector;
      // a tile ahead: across the pages at which the processor's own prefetching ends
      __builtin_prefetch(clean + at + kTile, 0, 3);
      __builtin_prefetch(noise + at + kTile, 0, 3);
      const vf difference = widen(pred + at) - (splat(a) * load(clean + at) + splat(b) * load(noise + at));
      sum[part] += difference * difference;
      narrow<Streamed>(difference * splat(scale), out + at);
    }
  }
  float lanes[16];
  memcpy(lanes, sum, sizeof lanes);
  for (int lane = 0; i < count; ++i, ++lane) {
    const float difference = widen_one(pred[i]) - (a * clean[i] + b * noise[i]);
    lanes[lane] += difference * difference;
    narrow_one(difference * scale, out + i);
  }
  double total = 0;
  for (int lane = 0; lane < 16; ++lane) total += (double)lanes[lane];
  return total;
}

// Prediction and gradient lie dense in one type that needs no tile.
template <typename T, bool Streamed>
double dense_loss_chunk(const LossPlan* plan, int64_t sample, int64_t begin, int64_t end, float a, float b,
                        float scale) {
  Tile clean, noise, unused;
  double sum = 0;
  each_run(plan->base, plan->base.images.channels, begin, end, [&](const Run& run) {
    const T* predicted = (const T*)plan->pred.data + offset_of(plan->base, plan->pred, sample, run);
    T* gradient = (T*)unused.data;
    if (plan->gradient.data)
      gradient = (T*)plan->gradient.data + offset_of(plan->base, plan->gradient, sample, run);
    const float* data = load_clean(clean.data, plan->base, sample, run);
    const float* values = load_noise(noise.data, plan->base, sample, run);
    sum += tile_loss<T, Streamed>(predicted, data, values, gradient, run.count, a, b, scale);
  });
  if (Streamed) end_of_stream();
  return sum;
}

double loss_chunk(const LossPlan* plan, int64_t sample, int64_t begin, int64_t end, float a, float b, float scale) {
  const int32_t dtype = plan->pred.dtype;
  const bool same = !plan->gradient.data || plan->gradient.dtype == dtype;
  if (plan->base.layout == Layout::flat && same && dtype != PRUNEFAST_FLOAT16) {
    const auto chunk = dtype == PRUNEFAST_FLOAT32
                           ? (plan->streamed ? dense_loss_chunk<float, true> : dense_loss_chunk<float, false>)
                           : (plan->streamed ? dense_loss_chunk<uint16_t, true> : dense_loss_chunk<uint16_t, false>);
    return chunk(plan, sample, begin, end, a, b, scale);
  }
  Tile pred, clean, noise;
  double sum = 0;
  each_run(plan->base, plan->base.images.channels, begin, end, [&](const Run& run) {
    const float* predicted = load_operand(pred.data, plan->base, plan->pred, sample, run);
    const float* data = load_clean(clean.data, plan->base, sample, run);
    const float* values = load_noise(noise.data, plan->base, sample, run);
    sum += tile_loss<float, false>(predicted, data, values, pred.data, run.count, a, b, scale);
    if (plan->gradient.data) store_operand(pred.data, plan->base, plan->gradient, sample, run);
  });
  return sum;
}

// The coordinate channels: column, then row, of each pixel in the whole (mirrored) image.
inline void coordinates(float* tile, const ImagePlan& plan, int64_t sample, const Run& run) {
  const prunefast_image_args& args = plan.images;
  const bool columns = run.channel == plan.noise_channels;
  const int64_t size = columns ? args.image_width : args.image_height;
  const int64_t corner = args.corner ? args.corner[2 * sample + (columns ? 1 : 0)] : 0;
  const float span = size > 1 ? (float)(size - 1) : 1.0f;
  for (int64_t i = 0; i < run.count; ++i) {
    const int64_t place = corner + (columns ? run.x + i : run.y);
    tile[i] = (float)(2 * place - (size - 1)) / span;
  }
}

void noise_chunk(const NoisePlan* plan, int64_t sample, int64_t begin, int64_t end, float alpha, float sigma) {
  Tile clean, noise;
  each_run(plan->base, plan->out_channels, begin, end, [&](const Run& run) {
    if (run.channel >= plan->base.noise_channels) {
      coordinates(clean.data, plan->base, sample, run);
    } else {
      const float* data = load_clean(clean.data, plan->base, sample, run);
      const float* values = load_noise(noise.data, plan->base, sample, run);
      for (int64_t i = 0; i < run.count; ++i) clean.data[i] = alpha * data[i] + sigma * values[i];
    }
    store_operand(clean.data, plan->base, plan->out, sample, run);
  });
}

}  // namespace
}  // namespace prunefast
