#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>

#include "check.h"

int main() {
  CHECK(prunefast_abi_version() == 3);
  CHECK(prunefast_isa_available(PRUNEFAST_BASELINE));
  CHECK(!prunefast_isa_available(-1) && !prunefast_isa_available(4));
  CHECK(prunefast_isa_name(-1) == nullptr && prunefast_isa_name(4) == nullptr);
  // PRUNEFAST_ISA is obeyed where it can be, and never exceeded.
  const int32_t used = prunefast_isa_in_use();
  CHECK(prunefast_isa_available(used));
  if (const char* wanted = std::getenv("PRUNEFAST_ISA")) {
    for (int32_t isa = 0; prunefast_isa_name(isa); ++isa) {
      if (std::strcmp(wanted, prunefast_isa_name(isa))) continue;
      CHECK(used <= isa);
      if (prunefast_isa_available(isa)) CHECK(used == isa);
    }
  }
  CHECK(prunefast_threads(0) == 1 && prunefast_threads(1) == 1);
  CHECK(prunefast_threads(3) == (prunefast_has_openmp() ? 3 : 1));

  // A child of a fork runs on one thread, also after the parent's threads have started, and does not hang.
  const int64_t positions[] = {1, 2, 3, 4, 5, 6, 7, 8};
  std::vector<float> before(8 * 70000), after(8 * 70000);
  CHECK(!prunefast_philox(PRUNEFAST_NORMAL, before.data(), 0, 8, 70000, 1, 0, positions, 4));
  const pid_t child = fork();
  if (child == 0) {
    alarm(30);
    const bool one = prunefast_threads(4) == 1;
    const int32_t status = prunefast_philox(PRUNEFAST_NORMAL, after.data(), 0, 8, 70000, 1, 0, positions, 4);
    _exit(!(one && status == PRUNEFAST_OK && before == after));
  }
  int status = -1;
  waitpid(child, &status, 0);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  return summary("dispatch");
}
