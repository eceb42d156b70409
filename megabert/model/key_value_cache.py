"""Key-value cache of causal attention: each step of a generation computes one token a sequence.

Keys and values have static addresses and a static length, so that steps can be captured in a CUDA graph.

Shape legend: T tokens, B sequences, S cached positions, H heads, K head dim.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .attention import PackedSequences, attend
from .config import EncoderConfig


class KeyValueCache:
    """Keys and values of B sequences in all layers; takes the place of `PackedSequences` in `Encoder.forward`.

    The first forward pass has the packed prompts (`begin`), each later one the next token of every sequence, at the
    positions `lengths_B`; `advance` moves them on.
    """

    def __init__(
        self, config: EncoderConfig, num_sequences: int, max_length: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        shape = (config.num_layers, num_sequences, config.num_heads, max_length, config.head_dim)
        self.keys_LBHSK = torch.zeros(shape, dtype=dtype, device=device)
        self.values_LBHSK = torch.zeros_like(self.keys_LBHSK)
        self.lengths_B = torch.zeros(num_sequences, dtype=torch.long, device=device)
        self.rows_B = torch.arange(num_sequences, device=device)
        self.used = max_length
        """Positions that later steps attend to at most; a smaller number saves time."""
        self.prompts: PackedSequences | None = None

    def begin(self, prompts: PackedSequences) -> None:
        """Make the next forward pass that of the packed prompts."""
        self.prompts = prompts
        self.lengths_B.zero_()

    def advance(self) -> None:
        """Count the tokens of the last forward pass."""
        self.lengths_B += 1 if self.prompts is None else self.prompts.lengths()
        self.prompts = None

    def of_layer(self, number: int) -> "LayerCache":
        """Return what a layer's attention reads and writes."""
        return LayerCache(self, self.keys_LBHSK[number], self.values_LBHSK[number])


@dataclass(frozen=True)
class LayerCache:
    """The part of a cache that belongs to one layer."""

    cache: KeyValueCache
    keys_BHSK: Tensor
    values_BHSK: Tensor

    def attend(self, qkv_TH3K: Tensor) -> Tensor:
        """Store the keys and values of new tokens and compute causal attention to all tokens before: [T, H, K]."""
        prompts, rows_T, positions_T = self.cache.prompts, self.cache.rows_B, self.cache.lengths_B
        if prompts is not None:
            lengths_B = prompts.lengths()
            rows_T = rows_T.repeat_interleave(lengths_B, output_size=len(qkv_TH3K))
            positions_T = torch.arange(len(qkv_TH3K), device=rows_T.device) - prompts.cu_seqlens_N1[:-1][rows_T]
        query_THK, key_THK, value_THK = qkv_TH3K.unbind(2)
        self.keys_BHSK[rows_T, :, positions_T] = key_THK
        self.values_BHSK[rows_T, :, positions_T] = value_THK
        if prompts is not None:
            return attend(qkv_TH3K, prompts, dropout=0.0, is_causal=True)
        keys_BHSK, values_BHSK = (item[:, :, : self.cache.used] for item in (self.keys_BHSK, self.values_BHSK))
        is_past_BS = torch.arange(self.cache.used, device=positions_T.device) <= positions_T[:, None]
        context_BH1K = F.scaled_dot_product_attention(
            query_THK[:, :, None], keys_BHSK, values_BHSK, attn_mask=is_past_BS[:, None, None]
        )
        return context_BH1K[:, :, 0]
