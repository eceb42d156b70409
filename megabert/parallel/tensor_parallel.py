"""Tensor-parallel layers as in Megatron-LM: column-, row- and vocabulary-parallel, with optional sequence parallelism.

They replace plain modules, with the same parameter names and results. Between a column- and a row-parallel layer each
process computes its own attention heads, or its slice of the MLP's width. With `SequenceShards` (sequence parallel) the
hidden states between these layers are sharded by tokens: as much is communicated, less is stored and computed twice.

Shape legend: T tokens, S tokens of one process, D hidden, O outputs and K inputs of one process, M tokens with logits,
V vocabulary, P processes.
Sources: Shoeybi et al. 2019 (arXiv:1909.08053), section 3; Korthikanti et al. 2022 (arXiv:2205.05198), section 4.2.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..model.dropout import Dropout
from ..model.lora import LoraConfig
from ..model.vocabulary_loss import NO_TARGET, chunked_statistics, local_targets, loss_gradients
from .process_group import World
from .sequence_shards import (
    SequenceShards,
    all_gather_rows,
    all_gather_tokens,
    all_reduce,
    collectives,
    gather_linear,
    linear_scatter,
    local_tokens,
    pad_tokens,
    reduce_scatter_tokens,
)

ExchangeMap = Callable[[Tensor, Any], Tensor]


class _ColumnLinear(torch.autograd.Function):
    """A linear map to this process' outputs, with the all-reduce of Megatron-LM's f in the backward pass.

    The all-reduce of the input gradient overlaps with the matmul of the weight gradient.
    """

    @staticmethod
    def forward(ctx: Any, hidden_TD: Tensor, weight: Tensor, bias: Tensor | None, group: str) -> Tensor:
        ctx.save_for_backward(hidden_TD, weight)
        ctx.group = group
        return F.linear(hidden_TD, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient_TO: Tensor) -> tuple[Tensor | None, ...]:
        hidden_TD, weight = ctx.saved_tensors
        pending = collectives.all_reduce((gradient_TO @ weight).contiguous(), "sum", ctx.group)
        weight_gradients = _weight_gradients(ctx, gradient_TO, hidden_TD)
        return collectives.wait_tensor(pending), *weight_gradients, None


class _GatherColumnLinear(torch.autograd.Function):
    """The same for sharded tokens: all-gather in the forward pass, reduce-scatter of the input gradient."""

    @staticmethod
    def forward(ctx: Any, hidden_SD: Tensor, weight: Tensor, bias: Tensor | None, tokens: SequenceShards) -> Tensor:
        hidden_TD, outputs_TO = gather_linear(hidden_SD, weight, bias, tokens)
        ctx.save_for_backward(hidden_TD, weight)
        ctx.tokens = tokens
        return outputs_TO

    @staticmethod
    def backward(ctx: Any, gradient_TO: Tensor) -> tuple[Tensor | None, ...]:
        hidden_TD, weight = ctx.saved_tensors
        tokens = ctx.tokens
        if tokens.is_overlapped:
            gradient_SD = linear_scatter(gradient_TO, weight.T, tokens)
            return gradient_SD, *_weight_gradients(ctx, gradient_TO, hidden_TD), None
        padded = pad_tokens(gradient_TO @ weight, tokens).contiguous()
        pending = collectives.reduce_scatter_tensor(padded, "sum", tokens.size, tokens.group)
        weight_gradients = _weight_gradients(ctx, gradient_TO, hidden_TD)
        return collectives.wait_tensor(pending), *weight_gradients, None


class _LinearScatter(torch.autograd.Function):
    """A row-parallel map, whose partial outputs are reduce-scattered to sharded tokens; all-gather the gradient."""

    @staticmethod
    def forward(ctx: Any, hidden_TK: Tensor, weight: Tensor, tokens: SequenceShards) -> Tensor:
        ctx.save_for_backward(hidden_TK, weight)
        ctx.tokens = tokens
        return linear_scatter(hidden_TK, weight, tokens)

    @staticmethod
    def backward(ctx: Any, gradient_SD: Tensor) -> tuple[Tensor | None, ...]:
        hidden_TK, weight = ctx.saved_tensors
        gradient_TD, gradient_TK = gather_linear(gradient_SD, weight.T, None, ctx.tokens)
        return gradient_TK, gradient_TD.T @ hidden_TK if ctx.needs_input_grad[1] else None, None


def _weight_gradients(ctx: Any, gradient_TO: Tensor, hidden_TD: Tensor) -> tuple[Tensor | None, Tensor | None]:
    _, needs_weight, needs_bias, _ = ctx.needs_input_grad
    return gradient_TO.T @ hidden_TD if needs_weight else None, gradient_TO.sum(0) if needs_bias else None


class _Exchange(torch.autograd.Function):
    """Exchange hidden states over an axis, a group or `SequenceShards`; the gradient takes another exchange."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, axis: Any, exchange: ExchangeMap, transposed: ExchangeMap) -> Tensor:
        ctx.axis, ctx.transposed = axis, transposed
        return exchange(hidden, axis)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return ctx.transposed(gradient, ctx.axis), None, None, None


