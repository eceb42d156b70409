"""Tokenized texts to batches of rows: several texts share a row, and `document_ids` keeps them apart.

Packing is the only path: a padded batch is the case of one text a row.
Shape legend: B rows, L tokens a row, N documents, T tokens of one text.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError


@dataclass(frozen=True)
class Features:
    """One text (or one window of a long one) as the network takes it.

    `targets` holds what the task's loss compares with, one number or array of any shape for the document.
    `weight` says how much the text counts in the mean loss: 1, or its number of labelled tokens.
    `notes` is the task's own: what `decode` needs to find the way back into the text.
    """

    token_ids: NDArray[np.int64]
    segment_ids: NDArray[np.int64]
    targets: dict[str, Any] = field(default_factory=dict)
    weight: float = 1.0
    notes: Any = None

    def __len__(self) -> int:
        """Count the tokens."""
        return len(self.token_ids)


@dataclass(frozen=True)
class Batch:
    """Rows of packed documents. Documents are numbered in the order of the features that were packed.

    document_ids_BL counts from 1 within a row and is 0 on padding; starts_N is the place of a document's first
    token in the rows laid end to end, lengths_N its tokens. targets are stacked over documents.
    """

    token_ids_BL: Tensor
    position_ids_BL: Tensor
    segment_ids_BL: Tensor
    document_ids_BL: Tensor
    starts_N: Tensor
    lengths_N: Tensor
    targets: dict[str, Tensor]
    num_tokens: int
    weight: float

    def inputs(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Give what a model's forward takes."""
        return (
            self.token_ids_BL,
            self.position_ids_BL,
            self.segment_ids_BL,
            self.document_ids_BL,
            self.starts_N,
        )

    def to(self, device: torch.device) -> "Batch":
        """Copy the tensors to a device."""
        return replace(
            self,
            **{
                name: getattr(self, name).to(device, non_blocking=True)
                for name in (
                    "token_ids_BL",
                    "position_ids_BL",
                    "segment_ids_BL",
                    "document_ids_BL",
                    "starts_N",
                    "lengths_N",
                )
            },
            targets={name: target.to(device, non_blocking=True) for name, target in self.targets.items()},
        )

    def by_document(self, values_BL: Tensor, fill: float, longest: int) -> Tensor:
        """Take per-token values [B, L, ...] apart into documents: [N, longest, ...], `fill` behind each end."""
        within_T = torch.arange(longest, device=values_BL.device)
        is_inside_NT = within_T < self.lengths_N[:, None]
        places_NT = torch.where(is_inside_NT, self.starts_N[:, None] + within_T, 0)
        values_NT = values_BL.flatten(0, 1)[places_NT]
        outside_NT = ~is_inside_NT.reshape(is_inside_NT.shape + (1,) * (values_NT.ndim - 2))
        return values_NT.masked_fill(outside_NT, fill)


def pack(features: Sequence[Features], row_length: int, pad_id: int) -> Batch:
    """Place texts into as few rows as fit, longest first.

    Returns token_ids_BL with L = row_length tokens, or the longest row's if that is shorter; document_ids_BL is 0
    where padded. The documents of starts_N, lengths_N and targets keep the order of `features`.
    Raises InputError if a text is longer than row_length.
    Source: first-fit decreasing; compare Krell et al. 2021, arXiv:2107.02027.
    """
    assert features, "an empty batch has no rows"
    rows = _first_fit([len(item) for item in features], row_length)
    used = max(sum(len(features[index]) for index in row) for row in rows)
    shape = (len(rows), used)
    token_ids = np.full(shape, pad_id, dtype=np.int64)
    position_ids, segment_ids, document_ids = (np.zeros(shape, dtype=np.int64) for _ in range(3))
    starts = np.zeros(len(features), dtype=np.int64)
    for row_number, row in enumerate(rows):
        start = 0
        for document_number, index in enumerate(row, start=1):
            item = features[index]
            place = (row_number, slice(start, start + len(item)))
            token_ids[place] = item.token_ids
            segment_ids[place] = item.segment_ids
            position_ids[place] = np.arange(len(item))
            document_ids[place] = document_number
            starts[index] = row_number * used + start
            start += len(item)
    lengths = np.array([len(item) for item in features], dtype=np.int64)
    return Batch(
        token_ids_BL=torch.from_numpy(token_ids),
        position_ids_BL=torch.from_numpy(position_ids),
        segment_ids_BL=torch.from_numpy(segment_ids),
        document_ids_BL=torch.from_numpy(document_ids),
        starts_N=torch.from_numpy(starts),
        lengths_N=torch.from_numpy(lengths),
        targets={
            name: torch.from_numpy(np.stack([np.asarray(item.targets[name]) for item in features]))
            for name in features[0].targets
        },
        num_tokens=int(lengths.sum()),
        weight=float(sum(item.weight for item in features)),
    )


def _first_fit(lengths: list[int], row_length: int) -> list[list[int]]:
    """Assign text numbers to rows, longest text first, each to the first row with room for it."""
    rows: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        length = lengths[index]
        if length > row_length:
            raise InputError(
                f"a text of {length} tokens does not fit a row of {row_length}. Raise model.dataset.max_seq_length."
            )
        fitting = next((row for row, free in enumerate(room) if free >= length), None)
        if fitting is None:
            rows.append([])
            room.append(row_length)
            fitting = len(rows) - 1
        rows[fitting].append(index)
        room[fitting] -= length
    return rows
