// Records: statuses, sums, guarded outputs, and JPEGs damaged in every way, under the sanitizers.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <string>

#include "check.h"
#include "prunefast/prunefast_images.h"
#ifdef PRUNEFAST_JPEG
#include <cstdio>

#include <jpeglib.h>
#endif

namespace {

// A file in the temporary folder, open, that goes when this does.
class File {
 public:
  explicit File(const std::vector<uint8_t>& bytes) {
    char name[] = "/tmp/prunefast-test-XXXXXX";
    descriptor_ = mkstemp(name);
    unlink(name);
    CHECK(write(descriptor_, bytes.data(), bytes.size()) == static_cast<ssize_t>(bytes.size()));
  }
  ~File() { close(descriptor_); }
  int descriptor() const { return descriptor_; }

 private:
  int descriptor_;
};

void test_statuses() {
  std::vector<uint8_t> bytes(1000);
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<uint8_t>(i * 7);
  const File file(bytes);
  const int64_t count = 5;
  const int64_t length[] = {100, 50, 100, 100, 0}, offset[] = {0, 950, 901, 200, 1000};
  uint64_t sum[count];
  for (int64_t i = 0; i < count; ++i) sum[i] = i == 2 ? 0 : prunefast_xxh3(bytes.data() + offset[i], length[i]);
  sum[3] ^= 1;
  const int32_t descriptor[] = {file.descriptor(), file.descriptor(), file.descriptor(), file.descriptor(),
                                file.descriptor()};
  for (const int threads : {1, 2, 7}) {
    prunefast_records records = {count, length, sum, descriptor, offset, -1, nullptr, nullptr, nullptr, threads};
    int32_t status[count];
    Guarded<uint8_t> out(count * 100);
    CHECK(prunefast_copy_records(&records, nullptr, out.data(), 100, status) == PRUNEFAST_OK);
    CHECK(out.intact());
    const int32_t expected[] = {PRUNEFAST_RECORD_READ, PRUNEFAST_RECORD_READ, PRUNEFAST_RECORD_CHANGED,
                                PRUNEFAST_RECORD_SUM, PRUNEFAST_RECORD_READ};
    for (int64_t i = 0; i < count; ++i) CHECK(status[i] == expected[i]);
    CHECK(!std::memcmp(out.data(), bytes.data(), 100));
    CHECK(!std::memcmp(out.data() + 100, bytes.data() + 950, 50));
    records.sum = nullptr;
    uint64_t found[count];
    CHECK(prunefast_sum_records(&records, found, status) == PRUNEFAST_OK);
    CHECK(found[0] == sum[0] && found[1] == sum[1] && found[3] == (sum[3] ^ 1));
    prunefast_announce(&records);
  }
}

// From a map of the file, which is then cut short: records behind the end get a status, and nothing dies.
void test_mapped() {
  constexpr int64_t kPage = 1 << 16, count = 4;  // a page on any system, at most
  std::vector<uint8_t> bytes(count * kPage);
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<uint8_t>(i % 251);
  const File file(bytes);
  auto* const start = static_cast<uint8_t*>(mmap(nullptr, bytes.size(), PROT_READ, MAP_SHARED, file.descriptor(), 0));
  CHECK(start != MAP_FAILED);
  const int64_t length[] = {100, 100, 100, 100};
  const uint8_t* mapped[count];
  uint64_t sum[count];
  int32_t descriptor[count];
  int64_t offset[count];
  for (int64_t i = 0; i < count; ++i) {
    offset[i] = i * kPage + 7, descriptor[i] = file.descriptor();
    mapped[i] = start + offset[i];
    sum[i] = prunefast_xxh3(bytes.data() + i * kPage + 7, 100);
  }
  sum[1] ^= 1;
  for (const int threads : {1, 3}) {
    const prunefast_records records = {count, length, sum, descriptor, offset, -1, nullptr, nullptr, nullptr, threads};
    int32_t status[count];
    Guarded<uint8_t> out(count * 100);
    CHECK(prunefast_copy_records(&records, mapped, out.data(), 100, status) == PRUNEFAST_OK);
    CHECK(out.intact());
    CHECK(status[0] == PRUNEFAST_RECORD_READ && status[1] == PRUNEFAST_RECORD_SUM);
    CHECK(!std::memcmp(out.data(), bytes.data() + 7, 100));
    CHECK(status[2] == (threads == 1 ? PRUNEFAST_RECORD_READ : PRUNEFAST_RECORD_CHANGED));
    CHECK(status[3] == status[2]);
    CHECK(ftruncate(file.descriptor(), 2 * kPage) == 0);
  }
  munmap(start, bytes.size());
}

void test_files() {
  const int folder = open("/", O_RDONLY | O_DIRECTORY);
  const std::string names = "no-such-file-of-prunefasttmp";
  const int32_t start[] = {0, 25, 28};
  const int64_t item[] = {0, 1}, length[] = {10, 10};
  const prunefast_records records = {2, length, nullptr, nullptr, nullptr, folder, names.data(), start, item, 2};
  int32_t status[2];
  Guarded<uint8_t> out(20);
  CHECK(prunefast_copy_records(&records, nullptr, out.data(), 10, status) == PRUNEFAST_OK);
  CHECK(status[0] == -ENOENT && status[1] == -EISDIR);  // /tmp is a folder
  CHECK(out.intact());
  close(folder);
}

#ifdef PRUNEFAST_JPEG
std::vector<uint8_t> jpeg(int width, int height, bool progressive) {
  jpeg_compress_struct info;
  jpeg_error_mgr errors;
  info.err = jpeg_std_error(&errors);
  jpeg_create_compress(&info);
  unsigned char* data = nullptr;
  unsigned long size = 0;
  jpeg_mem_dest(&info, &data, &size);
  info.image_width = static_cast<JDIMENSION>(width), info.image_height = static_cast<JDIMENSION>(height);
  info.input_components = 3, info.in_color_space = JCS_RGB;
  jpeg_set_defaults(&info);
  if (progressive) jpeg_simple_progression(&info);
  jpeg_start_compress(&info, TRUE);
  std::vector<uint8_t> row(static_cast<size_t>(width) * 3);
  for (int y = 0; y < height; ++y) {
    for (int x = 0; x < width * 3; ++x) row[x] = static_cast<uint8_t>((x * 5) ^ (y * 3));
    JSAMPROW line = row.data();
    jpeg_write_scanlines(&info, &line, 1);
  }
  jpeg_finish_compress(&info);
  jpeg_destroy_compress(&info);
  std::vector<uint8_t> bytes(data, data + size);
  std::free(data);
  return bytes;
}

int32_t decode(const std::vector<uint8_t>& bytes, int side, int window, int top, int left, bool reduced) {
  const File file(bytes);
  const int64_t length = static_cast<int64_t>(bytes.size()), offset = 0;
  const int32_t descriptor = file.descriptor(), corner[] = {top, left};
  const prunefast_records records = {1, &length, nullptr, &descriptor, &offset, -1, nullptr, nullptr, nullptr, 1};
  Guarded<uint8_t> out(int64_t{window} * window * 3);
  int32_t status = -12345;
  CHECK(prunefast_decode_records(&records, side, window, corner, reduced, out.data(), &status) == PRUNEFAST_OK);
  CHECK(out.intact());
  return status;
}

void test_damaged_jpegs() {
  Numbers numbers(1);
  for (const bool progressive : {false, true}) {
    const auto whole = jpeg(53, 41, progressive);
    CHECK(decode(whole, 41, 41, 0, 0, false) == PRUNEFAST_RECORD_READ);
    CHECK(decode(whole, 41, 7, 34, 13, false) == PRUNEFAST_RECORD_READ);
    CHECK(decode(whole, 16, 16, 0, 0, false) == PRUNEFAST_RECORD_READ);
    CHECK(decode(whole, 10, 9, 1, 1, true) == PRUNEFAST_RECORD_READ);
    CHECK(decode(whole, 90, 50, 40, 40, false) == PRUNEFAST_RECORD_READ);
    for (int round = 0; round < 400; ++round) {
      auto bytes = whole;
      for (int64_t flips = 1 + numbers.integer(4); flips > 0; --flips)
        bytes[numbers.integer(static_cast<int64_t>(bytes.size()))] = static_cast<uint8_t>(numbers.integer(256));
      if (round % 3 == 0) bytes.resize(numbers.integer(static_cast<int64_t>(bytes.size())));
      const int side = 1 + static_cast<int>(numbers.integer(60));
      const int window = 1 + static_cast<int>(numbers.integer(side));
      const int32_t status = decode(bytes, side, window, side - window, 0, round % 2 == 0);
      CHECK(status == PRUNEFAST_RECORD_READ || status == PRUNEFAST_RECORD_OTHER);
    }
  }
}

// What a foreign decoder is given: the bytes as they lie, and a status that says whether they are for it.
void test_jpegs_for_others() {
  Numbers numbers(2);
  const auto baseline = jpeg(53, 41, false), progressive = jpeg(53, 41, true);
  std::vector<uint8_t> all(baseline);
  all.insert(all.end(), progressive.begin(), progressive.end());
  const File file(all);
  const int64_t first = static_cast<int64_t>(baseline.size()), second = static_cast<int64_t>(progressive.size());
  const int64_t length[] = {first, second, first, first - 1}, offset[] = {0, first, 0, 0};
  const int32_t descriptor[] = {file.descriptor(), file.descriptor(), file.descriptor(), file.descriptor()};
  const int32_t width[] = {53, 53, 41, 53}, height[] = {41, 41, 53, 41};
  const int64_t place[] = {0, first + 1, first + second + 2, 2 * first + second + 3};
  const prunefast_records records = {4, length, nullptr, descriptor, offset, -1, nullptr, nullptr, nullptr, 2};
  Guarded<uint8_t> out(3 * first + second + 4);
  int32_t status[4];
  CHECK(prunefast_read_jpegs(&records, width, height, place, out.data(), status) == PRUNEFAST_OK);
  CHECK(out.intact());
  CHECK(status[0] == PRUNEFAST_RECORD_READ && !std::memcmp(out.data(), baseline.data(), baseline.size()));
  for (int i = 1; i < 4; ++i) CHECK(status[i] == PRUNEFAST_RECORD_OTHER);  // progressive; another size; cut off
  CHECK(!std::memcmp(out.data() + place[1], progressive.data(), progressive.size()));
  for (int round = 0; round < 20000; ++round) {
    auto bytes = baseline;
    for (int64_t flips = 1 + numbers.integer(4); flips > 0; --flips)
      bytes[numbers.integer(round % 2 ? first : 700)] = static_cast<uint8_t>(numbers.integer(256));
    if (round % 5 == 0) bytes.resize(numbers.integer(first));
    bytes.shrink_to_fit();  // so that the sanitizer sees a byte read behind them
    const int32_t sound = prunefast_is_baseline_jpeg(bytes.data(), static_cast<int64_t>(bytes.size()), 53, 41);
    CHECK(round % 5 ? sound == 0 || sound == 1 : sound == 0);
  }
}
#endif

}  // namespace

int main() {
  test_statuses();
  test_mapped();
  test_files();
#ifdef PRUNEFAST_JPEG
  CHECK(prunefast_images_has_jpeg() == 1);
  test_damaged_jpegs();
  test_jpegs_for_others();
#endif
  return summary("records");
}
