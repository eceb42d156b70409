"""What is done to a network from outside: its precision, then compilation. Model code knows of neither."""

import threading

import torch
from torch import nn

from .fp8 import Fp8Linear, use_fp8

DTYPES = {"32": torch.float32, "bf16": torch.bfloat16, "16": torch.float16, "fp8": torch.bfloat16}


def cast(model: nn.Module, precision: str) -> None:
    """Let a network compute in the precision, all but a task's small head: weights and what flows between layers.

    What needs range or digits stays float32 inside: sums of products, softmax, the statistics of norms. float16 and
    bfloat16 are those of Megatron-LM's --fp16 and --bf16; fp8 is bfloat16 with the layers' products in 8 bits.
    """
    for name, child in model.named_children():
        if name != "head" or child.is_large:
            child.to(DTYPES[precision])
    if precision == "fp8":
        use_fp8(model.get_submodule("encoder"))  # type: ignore[arg-type]


def freeze(model: nn.Module) -> None:
    """Do once what depends on weights alone, for they will not change any more."""
    for module in model.modules():
        if isinstance(module, Fp8Linear):
            module.freeze()


def find_compilation(asked: bool | None, device: torch.device) -> bool:
    """Settle whether layers are compiled; None: on a GPU."""
    return device.type == "cuda" if asked is None else asked


def warm_up(device: torch.device) -> None:
    """Start a device in a thread, beside the reading of data: it takes a second or two.

    The thread imports nothing: PyTorch's modules import each other in circles, and two threads in one circle fail.
    """
    threading.Thread(target=torch.zeros, args=(1,), kwargs={"device": device}, name="warm-up", daemon=True).start()


def compile_layers(model: nn.Module) -> None:
    """Compile the encoder's layers: they are alike, so the first one's compilation serves them all.

    The embeddings are left out: a compiled gather adds up its gradient by atomic additions, which are slow where
    thousands of tokens share the two rows of the segment embedding.
    """
    for layer in model.get_submodule("encoder").layers:  # type: ignore[union-attr]
        layer.compile()
