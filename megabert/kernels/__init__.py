"""Triton kernels and CUDA graphs: tensors in, tensors out; nothing of the package is imported."""
