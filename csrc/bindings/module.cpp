#include <pybind11/pybind11.h>
#include "prunefast/prunefast.h"
PYBIND11_MODULE(_native, m) { m.def("abi_version", &prunefast_abi_version); }
