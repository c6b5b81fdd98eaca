"""The operators as Triton kernels for CUDA devices. Importing this imports Triton: see ``register`` for when."""
