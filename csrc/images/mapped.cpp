#include "mapped.h"

#include <csetjmp>
#include <csignal>
#include <cstring>

#include <atomic>

namespace prunefast {
namespace {

// initial-exec: the handler must not be the first to touch it in a thread, which could allocate
__attribute__((tls_model("initial-exec"))) thread_local sigjmp_buf* landing = nullptr;
struct sigaction before;

void on_bus_error(int signal, siginfo_t* info, void* context) {
  if (landing) siglongjmp(*landing, 1);
  if (before.sa_flags & SA_SIGINFO) {
    before.sa_sigaction(signal, info, context);
  } else if (before.sa_handler == SIG_DFL || before.sa_handler == SIG_IGN) {
    sigaction(SIGBUS, &before, nullptr);  // the access is made again and ends the process, as it would have
  } else {
    before.sa_handler(signal);
  }
}

bool install() {
  struct sigaction ours = {};
  ours.sa_sigaction = on_bus_error;
  ours.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;  // not deferred: siglongjmp need not restore a mask
  sigemptyset(&ours.sa_mask);
  return sigaction(SIGBUS, &ours, &before) == 0;
}

}  // namespace

bool copy_mapped(const uint8_t* from, int64_t count, uint8_t* to) {
  static const bool installed = install();
  if (!installed) return false;
  sigjmp_buf buffer;
  if (sigsetjmp(buffer, 0)) {
    landing = nullptr;
    return false;
  }
  landing = &buffer;
  std::atomic_signal_fence(std::memory_order_seq_cst);
  std::memcpy(to, from, static_cast<size_t>(count));
  std::atomic_signal_fence(std::memory_order_seq_cst);
  landing = nullptr;
  return true;
}

}  // namespace prunefast
