// denoising_loss and add_noise against plain float64 loops, over layouts, crops, mirrors, dtypes and noise sources.
#include "check.h"

namespace {

struct Sizes {
  int64_t samples, channels, height, width, image_height, image_width;
};

prunefast_image describe(void* data, int32_t dtype, int64_t channels, int64_t height, int64_t width, bool last) {
  if (last) return {data, {channels * height * width, 1, width * channels, channels}, dtype};
  return {data, {channels * height * width, height * width, width, 1}, dtype};
}

int64_t place(const prunefast_image& image, int64_t i, int64_t c, int64_t y, int64_t x) {
  return i * image.stride[0] + c * image.stride[1] + y * image.stride[2] + x * image.stride[3];
}

void run(const Sizes& s, bool last, bool bytes, bool crop, bool flipped, bool philox, bool coordinates,
         int32_t threads) {
  Numbers numbers(static_cast<uint64_t>(s.width + 7 * last + 3 * bytes));
  const int64_t elements = s.samples * s.channels * s.height * s.width;
  const int64_t image_elements = s.samples * s.channels * s.image_height * s.image_width;
  Guarded<float> pred(elements), noise(elements), gradient(elements), clean(image_elements);
  Guarded<uint8_t> clean_bytes(image_elements);
  for (int64_t i = 0; i < elements; ++i) pred[i] = numbers.next(), noise[i] = numbers.next();
  for (int64_t i = 0; i < image_elements; ++i)
    clean[i] = numbers.next(), clean_bytes[i] = static_cast<uint8_t>(numbers.integer(256));
  std::vector<int64_t> position, corner, labels;
  std::vector<uint8_t> flip;
  std::vector<float> a, b, weight, reference, scale;
  for (int64_t i = 0; i < s.samples; ++i) {
    position.push_back(1000 * i + 5);
    corner.push_back(s.image_height > s.height ? numbers.integer(s.image_height - s.height + 1) : 0);
    corner.push_back(s.image_width > s.width ? numbers.integer(s.image_width - s.width + 1) : 0);
    flip.push_back(static_cast<uint8_t>(i % 2 == 0));
    labels.push_back(i % 3);
    a.push_back(numbers.next()), b.push_back(numbers.next()), weight.push_back(numbers.next() + 1);
    reference.push_back(0.1f), scale.push_back(numbers.next());
  }
  std::vector<float> random(elements);
  if (philox) {
    CHECK(!prunefast_philox(PRUNEFAST_NORMAL, random.data(), 0, s.samples, s.channels * s.height * s.width, 42, 0,
                            position.data(), 1));
  }
  prunefast_denoising_loss_args args = {};
  prunefast_image_args& images = args.images;
  images.samples = s.samples, images.channels = s.channels, images.height = s.height, images.width = s.width;
  images.image_height = s.image_height, images.image_width = s.image_width;
  images.x0 = describe(bytes ? static_cast<void*>(clean_bytes.data()) : clean.data(),
                       bytes ? PRUNEFAST_UINT8 : PRUNEFAST_FLOAT32, s.channels, s.image_height, s.image_width, last);
  if (!philox) images.noise = describe(noise.data(), PRUNEFAST_FLOAT32, s.channels, s.height, s.width, last);
  images.seed = 42, images.position = position.data(), images.threads = threads;
  images.corner = crop ? corner.data() : nullptr, images.flip = flipped ? flip.data() : nullptr;
  args.pred = describe(pred.data(), PRUNEFAST_FLOAT32, s.channels, s.height, s.width, last);
  args.gradient = describe(gradient.data(), PRUNEFAST_FLOAT32, s.channels, s.height, s.width, last);
  args.a = a.data(), args.b = b.data(), args.weight = weight.data(), args.gradient_scale = scale.data();
  args.labels = labels.data(), args.reference = reference.data(), args.classes = 4;
  float loss;
  Guarded<float> per_sample(s.samples), excess(4);
  Guarded<int64_t> count(4);
  args.loss = &loss, args.per_sample = per_sample.data(), args.class_excess = excess.data(),
  args.class_count = count.data();
  CHECK(prunefast_denoising_loss(&args) == PRUNEFAST_OK);

  const int64_t out_channels = s.channels + (coordinates ? 2 : 0);
  Guarded<float> noisy(s.samples * out_channels * s.height * s.width);
  prunefast_add_noise_args mix = {};
  mix.images = images, mix.alpha = a.data(), mix.sigma = b.data(), mix.coordinates = coordinates;
  mix.out = describe(noisy.data(), PRUNEFAST_FLOAT32, out_channels, s.height, s.width, last);
  CHECK(prunefast_add_noise(&mix) == PRUNEFAST_OK);

  double total = 0, classes[4] = {0, 0, 0, 0};
  for (int64_t i = 0; i < s.samples; ++i) {
    double sum = 0;
    for (int64_t c = 0; c < out_channels; ++c)
      for (int64_t y = 0; y < s.height; ++y)
        for (int64_t x = 0; x < s.width; ++x) {
          const int64_t top = crop ? corner[2 * i] : 0, left = crop ? corner[2 * i + 1] : 0;
          const float got = noisy[place(mix.out, i, c, y, x)];
          if (c >= s.channels) {
            const bool column = c == s.channels;
            const double size = static_cast<double>(column ? s.image_width : s.image_height) - 1;
            const double spot = static_cast<double>(column ? left + x : top + y);
            CHECK(std::fabs(got - (size > 0 ? 2 * spot / size - 1 : 0.0)) < 1e-6);
            continue;
          }
          const int64_t column = flipped && flip[i] ? s.image_width - 1 - (left + x) : left + x;
          const int64_t at = place(images.x0, i, c, top + y, column);
          const double pixel = bytes ? clean_bytes[at] / 127.5 - 1 : static_cast<double>(clean[at]);
          const int64_t mine = place(args.pred, i, c, y, x);
          const double z = philox ? random[((i * s.channels + c) * s.height + y) * s.width + x] : noise[mine];
          const double difference = pred[mine] - a[i] * pixel - b[i] * z;
          sum += difference * difference;
          CHECK(std::fabs(gradient[mine] - difference * scale[i]) < 2e-6);
          CHECK(std::fabs(got - (a[i] * pixel + b[i] * z)) < 2e-6);
        }
    const double mean = sum / static_cast<double>(s.channels * s.height * s.width);
    CHECK(std::fabs(per_sample[i] - mean) <= 1e-5 * mean);
    total += weight[i] * mean;
    classes[labels[i]] += std::fmax(mean - 0.1f, 0.0);
  }
  CHECK(std::fabs(loss - total / static_cast<double>(s.samples)) < 1e-5 * std::fabs(total) + 1e-7);
  for (int64_t c = 0; c < 4; ++c) CHECK(std::fabs(excess[c] - classes[c]) < 1e-5);
  CHECK(count[0] == (s.samples + 2) / 3 && count[3] == 0);
  CHECK(gradient.intact() && per_sample.intact() && excess.intact() && count.intact() && noisy.intact());
}

// Every float16 and bfloat16 goes through and back unchanged; ties round to even.
void conversions() {
  for (const int32_t dtype : {PRUNEFAST_FLOAT16, PRUNEFAST_BFLOAT16}) {
    std::vector<uint16_t> every(65536), back(65536);
    for (int64_t i = 0; i < 65536; ++i) every[i] = static_cast<uint16_t>(i);
    std::vector<float> wide(65536), zero(65536, 0.0f);
    const float one = 1, none = 0;
    prunefast_add_noise_args mix = {};
    prunefast_image_args& images = mix.images;
    images.samples = images.channels = images.height = images.image_height = 1;
    images.width = images.image_width = 65536, images.threads = 1;
    images.x0 = describe(every.data(), dtype, 1, 1, 65536, false);
    images.noise = describe(zero.data(), PRUNEFAST_FLOAT32, 1, 1, 65536, false);
    mix.alpha = &one, mix.sigma = &none;
    mix.out = describe(wide.data(), PRUNEFAST_FLOAT32, 1, 1, 65536, false);
    CHECK(prunefast_add_noise(&mix) == PRUNEFAST_OK);
    images.x0 = describe(wide.data(), PRUNEFAST_FLOAT32, 1, 1, 65536, false);
    mix.out = describe(back.data(), dtype, 1, 1, 65536, false);
    CHECK(prunefast_add_noise(&mix) == PRUNEFAST_OK);
    const int exponent_bits = dtype == PRUNEFAST_FLOAT16 ? 5 : 8, mantissa_bits = 15 - exponent_bits;
    const int bias = (1 << (exponent_bits - 1)) - 1, top = (1 << exponent_bits) - 1;
    for (int i = 0; i < 65536; ++i) {
      const int exponent = (i >> mantissa_bits) & top, mantissa = i & ((1 << mantissa_bits) - 1);
      if (exponent == top && mantissa) {
        CHECK(std::isnan(wide[i]));
        continue;
      }
      const double magnitude = exponent == top ? std::numeric_limits<double>::infinity()
                               : exponent ? std::ldexp((1 << mantissa_bits) + mantissa, exponent - bias - mantissa_bits)
                                          : std::ldexp(mantissa, 1 - bias - mantissa_bits);
      CHECK(wide[i] == (i & 0x8000 ? -magnitude : magnitude));
      CHECK(back[i] == i || (magnitude == 0 && (back[i] & 0x7FFF) == 0));
    }
    // half way between neighbours: to the even one
    std::vector<float> half(65536, 0.0f);
    for (int i = 1; i + 1 < (top << mantissa_bits); ++i)
      half[i] = static_cast<float>((double(wide[i]) + wide[i + 1]) / 2);
    images.x0 = describe(half.data(), PRUNEFAST_FLOAT32, 1, 1, 65536, false);
    CHECK(prunefast_add_noise(&mix) == PRUNEFAST_OK);
    for (int i = 1; i + 1 < (top << mantissa_bits); ++i) CHECK(back[i] == i + (i & 1));
  }
}

}  // namespace

