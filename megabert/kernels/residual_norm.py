"""Bias, dropout, residual sum and layer norm of a sublayer's output in one Triton kernel, and one for their gradients.

Forward a row is read from the branch and from the residual stream, and written as sum and as norm. Backward three rows
are read and two written; the same pass sums the gradients of the norm and of the bias over the tokens, in registers.

Shape legend: T tokens, D hidden, P programs.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .column_sums import column_sums
from .hashes import column_hash, drop_options, is_kept, row_hash

MAX_WIDTH = 8192  # a row is held in registers
# ROWS of an iteration and columns of a warp; the backward pass has PROGRAMS programs, each of which sums over its rows.
# Tuned on an H200 with 1024 columns.
FORWARD: dict[str, Any] = {"ROWS": 2}
BACKWARD: dict[str, Any] = {"ROWS": 2, "STAGES": 3}
FORWARD_COLUMNS, BACKWARD_COLUMNS = 512, 256
PROGRAMS = 264


class ResidualNorm(NamedTuple):
    """A residual sum and its layer norm."""

    total_TD: Tensor
    normed_TD: Tensor
    statistics_2T: Tensor
    """Mean and 1 / standard deviation of each row, float32."""


class Gradients(NamedTuple):
    """Gradients of a residual norm's inputs."""

    residual_TD: Tensor
    branch_TD: Tensor
    sums_3D: Tensor
    """Of the norm's weight, of its bias, and of the branch's bias."""


@triton.jit
def normalize_rows(values, is_there, weight, shift, columns, width, epsilon):
    """Normalize rows (float32); also returns the mean and 1 / standard deviation of each."""
    mean = tl.sum(tl.where(is_there, values, 0.0), 1) / width
    centred = tl.where(is_there, values - mean[:, None], 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred, 1) / width + epsilon)
    weights = tl.load(weight + columns, mask=columns < width, other=0.0).to(tl.float32)
    shifts = tl.load(shift + columns, mask=columns < width, other=0.0).to(tl.float32)
    return centred * scale[:, None] * weights[None, :] + shifts[None, :], mean, scale


@triton.jit
def norm_gradient(gradients, values, is_there, weights, mean, scale, width):
    """Differentiate normalized rows (all float32): the gradient of `values`, and the values less mean, times scale."""
    standard = tl.where(is_there, (values - mean[:, None]) * scale[:, None], 0.0)
    weighted = gradients * weights[None, :]
    along = tl.sum(weighted * standard, 1) / width
    mean_weighted = tl.sum(weighted, 1) / width
    return (weighted - mean_weighted[:, None] - standard * along[:, None]) * scale[:, None], standard


@triton.jit
def _forward_kernel(
    residual, branch, bias, weight, shift, total, normed, statistics, seed, threshold, keep, epsilon, num_rows, width,
    HAS_DROPOUT: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, WIDTH)
    is_column = columns < width
    is_row = rows < num_rows
    at = rows.to(tl.int64)[:, None] * width + columns[None, :]
    is_there = is_row[:, None] & is_column[None, :]
    old = tl.load(residual + at, mask=is_there, other=0.0)
    values = tl.load(branch + at, mask=is_there, other=0.0).to(tl.float32)
    values += tl.load(bias + columns, mask=is_column, other=0.0).to(tl.float32)[None, :]
    if HAS_DROPOUT:
        kept = is_kept(row_hash(tl.load(seed), rows)[:, None], column_hash(columns)[None, :], threshold)
        values = tl.where(kept, values / keep, 0.0)
    # Rounded first: the backward pass reads the rounded sum.
    new = (old.to(tl.float32) + values).to(old.dtype)
    tl.store(total + at, new, mask=is_there)
    values = new.to(tl.float32)
    result, mean, scale = normalize_rows(values, is_there, weight, shift, columns, width, epsilon)
    tl.store(normed + at, result.to(old.dtype), mask=is_there)
    tl.store(statistics + rows, mean, mask=is_row)
    tl.store(statistics + num_rows + rows, scale, mask=is_row)


@triton.jit
def _norm_kernel(
    total, offset, weight, shift, normed, epsilon, num_rows, width, ROWS: tl.constexpr, WIDTH: tl.constexpr
):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, WIDTH)
    is_column = columns < width
    at = rows.to(tl.int64)[:, None] * width + columns[None, :]
    is_there = (rows < num_rows)[:, None] & is_column[None, :]
    values = tl.load(total + at, mask=is_there, other=0.0).to(tl.float32)
    values += tl.load(offset + columns, mask=is_column, other=0.0)[None, :]
    result, _, _ = normalize_rows(values, is_there, weight, shift, columns, width, epsilon)
    tl.store(normed + at, result.to(normed.dtype.element_ty), mask=is_there)


