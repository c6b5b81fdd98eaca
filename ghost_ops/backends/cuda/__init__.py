"""The operators as CUDA C++ kernels."""
