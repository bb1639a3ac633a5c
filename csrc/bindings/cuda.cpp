// The Python face of the CUDA kernels, a module of its own that is loaded when a CUDA tensor first needs it. As
// module.cpp: addresses in, GIL released, status to exception.
#include <string>

#include "arguments.h"

namespace {

using namespace prunefast;

template <typename Call>
void run(Call call) {
  checked(call, prunefast_cuda_last_error);
}

// (samples, pixels, channels, groups, x, weight, bias, scale, shift, modulation row stride, dtypes of x, weight and
// modulation, silu, eps, mean, rstd)
prunefast_cuda_group_norm_args group_norm(const py::tuple& fields) {
  prunefast_cuda_group_norm_args args = {};
  int64_t* const sizes[] = {&args.samples, &args.pixels, &args.channels, &args.groups};
  for (size_t i = 0; i < 4; ++i) *sizes[i] = fields[i].cast<int64_t>();
  const void** const operands[] = {&args.x, &args.weight, &args.bias, &args.scale, &args.shift};
  for (size_t i = 0; i < 5; ++i) *operands[i] = pointer<void>(fields[4 + i].cast<uintptr_t>());
  args.modulation_row_stride = fields[9].cast<int64_t>();
  args.dtype = fields[10].cast<int32_t>();
  args.weight_dtype = fields[11].cast<int32_t>();
  args.modulation_dtype = fields[12].cast<int32_t>();
  args.silu = fields[13].cast<bool>();
  args.eps = fields[14].cast<float>();
  args.mean = pointer<float>(fields[15].cast<uintptr_t>());
  args.rstd = pointer<float>(fields[16].cast<uintptr_t>());
  return args;
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "prunefast's CUDA kernels. Use prunefast.ops: nothing here checks its arguments.";
  m.def("abi_version", &prunefast_cuda_abi_version);
  m.def("architectures", [] { return std::string(prunefast_cuda_architectures()); });
  m.def("versions", [] {
    int32_t toolkit = 0, driver = 0;
    prunefast_cuda_versions(&toolkit, &driver);
    return py::make_tuple(toolkit, driver);
  });
  // (number of devices, "" or why there is none)
  m.def("devices", [] {
    int32_t count = 0;
    const int32_t status = prunefast_cuda_devices(&count);
    return py::make_tuple(count, std::string(status ? prunefast_cuda_last_error() : ""));
  });
  m.def("philox", [](int32_t kind, uintptr_t out, int32_t dtype, int64_t samples, int64_t elements, uint64_t seed,
                     uint32_t stream_word, uintptr_t position, int32_t device, uintptr_t stream) {
    run([=] {
      return prunefast_cuda_philox(kind, pointer<void>(out), dtype, samples, elements, seed, stream_word,
                                   pointer<int64_t>(position), device, pointer<void>(stream));
    });
  });
  m.def("denoising_loss_workspace", &prunefast_cuda_denoising_loss_workspace);
  m.def("denoising_loss", [](const py::tuple& image_args, const py::object& pred, const py::object& gradient,
                             const py::args& fields) {  // after those of the core: workspace, device, stream
    const prunefast_denoising_loss_args args = denoising_loss(image_args, pred, gradient, fields);
    void* const workspace = pointer<void>(fields[11].cast<uintptr_t>());
    const int32_t device = fields[12].cast<int32_t>();
    void* const stream = pointer<void>(fields[13].cast<uintptr_t>());
    run([&] { return prunefast_cuda_denoising_loss(&args, workspace, device, stream); });
  });
  m.def("add_noise", [](const py::tuple& image_args, uintptr_t alpha, uintptr_t sigma, const py::object& out,
                        bool coordinates, int32_t device, uintptr_t stream) {
    const prunefast_add_noise_args args = {images(image_args), pointer<float>(alpha), pointer<float>(sigma), image(out),
                                           coordinates};
    run([&] { return prunefast_cuda_add_noise(&args, device, pointer<void>(stream)); });
  });
  m.def("class_sums_workspace", &prunefast_cuda_class_sums_workspace);
  m.def("class_sums", [](uintptr_t x, int64_t columns, int64_t x_row_stride, uintptr_t order, uintptr_t start,
                         int64_t classes, uintptr_t sums, uintptr_t workspace, int32_t device, uintptr_t stream) {
    run([=] {
      return prunefast_cuda_class_sums(pointer<float>(x), columns, x_row_stride, pointer<int64_t>(order),
                                       pointer<int64_t>(start), classes, pointer<double>(sums),
                                       pointer<void>(workspace), device, pointer<void>(stream));
    });
  });
  m.def("group_norm_silu_workspace", [](const py::tuple& fields) {
    const prunefast_cuda_group_norm_args args = group_norm(fields);
    return prunefast_cuda_group_norm_silu_workspace(&args);
  });
  m.def("group_norm_silu",
        [](const py::tuple& fields, uintptr_t y, uintptr_t workspace, int32_t device, uintptr_t stream) {
          const prunefast_cuda_group_norm_args args = group_norm(fields);
          run([&] {
            return prunefast_cuda_group_norm_silu(&args, pointer<void>(y), pointer<void>(workspace), device,
                                                  pointer<void>(stream));
          });
        });
  m.def("group_norm_silu_backward",
        [](const py::tuple& fields, uintptr_t y_gradient, uintptr_t x_gradient, uintptr_t weight_gradient,
           uintptr_t bias_gradient, uintptr_t scale_gradient, uintptr_t shift_gradient, uintptr_t workspace,
           int32_t device, uintptr_t stream) {
          const prunefast_cuda_group_norm_args args = group_norm(fields);
          run([&] {
            return prunefast_cuda_group_norm_silu_backward(
                &args, pointer<void>(y_gradient), pointer<void>(x_gradient), pointer<float>(weight_gradient),
                pointer<float>(bias_gradient), pointer<float>(scale_gradient), pointer<float>(shift_gradient),
                pointer<void>(workspace), device, pointer<void>(stream));
          });
        });
}
