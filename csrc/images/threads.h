// Plain threads, not OpenMP: libgomp's pools spin between calls and hang in a process forked from one that had them;
// reading runs in forked workers, beside a training loop that has the processors.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <stdexcept>
#include <thread>
#include <vector>

namespace prunefast {

// Set when the interpreter exits: work that it cannot wait for ends early.
inline std::atomic<bool> stopped{false};

// body(i, worker) for i in 0 .. count - 1, handed out one by one; a `Worker` a thread. The first exception is passed on.
template <typename Worker, typename Body>
void parallel(int64_t count, int threads, Body body) {
  std::atomic<int64_t> next{0};
  std::exception_ptr problem;
  std::mutex guard;
  const auto work = [&] {
    try {
      Worker worker;
      for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) {
        if (stopped.load(std::memory_order_relaxed)) throw std::runtime_error("the interpreter exits");
        body(i, worker);
      }
    } catch (...) {
      next.store(count);
      const std::lock_guard<std::mutex> lock(guard);
      if (!problem) problem = std::current_exception();
    }
  };
  std::vector<std::thread> helpers;
  const int64_t wanted = std::min<int64_t>(std::max(threads, 1), count);
  try {
    for (int64_t t = 1; t < wanted; ++t) helpers.emplace_back(work);
  } catch (const std::exception&) {
    // no more threads to be had: those there are do the work
  }
  work();
  for (auto& helper : helpers) helper.join();
  if (problem) std::rethrow_exception(problem);
}

}  // namespace prunefast
