// What add_noise and denoising_loss share: which way a sample is walked, and how a thread reads its group of elements.
//
// The host puts the three dimensions of an image in the order in which the prediction (or result) lies in memory, so the
// kernels see one case instead of NCHW and channels_last. A group is 8 elements next to each other in that order: one
// access of 16 bytes for a half-precision operand, two for float32. An operand that is not dense in that order, not
// aligned, or cut out of a larger image is read element by element, with any strides: mirroring and cutting change its
// first address and the sign of one stride, nothing else.
#pragma once

#include "device.h"

namespace prunefast {

enum class Noise {
  tensor,  // read; groups of 8 in memory order
  linear,  // Philox, memory order is the logical order: groups of 8 are two quads
  pixels,  // Philox, channels_last: a group is a quad, 4 pixels of one channel; neighbouring threads take channels
};

constexpr uint32_t kGroup = 8;
constexpr int kGroupsPerThread = 4;  // of one block: part of the order of summation, so a constant

template <Noise noise>
constexpr uint32_t group_size = noise == Noise::pixels ? 4 : kGroup;

struct Operand {
  char* data;
  int64_t sample_stride, stride[3];  // in elements, in walking order
  int32_t dtype;
  bool vector;  // a group is contiguous and aligned
};

struct Walk {
  uint32_t size[3];  // in walking order, slowest first
  uint32_t elements, groups, blocks;  // of a sample
  uint32_t channels;                  // Noise::pixels
  int32_t column_dimension;           // 1 or 2; the row's is the one before
  int64_t image_height, image_width, height, width;
  Operand x0, noise;
  uint64_t seed;
  const int64_t *position, *corner;
  const uint8_t* flip;
};

// Elements of the group of this thread.
struct Place {
  uint32_t first, count, index[3];
};

template <Noise noise>
PRUNEFAST_DEVICE Place locate(const Walk& walk, uint32_t group) {
  constexpr uint32_t size = group_size<noise>;
  Place place;
  if (noise == Noise::pixels) {
    const uint32_t pixels = walk.elements / walk.channels;
    place.first = group % walk.channels * pixels + group / walk.channels * size;
  } else {
    place.first = group * size;
  }
  const uint32_t left = walk.elements - place.first;
  place.count = left < size ? left : size;
  const uint32_t row = place.first / walk.size[2];
  place.index[2] = place.first - row * walk.size[2];
  place.index[0] = row / walk.size[1];
  place.index[1] = row - place.index[0] * walk.size[1];
  return place;
}

// Calls each(i, offset) for the elements of a group, the offset from the sample's first element in elements.
template <uint32_t size, typename Each>
PRUNEFAST_DEVICE void each_element(const Walk& walk, const Place& place, int64_t s0, int64_t s1, int64_t s2, Each each) {
  uint32_t i1 = place.index[1], i2 = place.index[2];
  int64_t offset = place.index[0] * s0 + i1 * s1 + i2 * s2;
#pragma unroll
  for (uint32_t i = 0; i < size; ++i) {
    if (i < place.count) each(i, offset);
    offset += s2;
    if (++i2 == walk.size[2]) {
      i2 = 0;
      offset += s1 - walk.size[2] * s2;
      if (++i1 == walk.size[1]) {
        i1 = 0;
        offset += s0 - walk.size[1] * s1;
      }
    }
  }
}

template <uint32_t size, typename T>
PRUNEFAST_DEVICE void gather(const Walk& walk, const Place& place, const T* data, int64_t s0, int64_t s1, int64_t s2,
                             float* out) {
  each_element<size>(walk, place, s0, s1, s2, [&](uint32_t i, int64_t offset) { out[i] = to_float(data[offset]); });
}

// A group as it lies in memory: loads are issued for every operand before the first value is used.
struct Raw {
  uint4 low, high;
};

PRUNEFAST_DEVICE Raw load_raw(const Operand& operand, int64_t sample, uint32_t first) {
  Raw raw = {};
  const int64_t at = sample * operand.sample_stride + first;
  if (operand.dtype == PRUNEFAST_FLOAT32) {
    const uint4* from = reinterpret_cast<const uint4*>(operand.data + at * 4);
    raw.low = from[0];
    raw.high = from[1];
  } else if (operand.dtype == PRUNEFAST_UINT8) {
    const uint2 bytes = *reinterpret_cast<const uint2*>(operand.data + at);
    raw.low.x = bytes.x;
    raw.low.y = bytes.y;
  } else {
    raw.low = *reinterpret_cast<const uint4*>(operand.data + at * 2);
  }
  return raw;
}

template <typename T>
PRUNEFAST_DEVICE void unpack_as(const Raw& raw, float* out) {
  T value[kGroup];
  memcpy(value, &raw, sizeof value);
#pragma unroll
  for (uint32_t i = 0; i < kGroup; ++i) out[i] = to_float(value[i]);
}

PRUNEFAST_DEVICE void unpack(const Raw& raw, int32_t dtype, float* out) {
  if (dtype == PRUNEFAST_FLOAT32) return unpack_as<float>(raw, out);
  if (dtype == PRUNEFAST_BFLOAT16) return unpack_as<bfloat16>(raw, out);
  if (dtype == PRUNEFAST_FLOAT16) return unpack_as<float16>(raw, out);
  unpack_as<uint8_t>(raw, out);
}

template <uint32_t size>
PRUNEFAST_DEVICE void gather_operand(const Walk& walk, const Place& place, const Operand& operand, int64_t first,
                                     int64_t s0, int64_t s1, int64_t s2, float* out) {
  if (operand.dtype == PRUNEFAST_FLOAT32)
    return gather<size>(walk, place, reinterpret_cast<const float*>(operand.data) + first, s0, s1, s2, out);
  if (operand.dtype == PRUNEFAST_BFLOAT16)
    return gather<size>(walk, place, reinterpret_cast<const bfloat16*>(operand.data) + first, s0, s1, s2, out);
  if (operand.dtype == PRUNEFAST_FLOAT16)
    return gather<size>(walk, place, reinterpret_cast<const float16*>(operand.data) + first, s0, s1, s2, out);
  gather<size>(walk, place, reinterpret_cast<const uint8_t*>(operand.data) + first, s0, s1, s2, out);
}

PRUNEFAST_DEVICE int64_t clamp(int64_t value, int64_t low, int64_t high) {
  return value < low ? low : value > high ? high : value;
}

// The clean image of a sample, cut and mirrored. A box that leaves the image is moved inside: no address is trusted.
template <uint32_t size>
PRUNEFAST_DEVICE void gather_clean(const Walk& walk, const Place& place, int64_t sample, float* out) {
  const bool inner = walk.column_dimension == 2;  // NCHW: rows are dimension 1, columns dimension 2
  const int64_t* stride = walk.x0.stride;
  const int64_t row_stride = inner ? stride[1] : stride[0], column_stride = inner ? stride[2] : stride[1];
  int64_t top = 0, left = 0;
  if (walk.corner) {
    top = clamp(walk.corner[2 * sample], 0, walk.image_height - walk.height);
    left = clamp(walk.corner[2 * sample + 1], 0, walk.image_width - walk.width);
  }
  const bool mirrored = walk.flip && walk.flip[sample];
  const int64_t column = mirrored ? walk.image_width - 1 - left : left;
  const int64_t step = mirrored ? -column_stride : column_stride;
  const int64_t first = sample * walk.x0.sample_stride + top * row_stride + column * column_stride;
  gather_operand<size>(walk, place, walk.x0, first, stride[0], inner ? stride[1] : step, inner ? step : stride[2], out);
}

// Everything a thread needs of one group: `mine` (absent for add_noise), the clean image and the noise.
template <Noise noise, bool with_mine>
PRUNEFAST_DEVICE void read_group(const Walk& walk, const Place& place, int64_t sample, const Operand& mine,
                                 float* value, float* clean, float* random) {
  constexpr uint32_t size = group_size<noise>;
  Raw raw_mine = {}, raw_clean = {}, raw_noise = {};
  const bool vectors = size == kGroup;
  if (with_mine && vectors && mine.vector) raw_mine = load_raw(mine, sample, place.first);
  if (vectors && walk.x0.vector) raw_clean = load_raw(walk.x0, sample, place.first);
  if (noise == Noise::tensor && walk.noise.vector) raw_noise = load_raw(walk.noise, sample, place.first);

  if (with_mine && !(vectors && mine.vector))
    gather_operand<size>(walk, place, mine, sample * mine.sample_stride, mine.stride[0], mine.stride[1],
                         mine.stride[2], value);
  if (!(vectors && walk.x0.vector)) gather_clean<size>(walk, place, sample, clean);
  if (noise == Noise::tensor) {
    if (!walk.noise.vector)
      gather_operand<size>(walk, place, walk.noise, sample * walk.noise.sample_stride, walk.noise.stride[0],
                           walk.noise.stride[1], walk.noise.stride[2], random);
  } else {
    const uint64_t position = (uint64_t)walk.position[sample];
#pragma unroll
    for (uint32_t i = 0; i < size; i += 4) normals(quad_of(place.first / 4 + i / 4, 0, position, walk.seed).word, random + i);
  }
  if constexpr (size == kGroup) {
    if (with_mine && mine.vector) unpack(raw_mine, mine.dtype, value);
    if (walk.x0.vector) unpack(raw_clean, walk.x0.dtype, clean);
    if (noise == Noise::tensor && walk.noise.vector) unpack(raw_noise, walk.noise.dtype, random);
  }
}

template <Noise noise, typename T>
PRUNEFAST_DEVICE void write_group(const Walk& walk, const Place& place, int64_t sample, const Operand& mine,
                                  const float* value) {
  constexpr uint32_t size = group_size<noise>;
  T* data = reinterpret_cast<T*>(mine.data) + sample * mine.sample_stride;
  if constexpr (size == kGroup) {
    if (mine.vector) {
#pragma unroll
      for (uint32_t i = 0; i < kGroup; i += Vector<T>::size) store_vector(data + place.first + i, value + i);
      return;
    }
  }
  each_element<size>(walk, place, mine.stride[0], mine.stride[1], mine.stride[2],
                     [&](uint32_t i, int64_t offset) { data[offset] = from_float<T>(value[i]); });
}

// ---- the host's part

inline Operand operand_of(const prunefast_image& image, const int* order, const int64_t* size) {
  Operand result = {static_cast<char*>(image.data), image.stride[0], {}, image.dtype, false};
  for (int i = 0; i < 3; ++i) result.stride[i] = image.stride[1 + order[i]];
  if (!image.data) return result;
  const int64_t bytes = image.dtype == PRUNEFAST_FLOAT32 ? 4 : image.dtype == PRUNEFAST_UINT8 ? 1 : 2;
  const int64_t alignment = bytes == 1 ? 8 : 16, elements = size[0] * size[1] * size[2];
  const bool dense = (size[2] == 1 || result.stride[2] == 1) && (size[1] == 1 || result.stride[1] == size[2]) &&
                     (size[0] == 1 || result.stride[0] == size[1] * size[2]);
  result.vector = dense && elements % kGroup == 0 && (uintptr_t)image.data % alignment == 0 &&
                  result.sample_stride * bytes % alignment == 0;
  return result;
}

// Fills the walk of `mine`, the prediction or result, whose order decides; `mine_operand` in that order.
inline int32_t plan(const prunefast_image_args& args, const prunefast_image& mine, const char* op, Walk* walk,
                    Noise* noise, int* order, int64_t* size) {
  const int64_t extent[3] = {args.channels, args.height, args.width};
  const int64_t elements = extent[0] * extent[1] * extent[2];
  if (args.samples < 0 || extent[0] < 0 || extent[1] < 0 || extent[2] < 0)
    return fail(PRUNEFAST_BAD_ARGUMENT, "%s: sizes must be at least 0", op);
  if (args.samples * elements != 0 && (!args.x0.data || !mine.data || (!args.noise.data && !args.position)))
    return fail(PRUNEFAST_BAD_ARGUMENT, "%s: images, and noise or position, are needed", op);
  if (mine.dtype > PRUNEFAST_FLOAT16 || args.x0.dtype > PRUNEFAST_UINT8 || args.noise.dtype > PRUNEFAST_FLOAT16)
    return fail(PRUNEFAST_BAD_ARGUMENT, "%s: dtype %d, %d of x0 or %d of noise", op, mine.dtype, args.x0.dtype,
                args.noise.dtype);
  if (args.height > args.image_height || args.width > args.image_width ||
      (!args.corner && (args.height != args.image_height || args.width != args.image_width)))
    return fail(PRUNEFAST_BAD_ARGUMENT, "%s: the sizes do not fit those of x0", op);
  if (elements > 0x7FFFFFF0)
    return fail(PRUNEFAST_UNSUPPORTED, "%s: a sample of more than 2^31 - 16 elements", op);

  const bool channels_last = mine.stride[1] == 1 && args.channels > 1;
  const bool random = !args.noise.data;
  *noise = !random                                                                ? Noise::tensor
           : channels_last && args.height * args.width % group_size<Noise::pixels> == 0 ? Noise::pixels
                                                                                  : Noise::linear;
  const bool last_order = channels_last && !random;  // Philox numbers elements in the logical order, so it walks so
  for (int i = 0; i < 3; ++i) {
    order[i] = last_order ? (i + 1) % 3 : i;
    size[i] = extent[order[i]];
    walk->size[i] = (uint32_t)size[i];
  }
  const int64_t each = *noise == Noise::pixels ? group_size<Noise::pixels> : kGroup;
  walk->elements = (uint32_t)elements;
  walk->groups = (uint32_t)blocks_for(elements, each);
  walk->blocks = (uint32_t)blocks_for(walk->groups, kBlock * kGroupsPerThread);
  walk->channels = (uint32_t)args.channels;
  walk->column_dimension = last_order ? 1 : 2;
  walk->image_height = args.image_height;
  walk->image_width = args.image_width;
  walk->height = args.height;
  walk->width = args.width;
  walk->x0 = operand_of(args.x0, order, size);
  walk->x0.vector = walk->x0.vector && !args.corner && !args.flip;
  walk->noise = operand_of(args.noise, order, size);
  walk->seed = args.seed;
  walk->position = args.position;
  walk->corner = args.corner;
  walk->flip = args.flip;
  return PRUNEFAST_OK;
}

}  // namespace prunefast
