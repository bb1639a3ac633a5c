#include "prunefast/prunefast.h"
int32_t prunefast_abi_version(void) { return 1; }
