"""Training and inference precision: names, dtypes, casting of a model."""

import os

import torch
from torch import nn

from ..errors import ConfigError
from .attention import has_kernel
from .config import EncoderConfig
from .fp8 import Fp8Linear, Fp8MLP, check_hardware, use_fp8

PRECISIONS = {
    "32": "32", "32-true": "32", "bf16": "bf16", "bf16-mixed": "bf16", "16": "16", "16-mixed": "16", "fp8": "fp8",
}  # fmt: skip


def resolve_precision(precision: str, device: torch.device) -> str:
    """Resolve a precision to 32, bf16, 16 or fp8; auto is bf16 on a GPU that supports it, else 32."""
    if precision == "fp8":
        check_hardware(device)
    if precision != "auto":
        if precision not in PRECISIONS:
            raise ConfigError(
                f"precision is {precision!r:.40}; choose one of auto, {', '.join(PRECISIONS)}, as a string."
            )
        return PRECISIONS[precision]
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "32"


def has_native_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 matrices natively: AMX, or AVX-512's dot product of bfloat16.

    Not where oneDNN, which multiplies them, may not use these by its own variable ONEDNN_MAX_CPU_ISA.
    """
    allowed = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()
    if allowed and not any(name in allowed for name in ("BF16", "FP16", "AMX", "ALL", "DEFAULT")):
        return False
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


DTYPES = {"32": torch.float32, "bf16": torch.bfloat16, "16": torch.float16, "fp8": torch.bfloat16}


def cast_model(model: nn.Module, precision: str) -> None:
    """Cast a model's weights and activations to the precision, except for a task's small head.

    Matmul accumulation, softmax and norm statistics stay float32. 16 and bf16 correspond to Megatron-LM's --fp16 and
    --bf16; fp8 is bfloat16 with the layers' matmuls in 8 bits.
    """
    for name, child in model.named_children():
        is_cast = name != "head" or child.uses_encoder_precision
        # A head is float32 also where the program around has another default dtype.
        child.to(DTYPES[precision] if is_cast else torch.float32)
    if precision == "fp8":
        use_fp8(model.get_submodule("encoder"))  # type: ignore[arg-type]


def freeze(model: nn.Module) -> None:
    """Quantize the weights of fp8 layers and fix their scales once, for inference."""
    for module in model.modules():
        if isinstance(module, Fp8Linear | Fp8MLP):
            module.freeze()


def resolve_static_batches(requested: bool, device: torch.device, config: EncoderConfig, precision: str) -> bool:
    """Resolve whether batches have one static size: on request, on a GPU, if the attention kernel supports the model.

    Steps can then be captured in CUDA graphs; where sharding prevents capture, layers are compiled for one size only.
    """
    return requested and device.type == "cuda" and has_kernel(DTYPES[precision], config.head_dim)
