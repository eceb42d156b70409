"""Heads on an encoder for tokens, sequences and embeddings, and TaskModel, an encoder with a head.

Shape legend: T tokens, N documents, D hidden, C classes.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from .attention import PackedSequences
from .config import ACTIVATIONS, EncoderConfig
from .encoder import Encoder

_ACTIVATIONS: Mapping[str, type[nn.Module]] = dict(zip(ACTIVATIONS, (nn.ReLU, nn.GELU, nn.Tanh, nn.SiLU), strict=True))


class Head(nn.Module):
    """Base of a task's head: maps the last hidden states of packed sequences to logits."""

    is_per_sequence = False
    """Whether logits are per sequence, [N, C], or per token, [T, C]."""
    uses_encoder_precision = False
    """Whether the head is cast to the encoder's precision; others stay float32, so that logits keep their digits."""
    takes_targets = False
    """Whether `forward` takes the batch's token targets as a third argument, to compute only what they need."""

    def tie(self, word: nn.Embedding) -> None:
        """Tie the head's weights to the encoder's word embedding, if the head uses it."""

    def start_from(self, encoder: Encoder) -> None:
        """Copy weights of the encoder that a new head starts from, if it has an encoder of its own."""

    def load_pretrained(self, read: Callable[[str], Tensor | None]) -> None:
        """Load pre-trained weights of the head; `read` returns a checkpoint's tensor by name, or None."""


class TokenHead(Head):
    """Logits for each token: dropout on the input, then an MLP of `num_layers` linear layers.

    Span extraction is the case of two classes, "a span starts here" and "a span ends here".
    Source: NeMo 1.x's TokenClassifier.
    """

    def __init__(self, hidden_size: int, num_classes: int, *, num_layers: int, dropout: float, activation: str) -> None:
        super().__init__()
        if not 0 <= dropout < 1:
            raise ConfigError(f"The head's dropout is {dropout:g}; a probability from 0 to below 1 is needed.")
        self.dropout = nn.Dropout(dropout)
        self.activation = _ACTIVATIONS[activation]()
        self.hidden = nn.ModuleList(nn.Linear(hidden_size, hidden_size) for _ in range(num_layers - 1))
        self.out = nn.Linear(hidden_size, num_classes)

    def forward(self, hidden_TD: Tensor, starts_N: Tensor) -> Tensor:
        """Map [T, D] to logits [T, C]; the starts are not used."""
        hidden_TD = self.dropout(hidden_TD)
        for linear in self.hidden:
            hidden_TD = self.activation(linear(hidden_TD))
        return self.out(hidden_TD)


class SequenceHead(TokenHead):
    """Logits for each sequence: a TokenHead applied to the first token of each sequence.

    Two layers with tanh are BERT's pooler and classifier. Source: NeMo 1.x's SequenceClassifier.
    """

    is_per_sequence = True

    def forward(self, hidden_TD: Tensor, starts_N: Tensor) -> Tensor:
        """Map [T, D] and the indices of first tokens [N] to logits [N, C]."""
        # index_select sums gradients where several sequences start at one token (the empty ones of a static batch).
        return super().forward(hidden_TD.index_select(0, starts_N), starts_N)

    def load_pretrained(self, read: Callable[[str], Tensor | None]) -> None:
        """Load a pre-trained pooler as the hidden layer, if the head has the form of BERT's pooler and classifier."""
        if len(self.hidden) == 1 and isinstance(self.activation, nn.Tanh):
            pooler = {name: read(f"sentence_order.pooler.{name}") for name in ("weight", "bias")}
            copy_into(self.hidden[0], pooler)


class Projection(nn.Linear):
    """A linear layer and an activation. Source: Dense of sentence-transformers."""

    def __init__(self, hidden_size: int, num_outputs: int, activation: str) -> None:
        super().__init__(hidden_size, num_outputs)
        self.activation = nn.Identity() if activation == "identity" else _ACTIVATIONS[activation]()

    def forward(self, input: Tensor) -> Tensor:
        """Map [N, D] to [N, C]."""
        return self.activation(super().forward(input))


class EmbeddingHead(Head):
    """An embedding of each sequence instead of logits: its hidden states' mean, or that of the first or last token.

    A layer `project` may follow. With `normalize` embeddings have the 2-norm 1.
    """

    is_per_sequence = True

    def __init__(self, pooling: str = "mean", *, normalize: bool = False, project: nn.Linear | None = None) -> None:
        super().__init__()
        self.pooling = pooling
        self.normalize = normalize
        self.project = project

    def forward(self, hidden_TD: Tensor, starts_N: Tensor) -> Tensor:
        """Map [T, D] and the indices of first tokens [N] to embeddings [N, D]."""
        pooled_ND = self._pool(hidden_TD, starts_N)
        if self.project is not None:
            pooled_ND = self.project(pooled_ND)
        return torch.nn.functional.normalize(pooled_ND, dim=-1) if self.normalize else pooled_ND

    def _pool(self, hidden_TD: Tensor, starts_N: Tensor) -> Tensor:
        if self.pooling == "cls":
            return hidden_TD.index_select(0, starts_N)
        # Filled on the device, so that it can be captured; a shape, not a length, so that an export is not specialized.
        ends_N = torch.cat([starts_N[1:], starts_N.new_full((1,), hidden_TD.shape[0])])
        if self.pooling == "last":
            return hidden_TD.index_select(0, (ends_N - 1).clamp(min=0))
        # In double precision, by cumulative sums: deterministic, also on a GPU, where index_add is not. Along the last
        # dim: along the first a GPU would add one row after the other.
        sums_DT = torch.nn.functional.pad(hidden_TD.t().double(), (1, 0)).cumsum(1)
        sums_DN = sums_DT.index_select(1, ends_N) - sums_DT.index_select(1, starts_N)
        return (sums_DN / (ends_N - starts_N).clamp(min=1)).t().float()


