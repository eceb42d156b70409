"""Sum of embeddings, dropout and the first layer norm in one Triton kernel, and one for the gradient of the sum.

Forward a row is read from each table and written as sum and as norm. Backward three rows are read and one is written,
from which `embedding_gradient.py` computes the gradients of words and positions; the same pass sums those of the norm
and of the few segments, in registers.

Shape legend: T tokens, D hidden, V vocabulary, P positions, S segments.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .column_sums import column_sums
from .hashes import column_hash, drop_options, is_kept, row_hash
from .residual_norm import (
    BACKWARD,
    BACKWARD_COLUMNS,
    FORWARD,
    FORWARD_COLUMNS,
    PROGRAMS,
    ResidualNorm,
    norm_gradient,
    normalize_rows,
    widths,
)

# Assertions are compiled in debug mode only, in which hashes, which overflow on purpose, would be refused, too.
ASSERTS: dict[str, Any] = {"debug": True, "sanitize_overflow": False}


class EmbeddingTables(NamedTuple):
    """Embeddings of one dtype; without segments `segment_SD` is None."""

    word_VD: Tensor
    position_PD: Tensor
    segment_SD: Tensor | None


class EmbeddingGradients(NamedTuple):
    """Gradients of the sum of embeddings, before dropout, of the norm's weight and bias, and of the segments' rows."""

    embedding_TD: Tensor
    norm_2D: Tensor
    segment_SD: Tensor


@triton.jit
def _embed_kernel(
    token_ids, position_ids, segment_ids, word, position, segment, weight, shift, total, normed, statistics, seed,
    threshold, keep, epsilon, num_words, num_positions, num_segments, num_rows, width,
    HAS_SEGMENTS: tl.constexpr, HAS_DROPOUT: tl.constexpr, DROPS_NORM: tl.constexpr, ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, WIDTH)
    is_row = rows < num_rows
    is_there = is_row[:, None] & (columns < width)[None, :]
    words = tl.load(token_ids + rows, mask=is_row, other=0).to(tl.int64)
    positions = tl.load(position_ids + rows, mask=is_row, other=0).to(tl.int64)
    is_inside = (words >= 0) & (words < num_words) & (positions >= 0) & (positions < num_positions)
    if HAS_SEGMENTS:
        segments = tl.load(segment_ids + rows, mask=is_row, other=0).to(tl.int64)
        is_inside &= (segments >= 0) & (segments < num_segments)
    # As PyTorch's embedding does: the next call that waits for the GPU raises.
    tl.device_assert(is_inside, "a token, position or segment id is outside of its embedding table")
    values = tl.load(word + words[:, None] * width + columns[None, :], mask=is_there, other=0.0).to(tl.float32)
    values += tl.load(position + positions[:, None] * width + columns[None, :], mask=is_there, other=0.0)
    if HAS_SEGMENTS:
        values += tl.load(segment + segments[:, None] * width + columns[None, :], mask=is_there, other=0.0)
    if HAS_DROPOUT:
        kept = is_kept(row_hash(tl.load(seed), rows)[:, None], column_hash(columns)[None, :], threshold)
    if HAS_DROPOUT and not DROPS_NORM:
        values = tl.where(kept, values / keep, 0.0)
    # Rounded first: the backward pass reads the rounded sum.
    new = values.to(total.dtype.element_ty)
    at = rows.to(tl.int64)[:, None] * width + columns[None, :]
    tl.store(total + at, new, mask=is_there)
    result, mean, scale = normalize_rows(new.to(tl.float32), is_there, weight, shift, columns, width, epsilon)
    if HAS_DROPOUT and DROPS_NORM:
        result = tl.where(kept, result / keep, 0.0)
    tl.store(normed + at, result.to(new.dtype), mask=is_there)
    tl.store(statistics + rows, mean, mask=is_row)
    tl.store(statistics + num_rows + rows, scale, mask=is_row)


@triton.jit
def _embed_backward_kernel(
    d_total, d_normed, total, statistics, weight, segment_ids, d_embedding, sums, seed, threshold, keep, num_rows,
    width, NUM_SEGMENTS: tl.constexpr, SEGMENTS: tl.constexpr, HAS_TOTAL: tl.constexpr, HAS_DROPOUT: tl.constexpr,
    DROPS_NORM: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of every num_programs-th block of rows; SEGMENTS is a power of 2."""
    columns = tl.arange(0, WIDTH)
    is_column = columns < width
    weights = tl.load(weight + columns, mask=is_column, other=0.0).to(tl.float32)
    hashes = column_hash(columns)
    d_weight = tl.zeros([WIDTH], tl.float32)
    d_shift = tl.zeros([WIDTH], tl.float32)
    numbers = tl.arange(0, SEGMENTS)
    d_segments = tl.zeros([SEGMENTS, WIDTH], tl.float32)
    for block in tl.range(tl.program_id(0), tl.cdiv(num_rows, ROWS), tl.num_programs(0), num_stages=STAGES):
        rows = block * ROWS + tl.arange(0, ROWS)
        is_row = rows < num_rows
        at = rows.to(tl.int64)[:, None] * width + columns[None, :]
        is_there = is_row[:, None] & is_column[None, :]
        gradients = tl.load(d_normed + at, mask=is_there, other=0.0).to(tl.float32)
        values = tl.load(total + at, mask=is_there, other=0.0).to(tl.float32)
        mean = tl.load(statistics + rows, mask=is_row, other=0.0)
        scale = tl.load(statistics + num_rows + rows, mask=is_row, other=0.0)
        if HAS_DROPOUT:
            kept = is_kept(row_hash(tl.load(seed), rows)[:, None], hashes[None, :], threshold)
        if HAS_DROPOUT and DROPS_NORM:
            gradients = tl.where(kept, gradients / keep, 0.0)
        result, standard = norm_gradient(gradients, values, is_there, weights, mean, scale, width)
        if HAS_TOTAL:
            result += tl.load(d_total + at, mask=is_there, other=0.0).to(tl.float32)
        if HAS_DROPOUT and not DROPS_NORM:
            result = tl.where(kept, result / keep, 0.0)
        tl.store(d_embedding + at, result.to(d_embedding.dtype.element_ty), mask=is_there)
        d_weight += tl.sum(gradients * standard, 0)
        d_shift += tl.sum(gradients, 0)
        if NUM_SEGMENTS:
            segments = tl.load(segment_ids + rows, mask=is_row, other=-1)
            for number in tl.static_range(NUM_SEGMENTS):
                own = tl.sum(tl.where((segments == number)[:, None], result, 0.0), 0)
                d_segments += tl.where((numbers == number)[:, None], own[None, :], 0.0)
    at = sums + tl.program_id(0) * (2 + NUM_SEGMENTS) * width + columns
    tl.store(at, d_weight, mask=is_column)
    tl.store(at + width, d_shift, mask=is_column)
    at = at[None, :] + (2 + numbers)[:, None] * width
    tl.store(at, d_segments, mask=(numbers < NUM_SEGMENTS)[:, None] & is_column[None, :])


