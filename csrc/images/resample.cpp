#include "resample.h"

#include <algorithm>
#include <cmath>

namespace prunefast {
namespace {

constexpr int kFractionBits = 32 - 8 - 2;  // of the weights: 8 bits of pixel, 2 of overshoot
constexpr int32_t kHalf = 1 << (kFractionBits - 1);

double box(double x) { return x > -0.5 && x <= 0.5 ? 1.0 : 0.0; }

double bicubic(double x) {
  constexpr double a = -0.5;
  x = std::fabs(x);
  if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
  if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * a;
  return 0.0;
}

inline uint8_t clip(int32_t sum) { return static_cast<uint8_t>(std::clamp(sum >> kFractionBits, 0, 255)); }

}  // namespace

void Resampler::prepare(int from, int to) {
  if (from == from_ && to == to_) return;
  const bool down = to < from;
  const double scale = static_cast<double>(from) / to, filter_scale = std::max(scale, 1.0);
  const double support = (down ? 0.5 : 2.0) * filter_scale;
  taps_ = static_cast<int>(std::ceil(support)) * 2 + 1;
  first_.assign(to, 0);
  count_.assign(to, 0);
  weight_.assign(static_cast<size_t>(to) * taps_, 0);
  std::vector<double> weight(taps_);
  for (int out = 0; out < to; ++out) {
    const double centre = (out + 0.5) * scale;
    const int first = std::max(static_cast<int>(centre - support + 0.5), 0);
    const int count = std::min(static_cast<int>(centre + support + 0.5), from) - first;
    double total = 0.0;
    for (int k = 0; k < count; ++k) {
      const double x = (k + first - centre + 0.5) * (1.0 / filter_scale);
      total += weight[k] = down ? box(x) : bicubic(x);
    }
    for (int k = 0; k < count; ++k) {
      const double scaled = weight[k] / total * (1 << kFractionBits);
      weight_[static_cast<size_t>(out) * taps_ + k] = static_cast<int32_t>(scaled < 0 ? scaled - 0.5 : scaled + 0.5);
    }
    first_[out] = first;
    count_[out] = count;
  }
  narrow_.resize(static_cast<size_t>(from) * to * 3);
  from_ = from, to_ = to;
}

void Resampler::run(const uint8_t* source, uint8_t* target) {
  const size_t source_row = static_cast<size_t>(from_) * 3, row = static_cast<size_t>(to_) * 3;
  for (int y = 0; y < from_; ++y) {
    const uint8_t* line = source + y * source_row;
    uint8_t* out = narrow_.data() + y * row;
    for (int x = 0; x < to_; ++x, out += 3) {
      const uint8_t* pixel = line + static_cast<size_t>(first_[x]) * 3;
      const int32_t* weight = weight_.data() + static_cast<size_t>(x) * taps_;
      int32_t red = kHalf, green = kHalf, blue = kHalf;
      for (int k = 0; k < count_[x]; ++k, pixel += 3) {
        red += pixel[0] * weight[k];
        green += pixel[1] * weight[k];
        blue += pixel[2] * weight[k];
      }
      out[0] = clip(red), out[1] = clip(green), out[2] = clip(blue);
    }
  }
  std::vector<int32_t> sum(row);
  for (int y = 0; y < to_; ++y) {
    std::fill(sum.begin(), sum.end(), kHalf);
    const int32_t* weight = weight_.data() + static_cast<size_t>(y) * taps_;
    for (int k = 0; k < count_[y]; ++k) {
      const uint8_t* line = narrow_.data() + (first_[y] + k) * row;
      for (size_t i = 0; i < row; ++i) sum[i] += line[i] * weight[k];
    }
    for (size_t i = 0; i < row; ++i) target[y * row + i] = clip(sum[i]);
  }
}

}  // namespace prunefast
