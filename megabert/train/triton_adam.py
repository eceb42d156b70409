"""Adam's step in one pass over device memory: gradients of any precision in, float32 weights and their copies out.

PyTorch's fused step takes gradients of the weights' type only, and clipping and the copy to lower precision are passes
of their own: for an encoder in bfloat16 about twice the bytes. The state is torch.optim.Adam's, so checkpoints do not
know the difference.

Source: Loshchilov and Hutter 2017, arXiv:1711.05101, algorithm 2, as in torch.optim.
"""

from collections.abc import Mapping, Sequence
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
    row, numbers, mask, beta1, beta2, eps, weight_decay,
    GRADIENT: tl.constexpr, COPY: tl.constexpr, IS_DECOUPLED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    place = tl.arange(0, BLOCK)
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
    table, numbers, beta1, beta2, eps, weight_decay,
    GRADIENT: tl.constexpr, COPY: tl.constexpr, IS_DECOUPLED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Move one block of one tensor; `table` has a row of addresses and a count for each block."""
    if tl.load(numbers + 4) != 0:  # broken: nothing is updated
        return
    row = table + tl.program_id(0) * 6
    count = tl.load(row + 5)
    if count == BLOCK:
        _move(row, numbers, None, beta1, beta2, eps, weight_decay, GRADIENT, COPY, IS_DECOUPLED, BLOCK)
    else:
        mask = tl.arange(0, BLOCK) < count
        _move(row, numbers, mask, beta1, beta2, eps, weight_decay, GRADIENT, COPY, IS_DECOUPLED, BLOCK)


TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


class FusedAdam:
    """Makes the steps of a torch.optim.Adam or AdamW on a GPU, without a word to the host: CUDA graphs can hold it."""

    def __init__(self, optimizer: torch.optim.Adam, copies: Mapping[nn.Parameter, nn.Parameter]) -> None:
        """Take the optimizer over; `copies` maps weights to their copies of lower precision."""
        self._optimizer = optimizer
        self._copies = copies
        self._is_decoupled = isinstance(optimizer, torch.optim.AdamW)
        self._launches: list[tuple[Tensor, dict[str, object]]] = []
        self._places: list[int] = []
        device = next(iter(optimizer.param_groups[0]["params"])).device
        self.rate = torch.zeros((), device=device)
        """The learning rate."""
        self._count: Tensor = torch.zeros((), device=device)
        self._numbers = torch.zeros(5, device=device)

    def take(self, gradients: Mapping[nn.Parameter, Tensor]) -> None:
        """Say where the weights' gradients lie from now on; parameters without one stay as they are."""
        # Where steps are not recorded gradients are made anew, but mostly at the same places.
        places = [gradient.data_ptr() for gradient in gradients.values()]
        if places == self._places:
            return
        self._places = places
        tables: dict[tuple[Any, ...], list[NDArray[np.int64]]] = {}
        for group in self._optimizer.param_groups:
            for weight in group["params"]:
                if weight in gradients:
                    gradient, copy = gradients[weight], self._copies.get(weight)
                    copied_to = None if copy is None else TYPES[copy.dtype]
                    kind = (TYPES[gradient.dtype], copied_to, group["weight_decay"])
                    tables.setdefault(kind, []).append(self._table(weight, gradient, copy))
        self._launches = [
            (
                torch.from_numpy(np.concatenate(parts)).to(self.rate.device),
                {"GRADIENT": kind[0], "COPY": kind[1], "weight_decay": kind[2]},
            )
            for kind, parts in tables.items()
            if sum(map(len, parts))  # FSDP may leave this process no row of a short weight
        ]

    def step(self, clip: Tensor, is_broken: Tensor) -> None:
        """Move the weights by gradients times `clip`; nothing happens if is_broken is not 0."""
        group = self._optimizer.param_groups[0]
        beta1, beta2 = group["betas"]
        self._count += 1 - is_broken
        powers = [1 - beta ** self._count.double() for beta in (beta1, beta2)]
        self._numbers.copy_(torch.stack([self.rate, clip, powers[0], powers[1].sqrt(), is_broken]))
        for table, options in self._launches:
            _adam_kernel[(len(table),)](
                table, self._numbers, beta1, beta2, group["eps"],
                IS_DECOUPLED=self._is_decoupled, BLOCK=BLOCK, num_warps=4, **options,
            )  # fmt: skip

    def _table(self, weight: nn.Parameter, gradient: Tensor, copy: nn.Parameter | None) -> NDArray[np.int64]:
        """Give the addresses of weight, both moments, gradient and copy, and the count, for each block."""
        state = self._state(weight)
        tensors = [weight, state["exp_avg"], state["exp_avg_sq"], gradient, weight if copy is None else copy]
        assert all(tensor.is_contiguous() and tensor.shape == weight.shape for tensor in tensors)
        assert all(tensor.data_ptr() % 16 == 0 for tensor in tensors), "the kernel loads 16 bytes at once"
        starts = np.arange(0, weight.numel(), BLOCK)
        addresses = [tensor.data_ptr() + starts * tensor.element_size() for tensor in tensors]
        return np.stack([*addresses, np.minimum(BLOCK, weight.numel() - starts)], axis=1)

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
