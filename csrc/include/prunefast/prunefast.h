/* The native core of prunefast: a flat C interface that knows nothing of Python or torch.
 *
 * Every function takes pointers, int64 sizes and strides (in elements) and memory that the caller allocated, and
 * returns a status. Inputs are never written to. No exception leaves a function. Results do not depend on `threads`.
 */
#ifndef PRUNEFAST_H
#define PRUNEFAST_H

#include <stdint.h>

#if defined(__GNUC__)
#define PRUNEFAST_API __attribute__((visibility("default")))
#else
#define PRUNEFAST_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef enum {
  PRUNEFAST_OK = 0,
  PRUNEFAST_BAD_ARGUMENT = 1, /* a size, stride, dtype or pointer that no caller should pass: a bug in the caller */
  PRUNEFAST_OUT_OF_MEMORY = 2,
  PRUNEFAST_OUT_OF_RANGE = 3, /* data that cannot be used: a label without a class, a box outside its image */
} prunefast_status;

typedef enum {
  PRUNEFAST_FLOAT32 = 0,
  PRUNEFAST_BFLOAT16 = 1,
  PRUNEFAST_FLOAT16 = 2,
  PRUNEFAST_UINT8 = 3,   /* clean images only: read as x / 127.5 - 1 */
  PRUNEFAST_FLOAT64 = 4, /* rows of Gaussians only */
} prunefast_dtype;

typedef enum {
  PRUNEFAST_BASELINE = 0,
  PRUNEFAST_AVX2 = 1,
  PRUNEFAST_AVX512 = 2,
  PRUNEFAST_AVX512BF16 = 3, /* AVX512 with VNNI: distances screened in int8 or bfloat16 */
} prunefast_isa;

typedef enum { PRUNEFAST_WORDS = 0, PRUNEFAST_UNIFORM = 1, PRUNEFAST_NORMAL = 2 } prunefast_random_kind;

PRUNEFAST_API int32_t prunefast_abi_version(void);
/* What went wrong in this thread's last call that did not return PRUNEFAST_OK; never null. */
PRUNEFAST_API const char* prunefast_last_error(void);

/* The instruction set in use: the widest one that was compiled in, that processor and system support, and that the
 * environment variable PRUNEFAST_ISA (baseline, avx2, avx512 or avx512bf16; read once) allows. */
PRUNEFAST_API int32_t prunefast_isa_in_use(void);
PRUNEFAST_API int32_t prunefast_isa_available(int32_t isa);
PRUNEFAST_API const char* prunefast_isa_name(int32_t isa); /* null: no such set */
PRUNEFAST_API int32_t prunefast_has_openmp(void);
/* Threads that a call asking for `threads` gets: 1 without OpenMP, and 1 in a process forked after the core was loaded.
 */
PRUNEFAST_API int32_t prunefast_threads(int32_t threads);

/* Philox-4x32-10; docs/ops/philox.md. out: contiguous [samples, elements], uint32 for words (dtype is not read),
 * float32 for uniforms, any float for normals. Sample i's counter is (element / 4, stream, low and high word of
 * position[i]). */
PRUNEFAST_API int32_t prunefast_philox(int32_t kind, void* out, int32_t dtype, int64_t samples, int64_t elements,
                                       uint64_t seed, uint32_t stream, const int64_t* position, int32_t threads);

typedef struct {
  const float* x; /* [rows, columns], unit stride within a row */
  const float* y; /* [others, columns] */
  int64_t rows, others, columns, x_row_stride, y_row_stride;
  int64_t k;            /* 1 .. others (- 1 with exclude_self) */
  int32_t inner;        /* 0: squared Euclidean distance; 1: negated inner product */
  int32_t certify;      /* 1: widen the candidates until the pick is proven */
  int32_t exclude_self; /* 1: row i of x is row i of y */
  int32_t threads;
  int64_t* index;  /* out, contiguous [rows, k], nearest first, ties to the smallest index */
  float* distance; /* out, contiguous [rows, k], from direct float64 differences */
  double* sums;    /* null, or with k = 1, as in prunefast_class_sums with `add`: rows by their nearest, */
  int64_t* counts; /* while the caches hold them; [others, columns] and [others] */
} prunefast_topk_args;
/* PRUNEFAST_OUT_OF_RANGE: a value of x is NaN or infinite. y must be finite. */
PRUNEFAST_API int32_t prunefast_topk(const prunefast_topk_args* args);

/* sums[c] += rows of x with label c, added in their order in float64; sums: contiguous [classes, columns], counts:
 * [classes], both set to zero first unless `add`. */
PRUNEFAST_API int32_t prunefast_class_sums(const float* x, int64_t rows, int64_t columns, int64_t x_row_stride,
                                           const int64_t* labels, int64_t classes, double* sums, int64_t* counts,
                                           int32_t add, int32_t threads);

/* Rows of a matrix, or those that `row` names. */
typedef struct {
  const void* x; /* float32 or float64, unit stride within a row */
  int32_t dtype;
  int64_t rows, columns, row_stride;
  const int64_t* row; /* [rows], or null: all rows in their order */
  int32_t threads;
} prunefast_rows;
/* out: mean [columns] and covariance [columns, columns] (divisor `rows`, at least 1), summed in float64. */
PRUNEFAST_API int32_t prunefast_moments(const prunefast_rows* x, double* mean, double* covariance);
/* out: squared [rows], |L^-1 (x - mean)|^2 with the lower triangle L of `factor` [columns, columns]. */
PRUNEFAST_API int32_t prunefast_mahalanobis(const prunefast_rows* x, const double* mean, const double* factor,
                                            double* squared);

