#include <algorithm>

#include "check.h"

namespace {

// Everything a call writes, between guards; float32.
struct Outputs {
  Guarded<float> y, mean, rstd, dx, weight, bias, scale, shift;
  Outputs(int64_t n, int64_t p, int64_t c, int64_t g)
      : y(n * p * c), mean(n * g), rstd(n * g), dx(n * p * c), weight(c), bias(c), scale(n * c), shift(n * c) {}
  std::vector<Guarded<float>*> all() { return {&y, &mean, &rstd, &dx, &weight, &bias, &scale, &shift}; }
};

void compute(prunefast_group_norm_args args, const float* dy, Outputs& out) {
  args.mean = out.mean.data(), args.rstd = out.rstd.data(), args.y = out.y.data();
  CHECK(prunefast_group_norm_silu(&args) == PRUNEFAST_OK);
  args.gradient_y = dy, args.gradient_x = out.dx.data();
  args.gradient_weight = out.weight.data(), args.gradient_bias = out.bias.data();
  args.gradient_scale = out.scale.data(), args.gradient_shift = out.shift.data();
  CHECK(prunefast_group_norm_silu_backward(&args) == PRUNEFAST_OK);
  for (Guarded<float>* buffer : out.all()) CHECK(buffer->intact());
}

double silu(double h) { return h / (1 + std::exp(-h)); }

// sum of dy silu(h), h the formula in float64.
double objective(const prunefast_group_norm_args& args, const std::vector<double>& x, const std::vector<double>& weight,
                 const float* dy, double* y) {
  const int64_t width = args.channels / args.groups;
  double total = 0;
  for (int64_t n = 0; n < args.samples; ++n) {
    for (int64_t g = 0; g < args.groups; ++g) {
      double mean = 0, variance = 0;
      const double count = static_cast<double>(args.pixels * width);
      const auto each = [&](auto body) {
        for (int64_t p = 0; p < args.pixels; ++p)
          for (int64_t c = g * width; c < (g + 1) * width; ++c) body((n * args.pixels + p) * args.channels + c, c);
      };
      each([&](int64_t j, int64_t) { mean += x[j] / count; });
      each([&](int64_t j, int64_t) { variance += (x[j] - mean) * (x[j] - mean) / count; });
      each([&](int64_t j, int64_t c) {
        const double g0 = (x[j] - mean) / std::sqrt(variance + args.eps) * weight[c] + args.bias[c];
        const double h = g0 * (1 + args.scale[n * args.channels + c]) + args.shift[n * args.channels + c];
        const double value = args.silu ? silu(h) : h;
        if (y) y[j] = value;
        total += dy[j] * value;
      });
    }
  }
  return total;
}

void run(int64_t samples, int64_t pixels, int64_t channels, int64_t groups, bool with_silu) {
  Numbers numbers(static_cast<uint64_t>(pixels * 7 + channels));
  const auto random = [&](int64_t size) {
    std::vector<float> values(size);
    for (float& v : values) v = numbers.next();
    return values;
  };
  const std::vector<float> x = random(samples * pixels * channels), dy = random(samples * pixels * channels);
  const std::vector<float> weight = random(channels), bias = random(channels);
  const std::vector<float> scale = random(samples * channels), shift = random(samples * channels);
  prunefast_group_norm_args args = {};
  args.samples = samples, args.pixels = pixels, args.channels = channels, args.groups = groups;
  args.silu = with_silu, args.threads = 1, args.eps = 1e-5f;
  args.x = x.data(), args.weight = weight.data(), args.bias = bias.data(), args.scale = scale.data(),
  args.shift = shift.data();
  Outputs one(samples, pixels, channels, groups);
  compute(args, dy.data(), one);
  for (const int32_t threads : {2, 7}) {
    args.threads = threads;
    Outputs many(samples, pixels, channels, groups);
    compute(args, dy.data(), many);
    for (size_t i = 0; i < one.all().size(); ++i)
      CHECK(!std::memcmp(one.all()[i]->data(), many.all()[i]->data(), one.all()[i]->size() * sizeof(float)));
  }

  std::vector<double> wide(x.begin(), x.end()), gain(weight.begin(), weight.end()), y(x.size());
  objective(args, wide, gain, dy.data(), y.data());
  for (size_t j = 0; j < y.size(); ++j) CHECK(std::fabs(one.y[j] - y[j]) < 1e-5);
  const double step = 1e-5;
  const auto slope = [&](std::vector<double>& values, int64_t i) {
    const double was = values[i];
    values[i] = was + step;
    const double above = objective(args, wide, gain, dy.data(), nullptr);
    values[i] = was - step;
    const double below = objective(args, wide, gain, dy.data(), nullptr);
    values[i] = was;
    return (above - below) / (2 * step);
  };
  for (int k = 0; k < 8; ++k) {
    const int64_t i = numbers.integer(static_cast<int64_t>(x.size())), c = numbers.integer(channels);
    const double of_x = slope(wide, i), of_weight = slope(gain, c);
    CHECK(std::fabs(one.dx[i] - of_x) < 1e-4 * (1 + std::fabs(of_x)));
    CHECK(std::fabs(one.weight[c] - of_weight) < 1e-4 * (1 + std::fabs(of_weight)));
  }
}

}  // namespace

int main() {
  for (const int64_t channels : {1, 3, 15, 16, 17, 48, 66})
    for (const int64_t pixels : {1, 2, 63, 65}) run(3, pixels, channels, channels % 3 ? 1 : 3, pixels % 2 == 0);
  run(1, 2500, 64, 8, true);  // more than one chunk: two threads share a sample
  run(2, 1400, 96, 6, false);
  prunefast_group_norm_args bad = {};
  CHECK(prunefast_group_norm_silu(&bad) == PRUNEFAST_BAD_ARGUMENT);
  CHECK(prunefast_group_norm_silu_backward(&bad) == PRUNEFAST_BAD_ARGUMENT);
  return summary("group_norm_silu");
}
