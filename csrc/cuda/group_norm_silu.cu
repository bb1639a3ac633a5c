// Group norm, modulation and SiLU of channels_last images, forward and backward.
//
// For one image and channel the norm, its affine map and the modulation are one multiply-add, so forward is: sums of
// each channel (x read once); a small kernel that turns them into factor and offset; y = silu(factor x + offset) (x
// read again, from the L2 cache where it fits). Backward has the same three steps for its two sums, dz = dy silu'(z):
//
//   S1 = sum dz, S2 = sum dz (x - mean) rstd over the pixels of a channel; k = weight (1 + scale)
//   dx = rstd (k dz - mean_g(k S1) - (x - mean) rstd mean_g(k S2)), mean_g over the elements of the group
//
// Squares are taken about the first pixel of each channel, so a large offset costs no digits.
#include "device.h"

namespace prunefast {
namespace {

constexpr int kPixelsPerThread = 8;  // of one block: part of the order of summation

// How a block lies on an image: `columns` vectors of channels side by side, `rows` pixels below each other.
struct Tiling {
  int64_t samples, pixels, channels, groups, chunks, column_blocks;
  int32_t columns, rows;
  bool silu;
};

struct Parameters {
  const void *weight, *bias, *scale, *shift;
  int64_t modulation_row_stride;
  int32_t weight_dtype, modulation_dtype;
};

PRUNEFAST_DEVICE float gain(const Parameters& p, int64_t sample, int64_t channel) {
  return p.scale ? 1.0f + read(p.scale, p.modulation_dtype, sample * p.modulation_row_stride + channel) : 1.0f;
}

struct Spot {
  int64_t sample, chunk, channel;  // channel: the first of this thread's vector
  int32_t row;
  bool inside;
};

template <typename T>
PRUNEFAST_DEVICE Spot locate(const Tiling& t) {
  Spot spot;
  spot.sample = blockIdx.x / (t.chunks * t.column_blocks);
  const int64_t rest = blockIdx.x % (t.chunks * t.column_blocks);
  spot.chunk = rest / t.column_blocks;
  const int column = threadIdx.x % t.columns;
  spot.row = threadIdx.x / t.columns;
  spot.channel = (rest % t.column_blocks * t.columns + column) * Vector<T>::size;
  spot.inside = spot.row < t.rows && spot.channel < t.channels;
  return spot;
}

PRUNEFAST_DEVICE int64_t first_pixel(const Tiling& t, const Spot& spot) {
  return spot.chunk * t.rows * kPixelsPerThread + spot.row;
}

PRUNEFAST_DEVICE float sigmoid(float z) { return __fdividef(1.0f, 1.0f + __expf(-z)); }

// Two sums of each channel over the pixel rows of the block -> partial [samples, chunks, 2, channels].
template <typename T>
PRUNEFAST_DEVICE void write_partial(const Tiling& t, const Spot& spot, const float* first, const float* second,
                                    float* shared, float* partial) {
  constexpr int size = Vector<T>::size;
  const int width = t.columns * size;
  if (spot.row < t.rows) {
#pragma unroll
    for (int i = 0; i < size; ++i) {
      const int at = spot.row * 2 * width + threadIdx.x % t.columns * size + i;
      shared[at] = first[i];
      shared[at + width] = second[i];
    }
  }
  __syncthreads();
  const int64_t begin = blockIdx.x % t.column_blocks * width;
  for (int i = threadIdx.x; i < 2 * width; i += kBlock) {
    const int64_t channel = begin + i % width;
    if (channel >= t.channels) continue;
    float sum = 0;
    for (int row = 0; row < t.rows; ++row) sum += shared[row * 2 * width + i];
    partial[((spot.sample * t.chunks + spot.chunk) * 2 + i / width) * t.channels + channel] = sum;
  }
}

template <typename T>
__global__ void __launch_bounds__(kBlock) moments_kernel(const Tiling t, const T* x, float* partial) {
  constexpr int size = Vector<T>::size;
  __shared__ float shared[kBlock * size * 2];
  const Spot spot = locate<T>(t);
  float sum[size] = {}, square[size] = {};
  if (spot.inside) {
    const T* image = x + spot.sample * t.pixels * t.channels + spot.channel;
    float pivot[size];
    load_vector(image, pivot);
    const int64_t pixel = first_pixel(t, spot);
#pragma unroll 4
    for (int k = 0; k < kPixelsPerThread; ++k) {
      const int64_t at = pixel + (int64_t)k * t.rows;
      if (at < t.pixels) {
        float value[size];
        load_vector(image + at * t.channels, value);
#pragma unroll
        for (int i = 0; i < size; ++i) {
          const float offset = value[i] - pivot[i];
          sum[i] += offset;
          square[i] += offset * offset;
        }
      }
    }
  }
  write_partial<T>(t, spot, sum, square, shared, partial);
}

struct ChannelSums {
  double first, second;
};

// Both sums of a channel over its chunks, in their order.
PRUNEFAST_DEVICE ChannelSums channel_sums(const Tiling& t, const float* partial, int64_t sample, int64_t channel) {
  const float* mine = partial + sample * t.chunks * 2 * t.channels + channel;
  ChannelSums sums = {0, 0};
  for (int64_t k = 0; k < t.chunks; ++k) {
    sums.first += mine[2 * k * t.channels];
    sums.second += mine[(2 * k + 1) * t.channels];
  }
  return sums;
}

// The norm, its affine map and the modulation of a channel as one multiply-add.
PRUNEFAST_DEVICE void write_map(const Tiling& t, const Parameters& p, int64_t sample, int64_t channel, double centre,
                                double inverse, float* factor, float* offset) {
  const double weight = read(p.weight, p.weight_dtype, channel), bias = read(p.bias, p.weight_dtype, channel);
  const double times = gain(p, sample, channel);
  const double plus = p.shift ? read(p.shift, p.modulation_dtype, sample * p.modulation_row_stride + channel) : 0.0f;
  factor[sample * t.channels + channel] = (float)(inverse * weight * times);
  offset[sample * t.channels + channel] = (float)((bias - centre * inverse * weight) * times + plus);
}

PRUNEFAST_DEVICE double everywhere(double value, double* shared) {
  value = warp_sum(value);
  if (threadIdx.x == 0) *shared = value;
  __syncthreads();
  value = *shared;
  __syncthreads();
  return value;
}

// One block of a warp an image and group: mean and rstd, and factor and offset of each channel.
template <typename T>
__global__ void __launch_bounds__(kWarp) statistics_kernel(const Tiling t, const Parameters p, const T* x,
                                                           const float* partial, float eps, float* mean, float* rstd,
                                                           float* factor, float* offset) {
  __shared__ double shared;
  const int64_t sample = blockIdx.x / t.groups, group = blockIdx.x % t.groups;
  const int64_t each = t.channels / t.groups, begin = group * each;
  const double pixels = (double)t.pixels, elements = pixels * (double)each;
  const T* pivot = x + sample * t.pixels * t.channels;
  double total = 0;
  for (int64_t c = begin + threadIdx.x; c < begin + each; c += kWarp) {
    total += channel_sums(t, partial, sample, c).first + pixels * to_float(pivot[c]);
  }
  const double centre = everywhere(total, &shared) / elements;
  total = 0;
  for (int64_t c = begin + threadIdx.x; c < begin + each; c += kWarp) {
    const ChannelSums sums = channel_sums(t, partial, sample, c);
    const double away = to_float(pivot[c]) - centre;  // of the pivot: squares about it become squares about the mean
    total += sums.second + 2 * away * sums.first + pixels * away * away;
  }
  const double variance = everywhere(total, &shared) / elements;
  const double inverse = 1.0 / sqrt((variance > 0 ? variance : variance != variance ? variance : 0.0) + (double)eps);
  if (threadIdx.x == 0) {
    mean[blockIdx.x] = (float)centre;
    rstd[blockIdx.x] = (float)inverse;
  }
  for (int64_t c = begin + threadIdx.x; c < begin + each; c += kWarp)
    write_map(t, p, sample, c, centre, inverse, factor, offset);
}

template <int size>
PRUNEFAST_DEVICE void load_channels(const float* table, float* out) {
#pragma unroll
  for (int i = 0; i < size; i += 4) load_vector(table + i, out + i);
}

template <typename T>
__global__ void __launch_bounds__(kBlock) forward_kernel(const Tiling t, const T* x, const float* factor,
                                                         const float* offset, T* y) {
  constexpr int size = Vector<T>::size;
  const Spot spot = locate<T>(t);
  if (!spot.inside) return;
  const int64_t start = spot.sample * t.pixels * t.channels + spot.channel;
  float times[size], plus[size];
  load_channels<size>(factor + spot.sample * t.channels + spot.channel, times);
  load_channels<size>(offset + spot.sample * t.channels + spot.channel, plus);
  const int64_t pixel = first_pixel(t, spot);
#pragma unroll 4
  for (int k = 0; k < kPixelsPerThread; ++k) {
    const int64_t at = pixel + (int64_t)k * t.rows;
    if (at < t.pixels) {
      float value[size];
      load_vector(x + start + at * t.channels, value);
#pragma unroll
      for (int i = 0; i < size; ++i) {
        const float z = times[i] * value[i] + plus[i];
        value[i] = t.silu ? z * sigmoid(z) : z;
      }
      store_vector(y + start + at * t.channels, value);
    }
  }
}

// Factor and offset again, from the saved mean and rstd: a table of channels is cheaper to make than to keep.
__global__ void __launch_bounds__(kBlock) tables_kernel(const Tiling t, const Parameters p, const float* mean,
                                                        const float* rstd, float* factor, float* offset) {
  const int64_t i = (int64_t)blockIdx.x * kBlock + threadIdx.x;
  if (i >= t.samples * t.channels) return;
  const int64_t sample = i / t.channels, c = i % t.channels, group = sample * t.groups + c / (t.channels / t.groups);
  write_map(t, p, sample, c, mean[group], rstd[group], factor, offset);
}

PRUNEFAST_DEVICE float slope_at(const Tiling& t, float z) {
  if (!t.silu) return 1.0f;
  const float s = sigmoid(z);
  return s * (1.0f + z * (1.0f - s));
}

// S1 and sum dz (x - mean), which S2 is rstd times.
template <typename T>
__global__ void __launch_bounds__(kBlock) gradient_sums_kernel(const Tiling t, const T* x, const T* dy,
                                                               const float* mean, const float* factor,
                                                               const float* offset, float* partial) {
  constexpr int size = Vector<T>::size;
  __shared__ float shared[kBlock * size * 2];
  const Spot spot = locate<T>(t);
  float first[size] = {}, second[size] = {};
  if (spot.inside) {
    const int64_t start = spot.sample * t.pixels * t.channels + spot.channel, each = t.channels / t.groups;
    float times[size], plus[size], centre[size];
    load_channels<size>(factor + spot.sample * t.channels + spot.channel, times);
    load_channels<size>(offset + spot.sample * t.channels + spot.channel, plus);
#pragma unroll
    for (int i = 0; i < size; ++i) centre[i] = mean[spot.sample * t.groups + (spot.channel + i) / each];
    const int64_t pixel = first_pixel(t, spot);
#pragma unroll 2
    for (int k = 0; k < kPixelsPerThread; ++k) {
      const int64_t at = pixel + (int64_t)k * t.rows;
      if (at < t.pixels) {
        float value[size], slope[size];
        load_vector(x + start + at * t.channels, value);
        load_vector(dy + start + at * t.channels, slope);
#pragma unroll
        for (int i = 0; i < size; ++i) {
          const float dz = slope[i] * slope_at(t, times[i] * value[i] + plus[i]);
          first[i] += dz;
          second[i] += dz * (value[i] - centre[i]);
        }
      }
    }
  }
  write_partial<T>(t, spot, first, second, shared, partial);
}

// One block of a warp an image and group. sums [samples, 2, channels]: S1, S2. inner, constant [samples, groups]:
// dx = factor dz - (x - mean) inner - constant.
__global__ void __launch_bounds__(kWarp) gradient_statistics_kernel(const Tiling t, const Parameters p,
                                                                    const float* partial, const float* rstd,
                                                                    float* sums, float* inner, float* constant,
                                                                    float* scale_gradient, float* shift_gradient) {
  __shared__ double shared;
  const int64_t sample = blockIdx.x / t.groups, group = blockIdx.x % t.groups;
  const int64_t each = t.channels / t.groups, begin = group * each;
  const double elements = (double)t.pixels * (double)each, inverse = rstd[blockIdx.x];
  double total1 = 0, total2 = 0;
  for (int64_t c = begin + threadIdx.x; c < begin + each; c += kWarp) {
    const ChannelSums both = channel_sums(t, partial, sample, c);
    const double s1 = both.first, s2 = both.second * inverse;
    const double weight = read(p.weight, p.weight_dtype, c), slope = weight * gain(p, sample, c);
    total1 += slope * s1;
    total2 += slope * s2;
    sums[sample * 2 * t.channels + c] = (float)s1;
    sums[(sample * 2 + 1) * t.channels + c] = (float)s2;
    if (scale_gradient) scale_gradient[sample * t.channels + c] = (float)(weight * s2 + read(p.bias, p.weight_dtype, c) * s1);
    if (shift_gradient) shift_gradient[sample * t.channels + c] = (float)s1;
  }
  total1 = everywhere(total1, &shared);
  total2 = everywhere(total2, &shared);
  if (threadIdx.x == 0) {
    inner[blockIdx.x] = (float)(inverse * inverse * total2 / elements);
    constant[blockIdx.x] = (float)(inverse * total1 / elements);
  }
}

template <typename T>
__global__ void __launch_bounds__(kBlock) backward_kernel(const Tiling t, const T* x, const T* dy, const float* mean,
                                                          const float* factor, const float* offset, const float* inner,
                                                          const float* constant, T* dx) {
  constexpr int size = Vector<T>::size;
  const Spot spot = locate<T>(t);
  if (!spot.inside) return;
  const int64_t start = spot.sample * t.pixels * t.channels + spot.channel, each = t.channels / t.groups;
  float times[size], plus[size], slope_x[size], offset_x[size];
  load_channels<size>(factor + spot.sample * t.channels + spot.channel, times);
  load_channels<size>(offset + spot.sample * t.channels + spot.channel, plus);
  float centre[size];
#pragma unroll
  for (int i = 0; i < size; ++i) {
    const int64_t group = spot.sample * t.groups + (spot.channel + i) / each;
    centre[i] = mean[group];
    slope_x[i] = inner[group];
    offset_x[i] = constant[group];
  }
  const int64_t pixel = first_pixel(t, spot);
#pragma unroll 2
  for (int k = 0; k < kPixelsPerThread; ++k) {
    const int64_t at = pixel + (int64_t)k * t.rows;
    if (at < t.pixels) {
      float value[size], slope[size];
      load_vector(x + start + at * t.channels, value);
      load_vector(dy + start + at * t.channels, slope);
#pragma unroll
      for (int i = 0; i < size; ++i) {
        const float dz = slope[i] * slope_at(t, times[i] * value[i] + plus[i]);
        value[i] = times[i] * dz - (value[i] - centre[i]) * slope_x[i] - offset_x[i];
      }
      store_vector(dx + start + at * t.channels, value);
    }
  }
}

// Gradients of weight and bias: 32 channels a block, the images shared by 8 rows of threads.
__global__ void __launch_bounds__(kBlock) weight_kernel(const Tiling t, const Parameters p, const float* sums,
                                                        float* weight_gradient, float* bias_gradient) {
  __shared__ double shared[2][kBlock];
  const int64_t c = (int64_t)blockIdx.x * kWarp + threadIdx.x % kWarp;
  double first = 0, second = 0;
  if (c < t.channels) {
    for (int64_t n = threadIdx.x / kWarp; n < t.samples; n += kBlock / kWarp) {
      const double times = gain(p, n, c);
      first += times * sums[n * 2 * t.channels + c];
      second += times * sums[(n * 2 + 1) * t.channels + c];
    }
  }
  shared[0][threadIdx.x] = first;
  shared[1][threadIdx.x] = second;
  __syncthreads();
  if (threadIdx.x >= kWarp || c >= t.channels) return;
  for (int row = 1; row < kBlock / kWarp; ++row) {
    first += shared[0][row * kWarp + threadIdx.x];
    second += shared[1][row * kWarp + threadIdx.x];
  }
  bias_gradient[c] = (float)first;
  weight_gradient[c] = (float)second;
}

// ---- the host's part

Tiling tiling_of(const prunefast_cuda_group_norm_args& args) {
  const int64_t vector = args.dtype == PRUNEFAST_FLOAT32 ? 4 : 8, columns = args.channels / vector;
  Tiling t = {args.samples, args.pixels, args.channels, args.groups, 0, 0, 0, 0, args.silu != 0};
  t.columns = (int32_t)(columns < kBlock ? columns : kBlock);
  t.rows = kBlock / t.columns;
  t.chunks = blocks_for(args.pixels, (int64_t)t.rows * kPixelsPerThread);
  t.column_blocks = blocks_for(columns, t.columns);
  return t;
}

Parameters parameters_of(const prunefast_cuda_group_norm_args& args) {
  return {args.weight,       args.bias, args.scale, args.shift, args.modulation_row_stride, args.weight_dtype,
          args.modulation_dtype};
}

int32_t check_arguments(const prunefast_cuda_group_norm_args& args, const void* workspace, const char* op) {
  if (args.samples < 1 || args.pixels < 1 || args.channels < 1 || args.groups < 1 || args.channels % args.groups)
    return fail(PRUNEFAST_BAD_ARGUMENT, "%s: sizes must be at least 1, and groups divide channels", op);
  if (args.dtype > PRUNEFAST_FLOAT16 || args.weight_dtype > PRUNEFAST_FLOAT16 ||
      args.modulation_dtype > PRUNEFAST_FLOAT16 || !args.scale != !args.shift)
    return fail(PRUNEFAST_BAD_ARGUMENT, "%s: dtypes must be floating, scale and shift both given or neither", op);
  if (!args.x || !args.weight || !args.bias || !args.mean || !args.rstd || !workspace)
    return fail(PRUNEFAST_BAD_ARGUMENT, "%s: x, weight, bias, mean, rstd and workspace are needed", op);
  if (args.channels % (args.dtype == PRUNEFAST_FLOAT32 ? 4 : 8) || (uintptr_t)args.x % 16)
    return fail(PRUNEFAST_UNSUPPORTED, "%s: channels and x must be multiples of 16 bytes", op);
  return PRUNEFAST_OK;
}

// The workspace, in this order.
struct Workspace {
  float *partial, *factor, *offset, *sums, *inner, *constant;
  int64_t bytes;
};

Workspace workspace_of(const Tiling& t, void* memory) {
  Workspace w = {};
  float* next = static_cast<float*>(memory);
  int64_t used = 0;
  const auto take = [&](int64_t count) {
    float* mine = next ? next + used : nullptr;
    used += (count + 3) / 4 * 4;  // 16-byte aligned
    return mine;
  };
  w.partial = take(t.samples * t.chunks * 2 * t.channels);
  w.factor = take(t.samples * t.channels);
  w.offset = take(t.samples * t.channels);
  w.sums = take(t.samples * 2 * t.channels);
  w.inner = take(t.samples * t.groups);
  w.constant = take(t.samples * t.groups);
  w.bytes = used * (int64_t)sizeof(float);
  return w;
}

template <typename T>
cudaError_t forward(const prunefast_cuda_group_norm_args& args, void* y, void* memory, void* stream) {
  const Tiling t = tiling_of(args);
  const Workspace w = workspace_of(t, memory);
  const T* x = static_cast<const T*>(args.x);
  const int64_t blocks = t.samples * t.chunks * t.column_blocks;
  cudaError_t error = launch(moments_kernel<T>, blocks, kBlock, stream, t, x, w.partial);
  if (error == cudaSuccess)
    error = launch(statistics_kernel<T>, t.samples * t.groups, kWarp, stream, t, parameters_of(args), x,
                   (const float*)w.partial, args.eps, args.mean, args.rstd, w.factor, w.offset);
  if (error == cudaSuccess)
    error = launch(forward_kernel<T>, blocks, kBlock, stream, t, x, (const float*)w.factor, (const float*)w.offset,
                   static_cast<T*>(y));
  return error;
}

struct Gradients {
  const void* y;
  void* x;
  float *weight, *bias, *scale, *shift;
};

template <typename T>
cudaError_t backward(const prunefast_cuda_group_norm_args& args, const Gradients& gradients, void* memory,
                     void* stream) {
  const Tiling t = tiling_of(args);
  const Parameters p = parameters_of(args);
  const Workspace w = workspace_of(t, memory);
  const T *x = static_cast<const T*>(args.x), *dy = static_cast<const T*>(gradients.y);
  const float *mean = args.mean, *rstd = args.rstd, *factor = w.factor, *offset = w.offset, *partial = w.partial;
  const float *sums = w.sums, *inner = w.inner, *constant = w.constant;
  const int64_t blocks = t.samples * t.chunks * t.column_blocks;
  cudaError_t error = launch(tables_kernel, blocks_for(t.samples * t.channels, kBlock), kBlock, stream, t, p, mean,
                             rstd, w.factor, w.offset);
  if (error == cudaSuccess)
    error = launch(gradient_sums_kernel<T>, blocks, kBlock, stream, t, x, dy, mean, factor, offset, w.partial);
  if (error == cudaSuccess)
    error = launch(gradient_statistics_kernel, t.samples * t.groups, kWarp, stream, t, p, partial, rstd, w.sums,
                   w.inner, w.constant, gradients.scale, gradients.shift);
  if (error == cudaSuccess)
    error = launch(backward_kernel<T>, blocks, kBlock, stream, t, x, dy, mean, factor, offset, inner, constant,
                   static_cast<T*>(gradients.x));
  if (error == cudaSuccess)
    error = launch(weight_kernel, blocks_for(t.channels, kWarp), kBlock, stream, t, p, sums, gradients.weight,
                   gradients.bias);
  return error;
}

}  // namespace
}  // namespace prunefast

