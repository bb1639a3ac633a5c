// Every kernel for the avx512 instruction set; CMakeLists.txt gives this file its flags.
#include "all.h"

namespace prunefast {
extern const Kernels kernels_avx512 = PRUNEFAST_KERNELS("avx512");
extern const Screening* const screenings_avx512[] = {&int16_screening, &float32_screening, nullptr};
}
