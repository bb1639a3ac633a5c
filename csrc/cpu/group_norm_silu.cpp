// Group norm, modulation and SiLU over NHWC images, forward and backward.
//
// h = (x - mean) p + q with p = rstd weight (1 + scale) and q = bias (1 + scale) + shift per sample and channel;
// y = silu(h). With dh the gradient of h, per sample and channel
//     A = sum dh,  B = rstd sum dh (x - mean)
// give every other gradient:
//     shift A,  scale weight B + bias A,  weight sum over samples (1 + scale) B,  bias sum over samples (1 + scale) A,
//     x  dh p - rstd (mean over the group of (weight (1 + scale) A) + (x - mean) rstd mean of (weight (1 + scale) B)).
//
// A sample is read once for its statistics (about its first pixel, so that a large mean cancels nothing) and once for
// its output, the second time from the cache. Sums are float32 over 64 pixels, then float64, in a fixed order.
#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/table.h"
#include "parallel.h"
#include "status.h"

namespace prunefast {
namespace {

constexpr int64_t kChunkValues = 1 << 16;  // of one block where samples are fewer than threads; fixes the order of sums
constexpr int64_t kKeepValues = 1 << 20;   // a sample's gradient of h is kept up to 4 MB a thread, else computed twice
constexpr int64_t kPad = 32;               // channel arrays end on whole registers

// One sample in work: channel parameters and the partial sums of its chunks.
struct Slot {
  std::vector<float> parameters, kept;
  std::vector<double> partial;
  NormChannels channels;
  float* row(int64_t padded, int i) { return parameters.data() + padded * i; }
};

class Norm {
 public:
  Norm(const prunefast_group_norm_args& args, const Kernels& set) : args_(args), set_(set) {
    padded_ = (args.channels + kPad - 1) / kPad * kPad;
    step_ = std::max<int64_t>(64, kChunkValues / args.channels / 64 * 64);
    chunks_ = (args.pixels + step_ - 1) / step_;
    const int64_t values = args.pixels * args.channels;
    threads_ = threads_for(args.threads, args.samples * values / kChunkValues + 1);
    by_sample_ = chunks_ == 1 || args.samples >= threads_;
    slots_.resize(static_cast<size_t>(by_sample_ ? threads_ : args.samples));
    const bool backward = args.gradient_x != nullptr;
    for (Slot& slot : slots_) {
      slot.parameters.assign(padded_ * 6, 0.0f);
      slot.partial.resize(padded_ * 2 * chunks_);
      if (backward && args.silu && args.dtype != PRUNEFAST_FLOAT32 && by_sample_ && values <= kKeepValues)
        slot.kept.resize(values);
      slot.channels = {slot.row(padded_, 1), slot.row(padded_, 2), slot.row(padded_, 3), slot.row(padded_, 4),
                       slot.row(padded_, 5)};
    }
    if (backward) totals_.resize(args.samples * args.channels * 2);
  }

  void forward() {
    two_passes([&](Slot& s, int64_t n, int64_t chunk) { statistics(s, n, chunk); },
               [&](Slot& s, int64_t n) { finish_statistics(s, n); },
               [&](Slot& s, int64_t n, int64_t chunk) {
                 set_.norm_apply(args_.dtype, args_.silu, args_.x, args_.y, offset(n, chunk), count(chunk),
                                 args_.channels, &s.channels);
               },
               [&](Slot& s, int64_t n) { set_origin(s, n); });
  }

  void backward() {
    two_passes(
        [&](Slot& s, int64_t n, int64_t chunk) {
          double* sum = clear(s, chunk);
          set_.norm_gradient_sums(args_.dtype, args_.silu, args_.x, args_.gradient_y, kept(s, n, chunk),
                                  offset(n, chunk), count(chunk), args_.channels, &s.channels, sum, sum + padded_);
        },
        [&](Slot& s, int64_t n) { finish_sums(s, n); },
        [&](Slot& s, int64_t n, int64_t chunk) {
          set_.norm_gradient(args_.dtype, args_.silu, args_.x, args_.gradient_y, kept(s, n, chunk), args_.gradient_x,
                             offset(n, chunk), count(chunk), args_.channels, &s.channels);
        },
        [&](Slot& s, int64_t n) { set_affine(s, n); });
    reduce_samples();
  }

