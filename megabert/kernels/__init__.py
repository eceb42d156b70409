"""Triton kernels and CUDA graphs: tensors in, tensors out; they import nothing of the package."""