def _sum_partial(hidden: Tensor, group: str) -> Tensor:
    """Megatron-LM's g: all-reduce the partial outputs of a row-parallel layer; the gradient is replicated."""
    return _Exchange.apply(hidden, group, all_reduce, _same)


def _replicate(hidden: Tensor, group: str) -> Tensor:
    """Megatron-LM's f: the identity, whose gradient is all-reduced."""
    return _Exchange.apply(hidden, group, _same, all_reduce)


def _scatter_partial(hidden_TD: Tensor, tokens: SequenceShards) -> Tensor:
    """Reduce-scatter the partial outputs of a row-parallel layer to sharded tokens; all-gather the gradient."""
    return _Exchange.apply(hidden_TD, tokens, reduce_scatter_tokens, all_gather_tokens)


def _gather_low_rank(low_SR: Tensor, tokens: SequenceShards) -> Tensor:
    """Gather all tokens, which each process maps to other outputs; reduce-scatter the partial gradients."""
    return _Exchange.apply(low_SR, tokens, all_gather_tokens, reduce_scatter_tokens)


def shard_tokens(hidden_TD: Tensor, tokens: SequenceShards) -> Tensor:
    """Take this process' shard of replicated tokens, behind the embeddings: [S, D]; all-gather the gradient."""
    return _Exchange.apply(hidden_TD, tokens, local_tokens, all_gather_tokens)


def gather_tokens(hidden_SD: Tensor, tokens: SequenceShards) -> Tensor:
    """Gather the tokens of all processes, before the head, whose gradient is the same in all: [T, D]."""
    return _Exchange.apply(hidden_SD, tokens, all_gather_tokens, local_tokens)


def _same(hidden: Tensor, group: str) -> Tensor:
    return hidden.view_as(hidden)


class _ParallelLinear(nn.Module):
    """Weights and communication of a column- or row-parallel layer."""

    def __init__(
        self, weight: nn.Parameter, bias: nn.Parameter | None, world: World, tokens: SequenceShards | None
    ) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias
        self._group, self._tokens = world.tensor_group_name, tokens
        self.config: LoraConfig | None = None

    def add_lora(self, lora_a: nn.Parameter, lora_b: nn.Parameter, config: LoraConfig, stream: int) -> None:
        """Add an adapter, one of whose matrices is this process' shard; `stream` is that of its dropout."""
        self.lora_a, self.lora_b, self.config = lora_a, lora_b, config
        self.dropout = Dropout(config.dropout)
        self.dropout.stream = stream

    def _adapted(
        self,
        base: Tensor,
        hidden: Tensor,
        exchange: ExchangeMap,
        exchange_tokens: ExchangeMap,
    ) -> Tensor:
        """Add an adapter's output, if there is one.

        `exchange` makes its low-rank values replicated; `exchange_tokens` makes them those of the output's tokens.
        """
        if self.config is None:
            return base
        low = F.linear(self.dropout(hidden), self.lora_a)
        low = exchange(low, self._group) if self._tokens is None else exchange_tokens(low, self._tokens)
        return base + self.config.scaling * F.linear(low, self.lora_b)


class ColumnParallelLinear(_ParallelLinear):
    """A linear map of which each process computes a slice of the outputs."""

    def forward(self, hidden: Tensor) -> Tensor:
        """Map replicated [T, D] or sharded [S, D] tokens to this process' outputs of all tokens, [T, O]."""
        if self._tokens is None:
            outputs = _ColumnLinear.apply(hidden, self.weight, self.bias, self._group)
        else:
            outputs = _GatherColumnLinear.apply(hidden, self.weight, self.bias, self._tokens)
        return self._adapted(outputs, hidden, _replicate, _gather_low_rank)


