"""A linear map with bias and GELU as one Triton kernel for inference, which reads its operands by Hopper's bulk copies.

The widest tensor of a network is written once, and not read and written again. Each processor computes one tile after
the other, and loads the next one's first operands during the activation of this one.

Shape legend: T tokens, D hidden, F width of the MLP.
"""

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from .gelu import gelu_of
from .hopper import is_hopper

BM, BN, BK, GROUP = 128, 256, 64, 8
OPTIONS: dict[str, Any] = {"num_warps": 8, "num_stages": 3}
FEWEST = 4096  # tokens; fewer give too few tiles
MULTIPLE = 8  # of sizes: rows begin at multiples of 16 bytes


@triton.jit
def _activate(values, n, bias, num_columns, VARIANT: tl.constexpr, WIDTH: tl.constexpr):
    columns = n + tl.arange(0, WIDTH)
    return gelu_of(values + tl.load(bias + columns, mask=columns < num_columns, other=0.0)[None, :], VARIANT)


@triton.jit(do_not_specialize=["num_rows"])
def _linear_gelu_kernel(
    hidden, weight, bias, result, num_rows, num_columns, width,
    VARIANT: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    num_m, num_n = tl.cdiv(num_rows, BM), tl.cdiv(num_columns, BN)
    for tile in tl.range(tl.program_id(0), num_m * num_n, tl.num_programs(0), flatten=True):
        # Tiles of GROUP blocks of rows follow each other, so that their operands stay in the cache.
        group = tile // (GROUP * num_n)
        size = tl.minimum(num_m - group * GROUP, GROUP)
        m = (group * GROUP + tile % (GROUP * num_n) % size) * BM
        n = tile % (GROUP * num_n) // size * BN
        total = tl.zeros([BM, BN], tl.float32)
        for k in range(0, width, BK):
            total = tl.dot(hidden.load([m, k]), weight.load([n, k]).T, total)
        left, right = tl.split(total.reshape(BM, 2, BN // 2).permute(0, 2, 1))
        result.store([m, n], _activate(left, n, bias, num_columns, VARIANT, BN // 2).to(result.dtype))
        n += BN // 2
        result.store([m, n], _activate(right, n, bias, num_columns, VARIANT, BN // 2).to(result.dtype))


def has_linear_gelu(hidden_TD: Tensor, weight_FD: Tensor) -> bool:
    """Whether the kernel supports the sizes and is faster than a product and a kernel for GELU."""
    return (
        is_hopper(hidden_TD.device)
        and hidden_TD.dtype in (torch.bfloat16, torch.float16)
        and len(hidden_TD) >= FEWEST
        and all(size % MULTIPLE == 0 for size in weight_FD.shape)
    )


def linear_gelu(hidden_TD: Tensor, weight_FD: Tensor, bias_F: Tensor, variant: str) -> Tensor:
    """Compute GELU, `erf` or `tanh`, of a linear map: [T, F]."""
    num_tokens, width = hidden_TD.shape
    result_TF = hidden_TD.new_empty(num_tokens, len(weight_FD))
    num_tiles = triton.cdiv(num_tokens, BM) * triton.cdiv(len(weight_FD), BN)
    _linear_gelu_kernel[(min(_num_processors(hidden_TD.device), num_tiles),)](
        TensorDescriptor.from_tensor(hidden_TD, [BM, BK]), TensorDescriptor.from_tensor(weight_FD, [BN, BK]), bias_F,
        TensorDescriptor.from_tensor(result_TF, [BM, BN // 2]), num_tokens, len(weight_FD), width,
        VARIANT=variant, BM=BM, BN=BN, BK=BK, GROUP=GROUP, **OPTIONS,
    )  # fmt: skip
    return result_TF


@cache
def _num_processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2
