// JPEG through libjpeg-turbo, for the common case: upright, grey or colour, without a flaw. Everything else is left to
// the general decoder, which has the last word and the words for errors.
#pragma once

#include <cstdint>
#include <memory>

namespace prunefast {

// One a thread: the decompressor and its buffers are reused from image to image.
class JpegDecoder {
 public:
  JpegDecoder();
  ~JpegDecoder();
  // The `window` x `window` pixels at (top, left) of the square that prunefast_decode_records describes, to `out`
  // [window, window, 3]. False: not a case for this decoder; `out` may have been written to.
  bool decode(const uint8_t* data, int64_t length, int side, int window, int top, int left, bool reduced, uint8_t* out);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace prunefast