class DualEmbeddingHead(EmbeddingHead):
    """An EmbeddingHead with an encoder of its own for passages; the model's encoder is that of queries (DPR).

    The token target `role` is 1 in passages.
    """

    uses_encoder_precision = True

    def __init__(self, config: EncoderConfig, pooling: str, *, normalize: bool) -> None:
        super().__init__(pooling, normalize=normalize)
        self.passages = Encoder(config)

    def start_from(self, encoder: Encoder) -> None:
        """Copy the weights of queries."""
        self.passages.load_state_dict(encoder.state_dict())

    def encode(
        self, queries: Encoder, ids: tuple[Tensor, Tensor, Tensor], documents: PackedSequences, role_T: Tensor
    ) -> Tensor:
        """Compute the hidden states [T, D], each sequence's by the encoder of its role."""
        parts, places = [], []
        lengths_N = documents.lengths()
        role_N = role_T.index_select(0, documents.starts())
        for encoder, is_own_N, own_T in (
            (queries, role_N != 1, (role_T != 1).nonzero()[:, 0]),
            (self.passages, role_N == 1, (role_T == 1).nonzero()[:, 0]),
        ):
            if len(own_T):
                ends_N = lengths_N[is_own_N].cumsum(0).to(torch.int32)
                own = PackedSequences(torch.nn.functional.pad(ends_N, (1, 0)), documents.max_seqlen)
                parts.append(encoder(*(item[own_T] for item in ids), own))
                places.append(own_T)
        return torch.cat(parts).index_select(0, torch.cat(places).argsort())


class StatesHead(Head):
    """The hidden states themselves, instead of logits."""

    def forward(self, hidden_TD: Tensor, starts_N: Tensor) -> Tensor:
        """Return [T, D]."""
        return hidden_TD


class JointHead(Head):
    """Several heads on the same tokens with concatenated logits, [T, C1 + C2 + ...]."""

    def __init__(self, **heads: TokenHead) -> None:
        super().__init__()
        self.heads = nn.ModuleDict(heads)

    def forward(self, hidden_TD: Tensor, starts_N: Tensor) -> Tensor:
        """Map [T, D] to logits [T, C], in the order of the heads."""
        return torch.cat([head(hidden_TD, starts_N) for head in self.heads.values()], dim=-1)


def copy_into(module: nn.Module, tensors: Mapping[str, Tensor | None]) -> None:
    """Copy tensors into a module's parameters, except where a tensor is None."""
    with torch.no_grad():
        for name, tensor in tensors.items():
            if tensor is not None:
                module.get_parameter(name).copy_(tensor)


class TaskModel(nn.Module):
    """An encoder with the head of one task: the model that is trained."""

    def __init__(self, encoder: Encoder, head: Head) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.adds_states = False
        """Whether logits are followed by the hidden states that the head reads, in training only."""
        head.tie(encoder.embeddings.word)

    def forward(
        self,
        token_ids_T: Tensor,
        position_ids_T: Tensor,
        segment_ids_T: Tensor,
        cu_seqlens_N1: Tensor,
        max_seqlen: int,
        token_targets: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Compute the head's logits for packed sequences.

        Every head takes (hidden_TD, starts_N); sequence heads read the hidden states at starts_N.
        """
        documents = PackedSequences(cu_seqlens_N1, max_seqlen)
        ids = (token_ids_T, position_ids_T, segment_ids_T)
        if isinstance(self.head, DualEmbeddingHead):
            assert token_targets is not None, "roles choose the encoder"
            hidden_TD = self.head.encode(self.encoder, ids, documents, token_targets["role"]).float()
            return self.head(hidden_TD, documents.starts())
        hidden_TD = self.encoder(*ids, documents)
        logits = self.apply_head(hidden_TD, documents.starts(), token_targets)
        if self.head.takes_targets or not (self.adds_states and self.training):
            return logits
        if not self.head.uses_encoder_precision:
            hidden_TD = hidden_TD.float()
        states = hidden_TD.index_select(0, documents.starts()) if self.head.is_per_sequence else hidden_TD
        return torch.cat([logits, states], dim=-1)

    def apply_head(
        self, hidden_TD: Tensor, starts_N: Tensor, token_targets: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """Compute the head's logits from the encoder's hidden states [T, D]."""
        if not self.head.uses_encoder_precision:
            hidden_TD = hidden_TD.float()
        if self.head.takes_targets:
            return self.head(hidden_TD, starts_N, token_targets or {})
        return self.head(hidden_TD, starts_N)
