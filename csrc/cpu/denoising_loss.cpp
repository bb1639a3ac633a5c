// Blocks of samples, then the few sums over them in a fixed order: per sample, loss, classes.
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <vector>

#include "images.h"
#include "parallel.h"

namespace prunefast {
namespace {

constexpr int64_t kCacheLine = 64;
constexpr int64_t kStreamedBytes = 16 << 20;  // a gradient that large is not in the caches when it is read
constexpr uintptr_t kHugePage = 2 << 20;

int32_t check_labels(const prunefast_denoising_loss_args& args) {
  if (!args.labels) return PRUNEFAST_OK;
  for (int64_t i = 0; i < args.images.samples; ++i) {
    if (args.labels[i] < 0 || args.labels[i] >= args.classes)
      return fail(PRUNEFAST_OUT_OF_RANGE, "labels: label %lld of sample %lld is outside 0 .. %lld",
                  (long long)args.labels[i], (long long)i, (long long)(args.classes - 1));
  }
  return PRUNEFAST_OK;
}

// Of a gradient that is one run of memory; else 0.
int64_t dense_bytes(const LossPlan& plan) {
  const prunefast_image_args& images = plan.base.images;
  const int64_t sample = images.channels * images.height * images.width;
  const bool dense = plan.base.layout == Layout::flat && (images.samples == 1 || plan.gradient.stride[0] == sample);
  if (!plan.gradient.data || !dense) return 0;
  return images.samples * sample * (plan.gradient.dtype == PRUNEFAST_FLOAT32 ? 4 : 2);
}

// Runs begin at multiples of kTile elements of a sample, so that samples on a cache line have aligned runs.
bool streams(const LossPlan& plan) {
  const int64_t bytes = dense_bytes(plan);
  return bytes >= kStreamedBytes && bytes / plan.base.images.samples % kCacheLine == 0 &&
         reinterpret_cast<uintptr_t>(plan.gradient.data) % kCacheLine == 0;
}

// Asks for huge pages, since memory this large is often mapped anew for each call (by glibc always from 32 MB on): 6,000
// page faults for 25 MB took more than half of one.
void expect_fresh([[maybe_unused]] const LossPlan& plan) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  const int64_t bytes = dense_bytes(plan);
  if (bytes < kStreamedBytes) return;
  const uintptr_t at = reinterpret_cast<uintptr_t>(plan.gradient.data);
  const uintptr_t begin = (at + kHugePage - 1) / kHugePage * kHugePage;
  const uintptr_t end = (at + static_cast<uintptr_t>(bytes)) / kHugePage * kHugePage;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // refused: it is as before
#endif
}

void reduce(const prunefast_denoising_loss_args& args, const std::vector<double>& partial, int64_t per_sample_blocks) {
  const int64_t samples = args.images.samples, classes = args.classes;
  const double elements = static_cast<double>(args.images.channels * args.images.height * args.images.width);
  std::vector<double> excess(static_cast<size_t>(classes), 0.0);
  std::fill(args.class_count, args.class_count + classes, 0);
  double total = 0;
  for (int64_t i = 0; i < samples; ++i) {
    double sum = 0;
    for (int64_t block = 0; block < per_sample_blocks; ++block) sum += partial[i * per_sample_blocks + block];
    const float mean = static_cast<float>(sum / elements);
    args.per_sample[i] = mean;
    total += args.weight ? static_cast<double>(args.weight[i]) * mean : mean;
    if (!args.labels) continue;
    const double above = static_cast<double>(mean) - (args.reference ? args.reference[i] : 0.0f);
    excess[args.labels[i]] += above < 0 ? 0.0 : above;  // NaN stays NaN
    ++args.class_count[args.labels[i]];
  }
  *args.loss = static_cast<float>(total / static_cast<double>(samples));
  std::copy(excess.begin(), excess.end(), args.class_excess);
}

}  // namespace
}  // namespace prunefast

int32_t prunefast_denoising_loss(const prunefast_denoising_loss_args* arguments) {
  using namespace prunefast;
  return guarded([&]() -> int32_t {
    const prunefast_denoising_loss_args& args = *arguments;
    const prunefast_image_args& images = args.images;
    if (const int32_t status = check_images(images, "denoising_loss")) return status;
    if (args.pred.dtype > PRUNEFAST_FLOAT16 || (args.gradient.data && args.gradient.dtype > PRUNEFAST_FLOAT16))
      return fail(PRUNEFAST_BAD_ARGUMENT, "denoising_loss: dtype %d of pred", args.pred.dtype);
    if (args.classes < 0 || (args.gradient.data && !args.gradient_scale))
      return fail(PRUNEFAST_BAD_ARGUMENT, "%s", "denoising_loss: gradient_scale is needed with gradient");
    if (const int32_t status = check_labels(args)) return status;

    LossPlan plan = {{images, layout_of(images, args.pred, args.gradient), images.channels}, args.pred, args.gradient,
                     false};
    plan.streamed = streams(plan);
    expect_fresh(plan);
    int64_t units, step;
    chunk_sizes(plan.base, images.channels, &units, &step);
    const int64_t per_sample = (units + step - 1) / step, blocks = images.samples * per_sample;
    std::vector<double> partial(static_cast<size_t>(blocks));
    const int64_t work = images.samples * images.channels * images.height * images.width / kChunkElements;
    const Kernels& set = kernels();
    parallel_blocks(blocks, threads_for(images.threads, work), [&](int64_t block, int) {
      const int64_t sample = block / per_sample, begin = block % per_sample * step;
      partial[block] = set.loss_chunk(&plan, sample, begin, std::min(begin + step, units), args.a[sample],
                                      args.b[sample], args.gradient_scale ? args.gradient_scale[sample] : 1.0f);
    });
    reduce(args, partial, per_sample);
    return PRUNEFAST_OK;
  });
}
