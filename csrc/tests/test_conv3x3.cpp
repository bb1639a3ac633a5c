#include <algorithm>

#include "check.h"

namespace {

// Numbers that bfloat16 holds exactly.
float rounded(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  bits &= 0xFFFF0000u;
  std::memcpy(&value, &bits, 4);
  return value;
}

uint16_t narrow(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return static_cast<uint16_t>(bits >> 16);
}

float widen(uint16_t half) {
  const uint32_t bits = static_cast<uint32_t>(half) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

struct Sizes {
  int64_t samples, height, width, inputs, outputs;
  int64_t pixels() const { return samples * height * width; }
};

// Every product of the convolution: (index of x, of the weight, of y).
template <typename Body>
void each_product(const Sizes& s, Body body) {
  for (int64_t n = 0; n < s.samples; ++n)
    for (int64_t r = 0; r < s.height; ++r)
      for (int64_t c = 0; c < s.width; ++c)
        for (int64_t tap = 0; tap < 9; ++tap) {
          const int64_t row = r + tap / 3 - 1, column = c + tap % 3 - 1;
          if (row < 0 || row >= s.height || column < 0 || column >= s.width) continue;
          const int64_t from = ((n * s.height + row) * s.width + column) * s.inputs;
          const int64_t to = ((n * s.height + r) * s.width + c) * s.outputs;
          for (int64_t o = 0; o < s.outputs; ++o)
            for (int64_t i = 0; i < s.inputs; ++i) body(from + i, (o * 9 + tap) * s.inputs + i, to + o);
        }
}

template <typename Value>
double distance(const std::vector<double>& truth, Value value) {
  double away = 0, size = 0;
  for (size_t i = 0; i < truth.size(); ++i) {
    const double difference = value(static_cast<int64_t>(i)) - truth[i];
    away += difference * difference, size += truth[i] * truth[i];
  }
  return std::sqrt(away / size);
}

void run(const Sizes& s) {
  Numbers numbers(static_cast<uint64_t>(s.pixels() + s.inputs));
  const auto random = [&](int64_t size) {
    std::vector<float> values(static_cast<size_t>(size));
    for (float& v : values) v = rounded(numbers.next());
    return values;
  };
  const auto halves = [](const std::vector<float>& values) {
    std::vector<uint16_t> result;
    for (float v : values) result.push_back(narrow(v));
    return result;
  };
  const int64_t in = s.pixels() * s.inputs, out = s.pixels() * s.outputs, filters = s.outputs * 9 * s.inputs;
  const std::vector<float> x = random(in), weight = random(filters), bias = random(s.outputs), dy = random(out);
  const std::vector<uint16_t> x_half = halves(x), dy_half = halves(dy);
  std::vector<double> y_true(out), dx_true(in), dw_true(filters);
  for (int64_t i = 0; i < out; ++i) y_true[i] = bias[i % s.outputs];
  each_product(s, [&](int64_t i, int64_t w, int64_t o) {
    y_true[o] += static_cast<double>(x[i]) * weight[w];
    dx_true[i] += static_cast<double>(dy[o]) * weight[w];
    dw_true[w] += static_cast<double>(dy[o]) * x[i];
  });

  std::vector<std::vector<char>> first;
  for (int32_t threads : {1, 2, 7}) {
    Guarded<uint16_t> y(out), dx(in);
    Guarded<float> dw(filters);
    prunefast_conv3x3_args args = {s.samples,     s.height,      s.width,     s.inputs,       s.outputs,
                                   threads,       x_half.data(), weight.data(), bias.data(),  dy_half.data(),
                                   y.data(),      dx.data(),     dw.data()};
    CHECK(prunefast_conv3x3(&args) == PRUNEFAST_OK);
    CHECK(y.intact() && dx.intact() && dw.intact());
    CHECK(distance(y_true, [&](int64_t i) { return widen(y[i]); }) < 0.01);
    CHECK(distance(dx_true, [&](int64_t i) { return widen(dx[i]); }) < 0.01);
    CHECK(distance(dw_true, [&](int64_t i) { return dw[i]; }) < 0.01);
    std::vector<std::vector<char>> bytes;
    const auto keep = [&](const void* data, int64_t size) {
      const char* from = static_cast<const char*>(data);
      bytes.emplace_back(from, from + size);
    };
    keep(y.data(), out * 2), keep(dx.data(), in * 2), keep(dw.data(), filters * 4);
    if (first.empty()) first = bytes;
    CHECK(bytes == first);
  }
}

}  // namespace

int main() {
  prunefast_conv3x3_args args = {};
  CHECK(prunefast_conv3x3(&args) == PRUNEFAST_BAD_ARGUMENT);
  if (!prunefast_conv3x3_available()) return summary("conv3x3");
  run({1, 1, 1, 32, 32});
  run({2, 5, 7, 64, 96});
  run({3, 8, 4, 96, 32});
  run({9, 17, 16, 32, 64});  // several chunks of tiles
  args = {1, 4, 4, 48, 32, 1, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr};
  CHECK(prunefast_conv3x3(&args) == PRUNEFAST_BAD_ARGUMENT);
  return summary("conv3x3");
}
