"""Adam's step in one pass over device memory: gradients of any precision in, float32 weights and their copies out.

PyTorch's fused step takes gradients of the weights' type only, and clipping and the copy to lower precision are passes
of their own: for an encoder in bfloat16 about twice the bytes. The state is torch.optim.Adam's, so checkpoints do not
know the difference.

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
def _move(
    row, start, numbers, mask, beta1, beta2, eps, weight_decay,
    GRADIENT: tl.constexpr, COPY: tl.constexpr, IS_DECOUPLED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    place = tl.multiple_of(start, BLOCK) + tl.arange(0, BLOCK)
    # Without the hint the addresses could be odd, and every number would be loaded by itself.
    weights = tl.multiple_of(tl.load(row), 16).to(tl.pointer_type(tl.float32)) + place
    firsts = tl.multiple_of(tl.load(row + 1), 16).to(tl.pointer_type(tl.float32)) + place
    seconds = tl.multiple_of(tl.load(row + 2), 16).to(tl.pointer_type(tl.float32)) + place
    gradients = tl.multiple_of(tl.load(row + 3), 16).to(tl.pointer_type(GRADIENT)) + place
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
        copies = tl.multiple_of(tl.load(row + 4), 16).to(tl.pointer_type(COPY)) + place
        tl.store(copies, weight.to(COPY), mask=mask)


@triton.jit
def _adam_kernel(
    blocks, tensors, numbers, beta1, beta2, eps, weight_decay,
    GRADIENT: tl.constexpr, COPY: tl.constexpr, IS_DECOUPLED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Move one block of one tensor: `blocks` says which, `tensors` has a row of addresses and a count for each."""
    if tl.load(numbers + 4) != 0:  # broken: nothing is updated
        return
    block = blocks + tl.program_id(0) * 2
    row = tensors + tl.load(block) * 6
    start = tl.load(block + 1).to(tl.int64) * BLOCK
    count = tl.load(row + 5) - start
    if count >= BLOCK:
        _move(row, start, numbers, None, beta1, beta2, eps, weight_decay, GRADIENT, COPY, IS_DECOUPLED, BLOCK)
    else:
        mask = tl.arange(0, BLOCK) < count
        _move(row, start, numbers, mask, beta1, beta2, eps, weight_decay, GRADIENT, COPY, IS_DECOUPLED, BLOCK)


TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


@dataclass(frozen=True)
class _Launch:
    """The weights of one kernel call: alike in the types of their gradients and copies, and in their decay."""

    blocks: Tensor
    """For each block the number of its tensor, and its own in there: int32, [blocks, 2]."""
    tensors: Tensor
    """For each tensor the addresses of weight, both moments, gradient and copy, and its count: int64, [tensors, 6]."""
    options: Mapping[str, object]