int64_t prunefast_cuda_group_norm_silu_workspace(const prunefast_cuda_group_norm_args* args) {
  return prunefast::workspace_of(prunefast::tiling_of(*args), nullptr).bytes;
}

int32_t prunefast_cuda_group_norm_silu(const prunefast_cuda_group_norm_args* arguments, void* y, void* workspace,
                                       int32_t device, void* stream) {
  using namespace prunefast;
  const prunefast_cuda_group_norm_args& args = *arguments;
  if (const int32_t status = check_arguments(args, workspace, "group_norm_silu")) return status;
  const DeviceScope scope(device, "group_norm_silu");
  if (scope.status()) return scope.status();
  const cudaError_t error = args.dtype == PRUNEFAST_FLOAT32    ? forward<float>(args, y, workspace, stream)
                            : args.dtype == PRUNEFAST_BFLOAT16 ? forward<bfloat16>(args, y, workspace, stream)
                                                               : forward<float16>(args, y, workspace, stream);
  return check(error, "group_norm_silu");
}

int32_t prunefast_cuda_group_norm_silu_backward(const prunefast_cuda_group_norm_args* arguments,
                                                const void* y_gradient, void* x_gradient, float* weight_gradient,
                                                float* bias_gradient, float* scale_gradient, float* shift_gradient,
                                                void* workspace, int32_t device, void* stream) {
  using namespace prunefast;
  const prunefast_cuda_group_norm_args& args = *arguments;
  if (const int32_t status = check_arguments(args, workspace, "group_norm_silu")) return status;
  if ((uintptr_t)y_gradient % 16 || (uintptr_t)x_gradient % 16)
    return fail(PRUNEFAST_UNSUPPORTED, "%s", "group_norm_silu: gradients must be 16-byte aligned");
  const DeviceScope scope(device, "group_norm_silu");
  if (scope.status()) return scope.status();
  const Gradients gradients = {y_gradient, x_gradient, weight_gradient, bias_gradient, scale_gradient, shift_gradient};
  const cudaError_t error = args.dtype == PRUNEFAST_FLOAT32 ? backward<float>(args, gradients, workspace, stream)
                            : args.dtype == PRUNEFAST_BFLOAT16
                                ? backward<bfloat16>(args, gradients, workspace, stream)
                                : backward<float16>(args, gradients, workspace, stream);
  return check(error, "group_norm_silu");
}