 private:
  template <typename First, typename Finish, typename Second, typename Begin>
  void two_passes(First first, Finish finish, Second second, Begin begin) {
    if (by_sample_) {
      return parallel_blocks(args_.samples, threads_, [&](int64_t n, int thread) {
        Slot& slot = slots_[static_cast<size_t>(thread)];
        begin(slot, n);
        for (int64_t chunk = 0; chunk < chunks_; ++chunk) first(slot, n, chunk);
        finish(slot, n);
        for (int64_t chunk = 0; chunk < chunks_; ++chunk) second(slot, n, chunk);
      });
    }
    const auto slot = [&](int64_t n) -> Slot& { return slots_[static_cast<size_t>(n)]; };
    for (int64_t n = 0; n < args_.samples; ++n) begin(slot(n), n);
    const int64_t blocks = args_.samples * chunks_;
    parallel_blocks(blocks, threads_, [&](int64_t b, int) { first(slot(b / chunks_), b / chunks_, b % chunks_); });
    for (int64_t n = 0; n < args_.samples; ++n) finish(slot(n), n);
    parallel_blocks(blocks, threads_, [&](int64_t b, int) { second(slot(b / chunks_), b / chunks_, b % chunks_); });
  }

  int64_t offset(int64_t n, int64_t chunk) const { return (n * args_.pixels + chunk * step_) * args_.channels; }
  int64_t count(int64_t chunk) const { return std::min(step_, args_.pixels - chunk * step_); }

  // Where a chunk's gradient of h is kept between the passes (float32 keeps it in its result); or null.
  float* kept(Slot& s, int64_t n, int64_t chunk) const {
    if (!args_.silu) return nullptr;
    if (args_.dtype == PRUNEFAST_FLOAT32) return static_cast<float*>(args_.gradient_x) + offset(n, chunk);
    return s.kept.empty() ? nullptr : s.kept.data() + offset(0, chunk);
  }

  double* clear(Slot& s, int64_t chunk) const {
    double* sum = s.partial.data() + chunk * 2 * padded_;
    std::fill(sum, sum + 2 * padded_, 0.0);
    return sum;
  }

  void fold(Slot& s) const {
    for (int64_t chunk = 1; chunk < chunks_; ++chunk)
      for (int64_t i = 0; i < 2 * padded_; ++i) s.partial[i] += s.partial[chunk * 2 * padded_ + i];
  }

  void set_origin(Slot& s, int64_t n) const {
    const int64_t width = args_.dtype == PRUNEFAST_FLOAT32 ? 4 : 2;
    set_.norm_origin(args_.dtype, static_cast<const char*>(args_.x) + offset(n, 0) * width, args_.channels,
                     s.row(padded_, 0));
  }

  void statistics(Slot& s, int64_t n, int64_t chunk) const {
    double* sum = clear(s, chunk);
    set_.norm_sums(args_.dtype, args_.x, offset(n, chunk), count(chunk), args_.channels, s.row(padded_, 0), sum,
                   sum + padded_);
  }

  void finish_statistics(Slot& s, int64_t n) const {
    fold(s);
    const int64_t width = args_.channels / args_.groups;
    const double pixels = static_cast<double>(args_.pixels);
    const float* origin = s.row(padded_, 0);
    for (int64_t g = 0; g < args_.groups; ++g) {
      double mean = 0, square = 0;
      for (int64_t c = g * width; c < (g + 1) * width; ++c) mean += origin[c] + s.partial[c] / pixels;
      mean /= static_cast<double>(width);
      for (int64_t c = g * width; c < (g + 1) * width; ++c) {
        const double part = s.partial[c] / pixels, away = origin[c] + part - mean;
        square += std::max(s.partial[padded_ + c] / pixels - part * part, 0.0) + away * away;
      }
      args_.mean[n * args_.groups + g] = static_cast<float>(mean);
      args_.rstd[n * args_.groups + g] =
          static_cast<float>(1 / std::sqrt(square / static_cast<double>(width) + static_cast<double>(args_.eps)));
    }
    set_affine(s, n);
  }

  float factor(int64_t n, int64_t c) const { return args_.scale ? 1 + args_.scale[n * args_.channels + c] : 1.0f; }

