#pragma once
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif
int32_t prunefast_abi_version(void);
#ifdef __cplusplus
}
#endif
