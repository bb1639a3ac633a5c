#include "status.h"

namespace prunefast {

char* error_text() {
  static thread_local char text[kErrorLength] = "";
  return text;
}

}  // namespace prunefast

int32_t prunefast_abi_version(void) { return 3; }

const char* prunefast_last_error(void) { return prunefast::error_text(); }