class FusedAdam:
    """Makes the steps of a torch.optim.Adam or AdamW on a GPU, without a word to the host: CUDA graphs can hold it."""

    def __init__(self, optimizer: torch.optim.Adam, copies: Mapping[nn.Parameter, nn.Parameter]) -> None:
        """Take the optimizer over; `copies` maps weights to their copies of lower precision."""
        self._optimizer = optimizer
        self._copies = copies
        self._is_decoupled = isinstance(optimizer, torch.optim.AdamW)
        self._launches: list[_Launch] = []
        self._places: list[int] = []
        self._blocks: dict[tuple[nn.Parameter, ...], Tensor] = {}
        device = next(iter(optimizer.param_groups[0]["params"])).device
        self.learning_rate = torch.zeros((), device=device)
        """The learning rate."""
        self._count: Tensor = torch.zeros((), device=device)
        self._numbers = torch.zeros(5, device=device)

    def set_gradients(self, gradients: Mapping[nn.Parameter, Tensor]) -> None:
        """Say where the weights' gradients lie from now on; parameters without one stay as they are."""
        # Where steps are not recorded gradients are made anew, but mostly at the same places.
        places = [gradient.data_ptr() for gradient in gradients.values()]
        if places == self._places:
            return
        self._places = places
        kinds: dict[tuple[Any, ...], list[nn.Parameter]] = {}
        for group in self._optimizer.param_groups:
            for weight in group["params"]:
                if weight not in gradients:
                    continue
                self._state(weight)
                if weight.numel():  # FSDP may leave this process no row of a short weight
                    copy = self._copies.get(weight)
                    copied_to = None if copy is None else TYPES[copy.dtype]
                    kind = (TYPES[gradients[weight].dtype], copied_to, group["weight_decay"])
                    kinds.setdefault(kind, []).append(weight)
        self._launches = []
        for (gradient_type, copied_to, weight_decay), weights in kinds.items():
            rows = np.array([self._row(weight, gradients[weight]) for weight in weights])
            options = {"GRADIENT": gradient_type, "COPY": copied_to, "weight_decay": weight_decay}
            self._launches.append(_Launch(self._find_blocks(tuple(weights)), self._to_device(rows), options))

    def step(self, clip: Tensor, is_broken: Tensor) -> None:
        """Move the weights by gradients times `clip`; nothing happens if is_broken is not 0."""
        group = self._optimizer.param_groups[0]
        beta1, beta2 = group["betas"]
        self._count += 1 - is_broken
        powers = [1 - beta ** self._count.double() for beta in (beta1, beta2)]
        self._numbers.copy_(torch.stack([self.learning_rate, clip, powers[0], powers[1].sqrt(), is_broken]))
        for launch in self._launches:
            _adam_kernel[(len(launch.blocks),)](
                launch.blocks, launch.tensors, self._numbers, beta1, beta2, group["eps"],
                IS_DECOUPLED=self._is_decoupled, BLOCK=BLOCK, num_warps=4, **launch.options,
            )  # fmt: skip

    def _row(self, weight: nn.Parameter, gradient: Tensor) -> list[int]:
        """Give the addresses of weight, both moments, gradient and copy, and the count."""
        state = self._optimizer.state[weight]
        tensors = [weight, state["exp_avg"], state["exp_avg_sq"], gradient, self._copies.get(weight, weight)]
        assert all(tensor.is_contiguous() and tensor.shape == weight.shape for tensor in tensors)
        addresses = [tensor.data_ptr() for tensor in tensors]
        assert all(address % 16 == 0 for address in addresses), "the kernel loads 16 bytes at once"
        return [*addresses, weight.numel()]

    def _find_blocks(self, weights: tuple[nn.Parameter, ...]) -> Tensor:
        # They stay, whereas gradients may come elsewhere each time where steps are not recorded.
        if weights not in self._blocks:
            counts = [-(-weight.numel() // BLOCK) for weight in weights]
            numbers = np.repeat(np.arange(len(weights)), counts)
            own = np.concatenate([np.arange(count) for count in counts])
            self._blocks[weights] = self._to_device(np.stack([numbers, own], axis=1).astype(np.int32))
        return self._blocks[weights]

    def _to_device(self, numbers: NDArray[Any]) -> Tensor:
        if self.learning_rate.device.type != "cuda":
            return torch.from_numpy(numbers)
        return torch.from_numpy(numbers).pin_memory().to(self.learning_rate.device, non_blocking=True)

    def _state(self, weight: nn.Parameter) -> dict[str, Tensor]:
        state = self._optimizer.state[weight]
        if not state:
            state |= {"exp_avg": torch.zeros_like(weight), "exp_avg_sq": torch.zeros_like(weight)}
        elif state["step"] is not self._count:
            self._count.copy_(state["step"])
        # All weights share one count, as all take every step.
        state["step"] = self._count
        return state


def total_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Compute the 2-norm of all tensors together, in float32 whatever their types."""
    by_type: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        by_type.setdefault(tensor.dtype, []).append(tensor)
    norms = [norm for items in by_type.values() for norm in torch._foreach_norm(items, 2, dtype=torch.float32)]
    return torch.linalg.vector_norm(torch.stack(norms))
