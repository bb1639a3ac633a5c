// Every kernel for the baseline instruction set; CMakeLists.txt gives this file its flags.
#include "all.h"

namespace prunefast {
extern const Kernels kernels_baseline = PRUNEFAST_KERNELS("baseline");
extern const Screening* const screenings_baseline[] = {&float32_screening, nullptr};
}
