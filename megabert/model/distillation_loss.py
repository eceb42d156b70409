"""Losses of a student's logits against those of its teacher; what the teacher has no logits for (NaN) counts nothing.

Sources: Hinton, Vinyals and Dean 2015 (arXiv:1503.02531), with its factor temperature^2, which keeps the gradients'
size; similarities of embeddings: Fang et al. 2021 (arXiv:2101.04731).
Shape legend: R rows (tokens or sequences), N sequences, L tokens of one, C classes, D dimensions.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def divergences(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Compute temperature^2 KL(teacher || student) over the last dim: [..., C] to [...], 0 where the teacher is NaN."""
    is_known = ~teacher.isnan().any(-1)
    expected = (teacher.float().masked_fill(~is_known[..., None], 0.0) / temperature).log_softmax(-1)
    found = (logits.float() / temperature).log_softmax(-1)
    losses = F.kl_div(found, expected, reduction="none", log_target=True).sum(-1)
    return torch.where(is_known, losses, 0.0) * temperature**2


def binary_divergences(logits_RC: Tensor, teacher_RC: Tensor, temperature: float) -> Tensor:
    """Compute the mean over classes that hold independently of each other, [R]."""
    two, teacher_two = (torch.stack([item, torch.zeros_like(item)], dim=-1) for item in (logits_RC, teacher_RC))
    return divergences(two, teacher_two, temperature).mean(-1)


def squared_errors(values_RD: Tensor, teacher_RD: Tensor) -> Tensor:
    """Compute the mean squared difference of each row, [R]."""
    values_RD, teacher_RD = values_RD.float(), teacher_RD.float()
    # Masked before the difference: the gradient of a masked NaN would be NaN.
    known_RD = torch.where(teacher_RD.isnan(), values_RD.detach(), teacher_RD)
    return ((values_RD - known_RD) ** 2).mean(-1)


def similarity_divergences(
    vectors_ND: Tensor, teacher_NE: Tensor, is_row_N: Tensor, *, scale: float, temperature: float
) -> Tensor:
    """Compare how similar a text's vector is to those of all others, as a distribution; summed over the marked rows.

    `scale` divides the student's inner products; the teacher's vectors are scaled already.
    """
    is_known_N = ~teacher_NE.isnan().any(-1)
    is_column_NN = is_known_N & ~torch.eye(len(vectors_ND), dtype=torch.bool, device=vectors_ND.device)
    teacher_NE = teacher_NE.float().nan_to_num()
    lowest = -1e4  # and not -inf, whose product with a probability of 0 is NaN
    found_NN = (vectors_ND.float() @ vectors_ND.float().T / scale).masked_fill(~is_column_NN, lowest * temperature)
    expected_NN = (teacher_NE @ teacher_NE.T).masked_fill(~is_column_NN, lowest * temperature)
    losses_N = divergences(found_NN, expected_NN, temperature)
    return torch.where(is_row_N & is_known_N, losses_N, 0.0).sum()
