#include "baseline.h"

#include <cstring>

#include "exif.h"

namespace prunefast {
namespace {

struct Component {
  uint8_t id, horizontal, vertical, quantisation;
};

// The segments of one file, read from front to back; every method gives false at the first thing that is not as it must be.
class Parser {
 public:
  Parser(const uint8_t* data, int64_t length) : data_(data), length_(length) {}

  bool matches(int32_t width, int32_t height) {
    if (length_ < 4 || data_[0] != 0xFF || data_[1] != 0xD8) return false;
    int64_t position = 2;
    while (position + 4 <= length_) {
      if (data_[position] != 0xFF) return false;
      const uint8_t marker = data_[position + 1];
      const int64_t size = (data_[position + 2] << 8 | data_[position + 3]) - 2;
      const uint8_t* body = data_ + position + 4;
      position += 4 + size;
      if (size < 0 || position > length_) return false;
      if (marker == 0xDA) return start_of_scan(body, size) && width_ == width && height_ == height && scan(position);
      if (!segment(marker, body, size)) return false;
    }
    return false;
  }

 private:
  bool segment(uint8_t marker, const uint8_t* body, int64_t size) {
    switch (marker) {
      case 0xDB: return quantisation(body, size);
      case 0xC4: return huffman(body, size);
      case 0xC0: return frame(body, size);
      case 0xDD:
        restart_interval_ = size == 2 ? body[0] << 8 | body[1] : 0;
        return size == 2;
      case 0xE1:
        return size < 14 || std::memcmp(body, "Exif\0\0", 6) != 0 ||
               exif_orientation(body + 6, static_cast<uint32_t>(size - 6)) == 1;
      case 0xEE:  // Adobe's transform: 1 is YCbCr
        adobe_rgb_ = adobe_rgb_ || (size >= 12 && std::memcmp(body, "Adobe", 5) == 0 && body[11] != 1);
        return true;
      case 0xFE: return true;                               // a comment
      default: return marker >= 0xE0 && marker <= 0xEF;     // what applications keep there
    }
  }

  bool quantisation(const uint8_t* body, int64_t size) {
    for (; size >= 65; body += 65, size -= 65) {
      if (body[0] > 3) return false;  // number of the table; 16-bit values have a bit above it
      for (int i = 1; i <= 64; ++i)
        if (body[i] == 0) return false;
      quantisation_[body[0]] = true;
    }
    return size == 0;
  }

  bool huffman(const uint8_t* body, int64_t size) {
    while (size >= 17) {
      const int kind = body[0] >> 4, number = body[0] & 15;
      if (kind > 1 || number > 1) return false;
      int symbols = 0, codes = 0;  // codes: how many of the 2^bits of this length are taken
      for (int bits = 1; bits <= 16; ++bits) {
        symbols += body[bits];
        codes = 2 * codes + body[bits];
        if (codes > 1 << bits) return false;
      }
      if (symbols == 0 || symbols > 256 || size < 17 + symbols) return false;
      for (int i = 0; i < symbols; ++i)
        if (kind == 0 && body[17 + i] > 11) return false;  // bits of a DC difference
      (kind == 0 ? dc_ : ac_)[number] = true;
      body += 17 + symbols, size -= 17 + symbols;
    }
    return size == 0;
  }

  bool frame(const uint8_t* body, int64_t size) {
    if (components_ || size < 6 || body[0] != 8) return false;
    height_ = body[1] << 8 | body[2], width_ = body[3] << 8 | body[4], components_ = body[5];
    if ((components_ != 1 && components_ != 3) || size != 6 + 3 * components_ || !width_ || !height_) return false;
    for (int i = 0; i < components_; ++i) {
      const uint8_t* p = body + 6 + 3 * i;
      component_[i] = {p[0], static_cast<uint8_t>(p[1] >> 4), static_cast<uint8_t>(p[1] & 15), p[2]};
      if (component_[i].quantisation > 3) return false;
      if (components_ == 3 && component_[i].id != i + 1) return false;  // other numbers may mean RGB
    }
    const Component& first = component_[0];
    if (components_ == 1) return first.horizontal == 1 && first.vertical == 1;
    for (int i = 1; i < 3; ++i)
      if (component_[i].horizontal != 1 || component_[i].vertical != 1) return false;
    return (first.horizontal == 1 && first.vertical == 1) || (first.horizontal == 2 && first.vertical <= 2 && first.vertical);
  }

  bool start_of_scan(const uint8_t* body, int64_t size) const {
    if (!components_ || (components_ == 3 && adobe_rgb_)) return false;
    if (size != 4 + 2 * components_ || body[0] != components_) return false;
    for (int i = 0; i < components_; ++i) {
      const int id = body[1 + 2 * i], tables = body[2 + 2 * i];
      if (id != component_[i].id || (tables >> 4) > 1 || (tables & 15) > 1) return false;
      if (!dc_[tables >> 4] || !ac_[tables & 15] || !quantisation_[component_[i].quantisation]) return false;
    }
    const uint8_t* spectrum = body + 1 + 2 * components_;  // all coefficients, in full
    return spectrum[0] == 0 && spectrum[1] == 63 && spectrum[2] == 0;
  }

  // From the first byte after the header of the scan to the end of the file.
  bool scan(int64_t position) const {
    const int64_t start = position;
    int64_t restarts = 0, stuffed = 0;
    while (const void* found = std::memchr(data_ + position, 0xFF, static_cast<size_t>(length_ - position))) {
      position = static_cast<const uint8_t*>(found) - data_ + 2;
      if (position > length_) return false;
      const uint8_t marker = data_[position - 1];
      if (marker == 0) {
        ++stuffed;
      } else if (marker >= 0xD0 && marker <= 0xD7) {
        if (marker - 0xD0 != restarts % 8) return false;
        ++restarts;
      } else {
        return marker == 0xD9 && position == length_ && enough(position - 2 - start - stuffed - 2 * restarts, restarts);
      }
    }
    return false;
  }

  bool enough(int64_t bytes, int64_t restarts) const {
    const int across = 8 * component_[0].horizontal, down = 8 * component_[0].vertical;
    const int64_t units = int64_t{(width_ + across - 1) / across} * ((height_ + down - 1) / down);
    const int64_t blocks = units * (components_ == 1 ? 1 : component_[0].horizontal * component_[0].vertical + 2);
    if (8 * bytes < 2 * blocks) return false;  // a code for DC and one for the end of the block: 2 bits at least
    return restarts == (restart_interval_ ? (units - 1) / restart_interval_ : 0);
  }

  const uint8_t* data_;
  int64_t length_;
  bool quantisation_[4] = {}, dc_[2] = {}, ac_[2] = {}, adobe_rgb_ = false;
  Component component_[3] = {};
  int components_ = 0, width_ = 0, height_ = 0, restart_interval_ = 0;
};

}  // namespace

bool baseline_jpeg(const uint8_t* data, int64_t length, int32_t width, int32_t height) {
  return Parser(data, length).matches(width, height);
}

}  // namespace prunefast