int main() {
  const Sizes sizes[] = {{1, 1, 1, 1, 1, 1},     {5, 3, 7, 5, 7, 5},       {4, 3, 8, 8, 11, 13},
                         {3, 4, 16, 17, 16, 17}, {2, 3, 3, 1100, 3, 1101}, {2, 2, 130, 65, 140, 70}};
  for (const Sizes& s : sizes)
    for (int bits = 0; bits < 64; ++bits) {
      const bool crop = bits & 4 || s.image_height != s.height || s.image_width != s.width;
      run(s, bits & 1, bits & 2, crop, bits & 8, bits & 16, bits & 32, 1 + 2 * (bits & 1));
    }
  conversions();

  prunefast_denoising_loss_args bad = {};
  bad.images.samples = -1;
  CHECK(prunefast_denoising_loss(&bad) == PRUNEFAST_BAD_ARGUMENT);
  const int64_t corner[] = {0, 1};
  float value = 0;
  prunefast_add_noise_args outside = {};
  outside.images.samples = outside.images.channels = outside.images.height = outside.images.width = 1;
  outside.images.image_height = outside.images.image_width = 1;
  outside.images.x0 = outside.images.noise = describe(&value, PRUNEFAST_FLOAT32, 1, 1, 1, false);
  outside.images.corner = corner;
  CHECK(prunefast_add_noise(&outside) == PRUNEFAST_OUT_OF_RANGE);
  CHECK(std::strstr(prunefast_last_error(), "boxes"));
  return summary("images");
}