class RowParallelLinear(_ParallelLinear):
    """A linear map of which each process has a slice of the inputs. The bias is added once, after the reduction."""

    def forward(self, hidden_TK: Tensor) -> Tensor:
        """Map this process' inputs to replicated [T, D] or sharded [S, D] tokens."""
        if self._tokens is None:
            reduced = _sum_partial(F.linear(hidden_TK, self.weight), self._group)
        else:
            reduced = _LinearScatter.apply(hidden_TK, self.weight, self._tokens)
        reduced = reduced if self.bias is None else reduced + self.bias
        return self._adapted(reduced, hidden_TK, _sum_partial, _scatter_partial)


class VocabularyParallelEmbedding(nn.Module):
    """An embedding of which each process has a slice of the rows, possibly none."""

    def __init__(self, weight: nn.Parameter, start: int, world: World) -> None:
        super().__init__()
        self.weight = weight
        self._start, self._group = start, world.tensor_group_name

    def forward(self, ids: Tensor) -> Tensor:
        """Look up [...] ids: [..., D]."""
        rows, is_local = local_targets(ids - self._start, len(self.weight))
        # Rows of other processes are zeros; a process without rows contributes zeros, too.
        vectors = F.embedding(rows, self.weight) if len(self.weight) else self._zeros(ids)
        return _sum_partial(vectors * is_local[..., None], self._group)

    def _zeros(self, ids: Tensor) -> Tensor:
        return self.weight.new_zeros(*ids.shape, self.weight.shape[1]) + self.weight.sum()


class VocabularyParallelLinear(nn.Module):
    """The linear map to the vocabulary, of which each process has a slice of the rows, possibly none."""

    def __init__(
        self, weight: nn.Parameter, bias: nn.Parameter | None, start: int, vocabulary_size: int, world: World
    ) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias
        self._start, self._vocabulary_size = start, vocabulary_size
        self._size, self._group = world.tensor_size, world.tensor_group_name

    def forward(self, hidden: Tensor) -> Tensor:
        """Map [..., D] to the logits of the full vocabulary, [..., V]; for inference, without a gradient."""
        logits = F.linear(hidden, self.weight, self.bias).detach()
        padding = -(-self._vocabulary_size // self._size) - logits.shape[-1]
        padded = F.pad(logits, (0, padding)).movedim(-1, 0)
        gathered = all_gather_rows(padded, self._size, self._group)
        return gathered[: self._vocabulary_size].movedim(0, -1)

    def losses(self, hidden_MD: Tensor, targets_M: Tensor) -> tuple[Tensor, Tensor]:
        """Compute what model.vocabulary_loss computes, with a sharded vocabulary."""
        losses_M, is_correct_M = _ParallelLosses.apply(
            hidden_MD, self.weight, self.bias, targets_M, self._start, self._size, self._group
        )
        return losses_M, is_correct_M


class _ParallelLosses(torch.autograd.Function):
    """Vocabulary-parallel cross-entropy: processes exchange four numbers a token and no logits."""

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
        local_4M, ctx.logits = chunked_statistics(hidden_MD, weight_VD, bias_V, targets_M - start)
        logsumexp_PM, target_PM, highest_PM, is_correct_PM = all_gather_rows(local_4M[None], size, group).unbind(1)
        logsumexp_M = logsumexp_PM.logsumexp(0)
        has_target_M = targets_M != NO_TARGET
        losses_M = torch.where(has_target_M, logsumexp_M - target_PM.sum(0), 0.0)
        # Of equal logits the first token counts, as in argmax: that of the first process.
        best_process_1M = highest_PM.argmax(0, keepdim=True)
        is_correct_M = (is_correct_PM.gather(0, best_process_1M)[0] > 0) & has_target_M
        ctx.save_for_backward(hidden_MD, weight_VD, bias_V, targets_M, logsumexp_M)
        ctx.start, ctx.group = start, group
        ctx.mark_non_differentiable(is_correct_M)
        return losses_M, is_correct_M

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden_MD, weight_VD, bias_V, targets_M, logsumexp_M = ctx.saved_tensors
        d_losses_M = torch.where(targets_M != NO_TARGET, gradients[0], 0.0)
        logits, ctx.logits = ctx.logits, None  # they become gradients
        d_hidden_MD, d_weight_VD, d_bias_V = loss_gradients(
            hidden_MD, weight_VD, bias_V, targets_M - ctx.start, logsumexp_M, d_losses_M, logits
        )
        return all_reduce(d_hidden_MD, ctx.group), d_weight_VD, d_bias_V, None, None, None, None