  void set_affine(Slot& s, int64_t n) const {
    const int64_t width = args_.channels / args_.groups;
    for (int64_t c = 0; c < args_.channels; ++c) {
      const int64_t group = n * args_.groups + c / width;
      const float factor = this->factor(n, c), shift = args_.shift ? args_.shift[n * args_.channels + c] : 0.0f;
      s.row(padded_, 1)[c] = args_.mean[group];
      s.row(padded_, 2)[c] = args_.rstd[group] * args_.weight[c] * factor;
      s.row(padded_, 3)[c] = args_.bias[c] * factor + shift;
    }
  }

  void finish_sums(Slot& s, int64_t n) {
    fold(s);
    const int64_t width = args_.channels / args_.groups;
    const double values = static_cast<double>(args_.pixels * width);
    for (int64_t g = 0; g < args_.groups; ++g) {
      const double rstd = args_.rstd[n * args_.groups + g];
      double level = 0, slope = 0;
      for (int64_t c = g * width; c < (g + 1) * width; ++c) {
        const double a = s.partial[c], b = s.partial[padded_ + c] * rstd, gain = args_.weight[c] * factor(n, c);
        level += gain * a, slope += gain * b;
        double* total = &totals_[(n * args_.channels + c) * 2];
        total[0] = a, total[1] = b;
        if (args_.gradient_shift) args_.gradient_shift[n * args_.channels + c] = static_cast<float>(a);
        if (args_.gradient_scale)
          args_.gradient_scale[n * args_.channels + c] = static_cast<float>(args_.weight[c] * b + args_.bias[c] * a);
      }
      for (int64_t c = g * width; c < (g + 1) * width; ++c) {
        s.row(padded_, 4)[c] = static_cast<float>(-rstd * rstd * slope / values);
        s.row(padded_, 5)[c] = static_cast<float>(-rstd * level / values);
      }
    }
  }

  void reduce_samples() const {
    for (int64_t c = 0; c < args_.channels; ++c) {
      double weight = 0, bias = 0;
      for (int64_t n = 0; n < args_.samples; ++n) {
        const double* total = &totals_[(n * args_.channels + c) * 2];
        const double factor = this->factor(n, c);
        bias += factor * total[0], weight += factor * total[1];
      }
      args_.gradient_weight[c] = static_cast<float>(weight);
      args_.gradient_bias[c] = static_cast<float>(bias);
    }
  }

  const prunefast_group_norm_args& args_;
  const Kernels& set_;
  int64_t padded_, step_, chunks_;
  int threads_;
  bool by_sample_;
  std::vector<Slot> slots_;
  std::vector<double> totals_;  // [samples, channels] of (A, B)
};

int32_t check(const prunefast_group_norm_args& args) {
  if (args.samples < 0 || args.pixels < 1 || args.channels < 1 || args.groups < 1 || args.channels % args.groups)
    return fail(PRUNEFAST_BAD_ARGUMENT, "%s", "group_norm_silu: sizes must be positive and groups divide the channels");
  if (args.dtype < PRUNEFAST_FLOAT32 || args.dtype > PRUNEFAST_FLOAT16)
    return fail(PRUNEFAST_BAD_ARGUMENT, "group_norm_silu: dtype %d", args.dtype);
  return PRUNEFAST_OK;
}

}  // namespace
}  // namespace prunefast

int32_t prunefast_group_norm_silu(const prunefast_group_norm_args* args) {
  using namespace prunefast;
  return guarded([&]() -> int32_t {
    if (const int32_t status = check(*args)) return status;
    if (args->gradient_x || (args->samples && !args->y))
      return fail(PRUNEFAST_BAD_ARGUMENT, "%s", "group_norm_silu: y is written, and no gradient");
    Norm(*args, kernels()).forward();
    return PRUNEFAST_OK;
  });
}

int32_t prunefast_group_norm_silu_backward(const prunefast_group_norm_args* args) {
  using namespace prunefast;
  return guarded([&]() -> int32_t {
    if (const int32_t status = check(*args)) return status;
    if (args->samples && (!args->gradient_x || !args->gradient_y))
      return fail(PRUNEFAST_BAD_ARGUMENT, "%s", "group_norm_silu: gradient_y is read and gradient_x written");
    Norm(*args, kernels()).backward();
    return PRUNEFAST_OK;
  });
}
