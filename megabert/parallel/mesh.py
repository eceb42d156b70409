"""Where and how precisely a run computes. One device for now; processes and axes will stand here."""

import torch

from ..errors import ConfigError
from ..settings import TrainerSettings
from .fp8 import check_hardware

PRECISIONS = {
    "32": "32", "32-true": "32", "bf16": "bf16", "bf16-mixed": "bf16", "16": "16", "16-mixed": "16", "fp8": "fp8",
}  # fmt: skip


def check_layout(settings: TrainerSettings) -> None:
    """Refuse layouts that this version does not have."""
    if settings.devices != 1 or settings.num_nodes != 1:
        raise ConfigError(
            f"trainer.devices={settings.devices} trainer.num_nodes={settings.num_nodes}: this version trains on one "
            "device of one machine. Leave both at 1."
        )


def find_device(accelerator: str) -> torch.device:
    """Choose the device that a run computes on: auto takes a GPU where there is one."""
    has_gpu = torch.cuda.is_available()
    if accelerator == "gpu" and not has_gpu:
        raise ConfigError("trainer.accelerator=gpu, but PyTorch sees no GPU here. Use auto or cpu.")
    return torch.device("cuda" if has_gpu and accelerator != "cpu" else "cpu")


def find_precision(precision: str, device: torch.device) -> str:
    """Settle what the network computes in: 32, bf16, 16 or fp8; auto is bf16 on a GPU that has it, else 32."""
    if precision == "fp8":
        check_hardware(device)
    if precision != "auto":
        return PRECISIONS[precision]
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "32"


def seed_step(seed: int, micro_batch: int) -> None:
    """Seed dropout for a micro-batch by its number, so that resuming needs no saved random state.

    The two numbers are mixed by SplitMix64's finalizer (Steele, Lea and Flood 2014, doi:10.1145/2714064.2660195).
    """
    mask = (1 << 64) - 1
    mixed = (seed * 0x9E3779B97F4A7C15 + micro_batch + 1) & mask
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & mask
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & mask
    torch.manual_seed((mixed ^ (mixed >> 31)) & mask)
