// Many records in one call: the interpreter is asked once a batch, not once a record (a busy main thread would otherwise
// make every record wait for the interpreter's lock).
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <exception>
#include <memory>
#include <new>
#include <numeric>
#include <string>
#include <vector>

#include "baseline.h"
#include "mapped.h"
#include "prunefast/prunefast_images.h"
#include "threads.h"
#include "xxh3.h"
#ifdef PRUNEFAST_JPEG
#include "jpeg.h"
#endif

namespace prunefast {
namespace {

thread_local char last_error[256] = "";

// What one thread keeps from record to record.
struct Worker {
  std::string name;
  std::vector<uint8_t> bytes;
#ifdef PRUNEFAST_JPEG
  std::unique_ptr<JpegDecoder> jpeg;
#endif
};

// `wanted` bytes at `offset`; fewer where the file ends before. Below zero: -errno.
int64_t read_at(int descriptor, uint8_t* out, int64_t wanted, int64_t offset) {
  int64_t done = 0;
  while (done < wanted) {
    const ssize_t part = pread(descriptor, out + done, static_cast<size_t>(wanted - done), offset + done);
    if (part < 0) {
      if (errno == EINTR) continue;
      return -errno;
    }
    if (part == 0) break;
    done += part;
  }
  return done;
}

const char* name_of(const prunefast_records& records, int64_t i, std::string& name) {
  const int64_t item = records.item[i];
  name.assign(records.names + records.name_offset[item], records.names + records.name_offset[item + 1]);
  return name.c_str();
}

// Record i to `out`, which has room for one byte more than its length.
int32_t read_record(const prunefast_records& records, int64_t i, std::string& name, uint8_t* out) {
  const int64_t length = records.length[i];
  int64_t got;
  if (records.descriptor) {
    got = read_at(records.descriptor[i], out, length, records.offset[i]);
  } else {
    const int descriptor = openat(records.folder, name_of(records, i, name), O_RDONLY | O_CLOEXEC);
    if (descriptor < 0) return -errno;
    got = read_at(descriptor, out, length + 1, 0);  // one more: a file that has grown has changed
    close(descriptor);
  }
  if (got < 0) return static_cast<int32_t>(got);
  if (got != length) return PRUNEFAST_RECORD_CHANGED;
  if (records.sum && xxh3(out, length) != records.sum[i]) return PRUNEFAST_RECORD_SUM;
  return PRUNEFAST_RECORD_READ;
}

int32_t read_record(const prunefast_records& records, int64_t i, Worker& worker) {
  if (worker.bytes.size() <= static_cast<size_t>(records.length[i])) worker.bytes.resize(records.length[i] + 1);
  return read_record(records, i, worker.name, worker.bytes.data());
}

// body(i, worker) -> status, for every record, in threads.
template <typename Body>
int32_t for_each_record(const prunefast_records& records, int32_t* status, Body body) {
  try {
    parallel<Worker>(records.count, records.threads, [&](int64_t i, Worker& worker) { status[i] = body(i, worker); });
    return PRUNEFAST_OK;
  } catch (const std::bad_alloc&) {
    std::snprintf(last_error, sizeof last_error, "out of memory");
    return PRUNEFAST_OUT_OF_MEMORY;
  } catch (const std::exception& error) {
    std::snprintf(last_error, sizeof last_error, "%s", error.what());
    return PRUNEFAST_BAD_ARGUMENT;
  }
}

}  // namespace
}  // namespace prunefast

using namespace prunefast;

int32_t prunefast_images_abi_version(void) { return 3; }

int32_t prunefast_images_has_jpeg(void) {
#ifdef PRUNEFAST_JPEG
  return 1;
#else
  return 0;
#endif
}

const char* prunefast_images_last_error(void) { return last_error; }

void prunefast_images_stop(void) { stopped = true; }

uint64_t prunefast_xxh3(const void* data, int64_t length) { return xxh3(data, length); }

