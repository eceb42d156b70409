"""Contrastive losses of embeddings, summed over queries, in blocks so that large batches fit.

Source: in-batch negatives of DPR (Karpukhin et al. 2020, arXiv:2004.04906), with known positives of a query left out of
its negatives; margin MSE of Hofstätter et al. 2020 (arXiv:2010.02666).
Shape legend: Q queries, P passages, D dimensions.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

BLOCK_SIZE = 2**26
"""Most similarities that are computed at a time."""


def in_batch_losses(
    queries_QD: Tensor,
    passages_PD: Tensor,
    positives_Q: Tensor,
    *,
    temperature: float,
    query_keys_Q: Tensor,
    owners_P: Tensor,
    passage_keys_P: Tensor,
) -> Tensor:
    """Compute each query's cross-entropy of its positive passage among all passages, [Q].

    `positives_Q` are indices of passages. Passages with the positive's key, and positives of a query with the same key
    (`owners_P`: the key of the query whose positive a passage is, -1 of a negative), are no negatives.
    """
    rows = max(1, BLOCK_SIZE // max(len(passages_PD), 1))

    def block_losses(queries_BD: Tensor, passages_PD: Tensor, positives_B: Tensor, keys_B: Tensor) -> Tensor:
        scores_BP = queries_BD.float() @ passages_PD.float().T / temperature
        is_relevant_BP = (owners_P == keys_B[:, None]) | (passage_keys_P == passage_keys_P[positives_B][:, None])
        is_relevant_BP = is_relevant_BP.scatter(1, positives_B[:, None], False)
        return F.cross_entropy(scores_BP.masked_fill(is_relevant_BP, -torch.inf), positives_B, reduction="none")

    blocks = zip(queries_QD.split(rows), positives_Q.split(rows), query_keys_Q.split(rows), strict=True)
    if len(queries_QD) <= rows:
        losses = [block_losses(queries, passages_PD, positives, keys) for queries, positives, keys in blocks]
    else:  # the similarities are computed again in the backward pass
        losses = [
            checkpoint(block_losses, queries, passages_PD, positives, keys, use_reentrant=False)
            for queries, positives, keys in blocks
        ]
    return torch.cat(losses) if losses else queries_QD.new_zeros(0)


def truncated(embeddings_ND: Tensor, dimensions: int, *, normalize: bool) -> Tensor:
    """Take the first dimensions of embeddings, normalized again. Source: Matryoshka, arXiv:2205.13147."""
    cut_ND = embeddings_ND[:, :dimensions]
    return F.normalize(cut_ND, dim=-1) if normalize else cut_ND


def margin_mse(scores_N: Tensor, teacher_N: Tensor, positives_N: Tensor) -> Tensor:
    """Compute squared errors of the margins between each passage's positive and itself, against a teacher's, [N].

    `positives_N` are the indices of the positive of each passage's query; a positive's own error is 0.
    """
    margins_N = scores_N[positives_N] - scores_N
    return (margins_N - (teacher_N[positives_N] - teacher_N)) ** 2


def group_positions(is_first_N: Tensor) -> tuple[Tensor, Tensor]:
    """Return group and position within the group of each sequence, [N]; `is_first_N` marks where groups begin."""
    groups_N = is_first_N.long().cumsum(0) - 1
    starts_G = is_first_N.nonzero()[:, 0]
    return groups_N, torch.arange(len(is_first_N), device=is_first_N.device) - starts_G[groups_N]


def listwise_losses(scores_N: Tensor, is_first_N: Tensor) -> Tensor:
    """Compute each group's cross-entropy of its first member's score among its members', [G]."""
    groups_N, positions_N = group_positions(is_first_N)
    shape: Sequence[int] = (int(is_first_N.sum()), int(positions_N.max()) + 1 if len(positions_N) else 1)
    dense_GM = scores_N.new_full(shape, -torch.inf).index_put((groups_N, positions_N), scores_N)
    return -dense_GM.log_softmax(1)[:, 0]
