// The smallest test harness that names the line: CHECK counts, main returns it.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <vector>

#include "prunefast/prunefast.h"

inline int& failures() {
  static int count = 0;
  return count;
}

#define CHECK(condition)                                                                                            \
  do {                                                                                                              \
    if (!(condition)) {                                                                                             \
      ++failures();                                                                                                 \
      std::fprintf(stderr, "%s:%d: %s [last error: %s]\n", __FILE__, __LINE__, #condition, prunefast_last_error()); \
    }                                                                                                               \
  } while (0)

// A buffer between guards: an out-of-bounds write that a sanitizer would miss (inside an allocation) shows in `intact`.
template <typename T>
class Guarded {
 public:
  explicit Guarded(int64_t size) : size_(size), bytes_((static_cast<size_t>(size) * sizeof(T)) + 2 * kGuard, kFill) {}
  T* data() { return reinterpret_cast<T*>(bytes_.data() + kGuard); }
  T& operator[](int64_t i) { return data()[i]; }
  int64_t size() const { return size_; }
  bool intact() const {
    const size_t end = bytes_.size() - kGuard;
    for (size_t i = 0; i < kGuard; ++i)
      if (bytes_[i] != kFill || bytes_[end + i] != kFill) return false;
    return true;
  }

 private:
  static constexpr size_t kGuard = 256;
  static constexpr unsigned char kFill = 0xA5;
  int64_t size_;
  std::vector<unsigned char> bytes_;
};

// A fixed sequence of numbers in [-1, 1), independent of the code under test.
class Numbers {
 public:
  explicit Numbers(uint64_t seed) : state_(seed * 2654435761u + 12345) {}
  float next() {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<float>(static_cast<int32_t>(state_ >> 32)) * 0x1p-31f;
  }
  int64_t integer(int64_t limit) {
    return static_cast<int64_t>((next() * 0.5f + 0.5f) * static_cast<float>(limit)) % limit;
  }

 private:
  uint64_t state_;
};

inline int summary(const char* name) {
  std::printf("%s (%s): %d failures\n", name, prunefast_isa_name(prunefast_isa_in_use()), failures());
  return failures() != 0;
}