@triton.jit
def _backward_kernel(
    d_total, d_normed, total, statistics, weight, d_residual, d_branch, sums, seed, threshold, keep, num_rows, width,
    HAS_TOTAL: tl.constexpr, HAS_DROPOUT: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of every num_programs-th block of rows."""
    columns = tl.arange(0, WIDTH)
    is_column = columns < width
    weights = tl.load(weight + columns, mask=is_column, other=0.0).to(tl.float32)
    hashes = column_hash(columns)
    d_weight = tl.zeros([WIDTH], tl.float32)
    d_shift = tl.zeros([WIDTH], tl.float32)
    d_bias = tl.zeros([WIDTH], tl.float32)
    for block in tl.range(tl.program_id(0), tl.cdiv(num_rows, ROWS), tl.num_programs(0), num_stages=STAGES):
        rows = block * ROWS + tl.arange(0, ROWS)
        is_row = rows < num_rows
        at = rows.to(tl.int64)[:, None] * width + columns[None, :]
        is_there = is_row[:, None] & is_column[None, :]
        gradients = tl.load(d_normed + at, mask=is_there, other=0.0)
        values = tl.load(total + at, mask=is_there, other=0.0).to(tl.float32)
        mean = tl.load(statistics + rows, mask=is_row, other=0.0)
        scale = tl.load(statistics + num_rows + rows, mask=is_row, other=0.0)
        result, standard = norm_gradient(gradients.to(tl.float32), values, is_there, weights, mean, scale, width)
        if HAS_TOTAL:
            result += tl.load(d_total + at, mask=is_there, other=0.0).to(tl.float32)
        tl.store(d_residual + at, result.to(gradients.dtype), mask=is_there)
        if HAS_DROPOUT:
            kept = is_kept(row_hash(tl.load(seed), rows)[:, None], hashes[None, :], threshold)
            result = tl.where(kept, result / keep, 0.0)
            tl.store(d_branch + at, result.to(gradients.dtype), mask=is_there)
        d_weight += tl.sum(gradients.to(tl.float32) * standard, 0)
        d_shift += tl.sum(gradients.to(tl.float32), 0)
        d_bias += tl.sum(tl.where(is_there, result, 0.0), 0)
    at = sums + tl.program_id(0) * 3 * width + columns
    tl.store(at, d_weight, mask=is_column)
    tl.store(at + width, d_shift, mask=is_column)
    tl.store(at + 2 * width, d_bias, mask=is_column)


def residual_norm(
    residual_TD: Tensor, branch_TD: Tensor, bias_D: Tensor, weight_D: Tensor, shift_D: Tensor, epsilon: float,
    seed_1: Tensor, dropout: float,
) -> ResidualNorm:  # fmt: skip
    """Compute total = residual + dropout(branch + bias) and its layer norm.

    seed_1: one int64 on the device, from which the dropout mask is made; not read where dropout is 0.
    """
    assert residual_TD.is_contiguous() and branch_TD.is_contiguous()
    num_tokens, width = branch_TD.shape
    total_TD, normed_TD = torch.empty_like(branch_TD), torch.empty_like(branch_TD)
    statistics_2T = torch.empty(2, num_tokens, device=branch_TD.device, dtype=torch.float32)
    if num_tokens:
        _forward_kernel[(triton.cdiv(num_tokens, FORWARD["ROWS"]),)](
            residual_TD, branch_TD, bias_D, weight_D, shift_D, total_TD, normed_TD, statistics_2T, seed_1,
            *drop_options(dropout), epsilon, num_tokens, width, HAS_DROPOUT=dropout > 0,
            **widths(width, FORWARD_COLUMNS), **FORWARD,
        )  # fmt: skip
    return ResidualNorm(total_TD, normed_TD, statistics_2T)


def offset_norm(total_TD: Tensor, offset_D: Tensor, weight_D: Tensor, shift_D: Tensor, epsilon: float) -> Tensor:
    """Compute the layer norm of total + offset, which is float32; for inference."""
    num_tokens, width = total_TD.shape
    normed_TD = torch.empty_like(total_TD)
    if num_tokens:
        _norm_kernel[(triton.cdiv(num_tokens, FORWARD["ROWS"]),)](
            total_TD, offset_D, weight_D, shift_D, normed_TD, epsilon, num_tokens, width,
            **widths(width, FORWARD_COLUMNS), **FORWARD,
        )  # fmt: skip
    return normed_TD


def residual_norm_backward(
    d_total_TD: Tensor | None, d_normed_TD: Tensor, total_TD: Tensor, statistics_2T: Tensor, weight_D: Tensor,
    seed_1: Tensor, dropout: float,
) -> Gradients:  # fmt: skip
    """Compute the gradients; without dropout those of residual and branch are the same tensor."""
    d_normed_TD = d_normed_TD.contiguous()
    num_tokens, width = total_TD.shape
    d_residual_TD = torch.empty_like(total_TD)
    d_branch_TD = torch.empty_like(total_TD) if dropout else d_residual_TD
    num_programs = min(PROGRAMS, max(triton.cdiv(num_tokens, 8), 1))
    sums_P3D = torch.empty(num_programs, 3, width, device=total_TD.device, dtype=torch.float32)
    _backward_kernel[(num_programs,)](
        d_normed_TD if d_total_TD is None else d_total_TD.contiguous(), d_normed_TD, total_TD, statistics_2T, weight_D,
        d_residual_TD, d_branch_TD, sums_P3D, seed_1, *drop_options(dropout), num_tokens, width,
        HAS_TOTAL=d_total_TD is not None, HAS_DROPOUT=dropout > 0, **widths(width, BACKWARD_COLUMNS), **BACKWARD,
    )  # fmt: skip
    return Gradients(d_residual_TD, d_branch_TD, column_sums(sums_P3D, weight_D.dtype))


def widths(width: int, columns: int) -> dict[str, int]:
    """Return a kernel's options for rows of `width`, of which each warp has so many `columns`."""
    padded = triton.next_power_of_2(width)
    return {"WIDTH": padded, "num_warps": min(max(padded // columns, 1), 16)}
