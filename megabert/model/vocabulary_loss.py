"""Cross-entropy over a vocabulary without keeping its logits: a few thousand tokens' would fill gigabytes.

Shape legend: M tokens, D hidden, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor

# Tokens whose logits are there at once: 2,048 x 30,522 in float32 are 250 MB.
CHUNK = 2048
# As in PyTorch's cross_entropy: a token without a target costs nothing and learns nothing.
NO_TARGET = -100


def vocabulary_losses(
    hidden_MD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, targets_M: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute each token's cross-entropy, float32 [M], and whether its target is the likeliest, bool [M].

    Logits are hidden weight' + bias in the precision of the weights, everything behind them is float32. The backward
    pass computes them again, chunk by chunk. Both are 0 and false where there is no target.
    """
    losses_M, is_right_M = _VocabularyLosses.apply(hidden_MD, weight_VD, bias_V, targets_M)
    return losses_M, is_right_M


class _VocabularyLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_MD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, targets_M: Tensor
    ) -> tuple[Tensor, Tensor]:
        losses, sums, rights = [], [], []
        for hidden, targets in zip(hidden_MD.split(CHUNK), targets_M.split(CHUNK), strict=True):
            logits = word_logits(hidden, weight_VD, bias_V)
            log_sum = logits.logsumexp(1)
            has_target = targets != NO_TARGET
            chosen = logits.gather(1, targets.clamp(min=0)[:, None])[:, 0]
            losses.append(torch.where(has_target, log_sum - chosen, 0.0))
            rights.append((logits.argmax(1) == targets) & has_target)
            sums.append(log_sum)
        log_sums_M, is_right_M = torch.cat(sums), torch.cat(rights)
        ctx.save_for_backward(hidden_MD, weight_VD, bias_V, targets_M, log_sums_M)
        ctx.mark_non_differentiable(is_right_M)
        return torch.cat(losses), is_right_M

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None]:
        hidden_MD, weight_VD, bias_V, targets_M, log_sums_M = ctx.saved_tensors
        of_losses_M = torch.where(targets_M != NO_TARGET, gradients[0], 0.0)
        return *loss_gradients(hidden_MD, weight_VD, bias_V, targets_M, log_sums_M, of_losses_M), None


def loss_gradients(
    hidden_MD: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    targets_M: Tensor,
    log_sums_M: Tensor,
    of_losses_M: Tensor,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Take gradients of losses back to hidden vectors, weight and bias, with the logits' log-sums from before.

    The words may be a part of a vocabulary, cut out of it: targets count from its start and may lie outside.
    """
    of_hidden = []
    # Sums over all chunks: in float32 also where the weights are not.
    of_weight_VD = torch.zeros_like(weight_VD, dtype=torch.float32)
    of_bias_V = torch.zeros(len(weight_VD), device=weight_VD.device)
    chunks = (item.split(CHUNK) for item in (hidden_MD, targets_M, log_sums_M, of_losses_M))
    for hidden, targets, log_sums, of_losses in zip(*chunks, strict=True):
        shares = (word_logits(hidden, weight_VD, bias_V) - log_sums[:, None]).exp()
        places, is_own = own_places(targets, len(weight_VD))
        if len(weight_VD):
            shares.scatter_add_(1, places[:, None], -is_own.to(shares.dtype)[:, None])
        shares *= of_losses[:, None]
        of_bias_V += shares.sum(0)
        of_logits = shares.to(weight_VD.dtype)
        of_hidden.append(of_logits @ weight_VD)
        of_weight_VD += of_logits.t() @ hidden.to(weight_VD.dtype)
    return (
        torch.cat(of_hidden).to(hidden_MD.dtype),
        of_weight_VD.to(weight_VD.dtype),
        None if bias_V is None else of_bias_V.to(bias_V.dtype),
    )


def own_places(targets_M: Tensor, num_own: int) -> tuple[Tensor, Tensor]:
    """Give targets' places among the words [0, num_own), 0 where they lie outside, and whether they do not."""
    is_own = (targets_M >= 0) & (targets_M < num_own)
    return torch.where(is_own, targets_M, 0), is_own


def word_logits(hidden_MD: Tensor, weight_VD: Tensor, bias_V: Tensor | None) -> Tensor:
    """Compute logits in the precision of the weights, and give them in float32 at least."""
    logits = torch.nn.functional.linear(hidden_MD.to(weight_VD.dtype), weight_VD, bias_V)
    return logits.float() if logits.dtype != torch.float64 else logits
