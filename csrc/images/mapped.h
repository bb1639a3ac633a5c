// Copying out of a file that is mapped into memory.
#pragma once

#include <cstdint>

namespace prunefast {

// False where the bytes cannot be had: the file was cut short, or its disk fails. That raises SIGBUS in the thread that
// reads; it is caught, for this copy alone, by a handler that passes on whatever is not its own.
bool copy_mapped(const uint8_t* from, int64_t count, uint8_t* to);

}  // namespace prunefast
