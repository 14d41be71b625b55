"""The CUDA kernels of `kernels/`: built by nvcc, loaded with ctypes, called as torch operators."""
