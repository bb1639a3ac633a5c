// The Python face of prunefast_images.h: addresses and sizes in, a status out; prunefast.data checks and explains.
#include <atomic>

#include "prunefast/prunefast_images.h"

#include "arguments.h"

namespace {

using namespace prunefast;

// (count, length, sum, descriptor, offset, folder, names, name_offset, item, threads): addresses, 0 for null
prunefast_records records(const py::tuple& fields) {
  const auto at = [&](size_t i) { return fields[i].cast<uintptr_t>(); };
  return {fields[0].cast<int64_t>(), pointer<int64_t>(at(1)), pointer<uint64_t>(at(2)), pointer<int32_t>(at(3)),
          pointer<int64_t>(at(4)),   fields[5].cast<int32_t>(), pointer<char>(at(6)),   pointer<int32_t>(at(7)),
          pointer<int64_t>(at(8)),   fields[9].cast<int32_t>()};
}

// Calls in which a thread is without the interpreter, or waits to get it back.
std::atomic<int> running{0};

template <typename Call>
void run(Call call) {
  const struct Count {
    Count() { ++running; }
    ~Count() { --running; }
  } count;
  checked(call, &prunefast_images_last_error);
}

}  // namespace

PYBIND11_MODULE(_images, m) {
  m.doc() = "Reads, checks and decodes image records. Use prunefast.data: nothing here checks its arguments.";
  m.def("abi_version", &prunefast_images_abi_version);
  m.def("has_jpeg", [] { return prunefast_images_has_jpeg() != 0; });
  m.def("stop", &prunefast_images_stop);
  m.def("running", [] { return running.load(); });
  m.def("xxh3", [](const py::buffer& data) {
    const py::buffer_info info = data.request();
    return prunefast_xxh3(info.ptr, info.size * info.itemsize);
  });
  m.def("announce", [](const py::tuple& fields) {
    const prunefast_records args = records(fields);
    run([&] {
      prunefast_announce(&args);
      return PRUNEFAST_OK;
    });
  });
  m.def("sum_records", [](const py::tuple& fields, uintptr_t sum_out, uintptr_t status) {
    const prunefast_records args = records(fields);
    run([&] { return prunefast_sum_records(&args, pointer<uint64_t>(sum_out), pointer<int32_t>(status)); });
  });
  // `ahead`: announced first, within the same call; None: nothing is
  m.def("copy_records",
        [](const py::tuple& fields, const py::object& ahead, uintptr_t mapped, uintptr_t out, int64_t row_bytes,
           uintptr_t status) {
          const prunefast_records args = records(fields);
          const prunefast_records next = ahead.is_none() ? prunefast_records{} : records(ahead.cast<py::tuple>());
          run([&] {
            if (next.count) prunefast_announce(&next);
            return prunefast_copy_records(&args, pointer<const uint8_t*>(mapped), pointer<uint8_t>(out), row_bytes,
                                          pointer<int32_t>(status));
          });
        });
  m.def("decode_records", [](const py::tuple& fields, int32_t side, int32_t window, uintptr_t corner, bool reduced,
                             uintptr_t out, uintptr_t status) {
    const prunefast_records args = records(fields);
    run([&] {
      return prunefast_decode_records(&args, side, window, pointer<int32_t>(corner), reduced, pointer<uint8_t>(out),
                                      pointer<int32_t>(status));
    });
  });
  m.def("is_baseline_jpeg", [](const py::buffer& data, int32_t width, int32_t height) {
    const py::buffer_info info = data.request();
    return prunefast_is_baseline_jpeg(static_cast<const uint8_t*>(info.ptr), info.size * info.itemsize, width, height) != 0;
  });
  m.def("read_jpegs", [](const py::tuple& fields, uintptr_t width, uintptr_t height, uintptr_t place, uintptr_t out,
                         uintptr_t status) {
    const prunefast_records args = records(fields);
    run([&] {
      return prunefast_read_jpegs(&args, pointer<int32_t>(width), pointer<int32_t>(height), pointer<int64_t>(place),
                                  pointer<uint8_t>(out), pointer<int32_t>(status));
    });
  });
}
