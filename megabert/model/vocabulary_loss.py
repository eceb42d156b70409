"""Chunked cross-entropy over the vocabulary that never stores all logits, which would fill gigabytes.

Shape legend: M tokens, D hidden, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor

# Tokens whose logits are in memory at once: 2,048 x 30,522 in float32 are 250 MB.
CHUNK = 2048
# The ignore_index of PyTorch's cross_entropy: tokens with this target have no loss and no gradient.
NO_TARGET = -100


def vocabulary_losses(
    hidden_MD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, targets_M: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute each token's cross-entropy, float32 [M], and whether its target has the highest logit, bool [M].

    The logits are computed in the precision of the weights, all else in float32. The backward pass recomputes them
    chunk by chunk. Tokens without a target get 0 and False.
    """
    losses_M, is_correct_M = _VocabularyLosses.apply(hidden_MD, weight_VD, bias_V, targets_M)
    return losses_M, is_correct_M


class _VocabularyLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_MD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, targets_M: Tensor
    ) -> tuple[Tensor, Tensor]:
        losses, logsumexps, is_correct = [], [], []
        for hidden, targets in zip(hidden_MD.split(CHUNK), targets_M.split(CHUNK), strict=True):
            logits = compute_logits(hidden, weight_VD, bias_V)
            logsumexp = logits.logsumexp(1)
            has_target = targets != NO_TARGET
            target_logits = logits.gather(1, targets.clamp(min=0)[:, None])[:, 0]
            losses.append(torch.where(has_target, logsumexp - target_logits, 0.0))
            is_correct.append((logits.argmax(1) == targets) & has_target)
            logsumexps.append(logsumexp)
        logsumexp_M, is_correct_M = torch.cat(logsumexps), torch.cat(is_correct)
        ctx.save_for_backward(hidden_MD, weight_VD, bias_V, targets_M, logsumexp_M)
        ctx.mark_non_differentiable(is_correct_M)
        return torch.cat(losses), is_correct_M

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None]:
        hidden_MD, weight_VD, bias_V, targets_M, logsumexp_M = ctx.saved_tensors
        d_losses_M = torch.where(targets_M != NO_TARGET, gradients[0], 0.0)
        return *loss_gradients(hidden_MD, weight_VD, bias_V, targets_M, logsumexp_M, d_losses_M), None


def loss_gradients(
    hidden_MD: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    targets_M: Tensor,
    logsumexp_M: Tensor,
    d_losses_M: Tensor,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Compute the gradients of hidden states, weight and bias from those of the losses and the saved logsumexp.

    The weight may be a shard of the vocabulary: targets are relative to its start and may lie outside.
    """
    d_hidden = []
    # Sums over all chunks: in float32 also where the weights are not.
    d_weight_VD = torch.zeros_like(weight_VD, dtype=torch.float32)
    d_bias_V = torch.zeros(len(weight_VD), device=weight_VD.device)
    chunks = (item.split(CHUNK) for item in (hidden_MD, targets_M, logsumexp_M, d_losses_M))
    for hidden, targets, logsumexp, d_losses in zip(*chunks, strict=True):
        # The gradient of the logits is softmax minus one-hot target.
        probabilities = (compute_logits(hidden, weight_VD, bias_V) - logsumexp[:, None]).exp()
        rows, is_local = local_targets(targets, len(weight_VD))
        if len(weight_VD):
            probabilities.scatter_add_(1, rows[:, None], -is_local.to(probabilities.dtype)[:, None])
        probabilities *= d_losses[:, None]
        d_bias_V += probabilities.sum(0)
        d_logits = probabilities.to(weight_VD.dtype)
        d_hidden.append(d_logits @ weight_VD)
        d_weight_VD += d_logits.t() @ hidden.to(weight_VD.dtype)
    return (
        torch.cat(d_hidden).to(hidden_MD.dtype),
        d_weight_VD.to(weight_VD.dtype),
        None if bias_V is None else d_bias_V.to(bias_V.dtype),
    )


def local_targets(targets_M: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
    """Return the targets among rows [0, num_rows), 0 in place of the others, and a mask of which are inside."""
    is_local_M = (targets_M >= 0) & (targets_M < num_rows)
    return torch.where(is_local_M, targets_M, 0), is_local_M


def compute_logits(hidden_MD: Tensor, weight_VD: Tensor, bias_V: Tensor | None) -> Tensor:
    """Compute logits in the precision of the weights and return them in float32 or higher."""
    logits = torch.nn.functional.linear(hidden_MD.to(weight_VD.dtype), weight_VD, bias_V)
    return logits.float() if logits.dtype != torch.float64 else logits
