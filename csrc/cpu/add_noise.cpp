// Blocks of samples; every pixel is written once, by whoever takes its block.
#include "images.h"
#include "parallel.h"

int32_t prunefast_add_noise(const prunefast_add_noise_args* arguments) {
  using namespace prunefast;
  return guarded([&]() -> int32_t {
    const prunefast_add_noise_args& args = *arguments;
    const prunefast_image_args& images = args.images;
    if (const int32_t status = check_images(images, "add_noise")) return status;
    if (args.out.dtype > PRUNEFAST_FLOAT16)
      return fail(PRUNEFAST_BAD_ARGUMENT, "add_noise: dtype %d of the result", args.out.dtype);

    NoisePlan plan = {{images, layout_of(images, args.out, args.out), images.channels}, args.out, images.channels};
    if (args.coordinates) {
      plan.out_channels += 2;
      plan.base.layout = args.out.stride[1] == 1 ? Layout::pixel_major : Layout::row_major;
    }
    int64_t units, step;
    chunk_sizes(plan.base, plan.out_channels, &units, &step);
    const int64_t per_sample = (units + step - 1) / step;
    const int64_t work = images.samples * plan.out_channels * images.height * images.width / kChunkElements;
    const Kernels& set = kernels();
    parallel_blocks(images.samples * per_sample, threads_for(images.threads, work), [&](int64_t block, int) {
      const int64_t sample = block / per_sample, begin = block % per_sample * step;
      set.noise_chunk(&plan, sample, begin, std::min(begin + step, units), args.alpha[sample], args.sigma[sample]);
    });
    return PRUNEFAST_OK;
  });
}
