"""Self-attention of documents laid end to end: each token sees the tokens of its own document and no others.

No token of padding is computed, so short texts cost what they hold. On a GPU one Triton kernel does it
(`triton_attention.py`); elsewhere PyTorch's scaled_dot_product_attention is called document by document.

Shape legend: T tokens, N documents, H heads, K head dim.
"""

import importlib.util
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# Triton comes with PyTorch's CUDA builds for Linux; where there is no GPU its import is not waited for.
HAS_TRITON = torch.cuda.is_available() and importlib.util.find_spec("triton") is not None
HEAD_DIMS = (16, 32, 64, 128)

if HAS_TRITON:
    from ..kernels.attention import varlen_attention


class PackedSequences(NamedTuple):
    """Where documents lie in the tokens: document n is the tokens [boundaries[n], boundaries[n + 1]).

    cu_seqlens_N1 is int32, from 0 to T, so every token belongs to a document; a document may be empty.
    `max_seqlen` is at least the longest document's tokens; a constant, since the size of a GPU's work must be known
    without asking the GPU.
    """

    cu_seqlens_N1: Tensor
    max_seqlen: int

    @classmethod
    def of_rows(cls, ids_BL: Tensor) -> "PackedSequences":
        """Take each run of equal ids in a row for one document, padding for another: [1, 1, 0] are two.

        Of [B, L] the rows are laid end to end. Reads the ids, so a GPU must wait.
        """
        num_rows, length = ids_BL.shape
        is_first_BL = torch.ones_like(ids_BL, dtype=torch.bool)
        is_first_BL[:, 1:] = ids_BL[:, 1:] != ids_BL[:, :-1]
        starts_N = is_first_BL.flatten().nonzero().flatten()
        end_1 = torch.tensor([num_rows * length], device=ids_BL.device)
        return cls(torch.cat([starts_N, end_1]).int(), length)

    def starts(self) -> Tensor:
        """Give the place of each document's first token; an empty document's is inside the tokens all the same."""
        last = self.cu_seqlens_N1[-1:] - 1
        return torch.minimum(self.cu_seqlens_N1[:-1], last).long()

    def lengths(self) -> Tensor:
        """Count the tokens of each document."""
        return self.cu_seqlens_N1.diff().long()


# What keeps the seeds of streams apart: an odd number near 2**31 / golden ratio.
STREAM = 1327217885


def attend(qkv_TH3K: Tensor, documents: PackedSequences, *, dropout: float, is_causal: bool, stream: int = 0) -> Tensor:
    """Mix the values of the tokens that each token sees, softmax(q k' / sqrt(K)) v: [T, H, K].

    `dropout` is that of attention weights, as in Megatron-LM; 0 when not training. Where other heads of the layer are
    computed elsewhere, each part has a `stream` of its own, not 0: they draw the same seed, and must not drop the same.
    """
    if qkv_TH3K.is_cuda and has_kernel(qkv_TH3K.dtype, qkv_TH3K.shape[-1]):
        # The seed is drawn on the device: a captured CUDA graph draws another at each replay.
        seed_1 = torch.randint(2**31, (1,), device=qkv_TH3K.device)
        if stream:
            seed_1 = (seed_1 + stream * STREAM) % 2**31
        cu_seqlens_N1, max_seqlen = documents
        mixed_THK, _ = varlen_attention(qkv_TH3K.contiguous(), cu_seqlens_N1, seed_1, max_seqlen, dropout, is_causal)
        return mixed_THK
    if not stream or not dropout:
        return _document_by_document(qkv_TH3K, documents, dropout, is_causal)
    seed = (int(torch.randint(2**31, (1,))) + stream * STREAM) % 2**31
    with torch.random.fork_rng(devices=[qkv_TH3K.device] if qkv_TH3K.is_cuda else []):
        torch.manual_seed(seed)
        return _document_by_document(qkv_TH3K, documents, dropout, is_causal)


def has_kernel(dtype: torch.dtype, head_dim: int) -> bool:
    """Say whether the GPU kernel serves such heads; without it no step can be recorded in a CUDA graph."""
    return HAS_TRITON and head_dim in HEAD_DIMS and dtype in (torch.float32, torch.bfloat16, torch.float16)


def _document_by_document(qkv_TH3K: Tensor, documents: PackedSequences, dropout: float, is_causal: bool) -> Tensor:
    lengths = documents.lengths().tolist()
    mixed = []
    for qkv_LH3K in qkv_TH3K.split(lengths):
        if not len(qkv_LH3K):
            continue
        query_1HLK, key_1HLK, value_1HLK = (item[None].transpose(1, 2) for item in qkv_LH3K.unbind(2))
        mixed_1HLK = F.scaled_dot_product_attention(
            query_1HLK, key_1HLK, value_1HLK, dropout_p=dropout, is_causal=is_causal
        )
        mixed.append(mixed_1HLK[0].transpose(0, 1))
    return torch.cat(mixed)
