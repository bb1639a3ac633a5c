// The Python face of the C interface: addresses and sizes in, a status out. It sees neither torch nor NumPy, releases
// the GIL around every call, and turns a status into an exception; prunefast.ops checks and converts before it comes
// here.
#include "arguments.h"

namespace {

using namespace prunefast;

template <typename Call>
void run(Call call) {
  checked(call, prunefast_last_error);
}

prunefast_rows rows(const py::tuple& fields) {
  prunefast_rows args = {};
  args.x = pointer<void>(fields[0].cast<uintptr_t>());
  args.dtype = fields[1].cast<int32_t>();
  int64_t* const sizes[] = {&args.rows, &args.columns, &args.row_stride};
  for (size_t i = 0; i < 3; ++i) *sizes[i] = fields[2 + i].cast<int64_t>();
  args.row = pointer<int64_t>(fields[5].cast<uintptr_t>());
  args.threads = fields[6].cast<int32_t>();
  return args;
}

}  // namespace

PYBIND11_MODULE(_native, m) {
  m.doc() = "prunefast's native core. Use prunefast.ops: nothing here checks its arguments.";
  m.def("abi_version", &prunefast_abi_version);
  m.def("isa_in_use", [] { return prunefast_isa_name(prunefast_isa_in_use()); });
  m.def("isas", [] {
    py::dict available;
    for (int32_t isa = 0; prunefast_isa_name(isa); ++isa)
      available[prunefast_isa_name(isa)] = prunefast_isa_available(isa) != 0;
    return available;
  });
  m.def("has_openmp", [] { return prunefast_has_openmp() != 0; });
  m.def("threads", &prunefast_threads);

  m.def("philox", [](int32_t kind, uintptr_t out, int32_t dtype, int64_t samples, int64_t elements, uint64_t seed,
                     uint32_t stream, uintptr_t position, int32_t threads) {
    run([=] {
      return prunefast_philox(kind, pointer<void>(out), dtype, samples, elements, seed, stream,
                              pointer<int64_t>(position), threads);
    });
  });
  m.def("topk", [](uintptr_t x, uintptr_t y, int64_t rows, int64_t others, int64_t columns, int64_t x_row_stride,
                   int64_t y_row_stride, int64_t k, bool inner, bool certify, bool exclude_self, uintptr_t index,
                   uintptr_t distance, uintptr_t sums, uintptr_t counts, int32_t threads) {
    const prunefast_topk_args args = {pointer<float>(x),
                                      pointer<float>(y),
                                      rows,
                                      others,
                                      columns,
                                      x_row_stride,
                                      y_row_stride,
                                      k,
                                      inner,
                                      certify,
                                      exclude_self,
                                      threads,
                                      pointer<int64_t>(index),
                                      pointer<float>(distance),
                                      pointer<double>(sums),
                                      pointer<int64_t>(counts)};
    run([&] { return prunefast_topk(&args); });
  });
  m.def("class_sums", [](uintptr_t x, int64_t rows, int64_t columns, int64_t x_row_stride, uintptr_t labels,
                         int64_t classes, uintptr_t sums, uintptr_t counts, bool add, int32_t threads) {
    run([=] {
      return prunefast_class_sums(pointer<float>(x), rows, columns, x_row_stride, pointer<int64_t>(labels), classes,
                                  pointer<double>(sums), pointer<int64_t>(counts), add, threads);
    });
  });
  // x: address, dtype, rows, columns, row stride, address of the row numbers, threads.
  m.def("moments", [](const py::tuple& x, uintptr_t mean, uintptr_t covariance) {
    const prunefast_rows args = rows(x);
    run([&] { return prunefast_moments(&args, pointer<double>(mean), pointer<double>(covariance)); });
  });
  m.def("mahalanobis", [](const py::tuple& x, uintptr_t mean, uintptr_t factor, uintptr_t squared) {
    const prunefast_rows args = rows(x);
    run([&] {
      return prunefast_mahalanobis(&args, pointer<double>(mean), pointer<double>(factor), pointer<double>(squared));
    });
  });
  m.def("hamming_join", [](uintptr_t x, uintptr_t y, int64_t rows, int64_t others, int64_t words, int64_t first,
                           int64_t last, int32_t threshold, int32_t threads, int64_t capacity, uintptr_t counts,
                           uintptr_t index, uintptr_t distance) {
    int64_t total = 0;
    const prunefast_hamming_args args = {pointer<uint64_t>(x),
                                         pointer<uint64_t>(y),
                                         rows,
                                         others,
                                         words,
                                         first,
                                         last,
                                         threshold,
                                         threads,
                                         capacity,
                                         pointer<int64_t>(counts),
                                         pointer<int64_t>(index),
                                         pointer<int32_t>(distance),
                                         &total};
    run([&] { return prunefast_hamming_join(&args); });
    return total;
  });
  m.def("denoising_loss", [](const py::tuple& image_args, const py::object& pred, const py::object& gradient,
                             const py::args& fields) {
    const prunefast_denoising_loss_args args = denoising_loss(image_args, pred, gradient, fields);
    run([&] { return prunefast_denoising_loss(&args); });
  });
  m.def("add_noise",
        [](const py::tuple& image_args, uintptr_t alpha, uintptr_t sigma, const py::object& out, bool coordinates) {
          const prunefast_add_noise_args args = {images(image_args), pointer<float>(alpha), pointer<float>(sigma),
                                                 image(out), coordinates};
          run([&] { return prunefast_add_noise(&args); });
        });
  // sizes: samples, pixels, channels, groups, dtype, silu, threads, eps; tensors: x, weight, bias, scale, shift, mean,
  // rstd, then y (forward) or the gradients of y, x, weight, bias, scale and shift (backward).
  m.def("group_norm_silu", [](const py::tuple& sizes, const py::tuple& tensors) {
    prunefast_group_norm_args args = {};
    int64_t* const counts[] = {&args.samples, &args.pixels, &args.channels, &args.groups};
    for (size_t i = 0; i < 4; ++i) *counts[i] = sizes[i].cast<int64_t>();
    args.dtype = sizes[4].cast<int32_t>();
    args.silu = sizes[5].cast<bool>();
    args.threads = sizes[6].cast<int32_t>();
    args.eps = sizes[7].cast<float>();
    const auto at = [&](size_t i) { return tensors[i].cast<uintptr_t>(); };
    args.x = pointer<void>(at(0));
    args.weight = pointer<float>(at(1)), args.bias = pointer<float>(at(2));
    args.scale = pointer<float>(at(3)), args.shift = pointer<float>(at(4));
    args.mean = pointer<float>(at(5)), args.rstd = pointer<float>(at(6));
    if (tensors.size() == 8) {
      args.y = pointer<void>(at(7));
      return run([&] { return prunefast_group_norm_silu(&args); });
    }
    args.gradient_y = pointer<void>(at(7)), args.gradient_x = pointer<void>(at(8));
    args.gradient_weight = pointer<float>(at(9)), args.gradient_bias = pointer<float>(at(10));
    args.gradient_scale = pointer<float>(at(11)), args.gradient_shift = pointer<float>(at(12));
    run([&] { return prunefast_group_norm_silu_backward(&args); });
  });
  m.def("conv3x3_available", [] { return prunefast_conv3x3_available() != 0; });
  // sizes: samples, height, width, inputs, outputs, threads; tensors: x, weight, bias, gradient of y, then y and the
  // gradients of x and weight, of which those that are not 0 are written.
  m.def("conv3x3", [](const py::tuple& sizes, const py::tuple& tensors) {
    prunefast_conv3x3_args args = {};
    int64_t* const counts[] = {&args.samples, &args.height, &args.width, &args.inputs, &args.outputs};
    for (size_t i = 0; i < 5; ++i) *counts[i] = sizes[i].cast<int64_t>();
    args.threads = sizes[5].cast<int32_t>();
    const auto at = [&](size_t i) { return tensors[i].cast<uintptr_t>(); };
    args.x = pointer<void>(at(0));
    args.weight = pointer<float>(at(1)), args.bias = pointer<float>(at(2));
    args.gradient_y = pointer<void>(at(3));
    args.y = pointer<void>(at(4)), args.gradient_x = pointer<void>(at(5)), args.gradient_weight = pointer<float>(at(6));
    run([&] { return prunefast_conv3x3(&args); });
  });
}
