// Blocks one after the other; the threads of a block as fibres, resumed in turn until all have ended.
#include "emulation.h"

#include <ucontext.h>

#include <memory>
#include <vector>

namespace emulation {

Index thread_index, block_index, block_size, grid_size;
unsigned char exchange[1024][16];

namespace {

constexpr size_t kStack = 64 * 1024;
constexpr int kMaxThreads = 1024;

struct Fibre {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  bool ended = true;
};
struct Barrier {
  int arrived = 0;
  unsigned generation = 0;
};

ucontext_t scheduler;
std::vector<Fibre> fibres(kMaxThreads);
Barrier whole_block, warps[kMaxThreads / 32];
const std::function<void()>* current_body;
int alive;

void yield() { swapcontext(&fibres[thread_index.x].context, &scheduler); }

void wait(Barrier& barrier, int expected) {
  const unsigned generation = barrier.generation;
  if (++barrier.arrived == expected) {
    barrier.arrived = 0;
    ++barrier.generation;
    return;
  }
  while (barrier.generation == generation) yield();
}

void enter() {
  (*current_body)();
  fibres[thread_index.x].ended = true;
  --alive;
  yield();
}

}  // namespace

void block_barrier() { wait(whole_block, (int)block_size.x); }
void warp_barrier() {
  const int warp = (int)thread_index.x / 32, rest = (int)block_size.x - warp * 32;
  wait(warps[warp], rest < 32 ? rest : 32);
}

void run(int64_t blocks, int threads, const std::function<void()>& body) {
  current_body = &body;
  block_size.x = (unsigned)threads;
  grid_size.x = (unsigned)blocks;
  for (int64_t block = 0; block < blocks; ++block) {
    block_index.x = (unsigned)block;
    alive = threads;
    for (int i = 0; i < threads; ++i) {
      Fibre& fibre = fibres[i];
      if (!fibre.stack) fibre.stack.reset(new char[kStack]);
      getcontext(&fibre.context);
      fibre.context.uc_stack.ss_sp = fibre.stack.get();
      fibre.context.uc_stack.ss_size = kStack;
      fibre.context.uc_link = nullptr;
      fibre.ended = false;
      makecontext(&fibre.context, enter, 0);
    }
    while (alive > 0) {
      for (int i = 0; i < threads; ++i) {
        if (fibres[i].ended) continue;
        thread_index.x = (unsigned)i;
        swapcontext(&scheduler, &fibres[i].context);
      }
    }
  }
}

}  // namespace emulation
