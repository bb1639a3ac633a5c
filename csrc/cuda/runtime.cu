// Errors with a text, the device of a call, and what this build and this machine can do.
#include "device.h"

#if !defined(PRUNEFAST_CUDA_ARCHITECTURES)
#define PRUNEFAST_CUDA_ARCHITECTURES ""
#endif

namespace prunefast {

char* error_text() {
  static thread_local char text[kErrorLength] = "";
  return text;
}

int32_t check(cudaError_t error, const char* op) {
  if (error == cudaSuccess) return PRUNEFAST_OK;
  int driver = 0;
  switch (error) {
    case cudaErrorMemoryAllocation:
      return fail(PRUNEFAST_OUT_OF_MEMORY, "%s: out of device memory", op);
    case cudaErrorInsufficientDriver:
      cudaDriverGetVersion(&driver);
      if (driver == 0) return fail(PRUNEFAST_NO_DEVICE, "%s: no CUDA driver on this machine", op);
      return fail(PRUNEFAST_NO_DEVICE, "%s: the driver serves CUDA up to %d.%d; these kernels were built with %d.%d", op,
                  driver / 1000, driver % 1000 / 10, CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10);
    case cudaErrorNoDevice:
      return fail(PRUNEFAST_NO_DEVICE, "%s: the driver finds no GPU", op);
    case cudaErrorNoKernelImageForDevice:
      return fail(PRUNEFAST_UNSUPPORTED, "%s: these kernels were built for sm_%s and newer than the last of them", op,
                  PRUNEFAST_CUDA_ARCHITECTURES);
    default:
      return fail(PRUNEFAST_CUDA_ERROR, "%s: CUDA error %d, %s", op, (int)error, cudaGetErrorString(error));
  }
}

DeviceScope::DeviceScope(int32_t device, const char* op) {
  int current = -1;
  status_ = check(cudaGetDevice(&current), op);
  if (status_) return;
  // Even where it is current already: the runtime of torch is another one, and shares only the driver's context.
  status_ = check(cudaSetDevice(device), op);
  if (!status_ && current != device) previous_ = current;
}

DeviceScope::~DeviceScope() {
  if (previous_ >= 0) cudaSetDevice(previous_);
}

}  // namespace prunefast

int32_t prunefast_cuda_abi_version(void) { return 1; }

const char* prunefast_cuda_last_error(void) { return prunefast::error_text(); }

const char* prunefast_cuda_architectures(void) { return PRUNEFAST_CUDA_ARCHITECTURES; }

int32_t prunefast_cuda_versions(int32_t* toolkit, int32_t* driver) {
  int version = 0;
  cudaDriverGetVersion(&version);
  *toolkit = CUDART_VERSION;
  *driver = version;
  return PRUNEFAST_OK;
}

int32_t prunefast_cuda_devices(int32_t* count) {
  int found = 0;
  const int32_t status = prunefast::check(cudaGetDeviceCount(&found), "devices");
  cudaGetLastError();  // do not leave the error behind for the next launch
  *count = status ? 0 : found;
  return status;
}
