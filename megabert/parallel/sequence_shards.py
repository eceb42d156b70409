"""Tokens sharded over the tensor axis (sequence parallelism): exchanges of hidden states, alone and beside matmuls.

Where GPUs map each other's memory, copies of chunks between them overlap with the matmuls of other chunks (asynchronous
tensor parallelism, PyTorch's symmetric memory); elsewhere NCCL's or gloo's collectives stand before or behind a matmul.

Shape legend: T tokens, S tokens of one process, D hidden, O outputs and K inputs of one process.
Source: Korthikanti et al. 2022 (arXiv:2205.05198), section 4.2.
"""

import socket

import torch
import torch.distributed._symmetric_memory  # registers its operators and those of collectives
import torch.nn.functional as F
from torch import Tensor

from .process_group import World

# Functional collectives, which autograd, the compiler and CUDA graphs support.
collectives = torch.ops._c10d_functional


class SequenceShards:
    """How the tokens of the current batch are sharded: ceil(T / P) for each process, the last ones padded."""

    def __init__(self, world: World) -> None:
        self.rank, self.size, self.group = world.tensor_rank, world.tensor_size, world.tensor_group_name
        self.num_tokens = 0
        self._maps_memory = _maps_memory(world)

    @property
    def shard_size(self) -> int:
        """Tokens of one process."""
        return -(-self.num_tokens // self.size)

    @property
    def is_overlapped(self) -> bool:
        """Whether copies of chunks overlap with matmuls: their operators need equal shards."""
        return self._maps_memory and self.num_tokens % self.size == 0


def _maps_memory(world: World) -> bool:
    """Whether the GPUs of each tensor group can map each other's memory; all processes return the same."""
    own = f"{socket.gethostname()} {world.device.index}"
    first = world.rank - world.tensor_rank
    group = world.all_gather_text(own)[first : first + world.tensor_size]
    hosts, numbers = zip(*(text.split() for text in group), strict=True)
    is_local = world.device.type == "cuda" and len(set(hosts)) == 1 and len(set(numbers)) == len(group)
    can_map = is_local and all(
        torch.cuda.can_device_access_peer(world.device, int(number))
        for number in numbers
        if int(number) != world.device.index
    )
    return not world.any_rank(not can_map)


def all_reduce(tensor: Tensor, group: str) -> Tensor:
    """Sum a tensor over the processes of a group."""
    return collectives.wait_tensor(collectives.all_reduce(tensor.contiguous(), "sum", group))


def reduce_scatter_tokens(hidden_TD: Tensor, tokens: SequenceShards) -> Tensor:
    """Sum all tokens over the processes, each of which keeps its shard: [S, D]."""
    padded = pad_tokens(hidden_TD, tokens).contiguous()
    return collectives.wait_tensor(collectives.reduce_scatter_tensor(padded, "sum", tokens.size, tokens.group))


def all_gather_tokens(hidden_SD: Tensor, tokens: SequenceShards) -> Tensor:
    """Gather the shards of all processes, without padding: [T, D]."""
    return all_gather_rows(hidden_SD, tokens.size, tokens.group)[: tokens.num_tokens]


def all_gather_rows(rows: Tensor, size: int, group: str) -> Tensor:
    """Concatenate the rows of the `size` processes of a group."""
    return collectives.wait_tensor(collectives.all_gather_into_tensor(rows.contiguous(), size, group))


def local_tokens(hidden_TD: Tensor, tokens: SequenceShards) -> Tensor:
    """Take this process' shard: [S, D]."""
    start = tokens.rank * tokens.shard_size
    return pad_tokens(hidden_TD, tokens).narrow(0, start, tokens.shard_size).contiguous()


def pad_tokens(hidden_TD: Tensor, tokens: SequenceShards) -> Tensor:
    """Pad tokens with zeros to equal shards."""
    padding = tokens.shard_size * tokens.size - tokens.num_tokens
    return F.pad(hidden_TD, (0, 0, 0, padding)) if padding else hidden_TD


def gather_linear(
    shard_SD: Tensor, weight_OD: Tensor, bias_O: Tensor | None, tokens: SequenceShards
) -> tuple[Tensor, Tensor]:
    """All-gather the tokens and map them: all tokens [T, D] and their outputs [T, O]."""
    if not tokens.is_overlapped:
        hidden_TD = all_gather_tokens(shard_SD, tokens)
        return hidden_TD, F.linear(hidden_TD, weight_OD, bias_O)
    operator = torch.ops.symm_mem.fused_all_gather_matmul
    hidden_TD, (outputs_TO,) = operator(shard_SD.contiguous(), [weight_OD.T], 0, tokens.group)
    return hidden_TD, outputs_TO if bias_O is None else outputs_TO + bias_O


def linear_scatter(hidden_TK: Tensor, weight_DK: Tensor, tokens: SequenceShards) -> Tensor:
    """Map this process' inputs of all tokens, and reduce-scatter the partial outputs: [S, D]."""
    if not tokens.is_overlapped:
        return reduce_scatter_tokens(F.linear(hidden_TK, weight_DK), tokens)
    operator = torch.ops.symm_mem.fused_matmul_reduce_scatter
    return operator(hidden_TK.contiguous(), weight_DK.T, "sum", 0, tokens.group)
