"""Cross-entropy over a vocabulary in Triton: statistics of the logits in one pass, their gradients in place.

Logits are the largest tensor of pre-training. Each is written by the matmul, read for its row's logsumexp, read again
and overwritten with its gradient: with the two matmuls of the backward pass 10 bytes in 16 bits.

Shape legend: M tokens, V vocabulary (or a process' part of it).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 4096


@triton.jit
def _statistics_kernel(logits, targets, statistics, num_rows, num_columns, BLOCK: tl.constexpr):
    """Reduce one row: logsumexp by a running maximum and sum (Milakov and Gimelshein 2018, arXiv:1805.02867)."""
    row = tl.program_id(0).to(tl.int64)
    start_of_row = logits + row * num_columns
    target = tl.load(targets + row)
    highest = -float("inf")
    best = 0
    total = 0.0
    for start in range(0, num_columns, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        values = tl.load(start_of_row + columns, mask=columns < num_columns, other=-float("inf")).to(tl.float32)
        # Of equal logits the first counts, as in argmax.
        block_highest, block_best = tl.max(values, axis=0, return_indices=True, return_indices_tie_break_left=True)
        best = tl.where(block_highest > highest, start + block_best, best)
        higher = tl.maximum(highest, block_highest)
        total = total * tl.exp(highest - higher) + tl.sum(tl.exp(values - higher), axis=0)
        highest = higher
    is_local = (target >= 0) & (target < num_columns)
    target_logit = tl.load(start_of_row + target, mask=is_local, other=0.0).to(tl.float32)
    tl.store(statistics + row, highest + tl.log(total))
    tl.store(statistics + num_rows + row, target_logit)
    tl.store(statistics + 2 * num_rows + row, highest)
    tl.store(statistics + 3 * num_rows + row, (is_local & (best == target)).to(tl.float32))


@triton.jit
def _gradient_kernel(logits, targets, logsumexps, d_losses, num_columns, BLOCK: tl.constexpr):
    """Overwrite a block of one row: d_loss x (softmax - one-hot target)."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    places = logits + row * num_columns + columns
    values = tl.load(places, mask=columns < num_columns, other=0.0)
    gradients = tl.exp(values.to(tl.float32) - tl.load(logsumexps + row))
    gradients = tl.where(columns == tl.load(targets + row), gradients - 1.0, gradients) * tl.load(d_losses + row)
    tl.store(places, gradients.to(values.dtype), mask=columns < num_columns)


def logit_statistics(logits_MV: Tensor, targets_M: Tensor) -> Tensor:
    """Compute each row's logsumexp, target logit, highest logit and whether it is the target's: float32 [4, M].

    A target outside of the columns has a logit of 0. V must be at least 1.
    """
    assert logits_MV.is_contiguous()
    num_rows, num_columns = logits_MV.shape
    statistics_4M = torch.empty(4, num_rows, device=logits_MV.device, dtype=torch.float32)
    if num_rows:
        _statistics_kernel[(num_rows,)](
            logits_MV, targets_M, statistics_4M, num_rows, num_columns, BLOCK=BLOCK, num_warps=8
        )
    return statistics_4M


def logits_to_gradients(logits_MV: Tensor, targets_M: Tensor, logsumexp_M: Tensor, d_losses_M: Tensor) -> Tensor:
    """Overwrite logits with their gradients, d_loss x (softmax - one-hot target), and return them."""
    assert logits_MV.is_contiguous()
    num_rows, num_columns = logits_MV.shape
    if logits_MV.numel():
        _gradient_kernel[(num_rows, triton.cdiv(num_columns, BLOCK))](
            logits_MV, targets_M, logsumexp_M, d_losses_M, num_columns, BLOCK=BLOCK, num_warps=8
        )
    return logits_MV
