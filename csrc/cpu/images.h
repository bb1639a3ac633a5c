// What add_noise and denoising_loss share: checks, and the choice of how a sample is walked.
#pragma once

#include <algorithm>

#include "kernels/table.h"
#include "status.h"

namespace prunefast {

constexpr int64_t kChunkElements = 16 * kTile;  // of one block: part of the order of summation, so a constant

inline bool dense(const prunefast_image& image, int64_t channels, int64_t height, int64_t width) {
  const int64_t* s = image.stride;
  return (width == 1 || s[3] == 1) && (height == 1 || s[2] == width) && (channels == 1 || s[1] == height * width);
}

inline bool dense_channels_last(const prunefast_image& image, int64_t channels, int64_t height, int64_t width) {
  const int64_t* s = image.stride;
  return (channels == 1 || s[1] == 1) && (width == 1 || s[3] == channels) && (height == 1 || s[2] == width * channels);
}

// `mine` is the prediction or the noisy image.
inline Layout layout_of(const prunefast_image_args& args, const prunefast_image& mine, const prunefast_image& also) {
  const int64_t c = args.channels, h = args.height, w = args.width;
  const bool whole = !args.corner && !args.flip;
  const prunefast_image* operands[] = {&mine, &also, &args.x0, &args.noise};
  const auto all = [&](auto is_dense) {
    return std::all_of(operands, operands + 4,
                       [&](const prunefast_image* o) { return !o->data || is_dense(*o, c, h, w); });
  };
  if (whole && all(dense)) return Layout::flat;
  if (whole && args.noise.data && all(dense_channels_last)) return Layout::flat;
  return mine.stride[1] == 1 && c > 1 ? Layout::pixel_major : Layout::row_major;
}

// Elements (flat) or rows of a sample, and how many of them one block takes.
inline void chunk_sizes(const ImagePlan& plan, int64_t channels, int64_t* units, int64_t* step) {
  const prunefast_image_args& args = plan.images;
  const bool flat = plan.layout == Layout::flat;
  *units = flat ? channels * args.height * args.width : channels * args.height;
  *step = flat ? kChunkElements : std::max<int64_t>(1, kChunkElements / std::max<int64_t>(args.width, 1));
}

inline int32_t check_images(const prunefast_image_args& args, const char* op) {
  if (args.samples < 0 || args.channels < 0 || args.height < 0 || args.width < 0)
    return fail(PRUNEFAST_BAD_ARGUMENT, "%s: sizes must be at least 0", op);
  const bool empty = !(args.samples && args.channels && args.height && args.width);
  if (!empty && (!args.x0.data || (!args.noise.data && !args.position)))
    return fail(PRUNEFAST_BAD_ARGUMENT, "%s: x0 and noise or position are needed", op);
  if (args.x0.dtype > PRUNEFAST_UINT8 || args.noise.dtype > PRUNEFAST_FLOAT16)
    return fail(PRUNEFAST_BAD_ARGUMENT, "%s: dtype %d of x0 or %d of noise", op, args.x0.dtype, args.noise.dtype);
  if (!args.corner) {
    if (args.height != args.image_height || args.width != args.image_width)
      return fail(PRUNEFAST_BAD_ARGUMENT, "%s: without boxes the sizes must be those of x0", op);
    return PRUNEFAST_OK;
  }
  for (int64_t i = 0; i < args.samples; ++i) {
    const int64_t top = args.corner[2 * i], left = args.corner[2 * i + 1];
    if (top < 0 || left < 0 || top > args.image_height - args.height || left > args.image_width - args.width)
      return fail(PRUNEFAST_OUT_OF_RANGE, "boxes: the box of sample %lld at (%lld, %lld) leaves the %lld x %lld image",
                  (long long)i, (long long)top, (long long)left, (long long)args.image_height,
                  (long long)args.image_width);
  }
  return PRUNEFAST_OK;
}

}  // namespace prunefast
