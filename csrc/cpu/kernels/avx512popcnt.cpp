// The scan of hashes with the instruction that counts bits (VPOPCNTQ); CMakeLists.txt gives this file its flags.
#include "hamming.h"

namespace prunefast {
extern const PopcountKernels kernels_avx512popcnt = {hamming_scan};
}
