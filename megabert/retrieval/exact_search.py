"""Exact search by blocked matrix products: the k rows of the largest inner products, equal ones by row number.

Blocks bound the memory. On a GPU the vectors stay there where they fit, and only the groups with the largest maxima
are sorted: the k largest of all are in the k groups with the largest maxima.
Shape legend: Q queries, B rows of a block, D dimensions, K results.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .embedding_store import EmbeddingStore, StoreBlock

if TYPE_CHECKING:
    import torch
    from torch import Tensor

BLOCK_ROWS = 16_384
GPU_BLOCK_ROWS = 262_144
GROUP_SIZE = 64


def search(
    store: EmbeddingStore, queries_QD: NDArray[np.float32], k: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Search on the CPU: scores [Q, K] in descending order, and row numbers [Q, K]; K is at most the number of rows."""
    check_dimensions(store, queries_QD)
    return search_blocks(store.blocks(BLOCK_ROWS), queries_QD, min(k, len(store)))


def check_dimensions(store: EmbeddingStore, queries_QD: NDArray[np.float32]) -> None:
    """Raise InputError where queries have another number of dimensions than the store."""
    if queries_QD.shape[1] != store.dimensions:
        raise InputError(
            f"queries have {queries_QD.shape[1]} dimensions, {store.folder} has {store.dimensions}. Embed both alike."
        )


def search_blocks(
    blocks: Iterable[StoreBlock], queries_QD: NDArray[np.float32], k: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Search blocks in order; those of equal scores come in the order of their rows."""
    count = len(queries_QD)
    scores = np.zeros((count, 0), dtype=np.float32)
    rows = np.zeros((count, 0), dtype=np.int64)
    queries_QD = np.ascontiguousarray(queries_QD, dtype=np.float32)
    for block in blocks:
        fresh_QB = queries_QD @ block.vectors().T
        columns = _largest(fresh_QB, k)
        scores = np.concatenate([scores, np.take_along_axis(fresh_QB, columns, 1)], axis=1)
        rows = np.concatenate([rows, columns + block.start], axis=1)
        best = _largest(scores, k)
        scores, rows = np.take_along_axis(scores, best, 1), np.take_along_axis(rows, best, 1)
    return scores, rows


def _largest(scores_QB: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Return the columns of the k largest scores, in descending order; of equal ones the first columns."""
    width = scores_QB.shape[1]
    if k >= width:
        return np.argsort(-scores_QB, axis=1, kind="stable")
    threshold = np.partition(scores_QB, width - k, axis=1)[:, width - k, None]
    is_above, is_equal = scores_QB > threshold, scores_QB == threshold
    wanted = k - is_above.sum(1, keepdims=True)
    chosen = is_above | (is_equal & (is_equal.cumsum(1) <= wanted))
    columns = np.nonzero(chosen)[1].reshape(len(scores_QB), k)
    order = np.argsort(-np.take_along_axis(scores_QB, columns, 1), axis=1, kind="stable")
    return np.take_along_axis(columns, order, 1)


class DeviceSearch:
    """Exact search on a torch device that holds the vectors."""

    def __init__(self, blocks: Iterable[StoreBlock], device: torch.device) -> None:
        """Copy the blocks to the device, in their type."""
        import torch

        self.device = device
        self.blocks: list[tuple[int, Tensor, Tensor | None]] = []
        for block in blocks:
            values = torch.from_numpy(np.array(block.values)).to(device)
            scales = None if block.scales is None else torch.from_numpy(np.array(block.scales)).to(device)
            self.blocks.append((block.start, values, scales))

    def search(self, queries_QD: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Search: scores [Q, K] in descending order and row numbers [Q, K]."""
        import torch

        with torch.inference_mode():
            queries = torch.from_numpy(np.ascontiguousarray(queries_QD, dtype=np.float32)).to(self.device)
            best_scores: Tensor | None = None
            best_rows: Any = None
            for start, values, scales in self.blocks:
                scores, columns = grouped_topk(_products(queries, values, scales), k)
                if best_scores is not None:
                    scores, columns = torch.cat([best_scores, scores], 1), torch.cat([best_rows, columns + start], 1)
                    best_scores, order = scores.topk(min(k, scores.shape[1]), dim=1)
                    best_rows = columns.gather(1, order)
                else:
                    best_scores, best_rows = scores, columns + start
            assert best_scores is not None
            return best_scores.cpu().numpy(), best_rows.cpu().numpy()


def _products(queries_QD: Tensor, values_BD: Tensor, scales_B: Tensor | None) -> Tensor:
    """Compute inner products in float32, of float16 vectors with accumulation in float32."""
    import torch

    if values_BD.dtype == torch.float16 and values_BD.is_cuda:
        # Two halves of the query: float16 alone would round it to 11 bits
        high = queries_QD.half()
        low = (queries_QD - high.float()).half()
        columns_DB = values_BD.T
        return torch.mm(high, columns_DB, out_dtype=torch.float32) + torch.mm(low, columns_DB, out_dtype=torch.float32)
    products = queries_QD @ values_BD.float().T
    return products if scales_B is None else products * scales_B


def grouped_topk(scores_QB: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Compute torch.topk over rows that are long: only the k groups of the largest maxima are sorted."""
    import torch

    width = scores_QB.shape[1]
    if width < 4 * k * GROUP_SIZE:
        best = scores_QB.topk(min(k, width), dim=1)
        return best.values, best.indices
    num_groups = width // GROUP_SIZE
    inside_QGS = scores_QB[:, : num_groups * GROUP_SIZE].unflatten(1, (num_groups, GROUP_SIZE))
    groups_QK = inside_QGS.amax(2).topk(k, dim=1).indices
    members_QKS = groups_QK[:, :, None] * GROUP_SIZE + torch.arange(GROUP_SIZE, device=scores_QB.device)
    rest = torch.arange(num_groups * GROUP_SIZE, width, device=scores_QB.device).expand(len(scores_QB), -1)
    columns = torch.cat([members_QKS.flatten(1), rest], dim=1)
    best = scores_QB.gather(1, columns).topk(k, dim=1)
    return best.values, columns.gather(1, best.indices)
