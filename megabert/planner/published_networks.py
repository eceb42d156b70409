"""Sizes of published networks, by the names that `megabert plan` takes: BERT's and GPT-2's of Megatron-LM's paper."""

from collections.abc import Mapping
from dataclasses import replace

from ..model.config import EncoderConfig

BERT_VOCABULARY = 30_522
GPT_VOCABULARY = 50_257


def _bert(num_layers: int, hidden_size: int, num_heads: int) -> EncoderConfig:
    return EncoderConfig(BERT_VOCABULARY, num_layers, hidden_size, num_heads, 4 * hidden_size, 512)


def _gpt(num_layers: int, hidden_size: int, num_heads: int) -> EncoderConfig:
    return EncoderConfig(
        GPT_VOCABULARY, num_layers, hidden_size, num_heads, 4 * hidden_size, 1024, num_segments=0, is_causal=True
    )


# Shoeybi et al. 2019 (arXiv:1909.08053v4), table 4 (BERT) and table 2 (GPT-2).
NETWORKS: Mapping[str, EncoderConfig] = {
    "345m": _bert(24, 1024, 16),
    "1.3b": _bert(24, 2048, 32),
    "3.9b": _bert(48, 2560, 40),
    # GatorTron large, by its config.json; base and medium have the sizes of 345m and 3.9b with as many rows.
    "8.9b": replace(_bert(56, 3584, 56), vocabulary_size=50176),
    "gpt-345m": _gpt(24, 1024, 16),
    "2.5b": _gpt(54, 1920, 20),
    "8.3b": _gpt(72, 3072, 24),
}
