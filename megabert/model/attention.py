"""Variable-length self-attention over packed sequences: each token attends to the tokens of its own sequence only.

The sequences of a batch are called documents here, as in document masks. Packing needs no padding tokens. On a GPU one
Triton kernel computes the attention (`kernels/attention.py`); elsewhere PyTorch's scaled_dot_product_attention is
called for each document.

Shape legend: T tokens, N documents, H heads, K head dim.
"""

import importlib.util
import os
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# Triton comes with PyTorch's CUDA builds for Linux; without a GPU it is not imported, which takes time.
# Tests may interpret kernels on a CPU.
HAS_TRITON = (torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1") and (
    importlib.util.find_spec("triton") is not None
)
HEAD_DIMS = (16, 32, 64, 128)

if HAS_TRITON:
    from ..kernels.attention import varlen_attention, varlen_attention_forward


class PackedSequences(NamedTuple):
    """Boundaries of packed documents: document n is the tokens [cu_seqlens_N1[n], cu_seqlens_N1[n + 1]).

    cu_seqlens_N1 is int32, from 0 to T, so every token belongs to a document; documents may be empty. `max_seqlen` is
    an upper bound of the documents' lengths; a constant, since kernels are launched without host synchronization.
    """

    cu_seqlens_N1: Tensor
    max_seqlen: int

    @classmethod
    def of_rows(cls, ids_BL: Tensor) -> "PackedSequences":
        """Pack the rows of document ids [B, L]: each run of equal ids is a document, also padding; [1, 1, 0] are two.

        Reads the ids, and therefore synchronizes with the GPU.
        """
        num_rows, length = ids_BL.shape
        is_first_BL = torch.ones_like(ids_BL, dtype=torch.bool)
        is_first_BL[:, 1:] = ids_BL[:, 1:] != ids_BL[:, :-1]
        starts_N = is_first_BL.flatten().nonzero().flatten()
        end_1 = torch.tensor([num_rows * length], device=ids_BL.device)
        return cls(torch.cat([starts_N, end_1]).int(), length)

    def of_layer(self, number: int) -> "PackedSequences":
        """Return what a layer's attention reads: these, in every layer."""
        return self

    def starts(self) -> Tensor:
        """Return the index of each document's first token [N], clamped to a valid index for empty documents."""
        last = self.cu_seqlens_N1[-1:] - 1
        return torch.minimum(self.cu_seqlens_N1[:-1], last).long()

    def lengths(self) -> Tensor:
        """Return the length of each document [N]."""
        return self.cu_seqlens_N1.diff().long()


# Distance between the seeds of dropout streams: an odd number near 2**31 / golden ratio.
STREAM = 1327217885


def attend(qkv_TH3K: Tensor, documents: PackedSequences, *, dropout: float, is_causal: bool, stream: int = 0) -> Tensor:
    """Compute softmax(q k' / sqrt(K)) v within each document: [T, H, K].

    `dropout` applies to the attention weights, as in Megatron-LM; pass 0 in evaluation. Under tensor parallelism each
    process passes a different `stream`, not 0, so that equal seeds give its heads different dropout masks.
    """
    if qkv_TH3K.is_cuda and has_kernel(qkv_TH3K.dtype, qkv_TH3K.shape[-1]):
        cu_seqlens_N1, max_seqlen = documents
        seed_1 = _dropout_seed(stream, qkv_TH3K.device) if dropout else cu_seqlens_N1[:1]  # not read without dropout
        is_operator = torch.compiler.is_compiling() or qkv_TH3K.requires_grad
        kernel = varlen_attention if is_operator else varlen_attention_forward
        context_THK, _ = kernel(qkv_TH3K.contiguous(), cu_seqlens_N1, seed_1, max_seqlen, dropout, is_causal)
        return context_THK
    if not stream or not dropout:
        return _document_by_document(qkv_TH3K, documents, dropout, is_causal)
    seed = (int(torch.randint(2**31, (1,))) + stream * STREAM) % 2**31
    with torch.random.fork_rng(devices=[qkv_TH3K.device] if qkv_TH3K.is_cuda else []):
        torch.manual_seed(seed)
        return _document_by_document(qkv_TH3K, documents, dropout, is_causal)


def _dropout_seed(stream: int, device: torch.device) -> Tensor:
    """Sample a seed on the device, so that each replay of a captured CUDA graph has a new one."""
    seed_1 = torch.randint(2**31, (1,), device=device)
    return (seed_1 + stream * STREAM) % 2**31 if stream else seed_1


def has_kernel(dtype: torch.dtype, head_dim: int) -> bool:
    """Whether the GPU kernel supports such heads; without it no step can be captured in a CUDA graph."""
    return HAS_TRITON and head_dim in HEAD_DIMS and dtype in (torch.float32, torch.bfloat16, torch.float16)


def _document_by_document(qkv_TH3K: Tensor, documents: PackedSequences, dropout: float, is_causal: bool) -> Tensor:
    lengths = [length for length in documents.lengths().tolist() if length]
    # Views are made once for all documents: one of 10 tokens takes less time than ten views.
    parts = (item[None].split(lengths, dim=2) for item in qkv_TH3K.permute(2, 1, 0, 3).unbind(0))
    contexts_1HLK = [
        F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=is_causal)
        for query, key, value in zip(*parts, strict=True)
    ]
    return torch.cat([context.transpose(1, 2) for context in contexts_1HLK], dim=1)[0]
