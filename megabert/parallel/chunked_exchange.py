"""Products beside exchanges of tokens between GPUs that map each other's memory, as operators for compiled layers.

A copy engine moves the chunk of one GPU while the next chunk is multiplied. An exchange has one barrier: exchanges take
turns in two halves of a workspace, and the barrier of the next one shows that all GPUs are done with the half before.
Captured exchanges are an even number, or a collective stands between two replays.

Shape legend: T tokens, S tokens of one process, D hidden, O outputs and K inputs of one process, P processes.
Source: Wang et al. 2023, doi:10.1145/3567955.3567959.
"""

from collections import defaultdict
from typing import Any

import torch
import torch.distributed._symmetric_memory as symmetric
from torch import Tensor
from torch.distributed import distributed_c10d

_turns: dict[str, int] = defaultdict(int)
_workspaces: list[Tensor] = []
_streams: dict[int, torch.cuda.Stream] = {}


class _Buffers:
    """The half of the workspace whose turn it is: `P` slots of one shape in the memory of each process."""

    def __init__(self, group: str, shape: tuple[int, int], dtype: torch.dtype) -> None:
        self._shape, self._dtype = shape, dtype
        self._slot = shape[0] * shape[1] * dtype.itemsize
        name: Any = group  # text, for later versions of PyTorch a subtype
        handle = symmetric.get_symm_mem_workspace(name, 2 * _size(group) * self._slot + 32)
        workspace = symmetric._group_name_to_workspace_tensor[name]
        assert workspace is not None
        if not any(workspace is item for item in _workspaces):
            _workspaces.append(workspace)  # kept when it is replaced: captured graphs and other GPUs may still use it
        self.rank, self.size, self.barrier = handle.rank, handle.world_size, handle.barrier
        self._handle, self._first = handle, _turns[group] * (workspace.numel() // 2 // 16 * 16)
        _turns[group] = 1 - _turns[group]

    def slot(self, rank: int, number: int) -> Tensor:
        """Return a slot in the memory of a process."""
        offset = (self._first + number * self._slot) // self._dtype.itemsize
        return self._handle.get_buffer(rank, self._shape, self._dtype, offset)

    @property
    def others(self) -> list[int]:
        """The other processes, the next one first, so that all copy from or to different ones."""
        return [(self.rank + step) % self.size for step in range(1, self.size)]


def _copy_stream() -> torch.cuda.Stream:
    device = torch.cuda.current_device()
    if device not in _streams:
        _streams[device] = torch.cuda.Stream(priority=-1)
    return _streams[device]


@torch.library.custom_op("megabert::gather_product", mutates_args=())
def gather_product(shard_SD: Tensor, weight_OD: Tensor, bias_O: Tensor | None, group: str) -> tuple[Tensor, Tensor]:
    """All-gather tokens and map them: all tokens [T, D] and their outputs [T, O]."""
    buffers = _Buffers(group, (len(shard_SD), shard_SD.shape[1]), shard_SD.dtype)
    hidden_PSD = shard_SD.new_empty(buffers.size, *shard_SD.shape)
    outputs_PSO = shard_SD.new_empty(buffers.size, len(shard_SD), len(weight_OD))
    buffers.slot(buffers.rank, 0).copy_(shard_SD)
    buffers.barrier(channel=0)
    main, copies = torch.cuda.current_stream(), _copy_stream()
    copies.wait_stream(main)
    arrived = {}
    with torch.cuda.stream(copies):
        for rank in buffers.others:
            hidden_PSD[rank].copy_(buffers.slot(rank, 0))
            arrived[rank] = copies.record_event()
        hidden_PSD[buffers.rank].copy_(shard_SD)
    for rank in (buffers.rank, *buffers.others):
        if rank in arrived:
            main.wait_event(arrived[rank])
        _product(shard_SD if rank == buffers.rank else hidden_PSD[rank], weight_OD, bias_O, outputs_PSO[rank])
    main.wait_stream(copies)
    return hidden_PSD.flatten(0, 1), outputs_PSO.flatten(0, 1)


@torch.library.custom_op("megabert::product_scatter", mutates_args=())
def product_scatter(inputs_TK: Tensor, weight_DK: Tensor, other_TO: Tensor | None, group: str) -> tuple[Tensor, Tensor]:
    """Map this process' inputs of all tokens and reduce-scatter the partial outputs: [S, D].

    Also compute inputs' @ other [K, O], while the outputs are copied, or [0] without `other`.
    """
    from ..kernels.column_sums import sum_parts

    inputs_PSK = inputs_TK.unflatten(0, (_size(group), -1))
    shape = inputs_PSK.shape[1], len(weight_DK)
    buffers = _Buffers(group, shape, inputs_TK.dtype)
    main, copies = torch.cuda.current_stream(), _copy_stream()
    parts = []  # until the main stream has waited for the copies
    for rank in buffers.others:
        parts.append(inputs_TK.new_empty(shape))
        _product(inputs_PSK[rank], weight_DK, None, parts[-1])
        copies.wait_stream(main)
        with torch.cuda.stream(copies):
            buffers.slot(rank, buffers.rank).copy_(parts[-1])
    _product(inputs_PSK[buffers.rank], weight_DK, None, buffers.slot(buffers.rank, buffers.rank))
    product = inputs_TK.new_empty(0) if other_TO is None else inputs_TK.t() @ other_TO
    main.wait_stream(copies)
    buffers.barrier(channel=0)
    return sum_parts(buffers.slot(buffers.rank, 0), buffers.size), product


@gather_product.register_fake
def _(shard_SD: Tensor, weight_OD: Tensor, bias_O: Tensor | None, group: str) -> tuple[Tensor, Tensor]:
    num_tokens = _size(group) * shard_SD.shape[0]
    return shard_SD.new_empty(num_tokens, shard_SD.shape[1]), shard_SD.new_empty(num_tokens, weight_OD.shape[0])


@product_scatter.register_fake
def _(inputs_TK: Tensor, weight_DK: Tensor, other_TO: Tensor | None, group: str) -> tuple[Tensor, Tensor]:
    output_SD = inputs_TK.new_empty(inputs_TK.shape[0] // _size(group), weight_DK.shape[0])
    shape = (0,) if other_TO is None else (inputs_TK.shape[1], other_TO.shape[1])
    return output_SD, inputs_TK.new_empty(shape)


def _size(group: str) -> int:
    name: Any = group
    return distributed_c10d._get_group_size_by_name(name)


def _product(rows: Tensor, weight_OD: Tensor, bias_O: Tensor | None, out: Tensor) -> None:
    if bias_O is None:
        torch.mm(rows, weight_OD.t(), out=out)
    else:
        torch.addmm(bias_O, rows, weight_OD.t(), out=out)
