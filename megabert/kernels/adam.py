"""Fused Adam step in Triton: gradients of any precision in, float32 master weights and their 16-bit copies out.

PyTorch's fused step needs gradients of the weights' dtype, and clipping and the cast to lower precision are separate
kernels: for an encoder in bfloat16 about twice the memory traffic. The state is torch.optim.Adam's, so checkpoints are
the same.

Source: Loshchilov and Hutter 2017, arXiv:1711.05101, algorithm 2, as in torch.optim.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray
from torch import Tensor, nn

BLOCK = 2048


@triton.jit
def _update(
    row, start, numbers, mask, beta1, beta2, eps, weight_decay,
    GRADIENT: tl.constexpr, COPY: tl.constexpr, IS_DECOUPLED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    offsets = tl.multiple_of(start, BLOCK) + tl.arange(0, BLOCK)
    # Without the alignment hint the compiler would not vectorize the loads.
    weights = tl.multiple_of(tl.load(row), 16).to(tl.pointer_type(tl.float32)) + offsets
    firsts = tl.multiple_of(tl.load(row + 1), 16).to(tl.pointer_type(tl.float32)) + offsets
    seconds = tl.multiple_of(tl.load(row + 2), 16).to(tl.pointer_type(tl.float32)) + offsets
    gradients = tl.multiple_of(tl.load(row + 3), 16).to(tl.pointer_type(GRADIENT)) + offsets
    rate, clip = tl.load(numbers), tl.load(numbers + 1)
    correction1, root_correction2 = tl.load(numbers + 2), tl.load(numbers + 3)
    weight = tl.load(weights, mask=mask)
    gradient = tl.load(gradients, mask=mask).to(tl.float32) * clip
    if IS_DECOUPLED:
        weight = weight * (1.0 - rate * weight_decay)
    else:
        gradient = gradient + weight_decay * weight
    first = tl.load(firsts, mask=mask)
    first = first + (1.0 - beta1) * (gradient - first)
    second = beta2 * tl.load(seconds, mask=mask) + (1.0 - beta2) * gradient * gradient
    weight = weight - rate / correction1 * first / (tl.sqrt(second) / root_correction2 + eps)
    tl.store(weights, weight, mask=mask)
    tl.store(firsts, first, mask=mask)
    tl.store(seconds, second, mask=mask)
    if COPY is not None:
        copies = tl.multiple_of(tl.load(row + 4), 16).to(tl.pointer_type(COPY)) + offsets
        tl.store(copies, weight.to(COPY), mask=mask)


@triton.jit
def _adam_kernel(
    blocks, tensors, numbers, beta1, beta2, eps, weight_decay,
    GRADIENT: tl.constexpr, COPY: tl.constexpr, IS_DECOUPLED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Update one block of one tensor; `blocks` and `tensors` are those of `_Launch`."""
    if tl.load(numbers + 4) != 0:  # found_non_finite: skip the step
        return
    block = blocks + tl.program_id(0) * 2
    row = tensors + tl.load(block) * 6
    start = tl.load(block + 1).to(tl.int64) * BLOCK
    count = tl.load(row + 5) - start
    if count >= BLOCK:
        _update(row, start, numbers, None, beta1, beta2, eps, weight_decay, GRADIENT, COPY, IS_DECOUPLED, BLOCK)
    else:
        mask = tl.arange(0, BLOCK) < count
        _update(row, start, numbers, mask, beta1, beta2, eps, weight_decay, GRADIENT, COPY, IS_DECOUPLED, BLOCK)


TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


@dataclass(frozen=True)
class _Launch:
    """The weights of one kernel launch, which agree in the dtypes of gradient and copy and in weight decay."""

    blocks: Tensor
    """Tensor index and block index within the tensor, int32 [blocks, 2]."""
    tensors: Tensor
    """Addresses of weight, both moments, gradient and copy, and the number of elements, int64 [tensors, 6]."""
    options: Mapping[str, object]


