// Status codes with a text for the caller, and the wall that no exception passes.
#pragma once

#include <cstdio>
#include <exception>
#include <new>

#include "prunefast/prunefast.h"

namespace prunefast {

char* error_text();  // this thread's last error
constexpr std::size_t kErrorLength = 256;

template <typename... Values>
int32_t fail(int32_t status, const char* format, Values... values) {
  std::snprintf(error_text(), kErrorLength, format, values...);
  return status;
}

template <typename Body>
int32_t guarded(Body body) noexcept {
  try {
    return body();
  } catch (const std::bad_alloc&) {
    return fail(PRUNEFAST_OUT_OF_MEMORY, "%s", "out of memory");
  } catch (const std::exception& error) {
    return fail(PRUNEFAST_BAD_ARGUMENT, "%s", error.what());
  }
}

}  // namespace prunefast
