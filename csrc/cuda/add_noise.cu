// Noisy images in one pass; the coordinate channels, which read nothing, by a kernel of their own.
#include "images.h"

namespace prunefast {
namespace {

struct NoisePlan {
  Walk walk;
  Operand out;
  const float *alpha, *sigma;
};

template <Noise noise, typename T>
__global__ void __launch_bounds__(kBlock) noise_kernel(const NoisePlan plan) {
  constexpr uint32_t size = group_size<noise>;
  const Walk& walk = plan.walk;
  const int64_t sample = blockIdx.x / walk.blocks;
  const uint32_t block = blockIdx.x % walk.blocks;
  const float alpha = plan.alpha[sample], sigma = plan.sigma[sample];
#pragma unroll 1
  for (int part = 0; part < kGroupsPerThread; ++part) {
    const uint32_t group = (block * kGroupsPerThread + part) * kBlock + threadIdx.x;
    if (group >= walk.groups) break;
    const Place place = locate<noise>(walk, group);
    float value[size], clean[size], random[size];
    read_group<noise, false>(walk, place, sample, plan.out, value, clean, random);
#pragma unroll
    for (uint32_t i = 0; i < size; ++i) value[i] = alpha * clean[i] + sigma * random[i];
    write_group<noise, T>(walk, place, sample, plan.out, value);
  }
}

struct CoordinatePlan {
  prunefast_image out;
  int64_t samples, channels, height, width, image_height, image_width;
  const int64_t* corner;
};

// Column, then row, of each pixel in the whole (mirrored) image, -1 .. 1.
template <typename T>
__global__ void __launch_bounds__(kBlock) coordinate_kernel(const CoordinatePlan plan) {
  const int64_t pixel = (int64_t)blockIdx.x * kBlock + threadIdx.x, pixels = plan.height * plan.width;
  if (pixel >= plan.samples * pixels) return;
  const int64_t sample = pixel / pixels, x = pixel % plan.width, y = pixel % pixels / plan.width;
  T* at = static_cast<T*>(plan.out.data) + sample * plan.out.stride[0] + plan.channels * plan.out.stride[1] +
          y * plan.out.stride[2] + x * plan.out.stride[3];
#pragma unroll
  for (int axis = 0; axis < 2; ++axis) {
    const int64_t size = axis == 0 ? plan.image_width : plan.image_height;
    const int64_t visible = axis == 0 ? plan.width : plan.height;
    int64_t place = axis == 0 ? x : y;
    if (plan.corner) {
      const int64_t corner = plan.corner[2 * sample + 1 - axis], last = size - visible;
      place += corner < 0 ? 0 : corner > last ? last : corner;
    }
    at[axis * plan.out.stride[1]] = from_float<T>((float)(2 * place - (size - 1)) / (size > 1 ? (float)(size - 1) : 1.0f));
  }
}

template <typename T>
cudaError_t start(Noise noise, const NoisePlan& plan, int64_t blocks, void* stream) {
  if (noise == Noise::tensor) return launch(noise_kernel<Noise::tensor, T>, blocks, kBlock, stream, plan);
  if (noise == Noise::linear) return launch(noise_kernel<Noise::linear, T>, blocks, kBlock, stream, plan);
  return launch(noise_kernel<Noise::pixels, T>, blocks, kBlock, stream, plan);
}

template <typename T>
cudaError_t start_coordinates(const CoordinatePlan& plan, void* stream) {
  return launch(coordinate_kernel<T>, blocks_for(plan.samples * plan.height * plan.width, kBlock), kBlock, stream, plan);
}

}  // namespace
}  // namespace prunefast

int32_t prunefast_cuda_add_noise(const prunefast_add_noise_args* arguments, int32_t device, void* stream) {
  using namespace prunefast;
  const prunefast_add_noise_args& args = *arguments;
  const prunefast_image_args& images = args.images;
  NoisePlan noisy = {};
  Noise noise;
  int order[3];
  int64_t size[3];
  if (const int32_t status = plan(images, args.out, "add_noise", &noisy.walk, &noise, order, size)) return status;
  if (images.samples == 0 || noisy.walk.elements == 0) return PRUNEFAST_OK;
  noisy.out = operand_of(args.out, order, size);
  noisy.alpha = args.alpha;
  noisy.sigma = args.sigma;

  const DeviceScope scope(device, "add_noise");
  if (scope.status()) return scope.status();
  const int64_t blocks = images.samples * noisy.walk.blocks;
  const int32_t dtype = args.out.dtype;
  cudaError_t error = dtype == PRUNEFAST_FLOAT32    ? start<float>(noise, noisy, blocks, stream)
                      : dtype == PRUNEFAST_BFLOAT16 ? start<bfloat16>(noise, noisy, blocks, stream)
                                                    : start<float16>(noise, noisy, blocks, stream);
  if (error == cudaSuccess && args.coordinates) {
    const CoordinatePlan axes = {args.out,     images.samples,      images.channels,    images.height,
                                 images.width, images.image_height, images.image_width, images.corner};
    error = dtype == PRUNEFAST_FLOAT32    ? start_coordinates<float>(axes, stream)
            : dtype == PRUNEFAST_BFLOAT16 ? start_coordinates<bfloat16>(axes, stream)
                                          : start_coordinates<float16>(axes, stream);
  }
  return check(error, "add_noise");
}