/* An operand of the image kernels; data == null: absent. Strides of (sample, channel, row, column). */
typedef struct {
  void* data;
  int64_t stride[4];
  int32_t dtype;
} prunefast_image;

/* What add_noise and denoising_loss share. The clean image is mirrored (flip), then cut at (top, left); noise is not.
 */
typedef struct {
  int64_t samples, channels, height, width; /* of the prediction or noisy image */
  int64_t image_height, image_width;        /* of x0 */
  prunefast_image x0, noise;
  uint64_t seed;           /* with `position`, where noise.data is null */
  const int64_t* position; /* [samples] */
  const int64_t* corner;   /* [samples, 2] or null */
  const uint8_t* flip;     /* [samples] or null */
  int32_t threads;
} prunefast_image_args;

typedef struct {
  prunefast_image_args images;
  prunefast_image pred, gradient; /* gradient: out, (pred - a x0 - b noise) gradient_scale; or absent */
  const float *a, *b;             /* [samples] */
  const float* weight;            /* [samples] or null: ones */
  const float* gradient_scale;    /* [samples], with `gradient` */
  const int64_t* labels;          /* [samples] or null */
  const float* reference;         /* [samples] or null: zeros */
  int64_t classes;
  float *loss, *per_sample, *class_excess; /* out: [1], [samples], [classes] */
  int64_t* class_count;                    /* out: [classes] */
} prunefast_denoising_loss_args;
PRUNEFAST_API int32_t prunefast_denoising_loss(const prunefast_denoising_loss_args* args);

typedef struct {
  prunefast_image_args images;
  const float *alpha, *sigma; /* [samples] */
  prunefast_image out;        /* [samples, channels + 2 coordinates, height, width] */
  int32_t coordinates;        /* 1: append the column and row of each pixel, -1 .. 1 over the whole image */
} prunefast_add_noise_args;
PRUNEFAST_API int32_t prunefast_add_noise(const prunefast_add_noise_args* args);

/* silu(h) or h, h = (group_norm(x) weight + bias) (1 + scale) + shift; tensors are contiguous [samples, pixels,
 * channels] (NHWC). The backward call reads mean and rstd of the forward one. */
typedef struct {
  int64_t samples, pixels, channels, groups;
  int32_t dtype; /* of x, y and their gradients */
  int32_t silu;
  int32_t threads;
  float eps;
  const void* x;
  const float *weight, *bias;  /* [channels] */
  const float *scale, *shift;  /* [samples, channels]; null: zeros */
  float *mean, *rstd;          /* [samples, groups] */
  void* y;                     /* out, forward */
  const void* gradient_y;      /* and the rest for backward; null in forward */
  void* gradient_x;            /* out */
  float *gradient_weight, *gradient_bias; /* out: [channels] */
  float *gradient_scale, *gradient_shift; /* out: [samples, channels], or null */
} prunefast_group_norm_args;
PRUNEFAST_API int32_t prunefast_group_norm_silu(const prunefast_group_norm_args* args);
PRUNEFAST_API int32_t prunefast_group_norm_silu_backward(const prunefast_group_norm_args* args);

/* A 3 x 3 convolution with stride 1 and a border of one pixel of zeros, by Winograd's F(2 x 2, 3 x 3); see
 * docs/ops/conv3x3.md. The memory a call works in is kept for the next one.
 * Images are contiguous [samples, height, width, channels] of bfloat16, filters [outputs, 3, 3, inputs] of float32;
 * channels are multiples of 32. Only where prunefast_conv3x3_available() is 1. */
typedef struct {
  int64_t samples, height, width, inputs, outputs;
  int32_t threads;
  const void* x;       /* of the forward call and of the gradient of the filters */
  const float* weight; /* of the forward call and of the gradient of x */
  const float* bias;   /* [outputs], or null */
  const void* gradient_y;
  void* y;                /* out, forward */
  void* gradient_x;       /* out */
  float* gradient_weight; /* out */
} prunefast_conv3x3_args;
PRUNEFAST_API int32_t prunefast_conv3x3_available(void);
/* Writes whichever of y, gradient_x and gradient_weight are not null. */
PRUNEFAST_API int32_t prunefast_conv3x3(const prunefast_conv3x3_args* args);

/* Pairs of hashes at most `threshold` bits apart. A self-join (y null) gives each pair once: row i lists the rows j > i.
 */
typedef struct {
  const uint64_t* x; /* contiguous [rows, words] */
  const uint64_t* y; /* contiguous [others, words]; null: x itself */
  int64_t rows, others, words;
  int64_t first, last; /* only these rows of x are looked at */
  int32_t threshold, threads;
  int64_t capacity;  /* pairs that index and distance have room for */
  int64_t* counts;   /* out: [last - first], pairs of each row */
  int64_t* index;    /* out: ascending within a row; written only where all pairs fit */
  int32_t* distance; /* out: bits */
  int64_t* total;    /* out: [1] pairs in all; above capacity, call again with more room */
} prunefast_hamming_args;
PRUNEFAST_API int32_t prunefast_hamming_join(const prunefast_hamming_args* args);

#ifdef __cplusplus
}
#endif
#endif
