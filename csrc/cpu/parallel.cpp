#include "parallel.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>

#include "prunefast/prunefast.h"

namespace prunefast {
namespace {

std::atomic<bool> forked{false};

// GNU OpenMP hangs in a child that was forked without exec when the parent's thread pool had started.
const int watch_forks = pthread_atfork(nullptr, nullptr, [] { forked.store(true); });

}  // namespace

int threads_for(int32_t wanted, int64_t blocks) {
  const int64_t allowed = prunefast_threads(wanted);
  return static_cast<int>(std::max<int64_t>(1, std::min(allowed, blocks)));
}

}  // namespace prunefast

int32_t prunefast_has_openmp(void) {
#if defined(_OPENMP)
  return 1;
#else
  return 0;
#endif
}

int32_t prunefast_threads(int32_t threads) {
  (void)prunefast::watch_forks;
  if (!prunefast_has_openmp() || prunefast::forked.load()) return 1;
#if defined(_OPENMP)
  if (omp_in_parallel()) return 1;
#endif
  return std::max(threads, 1);
}
