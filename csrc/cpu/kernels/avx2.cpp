// Every kernel for the avx2 instruction set; CMakeLists.txt gives this file its flags.
#include "all.h"

namespace prunefast {
extern const Kernels kernels_avx2 = PRUNEFAST_KERNELS("avx2");
extern const Screening* const screenings_avx2[] = {&int16_screening, &float32_screening, nullptr};
}
