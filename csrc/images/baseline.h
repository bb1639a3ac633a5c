// Which JPEGs every decoder reads alike.
#ifndef PRUNEFAST_IMAGES_BASELINE_H
#define PRUNEFAST_IMAGES_BASELINE_H

#include <cstdint>

namespace prunefast {

// Whether the bytes are one whole baseline JPEG (ITU-T T.81) of width x height pixels, and of the kind that decoders agree
// on: 8 bits, Huffman, one scan, upright, grey or YCbCr with chroma in full, half or quarter resolution. Every table that
// the scan needs is there and sound, the scan has the right restart markers and bits enough for its blocks, and nothing
// follows it. What is left to go wrong are the coefficients.
//
// Strict on purpose: some decoders end the process on bytes that are no image (DALI 2.2 to 2.4), so what is in doubt is
// not for them.
bool baseline_jpeg(const uint8_t* data, int64_t length, int32_t width, int32_t height);

}  // namespace prunefast

#endif
