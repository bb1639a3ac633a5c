// Python values to the structures of the C interface; for both modules.
#pragma once

#include <pybind11/pybind11.h>

#include <new>
#include <stdexcept>

#include "prunefast/prunefast_cuda.h"

namespace py = pybind11;

namespace prunefast {

template <typename T>
inline T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// Runs a call of the C interface without the GIL, and turns a status into an exception with the library's own text.
template <typename Call>
void checked(Call call, const char* (*last_error)()) {
  int32_t status;
  {
    py::gil_scoped_release release;
    status = call();
  }
  switch (status) {
    case PRUNEFAST_OK:
      return;
    case PRUNEFAST_OUT_OF_MEMORY:
      throw std::bad_alloc();
    case PRUNEFAST_OUT_OF_RANGE:
    case PRUNEFAST_UNSUPPORTED:
      throw py::value_error(last_error());
    default:
      throw std::runtime_error(last_error());
  }
}

// (address, dtype, stride of sample, channel, row, column); None: absent.
inline prunefast_image image(const py::object& value) {
  prunefast_image result = {nullptr, {0, 0, 0, 0}, PRUNEFAST_FLOAT32};
  if (value.is_none()) return result;
  const auto fields = value.cast<py::tuple>();
  result.data = pointer<void>(fields[0].cast<uintptr_t>());
  result.dtype = fields[1].cast<int32_t>();
  for (size_t i = 0; i < 4; ++i) result.stride[i] = fields[2 + i].cast<int64_t>();
  return result;
}

// (sizes of the result: samples, channels, height, width, of x0: height, width; x0; noise; seed; position; corner;
// flip; threads)
inline prunefast_image_args images(const py::tuple& fields) {
  prunefast_image_args args = {};
  int64_t* const sizes[] = {&args.samples, &args.channels,     &args.height,
                            &args.width,   &args.image_height, &args.image_width};
  for (size_t i = 0; i < 6; ++i) *sizes[i] = fields[i].cast<int64_t>();
  args.x0 = image(fields[6]);
  args.noise = image(fields[7]);
  args.seed = fields[8].cast<uint64_t>();
  args.position = pointer<int64_t>(fields[9].cast<uintptr_t>());
  args.corner = pointer<int64_t>(fields[10].cast<uintptr_t>());
  args.flip = pointer<uint8_t>(fields[11].cast<uintptr_t>());
  args.threads = fields[12].cast<int32_t>();
  return args;
}

// (a, b, weight, gradient scale, labels, reference, classes, loss, per sample, class excess, class count)
inline prunefast_denoising_loss_args denoising_loss(const py::tuple& image_args, const py::object& pred,
                                                    const py::object& gradient, const py::tuple& fields) {
  prunefast_denoising_loss_args args = {};
  args.images = images(image_args);
  args.pred = image(pred), args.gradient = image(gradient);
  const auto at = [&](size_t i) { return fields[i].cast<uintptr_t>(); };
  args.a = pointer<float>(at(0)), args.b = pointer<float>(at(1));
  args.weight = pointer<float>(at(2)), args.gradient_scale = pointer<float>(at(3));
  args.labels = pointer<int64_t>(at(4)), args.reference = pointer<float>(at(5));
  args.classes = fields[6].cast<int64_t>();
  args.loss = pointer<float>(at(7)), args.per_sample = pointer<float>(at(8));
  args.class_excess = pointer<float>(at(9)), args.class_count = pointer<int64_t>(at(10));
  return args;
}

}  // namespace prunefast
