/* Reading image records: the C interface of the module `_images`, apart from the core because it may link libjpeg-turbo.
 *
 * A call reads many records (a file each, or runs of bytes in open files) in several threads, checks their sums, and
 * either decodes them or copies them, each into its own place. What is wrong with a record is its own status; the call
 * itself fails only for want of memory. A file that was cut short gives a status too, where it is mapped as well.
 */
#ifndef PRUNEFAST_IMAGES_H
#define PRUNEFAST_IMAGES_H

#include "prunefast/prunefast.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Status of a record. Below zero: -errno of what failed. */
typedef enum {
  PRUNEFAST_RECORD_READ = 0,
  PRUNEFAST_RECORD_OTHER = 1,   /* not an upright grey or colour JPEG without flaws: for the general decoder */
  PRUNEFAST_RECORD_CHANGED = 2, /* ends before it should, or a file of another size */
  PRUNEFAST_RECORD_SUM = 3,     /* the bytes are not those the sum was made of */
} prunefast_record_status;

typedef struct {
  int64_t count;
  const int64_t* length;     /* [count], bytes */
  const uint64_t* sum;       /* [count] xxh3 of the bytes, checked before anything else; or null */
  const int32_t* descriptor; /* [count] open files, with `offset`; or null: a file each */
  const int64_t* offset;     /* [count] */
  /* a file each: names[name_offset[item] .. name_offset[item + 1]] below the folder open as `folder` */
  int32_t folder;
  const char* names;
  const int32_t* name_offset;
  const int64_t* item; /* [count] */
  int32_t threads;
} prunefast_records;

PRUNEFAST_API int32_t prunefast_images_abi_version(void);
PRUNEFAST_API int32_t prunefast_images_has_jpeg(void);
/* This thread's last error of this module; never null. */
PRUNEFAST_API const char* prunefast_images_last_error(void);

/* Calls that run end at their next record, with an error, and all later ones at once: for a process that exits. */
PRUNEFAST_API void prunefast_images_stop(void);

/* XXH3 with 64 bits, seed 0, of `length` bytes. */
PRUNEFAST_API uint64_t prunefast_xxh3(const void* data, int64_t length);

/* Tell the system which bytes will be read soon, in the order they lie in. Never fails. */
PRUNEFAST_API void prunefast_announce(const prunefast_records* records);

/* sum_out[i] = xxh3 of record i where status[i] is READ. */
PRUNEFAST_API int32_t prunefast_sum_records(const prunefast_records* records, uint64_t* sum_out, int32_t* status);

/* Record i to out + i * row_bytes; row_bytes is at least every length.
 * mapped: [count] where each record lies in memory, in a map of its file (`descriptor`); then no system call is made a record, and a
 * handler of SIGBUS is installed that turns what a map does where the file has ended into a status. Null: it is read. */
PRUNEFAST_API int32_t prunefast_copy_records(const prunefast_records* records, const uint8_t* const* mapped,
                                             uint8_t* out, int64_t row_bytes, int32_t* status);

/* JPEGs as RGB squares: centre crop, then `side` x `side` (box filter down, bicubic up; the pixels of Pillow), then of
 * that the window of `window` x `window` pixels with its corner at corner[i] = (top, left); corner null: window ==
 * side. Where the square is `side` wide already, only the window is decoded.
 * reduced: decode at 1/2, 1/4 or 1/8 scale first where the result is still at least `side` wide (faster; other pixels).
 * out: [count, window, window, 3]. */
PRUNEFAST_API int32_t prunefast_decode_records(const prunefast_records* records, int32_t side, int32_t window,
                                               const int32_t* corner, int32_t reduced, uint8_t* out, int32_t* status);

/* Records for a decoder that is not this module's: record i to out + place[i], which has room for its length and one
 * byte. READ: a whole baseline JPEG of width[i] x height[i] pixels of the kind that all decoders read alike; OTHER: its
 * bytes are there, but it is something else, or broken. Needs no libjpeg. */
PRUNEFAST_API int32_t prunefast_read_jpegs(const prunefast_records* records, const int32_t* width, const int32_t* height,
                                           const int64_t* place, uint8_t* out, int32_t* status);
/* The same check of bytes in memory: 1 or 0. */
PRUNEFAST_API int32_t prunefast_is_baseline_jpeg(const uint8_t* data, int64_t length, int32_t width, int32_t height);

#ifdef __cplusplus
}
#endif
#endif
