// The loss and its residual in one pass; then the few numbers a sample, in a fixed order.
#include "images.h"

namespace prunefast {
namespace {

struct LossPlan {
  Walk walk;
  Operand pred, gradient;
  const float *a, *b, *gradient_scale;
  float* partial;  // [samples, blocks]
};

template <Noise noise, typename T>
__global__ void __launch_bounds__(kBlock, 2) loss_kernel(const LossPlan plan) {
  __shared__ float shared[kBlock / kWarp];
  constexpr uint32_t size = group_size<noise>;
  const Walk& walk = plan.walk;
  const int64_t sample = blockIdx.x / walk.blocks;
  const uint32_t block = blockIdx.x % walk.blocks;
  const float a = plan.a[sample], b = plan.b[sample];
  const float scale = plan.gradient.data ? plan.gradient_scale[sample] : 0.0f;
  Operand pred = plan.pred, gradient = plan.gradient;
  pred.dtype = gradient.dtype = Format<T>::dtype;  // known when compiling: one way to read
  float sum = 0;
#pragma unroll 1
  for (int part = 0; part < kGroupsPerThread; ++part) {
    const uint32_t group = (block * kGroupsPerThread + part) * kBlock + threadIdx.x;
    if (group >= walk.groups) break;
    const Place place = locate<noise>(walk, group);
    float value[size], clean[size], random[size];
    read_group<noise, true>(walk, place, sample, pred, value, clean, random);
#pragma unroll
    for (uint32_t i = 0; i < size; ++i) {
      const float residual = value[i] - (a * clean[i] + b * random[i]);
      if (i < place.count) sum += residual * residual;
      value[i] = residual * scale;
    }
    if (gradient.data) write_group<noise, T>(walk, place, sample, gradient, value);
  }
  sum = block_sum(sum, shared);
  if (threadIdx.x == 0) plan.partial[blockIdx.x] = sum;
}

// One warp a sample.
__global__ void __launch_bounds__(kBlock) sample_kernel(const float* partial, int64_t samples, uint32_t blocks,
                                                        double elements, float* per_sample) {
  const int64_t sample = (int64_t)blockIdx.x * (kBlock / kWarp) + threadIdx.x / kWarp;
  if (sample >= samples) return;
  double sum = 0;
  for (uint32_t i = threadIdx.x % kWarp; i < blocks; i += kWarp) sum += partial[sample * blocks + i];
  sum = warp_sum(sum);
  if (threadIdx.x % kWarp == 0) per_sample[sample] = (float)(sum / elements);
}

struct BatchPlan {
  const float *per_sample, *weight, *reference;
  const int64_t* labels;
  int64_t samples, classes;
  float *loss, *excess;
  int64_t* count;
};

// Block 0: the loss. Every other block: a class a warp, which looks at all samples.
__global__ void __launch_bounds__(kBlock) batch_kernel(const BatchPlan plan) {
  __shared__ double shared[kBlock / kWarp];
  if (blockIdx.x == 0) {
    double sum = 0;
    for (int64_t i = threadIdx.x; i < plan.samples; i += kBlock)
      sum += plan.weight ? (double)plan.weight[i] * plan.per_sample[i] : (double)plan.per_sample[i];
    sum = block_sum(sum, shared);
    if (threadIdx.x == 0) *plan.loss = (float)(sum / (double)plan.samples);
    return;
  }
  const int64_t mine = (int64_t)(blockIdx.x - 1) * (kBlock / kWarp) + threadIdx.x / kWarp;
  if (mine >= plan.classes) return;
  double sum = 0;
  int64_t count = 0;
  for (int64_t i = threadIdx.x % kWarp; plan.labels && i < plan.samples; i += kWarp) {
    if (plan.labels[i] != mine) continue;
    const double above = (double)plan.per_sample[i] - (plan.reference ? (double)plan.reference[i] : 0.0);
    sum += above < 0 ? 0.0 : above;  // NaN stays NaN
    ++count;
  }
  sum = warp_sum(sum);
  count = warp_sum(count);
  if (threadIdx.x % kWarp == 0) {
    plan.excess[mine] = (float)sum;
    plan.count[mine] = count;
  }
}

template <typename T>
cudaError_t start(Noise noise, const LossPlan& plan, int64_t blocks, void* stream) {
  if (noise == Noise::tensor) return launch(loss_kernel<Noise::tensor, T>, blocks, kBlock, stream, plan);
  if (noise == Noise::linear) return launch(loss_kernel<Noise::linear, T>, blocks, kBlock, stream, plan);
  return launch(loss_kernel<Noise::pixels, T>, blocks, kBlock, stream, plan);
}

}  // namespace
}  // namespace prunefast

int64_t prunefast_cuda_denoising_loss_workspace(int64_t samples, int64_t elements) {
  using namespace prunefast;  // groups of 4 make the most blocks
  return samples * blocks_for(blocks_for(elements, 4), kBlock * kGroupsPerThread) * (int64_t)sizeof(float);
}

int32_t prunefast_cuda_denoising_loss(const prunefast_denoising_loss_args* arguments, void* workspace, int32_t device,
                                      void* stream) {
  using namespace prunefast;
  const prunefast_denoising_loss_args& args = *arguments;
  const prunefast_image_args& images = args.images;
  LossPlan loss = {};
  Noise noise;
  int order[3];
  int64_t size[3];
  if (const int32_t status = plan(images, args.pred, "denoising_loss", &loss.walk, &noise, order, size)) return status;
  if (images.samples == 0 || loss.walk.elements == 0)
    return fail(PRUNEFAST_BAD_ARGUMENT, "%s", "denoising_loss: the mean of nothing is the caller's to define");
  if (args.gradient.data && (args.gradient.dtype != args.pred.dtype || !args.gradient_scale))
    return fail(PRUNEFAST_BAD_ARGUMENT, "%s", "denoising_loss: gradient needs the dtype of pred, and gradient_scale");
  if (args.classes < 0 || !args.a || !args.b || !args.loss || !args.per_sample || !workspace)
    return fail(PRUNEFAST_BAD_ARGUMENT, "%s", "denoising_loss: a, b, loss, per_sample and workspace are needed");
  loss.pred = operand_of(args.pred, order, size);
  loss.gradient = operand_of(args.gradient, order, size);
  loss.a = args.a;
  loss.b = args.b;
  loss.gradient_scale = args.gradient_scale;
  loss.partial = static_cast<float*>(workspace);

  const DeviceScope scope(device, "denoising_loss");
  if (scope.status()) return scope.status();
  const int64_t blocks = images.samples * loss.walk.blocks;
  cudaError_t error = args.pred.dtype == PRUNEFAST_FLOAT32    ? start<float>(noise, loss, blocks, stream)
                      : args.pred.dtype == PRUNEFAST_BFLOAT16 ? start<bfloat16>(noise, loss, blocks, stream)
                                                              : start<float16>(noise, loss, blocks, stream);
  if (error == cudaSuccess)
    error = launch(sample_kernel, blocks_for(images.samples, kBlock / kWarp), kBlock, stream,
                   static_cast<const float*>(loss.partial), images.samples, loss.walk.blocks,
                   (double)loss.walk.elements, args.per_sample);
  if (error == cudaSuccess) {
    const BatchPlan batch = {args.per_sample, args.weight,  args.reference, args.labels,      images.samples,
                             args.classes,    args.loss,    args.class_excess, args.class_count};
    error = launch(batch_kernel, 1 + blocks_for(args.classes, kBlock / kWarp), kBlock, stream, batch);
  }
  return check(error, "denoising_loss");
}
