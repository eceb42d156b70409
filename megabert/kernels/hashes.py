"""Hashes of 32 bits in Triton, from which dropout masks are made: one multiplication for each element.

The same functions as in `model/dropout.py`, but for attention's mask.
"""

import triton
import triton.language as tl


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
def is_weight_kept(row_hashes, column_hashes, threshold):
    """Compute a tile of attention's dropout mask from odd hashes, whose products lose no bits.

    Without the exclusive or it has as independent rows and columns, and a twelfth fewer instructions.
    """
    return (row_hashes * column_hashes) >= threshold


def drop_options(dropout: float) -> tuple[int, float]:
    """Return the 32-bit hash value below which an element is dropped, and the keep probability."""
    return min(round(dropout * 2**32), 2**32 - 1), 1.0 - dropout
