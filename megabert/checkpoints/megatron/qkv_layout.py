"""Detect the layout of the fused query-key-value rows of a Megatron-LM checkpoint.

There are two sources: the file's metadata (version, arguments, tensor names), and the weights. Adding one vector to all
keys changes all attention scores of a query equally, which the softmax cancels; so the gradient of the keys' bias is
zero, and it hardly moves from Megatron-LM's initial 0, while those of queries and values grow. Under the right layout
the keys' third of the bias is therefore by far the smallest.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ..mapping import QKV_LAYOUTS
from .megatron_names import ERAS
from .open_megatron import MegatronFile

# The weights override the metadata only where the evidence is clear: the keys' share of the bias' squared norm is less
# than the first number under one layout, and more than the second under the claimed one.
_NEGLIGIBLE_SHARE, _LARGE_SHARE = 0.01, 0.1


@dataclass(frozen=True)
class QkvDecision:
    """The layout to read, the layout that the file claims, the evidence, and the keys' share under each layout."""

    layout: str
    claimed: str
    evidence: str
    key_bias_shares: Mapping[str, float]


def decide_qkv_layout(file: MegatronFile, head_dim: int) -> QkvDecision:
    """Decide the layout of the rows of all shards."""
    claimed, evidence = claimed_layout(file)
    shares = key_bias_shares(file, head_dim)
    best = min(shares, key=lambda layout: shares[layout])
    if best != claimed and shares[best] < _NEGLIGIBLE_SHARE and shares[claimed] > _LARGE_SHARE:
        evidence = (
            f"WARNING: {evidence} means {claimed}, but then the keys would have {shares[claimed]:.0%} of the bias, "
            f"which training leaves at 0; under this layout it is {shares[best]:.1%}"
        )
        return QkvDecision(best, claimed, evidence, shares)
    return QkvDecision(claimed, claimed, evidence, shares)


def key_bias_shares(file: MegatronFile, head_dim: int) -> dict[str, float]:
    """Compute the keys' share of the squared norm of all biases under each layout; NaN if all biases are 0."""
    names = [name for name in file.shards[0] if name.endswith(("query_key_value.bias", "linear_qkv.bias"))]
    keys, total = dict.fromkeys(QKV_LAYOUTS, 0.0), 0.0
    for shard in file.shards:
        for name in names:
            if name not in shard or len(shard[name].shape) != 1 or shard[name].shape[0] % (3 * head_dim):
                continue  # an error that read_tensors reports
            bias = shard[name].read().double()
            total += float(bias.square().sum())
            for layout, op in QKV_LAYOUTS.items():
                bias_H3K = op.read([bias], head_dim).unflatten(0, (-1, 3, head_dim))
                keys[layout] += float(bias_H3K[:, 1].square().sum())
    return {layout: share / total if total else math.nan for layout, share in keys.items()}


def claimed_layout(file: MegatronFile) -> tuple[str, str]:
    """Determine the layout from the file's metadata; returns (layout, evidence).

    Source: Megatron-LM commits 51a2e6b0ff (2020-09-11, [heads, 3, dim]), 7d4ad51e6e (2020-09-29, [heads, dim, 3]),
    a8d4781283 (version 1.0), 9b0083ea03 (version 2.0). Files written between the first and the third have no
    version although their layout is not version 0's; their arguments date them.
    """
    if file.version is not None:
        layout = "3_heads_dim" if file.version < 1 else "heads_dim_3" if file.version < 2 else "heads_3_dim"
        return layout, f"checkpoint_version {file.version}"
    if file.era is not ERAS[0]:
        return "heads_3_dim", f"no checkpoint_version, but names of 2021 or later ({file.era.name})"
    if "bias_gelu_fusion" not in file.arguments:
        return "3_heads_dim", "no checkpoint_version: version 0"
    if "old_checkpoint_format" in file.arguments:
        return "heads_dim_3", "no checkpoint_version, but arguments of late September 2020"
    return "heads_3_dim", "no checkpoint_version, but arguments of mid September 2020"
