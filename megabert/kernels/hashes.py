"""Hashes of 32 bits in Triton, from which dropout masks are made: one multiplication for each element.

The same functions as in `model/dropout.py`, but for attention's mask.
"""

import os

import triton
import triton.language as tl

IS_INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")  # on a CPU, for tests


@triton.jit
def _hash(values):
    """Hash 32 bits with MurmurHash3's finalizer."""
    bits = (values ^ (values >> 16)) * 0x85EBCA6B
    bits = (bits ^ (bits >> 13)) * 0xC2B2AE35
    return bits ^ (bits >> 16)


@triton.jit
def row_hash(seed, rows):
    """Hash row numbers with a seed."""
    return _hash(rows.to(tl.uint32) * 0x9E3779B1 + seed.to(tl.uint32))


@triton.jit
def column_hash(columns):
    """Hash column numbers; odd, so that multiplication by it is invertible."""
    return _hash(columns.to(tl.uint32) + 0x7F4A7C15) | 1


@triton.jit
def is_kept(row_hashes, column_hashes, threshold):
    """Compute a tile of a dropout mask with a single multiplication for each element."""
    return ((row_hashes ^ column_hashes) * column_hashes) >= threshold


@triton.jit
def drop_weights(weights, row_hashes, column_hashes, threshold):
    """Drop attention's weights (float32) by odd hashes, whose products lose no bits.

    Without the exclusive or of `is_kept` rows and columns are as independent, and a twelfth of the instructions is
    saved. In PTX: the compiler would compare before it has the weights and pack the masks, or select rounded numbers.
    """
    if IS_INTERPRETED:
        return tl.where((row_hashes * column_hashes) >= threshold, weights, 0.0)
    return tl.inline_asm_elementwise(
        "{ .reg .pred kept; .reg .b32 hash; mul.lo.u32 hash, $2, $3; setp.ge.u32 kept, hash, $4; "
        "selp.f32 $0, $1, 0f00000000, kept; }",
        "=f,f,r,r,r", args=[weights, row_hashes, column_hashes, threshold.to(tl.uint32)], dtype=tl.float32,
        is_pure=True, pack=1,
    )  # fmt: skip


def drop_options(dropout: float) -> tuple[int, float]:
    """Return the 32-bit hash value below which an element is dropped, and the keep probability."""
    return min(round(dropout * 2**32), 2**32 - 1), 1.0 - dropout
