"""Multi-similarity loss with online hard pairs, of embeddings of names: those of one concept are positives.

Source: Wang et al. 2019, arXiv:1904.06627; with SapBERT's mining (Liu et al. 2021, arXiv:2010.11784): a positive pair
counts that is at most `margin` more similar than the hardest negative, a negative pair that is at most `margin` less
similar than the hardest positive.
Shape legend: N names, D dimensions.
"""

import torch
from torch import Tensor


def multi_similarity_losses(
    embeddings_ND: Tensor,
    concepts_N: Tensor,
    *,
    scale_positive: float,
    scale_negative: float,
    base: float,
    margin: float,
) -> Tensor:
    """Compute the loss of each name as anchor, [N]; 0 for one without hard pairs. Concepts below 0 are no names."""
    similarities_NN = embeddings_ND.float() @ embeddings_ND.float().T
    is_name_N = concepts_N >= 0
    is_same_NN = concepts_N[:, None] == concepts_N[None]
    is_self_NN = torch.eye(len(concepts_N), dtype=torch.bool, device=concepts_N.device)
    is_pair_NN = is_name_N[:, None] & is_name_N[None] & ~is_self_NN
    is_positive_NN, is_negative_NN = is_same_NN & is_pair_NN, ~is_same_NN & is_pair_NN
    infinity = torch.finfo(similarities_NN.dtype).max
    with torch.no_grad():
        hardest_negative_N1 = similarities_NN.masked_fill(~is_negative_NN, -infinity).amax(1, keepdim=True)
        hardest_positive_N1 = similarities_NN.masked_fill(~is_positive_NN, infinity).amin(1, keepdim=True)
        is_positive_NN &= similarities_NN <= hardest_negative_N1 + margin
        is_negative_NN &= similarities_NN >= hardest_positive_N1 - margin
    positive_N = _log_sum(-scale_positive * (similarities_NN - base), is_positive_NN) / scale_positive
    negative_N = _log_sum(scale_negative * (similarities_NN - base), is_negative_NN) / scale_negative
    return positive_N + negative_N


def _log_sum(exponents_NN: Tensor, is_chosen_NN: Tensor) -> Tensor:
    """Compute log(1 + sum of exponentials) of each row, [N]; a finite gradient also for rows without any."""
    exponents_NN = exponents_NN.masked_fill(~is_chosen_NN, -torch.inf)
    one_N1 = exponents_NN.new_zeros(len(exponents_NN), 1)
    return torch.cat([one_N1, exponents_NN], dim=1).logsumexp(1)