class FusedAdam:
    """Sync-free, capturable steps of a torch.optim.Adam or AdamW on a GPU."""

    def __init__(self, optimizer: torch.optim.Adam, copies: Mapping[nn.Parameter, Tensor]) -> None:
        """Step in place of `optimizer`, using its state; `copies` maps master weights to copies of lower precision."""
        self._optimizer = optimizer
        self._copies = copies
        self._is_decoupled = isinstance(optimizer, torch.optim.AdamW)
        self._launches: list[_Launch] = []
        self._addresses: list[int] = []
        self._blocks: dict[tuple[nn.Parameter, ...], Tensor] = {}
        device = next(iter(optimizer.param_groups[0]["params"])).device
        self.learning_rate = torch.zeros((), device=device)
        """On the device, so that a captured step reads the current value."""
        self._count: Tensor = torch.zeros((), device=device)
        self._numbers = torch.zeros(5, device=device)

    def set_gradients(self, gradients: Mapping[nn.Parameter, Tensor]) -> None:
        """Set the tensors that the next steps read gradients from; weights without one are not updated."""
        # Without CUDA graphs gradients are allocated in each step, but mostly at the same addresses.
        addresses = [gradient.data_ptr() for gradient in gradients.values()]
        if addresses == self._addresses:
            return
        self._addresses = addresses
        self._launches = []
        for (gradient_type, copy_type, weight_decay), weights in self._by_kind(gradients).items():
            rows = np.array([self._row(weight, gradients[weight]) for weight in weights])
            options = {"GRADIENT": gradient_type, "COPY": copy_type, "weight_decay": weight_decay}
            self._launches.append(_Launch(self._blocks_of(tuple(weights)), self._to_device(rows), options))

    def _by_kind(self, gradients: Mapping[nn.Parameter, Tensor]) -> dict[tuple[Any, ...], list[nn.Parameter]]:
        """Group the weights that one launch updates: by the types of gradient and copy, and by weight decay."""
        kinds: dict[tuple[Any, ...], list[nn.Parameter]] = {}
        for group in self._optimizer.param_groups:
            for weight in group["params"]:
                if weight not in gradients:
                    continue
                self._state(weight)
                if weight.numel():  # FSDP may give this process no rows of a small weight
                    copy = self._copies.get(weight)
                    copy_type = None if copy is None else TYPES[copy.dtype]
                    kind = (TYPES[gradients[weight].dtype], copy_type, group["weight_decay"])
                    kinds.setdefault(kind, []).append(weight)
        return kinds

    def step(self, clip: Tensor, found_non_finite: Tensor) -> None:
        """Update the weights with gradients times `clip`; skip the step where `found_non_finite` is not 0."""
        group = self._optimizer.param_groups[0]
        beta1, beta2 = group["betas"]
        self._count += 1 - found_non_finite
        correction1, correction2 = (1 - beta ** self._count.double() for beta in (beta1, beta2))
        numbers = [self.learning_rate, clip, correction1, correction2.sqrt(), found_non_finite]
        self._numbers.copy_(torch.stack(numbers))
        for launch in self._launches:
            _adam_kernel[(len(launch.blocks),)](
                launch.blocks, launch.tensors, self._numbers, beta1, beta2, group["eps"],
                IS_DECOUPLED=self._is_decoupled, BLOCK=BLOCK, num_warps=4, **launch.options,
            )  # fmt: skip

    def _row(self, weight: nn.Parameter, gradient: Tensor) -> list[int]:
        """Return the weight's row of `_Launch.tensors`."""
        state = self._optimizer.state[weight]
        tensors = [weight, state["exp_avg"], state["exp_avg_sq"], gradient, self._copies.get(weight, weight)]
        assert all(tensor.is_contiguous() and tensor.shape == weight.shape for tensor in tensors)
        addresses = [tensor.data_ptr() for tensor in tensors]
        assert all(address % 16 == 0 for address in addresses), "the kernel loads 16 bytes at once; align the gradients"
        return [*addresses, weight.numel()]

    def _blocks_of(self, weights: tuple[nn.Parameter, ...]) -> Tensor:
        # Cached, since the addresses of gradients may change in every step that is not captured.
        if weights not in self._blocks:
            counts = [-(-weight.numel() // BLOCK) for weight in weights]
            tensor_ids = np.repeat(np.arange(len(weights)), counts)
            block_ids = np.concatenate([np.arange(count) for count in counts])
            self._blocks[weights] = self._to_device(np.stack([tensor_ids, block_ids], axis=1).astype(np.int32))
        return self._blocks[weights]

    def _to_device(self, array: NDArray[Any]) -> Tensor:
        if self.learning_rate.device.type != "cuda":
            return torch.from_numpy(array)
        return torch.from_numpy(array).pin_memory().to(self.learning_rate.device, non_blocking=True)

    def _state(self, weight: nn.Parameter) -> dict[str, Tensor]:
        state = self._optimizer.state[weight]
        if not state:
            state |= {"exp_avg": torch.zeros_like(weight), "exp_avg_sq": torch.zeros_like(weight)}
        elif state["step"] is not self._count:
            self._count.copy_(state["step"])
        # All weights take every step, so that they share one count.
        state["step"] = self._count
        return state


def total_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Compute the global 2-norm of all tensors in float32, whatever their dtypes."""
    by_type: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        by_type.setdefault(tensor.dtype, []).append(tensor)
    norms = [norm for items in by_type.values() for norm in torch._foreach_norm(items, 2, dtype=torch.float32)]
    return torch.linalg.vector_norm(torch.stack(norms))
