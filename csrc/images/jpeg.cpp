#include "jpeg.h"

#include <algorithm>
#include <csetjmp>
#include <cstdio>  // jpeglib.h wants it
#include <cstring>
#include <vector>

#include <jpeglib.h>

#include "exif.h"
#include "resample.h"

namespace prunefast {
namespace {

constexpr int64_t kMaxPixels = 89478485;  // as prunefast/data/decode.py has it: against decompression bombs
constexpr int kMaxScans = 500;            // of a progressive file; encoders make about 10, bombs thousands
// A window is decoded with this many more columns on both sides: smooth upsampling of chroma looks at neighbours.
constexpr int kMargin = 16;
constexpr int kRows = 16;  // asked for at a time: what an MCU row has at most

struct Errors : jpeg_error_mgr {
  std::jmp_buf leave;
};

[[noreturn]] void leave(j_common_ptr info) { std::longjmp(static_cast<Errors*>(info->err)->leave, 1); }

void count_scans(j_common_ptr info) {
  if (info->is_decompressor && reinterpret_cast<j_decompress_ptr>(info)->input_scan_number > kMaxScans) leave(info);
}

// Of the first EXIF block; 1 (upright) where there is none.
int orientation(const jpeg_decompress_struct& info) {
  for (auto* marker = info.marker_list; marker; marker = marker->next) {
    if (marker->marker != JPEG_APP0 + 1 || marker->data_length < 14 || std::memcmp(marker->data, "Exif\0\0", 6)) continue;
    return exif_orientation(marker->data + 6, marker->data_length - 6);
  }
  return 1;
}

}  // namespace

struct JpegDecoder::State {
  jpeg_decompress_struct info;
  Errors errors;
  jpeg_progress_mgr progress;
  Resampler resampler;
  std::vector<uint8_t> square, resized, line;

  State() {
    info.err = jpeg_std_error(&errors);
    errors.error_exit = leave;
    errors.output_message = [](j_common_ptr) {};
    // What it makes fails for want of memory only, and then error_exit is called: the object cannot be half made.
    if (setjmp(errors.leave)) throw std::bad_alloc();
    jpeg_create_decompress(&info);
    jpeg_save_markers(&info, JPEG_APP0 + 1, 0xFFFF);
    progress.progress_monitor = count_scans;
    info.progress = &progress;
  }
  ~State() { jpeg_destroy_decompress(&info); }
  State(const State&) = delete;
  State& operator=(const State&) = delete;

  // The header; false where this is no case for us. Nothing with a destructor lives across a possible jump.
  bool open(const uint8_t* data, int64_t length) {
    if (setjmp(errors.leave)) return false;
    errors.num_warnings = 0;
    jpeg_mem_src(&info, data, static_cast<unsigned long>(length));
    if (jpeg_read_header(&info, TRUE) != JPEG_HEADER_OK) return false;
    const bool colours = info.num_components == 1 || info.num_components == 3;
    if (!colours || info.data_precision != 8 || orientation(info) != 1) return false;
    return static_cast<int64_t>(info.image_width) * info.image_height <= kMaxPixels;
  }

  // The rectangle at (top, left) to `out` [height, width, 3].
  bool rectangle(int top, int left, int height, int width, uint8_t* out) {
    if (setjmp(errors.leave)) return false;
    info.out_color_space = JCS_RGB;
    jpeg_start_decompress(&info);
    const bool whole = top == 0 && height == static_cast<int>(info.output_height);
    JDIMENSION first = 0, columns = info.output_width;
    if (width < static_cast<int>(info.output_width)) {
      first = static_cast<JDIMENSION>(std::max(left - kMargin, 0));
      columns = std::min<JDIMENSION>(left + width + kMargin, info.output_width) - first;
      jpeg_crop_scanline(&info, &first, &columns);
    }
    const bool direct = columns == static_cast<JDIMENSION>(width);
    if (!direct && line.size() < static_cast<size_t>(columns) * 3) return false;  // the caller made it wide enough
    if (top && jpeg_skip_scanlines(&info, static_cast<JDIMENSION>(top)) != static_cast<JDIMENSION>(top)) return false;
    const size_t row_bytes = static_cast<size_t>(width) * 3, skip = (static_cast<size_t>(left) - first) * 3;
    JSAMPROW rows[kRows];
    for (int y = 0; y < height;) {
      const int most = direct ? std::min(kRows, height - y) : 1;
      for (int k = 0; k < most; ++k) rows[k] = direct ? out + (y + k) * row_bytes : line.data();
      const int read = static_cast<int>(jpeg_read_scanlines(&info, rows, static_cast<JDIMENSION>(most)));
      if (!read) return false;
      if (!direct) std::memcpy(out + y * row_bytes, line.data() + skip, row_bytes);
      y += read;
    }
    if (whole) jpeg_finish_decompress(&info);
    return errors.num_warnings == 0;
  }

  bool decode(int side, int window, int top, int left, bool reduced, uint8_t* out) {
    int width = static_cast<int>(info.image_width), height = static_cast<int>(info.image_height);
    if (reduced) {
      int scale = 8;
      while (scale > 1 && std::min(width, height) / scale < side) scale /= 2;
      info.scale_num = 1, info.scale_denom = static_cast<unsigned>(scale);
      width = (width + scale - 1) / scale, height = (height + scale - 1) / scale;
    }
    const int square_side = std::min(width, height);
    const int square_top = (height - square_side) / 2, square_left = (width - square_side) / 2;
    line.resize((static_cast<size_t>(width) + 64) * 3);
    if (square_side == side) return rectangle(square_top + top, square_left + left, window, window, out);
    square.resize(static_cast<size_t>(square_side) * square_side * 3);
    if (!rectangle(square_top, square_left, square_side, square_side, square.data())) return false;
    resampler.prepare(square_side, side);
    if (window == side) {
      resampler.run(square.data(), out);
      return true;
    }
    resized.resize(static_cast<size_t>(side) * side * 3);
    resampler.run(square.data(), resized.data());
    const size_t row_bytes = static_cast<size_t>(window) * 3;
    for (int y = 0; y < window; ++y)
      std::memcpy(out + y * row_bytes, resized.data() + (static_cast<size_t>(top + y) * side + left) * 3, row_bytes);
    return true;
  }
};

JpegDecoder::JpegDecoder() : state_(std::make_unique<State>()) {}
JpegDecoder::~JpegDecoder() = default;

bool JpegDecoder::decode(const uint8_t* data, int64_t length, int side, int window, int top, int left, bool reduced,
                         uint8_t* out) {
  if (length < 4 || data[0] != 0xFF || data[1] != 0xD8) return false;
  const bool done =
      state_->open(data, length) && state_->decode(side, window, top, left, reduced, out);
  jpeg_abort_decompress(&state_->info);
  return done;
}

}  // namespace prunefast
