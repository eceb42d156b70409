"""Chunked cross-entropy over the vocabulary, whose logits would fill gigabytes.

On a GPU two Triton kernels (`kernels/cross_entropy.py`) reduce the logits and turn them into their gradients in place;
elsewhere PyTorch does, chunk by chunk.

Shape legend: M tokens, D hidden, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor

from .attention import HAS_TRITON

if HAS_TRITON:
    from ..kernels.cross_entropy import logit_statistics, logits_to_gradients

# Tokens whose logits are in memory at once without the kernels: 2,048 x 30,522 in float32 are 250 MB.
CHUNK = 2048
# Logits in memory at once with the kernels, 1 GB in 16 bits. So many are kept from the forward pass for the backward
# pass; more are computed again, chunk by chunk.
MAX_LOGITS = 2**29
# The ignore_index of PyTorch's cross_entropy: tokens with this target have no loss and no gradient.
NO_TARGET = -100


def vocabulary_losses(
    hidden_MD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, targets_M: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute each token's cross-entropy, float32 [M], and whether its target has the highest logit, bool [M].

    The logits are computed in the precision of the weights, all else in float32. Tokens without a target get 0 and
    False.
    """
    losses_M, is_correct_M = _VocabularyLosses.apply(hidden_MD, weight_VD, bias_V, targets_M)
    return losses_M, is_correct_M


class _VocabularyLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_MD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, targets_M: Tensor
    ) -> tuple[Tensor, Tensor]:
        statistics_4M, ctx.logits = chunked_statistics(hidden_MD, weight_VD, bias_V, targets_M)
        logsumexp_M, target_logits_M, _, is_correct_M = statistics_4M.unbind()
        has_target_M = targets_M != NO_TARGET
        ctx.save_for_backward(hidden_MD, weight_VD, bias_V, targets_M, logsumexp_M)
        is_correct_M = (is_correct_M > 0) & has_target_M
        ctx.mark_non_differentiable(is_correct_M)
        return torch.where(has_target_M, logsumexp_M - target_logits_M, 0.0), is_correct_M

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None]:
        hidden_MD, weight_VD, bias_V, targets_M, logsumexp_M = ctx.saved_tensors
        d_losses_M = torch.where(targets_M != NO_TARGET, gradients[0], 0.0)
        # The logits become gradients: a second backward pass computes them again.
        logits, ctx.logits = ctx.logits, None
        return *loss_gradients(hidden_MD, weight_VD, bias_V, targets_M, logsumexp_M, d_losses_M, logits), None


def chunked_statistics(
    hidden_MD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, targets_M: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Compute each token's logsumexp, target logit, highest logit and whether it is the target's, [4, M].

    The weight may be a shard of the vocabulary: targets are relative to its start; those outside have a logit of 0.
    Also returns the logits, if the kernels can take them in the backward pass and they are few enough to be kept.
    """
    size = _chunk_length(weight_VD)
    is_kept = _has_kernel(weight_VD) and len(targets_M) <= size
    statistics, logits = [], None
    for hidden, targets in zip(hidden_MD.split(size), targets_M.split(size), strict=True):
        logits = _linear(hidden, weight_VD, bias_V)
        statistics.append(_statistics(logits, targets))
    return torch.cat(statistics, dim=1), logits if is_kept else None


def _statistics(logits_MV: Tensor, targets_M: Tensor) -> Tensor:
    num_columns = logits_MV.shape[1]
    if num_columns and _has_kernel(logits_MV):
        return logit_statistics(logits_MV, targets_M)
    logits_MV = _at_least_float32(logits_MV)
    if not num_columns:
        lowest_M = logits_MV.new_full((len(targets_M),), -torch.inf)
        return torch.stack([lowest_M, torch.zeros_like(lowest_M), lowest_M, torch.zeros_like(lowest_M)])
    rows_M, is_local_M = local_targets(targets_M, num_columns)
    target_M = torch.where(is_local_M, logits_MV.gather(1, rows_M[:, None])[:, 0], 0.0)
    # Of equal logits the first counts, as in argmax.
    highest = logits_MV.max(1)
    is_correct_M = (highest.indices == rows_M) & is_local_M
    return torch.stack([logits_MV.logsumexp(1), target_M, highest.values, is_correct_M.to(logits_MV.dtype)])


def loss_gradients(
    hidden_MD: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    targets_M: Tensor,
    logsumexp_M: Tensor,
    d_losses_M: Tensor,
    logits_MV: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Compute the gradients of hidden states, weight and bias from those of the losses and the saved logsumexp.

    The weight may be a shard of the vocabulary. `logits_MV` are those of `chunked_statistics`, which get overwritten.
    """
    size = _chunk_length(weight_VD)
    d_hidden = []
    # Sums over several chunks: in float32 also where the weights are not.
    d_weight_VD: Tensor | float = 0.0
    d_bias_V: Tensor | float = 0.0
    chunks = (item.split(size) for item in (hidden_MD, targets_M, logsumexp_M, d_losses_M))
    for hidden, targets, logsumexp, d_losses in zip(*chunks, strict=True):
        logits = _linear(hidden, weight_VD, bias_V) if logits_MV is None else logits_MV
        d_logits = _logit_gradients(logits, targets, logsumexp, d_losses)
        if bias_V is not None:
            d_bias_V = d_bias_V + d_logits.sum(0, dtype=_accumulation_dtype(d_logits))
        d_logits = d_logits.to(weight_VD.dtype)
        d_hidden.append(d_logits @ weight_VD)
        product = d_logits.t() @ hidden.to(weight_VD.dtype)
        d_weight_VD = product if len(targets) == len(targets_M) else d_weight_VD + product.float()
    return (
        torch.cat(d_hidden).to(hidden_MD.dtype),
        torch.as_tensor(d_weight_VD).to(weight_VD.dtype),
        None if bias_V is None else torch.as_tensor(d_bias_V).to(bias_V.dtype),
    )


def _logit_gradients(logits_MV: Tensor, targets_M: Tensor, logsumexp_M: Tensor, d_losses_M: Tensor) -> Tensor:
    """Compute the gradients of the logits, softmax minus one-hot target; with the kernel in their place."""
    if _has_kernel(logits_MV):
        return logits_to_gradients(logits_MV, targets_M, logsumexp_M, d_losses_M)
    probabilities = (_at_least_float32(logits_MV) - logsumexp_M[:, None]).exp()
    if logits_MV.shape[1]:
        rows_M, is_local_M = local_targets(targets_M, logits_MV.shape[1])
        probabilities.scatter_add_(1, rows_M[:, None], -is_local_M.to(probabilities.dtype)[:, None])
    return probabilities * d_losses_M[:, None]


def local_targets(targets_M: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
    """Return the targets among rows [0, num_rows), 0 in place of the others, and a mask of which are inside."""
    is_local_M = (targets_M >= 0) & (targets_M < num_rows)
    return torch.where(is_local_M, targets_M, 0), is_local_M


def _linear(hidden_MD: Tensor, weight_VD: Tensor, bias_V: Tensor | None) -> Tensor:
    return torch.nn.functional.linear(hidden_MD.to(weight_VD.dtype), weight_VD, bias_V)


def _has_kernel(tensor: Tensor) -> bool:
    return HAS_TRITON and tensor.is_cuda and tensor.dtype in (torch.float32, torch.bfloat16, torch.float16)


def _chunk_length(weight_VD: Tensor) -> int:
    return max(1, MAX_LOGITS // max(1, len(weight_VD))) if _has_kernel(weight_VD) else CHUNK


def _accumulation_dtype(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.to(_accumulation_dtype(tensor))
