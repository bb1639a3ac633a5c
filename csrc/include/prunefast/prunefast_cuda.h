/* The CUDA kernels of prunefast: the conventions of prunefast.h, with device pointers.
 *
 * Every function enqueues kernels on `stream` of device `device` (a number of the CUDA runtime) and returns at once: it
 * reads nothing back, allocates nothing, and can be captured into a CUDA graph. `workspace` is device memory, 16-byte
 * aligned, of at least the bytes that the function's _workspace companion returns; it may be reused once the kernels
 * have run. Sums are reduced in two stages in a fixed order, without atomics: a run repeats bit for bit.
 *
 * Data on the device is never read by the host, so boxes are moved inside their image and a sample whose label is out of
 * range counts for no class. The fields `threads` of the shared structures are not read.
 */
#ifndef PRUNEFAST_CUDA_H
#define PRUNEFAST_CUDA_H

#include "prunefast/prunefast.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Statuses besides those of prunefast_status. */
typedef enum {
  PRUNEFAST_NO_DEVICE = 16,   /* no driver, a driver older than this build needs, or no GPU */
  PRUNEFAST_CUDA_ERROR = 17,  /* any other error of the CUDA runtime */
  PRUNEFAST_UNSUPPORTED = 18, /* a size or layout these kernels do not take; another backend does */
} prunefast_cuda_status;

PRUNEFAST_API int32_t prunefast_cuda_abi_version(void);
/* What went wrong in this thread's last call that did not return PRUNEFAST_OK; never null. */
PRUNEFAST_API const char* prunefast_cuda_last_error(void);
/* "80;90;100": the architectures with machine code; the newest is there as PTX too. */
PRUNEFAST_API const char* prunefast_cuda_architectures(void);
/* Toolkit this was built with and newest that the driver serves, 1000 major + 10 minor; driver 0: there is none. */
PRUNEFAST_API int32_t prunefast_cuda_versions(int32_t* toolkit, int32_t* driver);
/* PRUNEFAST_OK, with the number of usable devices, or why there is none. */
PRUNEFAST_API int32_t prunefast_cuda_devices(int32_t* count);

PRUNEFAST_API int32_t prunefast_cuda_philox(int32_t kind, void* out, int32_t dtype, int64_t samples, int64_t elements,
                                            uint64_t seed, uint32_t stream_word, const int64_t* position,
                                            int32_t device, void* stream);

PRUNEFAST_API int64_t prunefast_cuda_denoising_loss_workspace(int64_t samples, int64_t elements);
PRUNEFAST_API int32_t prunefast_cuda_denoising_loss(const prunefast_denoising_loss_args* args, void* workspace,
                                                    int32_t device, void* stream);

PRUNEFAST_API int32_t prunefast_cuda_add_noise(const prunefast_add_noise_args* args, int32_t device, void* stream);

/* Float64 sums of the rows of each class. `order`: the rows sorted by label, stably; `start` [classes + 1]: where each
 * class begins in it. */
PRUNEFAST_API int64_t prunefast_cuda_class_sums_workspace(int64_t columns, int64_t classes);
PRUNEFAST_API int32_t prunefast_cuda_class_sums(const float* x, int64_t columns, int64_t x_row_stride,
                                                const int64_t* order, const int64_t* start, int64_t classes,
                                                double* sums, void* workspace, int32_t device, void* stream);

/* y = silu(z), or z without `silu`; z = h or h (1 + scale) + shift, h = group_norm(x) weight + bias. x, y and gradients:
 * contiguous [samples, pixels, channels] (channels_last), 16-byte aligned, channels a multiple of 16 bytes. */
typedef struct {
  int64_t samples, pixels, channels, groups;
  const void* x;
  const void *weight, *bias;                    /* [channels] */
  const void *scale, *shift;                    /* [samples, channels] or null */
  int64_t modulation_row_stride;                /* of scale and shift */
  int32_t dtype, weight_dtype, modulation_dtype; /* of x, y and gradients; weight and bias; scale and shift */
  int32_t silu;
  float eps;
  float *mean, *rstd; /* [samples, groups]: out of forward, into backward */
} prunefast_cuda_group_norm_args;
PRUNEFAST_API int64_t prunefast_cuda_group_norm_silu_workspace(const prunefast_cuda_group_norm_args* args);
PRUNEFAST_API int32_t prunefast_cuda_group_norm_silu(const prunefast_cuda_group_norm_args* args, void* y,
                                                     void* workspace, int32_t device, void* stream);
/* weight_gradient, bias_gradient float32 [channels]; scale_gradient, shift_gradient float32 [samples, channels] or null. */
PRUNEFAST_API int32_t prunefast_cuda_group_norm_silu_backward(const prunefast_cuda_group_norm_args* args,
                                                              const void* y_gradient, void* x_gradient,
                                                              float* weight_gradient, float* bias_gradient,
                                                              float* scale_gradient, float* shift_gradient,
                                                              void* workspace, int32_t device, void* stream);

#ifdef __cplusplus
}
#endif
#endif
