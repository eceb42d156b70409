"""Layers of which each process of the tensor axis has a part: Megatron-LM's column and row cuts and its vocabulary.

They stand in the places of the plain modules, with the same names of parameters, and give what those give. Between
column and row a process computes its heads, or its part of the MLP's width, as if they were all. With `SequenceShards`
(sequence parallel) what flows between layers is cut by tokens: as many bytes are sent, less is kept and computed twice.

Shape legend: T tokens, S those of one process, D hidden, M tokens asked for, V vocabulary, P processes.
Sources: Shoeybi et al. 2019 (arXiv:1909.08053), section 3; Korthikanti et al. 2022 (arXiv:2205.05198), section 4.2.
"""

from typing import Any

import torch
import torch.distributed  # so that the operators below are there
import torch.nn.functional as F
from torch import Tensor, nn

from ..model.vocabulary_loss import CHUNK, NO_TARGET, loss_gradients, own_places, word_logits
from .process_group import World

# Collectives as operators: autograd, the compiler and CUDA graphs take them like any other.
_collectives = torch.ops._c10d_functional


class SequenceShards:
    """How the tokens of the batch at hand are cut: each process has ceil(T / P) of them, the last ones are made up."""

    def __init__(self, world: World) -> None:
        self.rank, self.size, self.group = world.tensor_rank, world.tensor_size, world.tensor_group_name
        self.num_tokens = 0

    @property
    def share(self) -> int:
        """Tokens of one process."""
        return -(-self.num_tokens // self.size)


class _ColumnLinear(torch.autograd.Function):
    """A linear map to the own outputs: Megatron-LM's f, then the product.

    On the way back the sum of the inputs' gradients is under way while the weights' are computed.
    """

    @staticmethod
    def forward(ctx: Any, hidden_TD: Tensor, weight: Tensor, bias: Tensor | None, group: str) -> Tensor:
        ctx.save_for_backward(hidden_TD, weight)
        ctx.group = group
        return F.linear(hidden_TD, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient_TO: Tensor) -> tuple[Tensor | None, ...]:
        hidden_TD, weight = ctx.saved_tensors
        on_its_way = _collectives.all_reduce((gradient_TO @ weight).contiguous(), "sum", ctx.group)
        of_weights = _weight_gradients(ctx, gradient_TO, hidden_TD)
        return _collectives.wait_tensor(on_its_way), *of_weights, None


class _GatheringLinear(torch.autograd.Function):
    """The same from cut tokens: they are gathered, and each gets the sum of its own ones' gradients back."""

    @staticmethod
    def forward(ctx: Any, hidden_SD: Tensor, weight: Tensor, bias: Tensor | None, tokens: SequenceShards) -> Tensor:
        hidden_TD = _gather(hidden_SD, tokens)
        ctx.save_for_backward(hidden_TD, weight)
        ctx.tokens = tokens
        return F.linear(hidden_TD, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient_TO: Tensor) -> tuple[Tensor | None, ...]:
        hidden_TD, weight = ctx.saved_tensors
        tokens = ctx.tokens
        padded = _padded(gradient_TO @ weight, tokens).contiguous()
        on_its_way = _collectives.reduce_scatter_tensor(padded, "sum", tokens.size, tokens.group)
        of_weights = _weight_gradients(ctx, gradient_TO, hidden_TD)
        return _collectives.wait_tensor(on_its_way), *of_weights, None


def _weight_gradients(ctx: Any, gradient_TO: Tensor, hidden_TD: Tensor) -> tuple[Tensor | None, Tensor | None]:
    _, needs_weight, needs_bias, _ = ctx.needs_input_grad
    return gradient_TO.T @ hidden_TD if needs_weight else None, gradient_TO.sum(0) if needs_bias else None


class _SumOut(torch.autograd.Function):
    """Out of a cut layer: parts are summed forward, gradients are the same for all. Megatron-LM's g."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, group: str) -> Tensor:
        return _sum(hidden, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class _ScatterOut(torch.autograd.Function):
    """Out of a cut layer to cut tokens: the other way round."""

    @staticmethod
    def forward(ctx: Any, hidden_TD: Tensor, tokens: SequenceShards) -> Tensor:
        ctx.tokens = tokens
        return _sum_to_shares(hidden_TD, tokens)

    @staticmethod
    def backward(ctx: Any, gradient_SD: Tensor) -> tuple[Tensor, None]:
        return _gather(gradient_SD, ctx.tokens), None


class _CutTokens(torch.autograd.Function):
    """From what all have to each one's tokens, behind the embeddings; gradients come back whole."""

    @staticmethod
    def forward(ctx: Any, hidden_TD: Tensor, tokens: SequenceShards) -> Tensor:
        ctx.tokens = tokens
        return _own_share(hidden_TD, tokens)

    @staticmethod
    def backward(ctx: Any, gradient_SD: Tensor) -> tuple[Tensor, None]:
        return _gather(gradient_SD, ctx.tokens), None


class _JoinTokens(torch.autograd.Function):
    """From each one's tokens to all of them, before the head; all compute it alike, so each takes its gradients."""

    @staticmethod
    def forward(ctx: Any, hidden_SD: Tensor, tokens: SequenceShards) -> Tensor:
        ctx.tokens = tokens
        return _gather(hidden_SD, tokens)

    @staticmethod
    def backward(ctx: Any, gradient_TD: Tensor) -> tuple[Tensor, None]:
        return _own_share(gradient_TD, ctx.tokens), None


def cut_tokens(hidden_TD: Tensor, tokens: SequenceShards) -> Tensor:
    """Take the own tokens, [S, D], of those that all processes have."""
    return _CutTokens.apply(hidden_TD, tokens)


def join_tokens(hidden_SD: Tensor, tokens: SequenceShards) -> Tensor:
    """Give all the tokens of all, [T, D]."""
    return _JoinTokens.apply(hidden_SD, tokens)


def _sum(tensor: Tensor, group: str) -> Tensor:
    return _collectives.wait_tensor(_collectives.all_reduce(tensor.contiguous(), "sum", group))


def _gather(hidden_SD: Tensor, tokens: SequenceShards) -> Tensor:
    return _gather_rows(hidden_SD, tokens.size, tokens.group)[: tokens.num_tokens]


def _gather_rows(rows: Tensor, size: int, group: str) -> Tensor:
    return _collectives.wait_tensor(_collectives.all_gather_into_tensor(rows.contiguous(), size, group))


def _sum_to_shares(hidden_TD: Tensor, tokens: SequenceShards) -> Tensor:
    padded = _padded(hidden_TD, tokens).contiguous()
    return _collectives.wait_tensor(_collectives.reduce_scatter_tensor(padded, "sum", tokens.size, tokens.group))


def _own_share(hidden_TD: Tensor, tokens: SequenceShards) -> Tensor:
    return _padded(hidden_TD, tokens).narrow(0, tokens.rank * tokens.share, tokens.share).contiguous()


def _padded(hidden_TD: Tensor, tokens: SequenceShards) -> Tensor:
    missing = tokens.share * tokens.size - tokens.num_tokens
    return F.pad(hidden_TD, (0, 0, 0, missing)) if missing else hidden_TD


class ColumnParallelLinear(nn.Module):
    """A linear map of which each process computes some outputs."""

    def __init__(
        self, weight: nn.Parameter, bias: nn.Parameter | None, world: World, tokens: SequenceShards | None
    ) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias
        self._group, self._tokens = world.tensor_group_name, tokens

    def forward(self, hidden: Tensor) -> Tensor:
        """Map [T, D], or each one's tokens, to the own outputs of all tokens."""
        if self._tokens is None:
            return _ColumnLinear.apply(hidden, self.weight, self.bias, self._group)
        return _GatheringLinear.apply(hidden, self.weight, self.bias, self._tokens)


class RowParallelLinear(nn.Module):
    """A linear map of which each process has some inputs. The bias is added to the sum, so that it counts once."""

    def __init__(
        self, weight: nn.Parameter, bias: nn.Parameter | None, world: World, tokens: SequenceShards | None
    ) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias
        self._group, self._tokens = world.tensor_group_name, tokens

    def forward(self, hidden_TK: Tensor) -> Tensor:
        """Map the own inputs to [T, D], or to each one's tokens."""
        part = F.linear(hidden_TK, self.weight)
        whole = _SumOut.apply(part, self._group) if self._tokens is None else _ScatterOut.apply(part, self._tokens)
        return whole if self.bias is None else whole + self.bias


class VocabularyParallelEmbedding(nn.Module):
    """An embedding of which each process has some rows, maybe none."""

    def __init__(self, weight: nn.Parameter, start: int, world: World) -> None:
        super().__init__()
        self.weight = weight
        self._start, self._group = start, world.tensor_group_name

    def forward(self, ids: Tensor) -> Tensor:
        """Look up [...] ids: [..., D]."""
        places = ids - self._start
        is_own = (places >= 0) & (places < len(self.weight))
        # One row of zeros stands for what others have: also where this process has no row at all.
        rows = F.embedding(torch.where(is_own, places, 0), self.weight) if len(self.weight) else self._nothing(ids)
        return _SumOut.apply(rows * is_own[..., None], self._group)

    def _nothing(self, ids: Tensor) -> Tensor:
        return self.weight.new_zeros(*ids.shape, self.weight.shape[1]) + self.weight.sum()


class VocabularyParallelLinear(nn.Module):
    """The map to a vocabulary of which each process has some words, maybe none."""

    def __init__(
        self, weight: nn.Parameter, bias: nn.Parameter | None, start: int, num_words: int, world: World
    ) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias
        self._start, self._num_words = start, num_words
        self._size, self._group = world.tensor_size, world.tensor_group_name
        self._most = -(-num_words // world.tensor_size)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map [..., D] to the logits of the whole vocabulary, [..., V]; for answers, it has no gradient."""
        own = F.linear(hidden, self.weight, self.bias).detach()
        padded = F.pad(own, (0, self._most - own.shape[-1])).movedim(-1, 0)
        gathered = _gather_rows(padded, self._size, self._group)
        return gathered[: self._num_words].movedim(0, -1)

    def losses(self, hidden_MD: Tensor, targets_M: Tensor) -> tuple[Tensor, Tensor]:
        """Compute what model.vocabulary_loss computes, of a vocabulary in parts."""
        losses_M, is_right_M = _ParallelLosses.apply(
            hidden_MD, self.weight, self.bias, targets_M, self._start, self._size, self._group
        )
        return losses_M, is_right_M


class _ParallelLosses(torch.autograd.Function):
    """Cross-entropy of a vocabulary in parts: of each token four numbers are exchanged, and no logits."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_MD: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        targets_M: Tensor,
        start: int,
        size: int,
        group: str,
    ) -> tuple[Tensor, Tensor]:
        parts = []
        for hidden, targets in zip(hidden_MD.split(CHUNK), targets_M.split(CHUNK), strict=True):
            parts.append(_own_part(word_logits(hidden, weight_VD, bias_V), targets - start))
        own_4M = torch.cat(parts, dim=1)
        log_sums_PM, chosen_PM, highest_PM, is_right_PM = _gather_rows(own_4M[None], size, group).unbind(1)
        log_sums_M = log_sums_PM.logsumexp(0)
        has_target_M = targets_M != NO_TARGET
        losses_M = torch.where(has_target_M, log_sums_M - chosen_PM.sum(0), 0.0)
        # Of equal logits the first word's counts, as argmax does it: that of the first process.
        likeliest_1M = highest_PM.argmax(0, keepdim=True)
        is_right_M = (is_right_PM.gather(0, likeliest_1M)[0] > 0) & has_target_M
        ctx.save_for_backward(hidden_MD, weight_VD, bias_V, targets_M, log_sums_M)
        ctx.start, ctx.group = start, group
        ctx.mark_non_differentiable(is_right_M)
        return losses_M, is_right_M

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden_MD, weight_VD, bias_V, targets_M, log_sums_M = ctx.saved_tensors
        of_losses_M = torch.where(targets_M != NO_TARGET, gradients[0], 0.0)
        of_hidden_MD, of_weight_VD, of_bias_V = loss_gradients(
            hidden_MD, weight_VD, bias_V, targets_M - ctx.start, log_sums_M, of_losses_M
        )
        return _sum(of_hidden_MD, ctx.group), of_weight_VD, of_bias_V, None, None, None, None


def _own_part(logits_MV: Tensor, targets_M: Tensor) -> Tensor:
    """Say of each token: the log-sum of own logits, its target's, the highest, whether that is the target's: [4, M]."""
    num_own = logits_MV.shape[1]
    if not num_own:
        nothing_M = logits_MV.new_full((len(targets_M),), -torch.inf)
        return torch.stack([nothing_M, torch.zeros_like(nothing_M), nothing_M, torch.zeros_like(nothing_M)])
    places, is_own = own_places(targets_M, num_own)
    chosen = torch.where(is_own, logits_MV.gather(1, places[:, None])[:, 0], 0.0)
    highest = logits_MV.max(1)
    is_right = (highest.indices == places) & is_own
    return torch.stack([logits_MV.logsumexp(1), chosen, highest.values, is_right.to(logits_MV.dtype)])
