// Threads: a count the caller gives, blocks handed out dynamically, each writing its own outputs, so that nothing
// depends on it.
#pragma once

#include <cstdint>
#if defined(_OPENMP)
#include <omp.h>
#endif

namespace prunefast {

int threads_for(int32_t wanted, int64_t blocks);  // 1 after a fork, at most one a block

// body(block, thread) for block in 0 .. blocks - 1. `body` must not throw.
template <typename Body>
void parallel_blocks(int64_t blocks, [[maybe_unused]] int threads, Body body) {
#if defined(_OPENMP)
  if (threads > 1) {
#pragma omp parallel num_threads(threads)
    {
      const int thread = omp_get_thread_num();
#pragma omp for schedule(dynamic)
      for (int64_t block = 0; block < blocks; ++block) body(block, thread);
    }
    return;
  }
#endif
  for (int64_t block = 0; block < blocks; ++block) body(block, 0);
}

}  // namespace prunefast
