// How an image is turned, by its EXIF block.
#ifndef PRUNEFAST_IMAGES_EXIF_H
#define PRUNEFAST_IMAGES_EXIF_H

#include <cstdint>

namespace prunefast {

inline uint32_t exif_number(const uint8_t* p, int bytes, bool little) {
  uint32_t value = 0;
  for (int i = 0; i < bytes; ++i) value |= static_cast<uint32_t>(p[i]) << 8 * (little ? i : bytes - 1 - i);
  return value;
}

// Tag 0x0112 of the first directory of the `size` (at least 8) bytes that follow "Exif\0\0"; 1 (upright) where there is
// none or they are broken.
inline int exif_orientation(const uint8_t* tiff, uint32_t size) {
  const bool little = tiff[0] == 'I' && tiff[1] == 'I';
  if (!little && !(tiff[0] == 'M' && tiff[1] == 'M')) return 1;
  const uint32_t start = exif_number(tiff + 4, 4, little);
  if (start > size - 2) return 1;
  const uint32_t count = exif_number(tiff + start, 2, little);
  for (uint32_t i = 0; i < count && start + 2 + 12 * (i + 1) <= size; ++i) {
    const uint8_t* entry = tiff + start + 2 + 12 * i;
    if (exif_number(entry, 2, little) != 0x0112) continue;
    const uint32_t value = exif_number(entry + 8, 2, little);
    return exif_number(entry + 2, 2, little) == 3 && value >= 1 && value <= 8 ? static_cast<int>(value) : 1;
  }
  return 1;
}

}  // namespace prunefast

#endif
