"""The inner loops of `attention.py` in Triton: what one tile of keys adds to a tile of queries, and the reverse.

Forward by the online softmax; backward the gradients of keys and values from a tile of queries, and those of queries
from a tile of keys. Source: Dao 2023, FlashAttention-2, arXiv:2307.08691.
"""

import triton
import triton.language as tl

from .hashes import drop_weights


@triton.jit
def attend_tile(
    state, columns, query, base, rows, row_hashes, table, length, scale, threshold, token_stride, dims,
    DIM: tl.constexpr, IS_MASKED: tl.constexpr, IS_CAUSAL: tl.constexpr, HAS_DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Online softmax: add a tile of keys and values to the running state of a tile of queries."""
    highest, total, context = state
    at = base + columns[:, None] * token_stride + dims[None, :]
    if IS_MASKED:
        is_column = columns < length
        key = tl.load(at + DIM, mask=is_column[:, None], other=0.0)
        value = tl.load(at + 2 * DIM, mask=is_column[:, None], other=0.0)
    else:
        key = tl.load(at + DIM)
        value = tl.load(at + 2 * DIM)
    scores = tl.dot(query, tl.trans(key), input_precision=PRECISION)
    if IS_MASKED:
        sees = is_column[None, :]
        if IS_CAUSAL:
            sees = sees & (columns[None, :] <= rows[:, None])
        scores = tl.where(sees, scores, float("-inf"))
    higher = tl.maximum(highest, tl.max(scores, 1) * scale)
    weights = tl.exp2(scores * scale - higher[:, None])
    rescale = tl.exp2(highest - higher)
    total = total * rescale + tl.sum(weights, 1)
    if HAS_DROPOUT:
        column_hashes = tl.load(table + columns).to(tl.uint32)
        weights = drop_weights(weights, row_hashes[:, None], column_hashes[None, :], threshold)
    context = tl.dot(weights.to(value.dtype), value, context * rescale[:, None], input_precision=PRECISION)
    return higher, total, context


@triton.jit
def add_query_tile(
    state, first, key, value, own, own_hashes, qkv_base, d_out_base, lse_base, delta_base, hashes_base, length,
    scale, threshold,
    HEADS: tl.constexpr, DIM: tl.constexpr, STEP: tl.constexpr, IS_MASKED: tl.constexpr, IS_CAUSAL: tl.constexpr,
    HAS_DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add the contribution of a tile of queries to the gradients of the program's own tile of keys and values."""
    d_key, d_value = state
    rows = first + tl.arange(0, STEP)
    dims = tl.arange(0, DIM)
    query_at = qkv_base + rows[:, None] * (HEADS * 3 * DIM) + dims[None, :]
    d_context_at = d_out_base + rows[:, None] * (HEADS * DIM) + dims[None, :]
    if IS_MASKED:
        is_row = rows < length
        query = tl.load(query_at, mask=is_row[:, None], other=0.0)
        d_context = tl.load(d_context_at, mask=is_row[:, None], other=0.0)
        # An infinite logsumexp makes the attention weights of rows outside of the document 0.
        lse = tl.load(lse_base + rows, mask=is_row, other=float("inf"))
        delta = tl.load(delta_base + rows, mask=is_row, other=0.0)
    else:
        query = tl.load(query_at)
        d_context = tl.load(d_context_at)
        lse = tl.load(lse_base + rows)
        delta = tl.load(delta_base + rows)
    # Transposed: own keys are rows, queries are columns.
    scores = tl.dot(key, tl.trans(query), input_precision=PRECISION)
    weights = tl.exp2(scores * scale - lse[None, :])
    if IS_CAUSAL:
        weights = tl.where(own[:, None] <= rows[None, :], weights, 0.0)
    d_weights = tl.dot(value, tl.trans(d_context), input_precision=PRECISION)
    kept = weights
    if HAS_DROPOUT:
        row_hashes = tl.load(hashes_base + rows, mask=(rows < length) if IS_MASKED else None).to(tl.uint32)
        kept = drop_weights(weights, row_hashes[None, :], own_hashes[:, None], threshold)
    d_value = tl.dot(kept.to(value.dtype), d_context, d_value, input_precision=PRECISION)
    d_scores = kept * d_weights - weights * delta[None, :]
    return tl.dot(d_scores.to(key.dtype), query, d_key, input_precision=PRECISION), d_value


@triton.jit
def add_key_tile(
    d_query, first, query, d_context, own, own_lse, own_delta, own_hashes, table, qkv_base, length, scale, threshold,
    HEADS: tl.constexpr, DIM: tl.constexpr, STEP: tl.constexpr, IS_MASKED: tl.constexpr, IS_CAUSAL: tl.constexpr,
    HAS_DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add the contribution of a tile of keys and values to the gradient of the program's own tile of queries."""
    columns = first + tl.arange(0, STEP)
    at = qkv_base + columns[:, None] * (HEADS * 3 * DIM) + tl.arange(0, DIM)[None, :]
    if IS_MASKED:
        is_column = columns < length
        key = tl.load(at + DIM, mask=is_column[:, None], other=0.0)
        value = tl.load(at + 2 * DIM, mask=is_column[:, None], other=0.0)
    else:
        key = tl.load(at + DIM)
        value = tl.load(at + 2 * DIM)
    scores = tl.dot(query, tl.trans(key), input_precision=PRECISION)
    weights = tl.exp2(scores * scale - own_lse[:, None])
    if IS_MASKED:
        weights = tl.where(is_column[None, :], weights, 0.0)
    if IS_CAUSAL:
        weights = tl.where(columns[None, :] <= own[:, None], weights, 0.0)
    d_weights = tl.dot(d_context, tl.trans(value), input_precision=PRECISION)
    kept = weights
    if HAS_DROPOUT:
        column_hashes = tl.load(table + columns).to(tl.uint32)
        kept = drop_weights(weights, own_hashes[:, None], column_hashes[None, :], threshold)
    d_scores = kept * d_weights - weights * own_delta[:, None]
    return tl.dot(d_scores.to(query.dtype), key, d_query, input_precision=PRECISION)