void prunefast_announce(const prunefast_records* records) {
#ifdef POSIX_FADV_WILLNEED
  try {
    if (!records->descriptor) {
      std::string name;
      for (int64_t i = 0; i < records->count; ++i) {
        const int descriptor = openat(records->folder, name_of(*records, i, name), O_RDONLY | O_CLOEXEC);
        if (descriptor < 0) continue;  // reading will tell
        posix_fadvise(descriptor, 0, records->length[i], POSIX_FADV_WILLNEED);
        close(descriptor);
      }
      return;
    }
    std::vector<int64_t> order(records->count);
    std::iota(order.begin(), order.end(), int64_t{0});
    std::sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
      return records->descriptor[a] != records->descriptor[b] ? records->descriptor[a] < records->descriptor[b]
                                                              : records->offset[a] < records->offset[b];
    });
    for (const int64_t i : order)
      posix_fadvise(records->descriptor[i], records->offset[i], records->length[i], POSIX_FADV_WILLNEED);
  } catch (const std::exception&) {
    // only advice
  }
#endif
}

int32_t prunefast_sum_records(const prunefast_records* records, uint64_t* sum_out, int32_t* status) {
  return for_each_record(*records, status, [=](int64_t i, Worker& worker) {
    const int32_t result = read_record(*records, i, worker);
    if (result == PRUNEFAST_RECORD_READ) sum_out[i] = xxh3(worker.bytes.data(), records->length[i]);
    return result;
  });
}

int32_t prunefast_copy_records(const prunefast_records* records, const uint8_t* const* mapped, uint8_t* out,
                               int64_t row_bytes, int32_t* status) {
  const int32_t result = for_each_record(*records, status, [=](int64_t i, Worker& worker) -> int32_t {
    uint8_t* const row = out + i * row_bytes;
    if (mapped) {
      if (!copy_mapped(mapped[i], records->length[i], row)) return PRUNEFAST_RECORD_CHANGED;
      return records->sum && xxh3(row, records->length[i]) != records->sum[i] ? PRUNEFAST_RECORD_SUM
                                                                             : PRUNEFAST_RECORD_READ;
    }
    if (records->descriptor) return read_record(*records, i, worker.name, row);  // needs no byte more
    const int32_t result = read_record(*records, i, worker);
    if (result == PRUNEFAST_RECORD_READ) std::copy_n(worker.bytes.data(), records->length[i], row);
    return result;
  });
  if (!mapped) return result;
  int last = -1;
  struct stat file = {};
  for (int64_t i = 0; i < records->count; ++i) {  // what was cut off within a page was read as zeros
    if (records->descriptor[i] != last && fstat(last = records->descriptor[i], &file)) file.st_size = 0;
    if (records->offset[i] + records->length[i] > file.st_size) status[i] = PRUNEFAST_RECORD_CHANGED;
  }
  return result;
}

int32_t prunefast_decode_records(const prunefast_records* records, int32_t side, int32_t window, const int32_t* corner,
                                 int32_t reduced, uint8_t* out, int32_t* status) {
#ifdef PRUNEFAST_JPEG
  const int64_t image_bytes = int64_t{window} * window * 3;
  return for_each_record(*records, status, [=](int64_t i, Worker& worker) -> int32_t {
    const int32_t result = read_record(*records, i, worker);
    if (result != PRUNEFAST_RECORD_READ) return result;
    if (!worker.jpeg) worker.jpeg = std::make_unique<JpegDecoder>();
    const int top = corner ? corner[2 * i] : 0, left = corner ? corner[2 * i + 1] : 0;
    const bool done = worker.jpeg->decode(worker.bytes.data(), records->length[i], side, window, top, left, reduced != 0,
                                          out + i * image_bytes);
    return done ? PRUNEFAST_RECORD_READ : PRUNEFAST_RECORD_OTHER;
  });
#else
  (void)side, (void)window, (void)corner, (void)reduced, (void)out;
  std::fill_n(status, records->count, static_cast<int32_t>(PRUNEFAST_RECORD_OTHER));
  return PRUNEFAST_OK;
#endif
}

int32_t prunefast_is_baseline_jpeg(const uint8_t* data, int64_t length, int32_t width, int32_t height) {
  return baseline_jpeg(data, length, width, height) ? 1 : 0;
}

int32_t prunefast_read_jpegs(const prunefast_records* records, const int32_t* width, const int32_t* height,
                             const int64_t* place, uint8_t* out, int32_t* status) {
  return for_each_record(*records, status, [=](int64_t i, Worker& worker) -> int32_t {
    const int32_t result = read_record(*records, i, worker.name, out + place[i]);
    if (result != PRUNEFAST_RECORD_READ) return result;
    const bool plain = baseline_jpeg(out + place[i], records->length[i], width[i], height[i]);
    return plain ? PRUNEFAST_RECORD_READ : PRUNEFAST_RECORD_OTHER;
  });
}