def embedding_norm(
    ids: tuple[Tensor, Tensor, Tensor], tables: EmbeddingTables, weight_D: Tensor, shift_D: Tensor, epsilon: float,
    seed_1: Tensor, dropout: float, *, drops_norm: bool,
) -> ResidualNorm:  # fmt: skip
    """Look up token, position and segment ids, each [T], and compute the sum of the embeddings and its layer norm.

    Dropout is applied to the sum (pre-norm) or to the norm, which post-norm models have in the embeddings. seed_1: one
    int64 on the device; not read where dropout is 0. Ids outside of their table raise a device-side assertion.
    """
    num_tokens, width = len(ids[0]), tables.word_VD.shape[1]
    total_TD = tables.word_VD.new_empty(num_tokens, width)
    normed_TD = torch.empty_like(total_TD)
    statistics_2T = torch.empty(2, num_tokens, device=total_TD.device, dtype=torch.float32)
    segment_SD = tables.word_VD if tables.segment_SD is None else tables.segment_SD
    if num_tokens:
        _embed_kernel[(triton.cdiv(num_tokens, FORWARD["ROWS"]),)](
            *(item.contiguous() for item in ids), tables.word_VD, tables.position_PD, segment_SD,
            weight_D, shift_D, total_TD, normed_TD, statistics_2T, seed_1, *drop_options(dropout), epsilon,
            len(tables.word_VD), len(tables.position_PD), len(segment_SD), num_tokens, width,
            HAS_SEGMENTS=tables.segment_SD is not None, HAS_DROPOUT=dropout > 0, DROPS_NORM=drops_norm,
            **widths(width, FORWARD_COLUMNS), **FORWARD, **ASSERTS,
        )  # fmt: skip
    return ResidualNorm(total_TD, normed_TD, statistics_2T)


def embedding_norm_backward(
    d_total_TD: Tensor | None, d_normed_TD: Tensor, total_TD: Tensor, statistics_2T: Tensor, weight_D: Tensor,
    segment_ids_T: Tensor, num_segments: int, seed_1: Tensor, dropout: float, *, drops_norm: bool,
) -> EmbeddingGradients:  # fmt: skip
    """Compute the gradients; a `d_total_TD` of None counts as 0."""
    d_normed_TD = d_normed_TD.contiguous()
    num_tokens, width = total_TD.shape
    d_embedding_TD = torch.empty_like(total_TD)
    num_programs = min(PROGRAMS, max(triton.cdiv(num_tokens, 8), 1))
    sums_PND = torch.empty(num_programs, 2 + num_segments, width, device=total_TD.device, dtype=torch.float32)
    _embed_backward_kernel[(num_programs,)](
        d_normed_TD if d_total_TD is None else d_total_TD.contiguous(), d_normed_TD, total_TD, statistics_2T, weight_D,
        segment_ids_T.contiguous(), d_embedding_TD, sums_PND, seed_1, *drop_options(dropout), num_tokens, width,
        NUM_SEGMENTS=num_segments, SEGMENTS=triton.next_power_of_2(max(num_segments, 1)),
        HAS_TOTAL=d_total_TD is not None, HAS_DROPOUT=dropout > 0, DROPS_NORM=drops_norm,
        **widths(width, BACKWARD_COLUMNS), **BACKWARD,
    )  # fmt: skip
    sums_ND = column_sums(sums_PND, weight_D.dtype)
    return EmbeddingGradients(d_embedding_TD, sums_ND[:2], sums_ND[2:])
