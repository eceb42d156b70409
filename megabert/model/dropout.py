"""Dropout that costs next to nothing in a compiled network: its mask is a hash of the place, made where it is needed.

PyTorch's compiled dropout draws Philox numbers, some eighty integer operations for each, and keeps the mask for the
backward pass. Here the mask of an element is one multiplication of two hashes, of its row and of its column, and is
made again in the backward pass from the seed alone.

Shape legend: T tokens, D hidden.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Dropout(nn.Module):
    """Zero a share of the elements in training, and scale the others up. Not compiled it is PyTorch's.

    `stream` is 0, or a number of its own for each of several that draw the same seed but must not drop the same.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share
        self.stream = 0

    def forward(self, hidden_TD: Tensor) -> Tensor:
        """Map [T, D] to [T, D]."""
        if not self.stream and (not torch.compiler.is_compiling() or not hidden_TD.is_cuda):
            return F.dropout(hidden_TD, self.share, self.training)
        if not self.training or not self.share:
            return hidden_TD
        seed_1 = torch.randint(-(2**31), 2**31, (1,), dtype=torch.int32, device=hidden_TD.device)
        if self.stream:
            seed_1 = _hash(seed_1 + self.stream)
        num_rows, num_columns = hidden_TD.shape
        kept_TD = keep_mask(num_rows, num_columns, self.share, seed_1)
        return torch.where(kept_TD, hidden_TD / (1 - self.share), 0.0)


def keep_mask(num_rows: int, num_columns: int, share: float, seed_1: Tensor) -> Tensor:
    """Draw which elements stay, [num_rows, num_columns], as a function of a seed, [1] int32."""
    rows_T1 = torch.arange(num_rows, dtype=torch.int32, device=seed_1.device)[:, None]
    columns_D = torch.arange(num_columns, dtype=torch.int32, device=seed_1.device)
    row_hashes_T1 = _hash(rows_T1 * -1640531535 + seed_1)
    # Odd: multiplying by it loses nothing.
    column_hashes_D = _hash(columns_D + 2135587861) | 1
    mixed_TD = (row_hashes_T1 ^ column_hashes_D) * column_hashes_D
    return mixed_TD >= round(share * 2**32) - 2**31


def _hash(numbers: Tensor) -> Tensor:
    """Mix 32 bits: MurmurHash3's finalizer. The numbers are signed; what the shifts draw in is masked off."""
    mixed = (numbers ^ ((numbers >> 16) & 0xFFFF)) * -2048144789
    mixed = (mixed ^ ((mixed >> 13) & 0x7FFFF)) * -1028477387
    return mixed ^ ((mixed >> 16) & 0xFFFF)
