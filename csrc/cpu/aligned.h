// Memory that starts on a cache line, its values not set: a register-wide load never straddles two lines.
#pragma once

#include <cstdint>
#include <memory>
#include <new>

namespace prunefast {

struct FreeAligned {
  void operator()(void* memory) const { ::operator delete(memory, std::align_val_t{64}); }
};

template <typename T>
using Aligned = std::unique_ptr<T[], FreeAligned>;

template <typename T>
Aligned<T> aligned(int64_t count) {
  return Aligned<T>(static_cast<T*>(::operator new(static_cast<size_t>(count) * sizeof(T), std::align_val_t{64})));
}

}  // namespace prunefast
