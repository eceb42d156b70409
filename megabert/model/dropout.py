"""Dropout whose mask is a counter hash of seed, row and column, for compiled models.

PyTorch's compiled dropout generates Philox numbers, some eighty integer operations each, and stores the mask for the
backward pass. Here a mask element costs one multiplication of two hashes, of its row and of its column, and the
backward pass recomputes the mask from the seed.

Shape legend: T tokens, D hidden.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Dropout(nn.Module):
    """Zero elements with probability `p` in training and scale up the others; PyTorch's dropout where not compiled.

    Processes whose activations are shards of one tensor have different `stream`s, not 0: equal seeds give them
    different masks.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.stream = 0

    def forward(self, hidden_TD: Tensor) -> Tensor:
        """Map [T, D] to [T, D]."""
        if not self.stream and (not torch.compiler.is_compiling() or not hidden_TD.is_cuda):
            return F.dropout(hidden_TD, self.p, self.training)
        if not self.training or not self.p:
            return hidden_TD
        seed_1 = torch.randint(-(2**31), 2**31, (1,), dtype=torch.int32, device=hidden_TD.device)
        if self.stream:
            seed_1 = _hash(seed_1 + self.stream)
        num_rows, num_columns = hidden_TD.shape
        mask_TD = keep_mask(num_rows, num_columns, self.p, seed_1)
        return torch.where(mask_TD, hidden_TD / (1 - self.p), 0.0)


def keep_mask(num_rows: int, num_columns: int, p: float, seed_1: Tensor) -> Tensor:
    """Compute the mask of kept elements, bool [num_rows, num_columns], from a seed, int32 [1]."""
    rows_T1 = torch.arange(num_rows, dtype=torch.int32, device=seed_1.device)[:, None]
    columns_D = torch.arange(num_columns, dtype=torch.int32, device=seed_1.device)
    row_hashes_T1 = _hash(rows_T1 * -1640531535 + seed_1)
    # Odd, so that multiplication by it is invertible.
    column_hashes_D = _hash(columns_D + 2135587861) | 1
    hashes_TD = (row_hashes_T1 ^ column_hashes_D) * column_hashes_D
    return hashes_TD >= round(p * 2**32) - 2**31


def _hash(values: Tensor) -> Tensor:
    """Hash 32 bits with MurmurHash3's finalizer. Values are signed; the sign bits that shifts fill in are masked."""
    bits = (values ^ ((values >> 16) & 0xFFFF)) * -2048144789
    bits = (bits ^ ((bits >> 13) & 0x7FFFF)) * -1028477387
    return bits ^ ((bits >> 16) & 0xFFFF)
