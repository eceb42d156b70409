"""The kind of GPU on which options of kernels were tuned."""

import torch

HOPPER = 9  # compute capability


def is_hopper(device: torch.device) -> bool:
    """Whether a device is an H100, an H200 or another GPU of NVIDIA's Hopper generation."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == HOPPER
