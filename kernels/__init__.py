"""Triton kernels, one file an op. Imported only when an operator runs on a GPU (or under Triton's interpreter)."""
