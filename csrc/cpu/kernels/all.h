// What each translation unit of an instruction set compiles. Constant data only: no initialiser runs before dispatch.
#pragma once

#include "distance.h"
#include "few.h"
#include "gaussian.h"
#include "hamming.h"
#include "image.h"
#include "norm.h"

#define PRUNEFAST_KERNELS(name)                                                                                       \
  {name,        kVector,      kTurnedOthers, quad_words,   quad_uniforms, quad_normals, store_tile, loss_chunk,         noise_chunk, \
   centre,      best_lower_bounds, finalists, turned_finalists, few_finalists, collect, quick_squared, direct_squared, direct_inner, decide, \
   add_row,                                                                                                           \
   kPanel,      kFactorRows,  add_products, substitute,    norm_origin,  norm_sums,  norm_apply, norm_gradient_sums,  \
   norm_gradient, hamming_scan}
