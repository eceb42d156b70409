"""Decide in which order the fused query-key-value rows of a Megatron-LM checkpoint lie.

Two witnesses: what the file says (its version, its arguments, its names), and the weights themselves. Adding one
vector to all keys changes every score of a query alike, which the softmax takes back; so the gradient of the keys'
bias is zero, and from Megatron-LM's initial 0 it hardly moves, while those of queries and values grow. In the right
order the keys' third of the bias is therefore far the smallest.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ..mapping import QKV_LAYOUTS
from .megatron_names import ERAS
from .open_megatron import MegatronFile

# The weights overrule the file only where nothing else can explain them: as good as nothing of the bias' squared
# length is the keys' in one order, and much of it in the order that the file claims.
_NOTHING, _MUCH = 0.01, 0.1


@dataclass(frozen=True)
class Decision:
    """The order to read, what the file claims, why, and the keys' share of the bias under each order."""

    layout: str
    claimed: str
    evidence: str
    key_bias_shares: Mapping[str, float]


def decide(file: MegatronFile, head_dim: int) -> Decision:
    """Decide the order of the rows of all shards."""
    claimed, evidence = claimed_layout(file)
    shares = key_bias_shares(file, head_dim)
    best = min(shares, key=lambda layout: shares[layout])
    if best != claimed and shares[best] < _NOTHING and shares[claimed] > _MUCH:
        evidence = (
            f"WARNING: {evidence} means {claimed}, but then {shares[claimed]:.0%} would be the keys', which "
            f"training leaves at 0; in this order it is {shares[best]:.1%}"
        )
        return Decision(best, claimed, evidence, shares)
    return Decision(claimed, claimed, evidence, shares)


def key_bias_shares(file: MegatronFile, head_dim: int) -> dict[str, float]:
    """Compute, for each order, the keys' share of the squared length of all biases; NaN where all are 0."""
    names = [name for name in file.shards[0] if name.endswith(("query_key_value.bias", "linear_qkv.bias"))]
    keys, whole = dict.fromkeys(QKV_LAYOUTS, 0.0), 0.0
    for shard in file.shards:
        for name in names:
            if name not in shard or len(shard[name].shape) != 1 or shard[name].shape[0] % (3 * head_dim):
                continue  # what is wrong with it is told when the tensors are named
            bias = shard[name].read().double()
            whole += float(bias.square().sum())
            for layout, op in QKV_LAYOUTS.items():
                bias_H3K = op.read([bias], head_dim).unflatten(0, (-1, 3, head_dim))
                keys[layout] += float(bias_H3K[:, 1].square().sum())
    return {layout: share / whole if whole else math.nan for layout, share in keys.items()}


def claimed_layout(file: MegatronFile) -> tuple[str, str]:
    """Tell the order of the rows by what the file says of itself; returns (layout, the evidence in words).

    Source: Megatron-LM commits 51a2e6b0ff (2020-09-11, [heads, 3, dim]), 7d4ad51e6e (2020-09-29, [heads, dim, 3]),
    a8d4781283 (version 1.0), 9b0083ea03 (version 2.0). Files written between the first and the third carry no
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
