// Resizing with the pixels of Pillow: the same filters, the same fixed point, the same order of passes.
#pragma once

#include <cstdint>
#include <vector>

namespace prunefast {

// RGB squares of one width to another: weights once, two passes an image.
class Resampler {
 public:
  // Box filter where `to` is smaller, bicubic (a = -1/2) where it is larger.
  void prepare(int from, int to);  // keeps what it has where both are as before
  // source: [from, from, 3]; target: [to, to, 3].
  void run(const uint8_t* source, uint8_t* target);

 private:
  int from_ = 0, to_ = 0, taps_ = 0;
  std::vector<int32_t> first_, count_, weight_;  // [to], [to], [to, taps]
  std::vector<uint8_t> narrow_;                  // [from, to, 3], after the horizontal pass
};

}  // namespace prunefast
