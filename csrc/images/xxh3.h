#pragma once

#include <cstdint>

namespace prunefast {

uint64_t xxh3(const void* data, int64_t length);

}  // namespace prunefast
