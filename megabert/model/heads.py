"""What stands on an encoder: heads for tokens, sequences and vocabulary, and the whole networks made with them.

Shape legend: T tokens, B rows, L tokens a row, N documents, D hidden, C classes, V vocabulary.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from .attention import PackedSequences
from .config import ACTIVATIONS, NUM_GUESSES, EncoderConfig
from .encoder import Encoder, initialize
from .layers import gelu
from .vocabulary_loss import NO_TARGET, vocabulary_losses

_ACTIVATIONS: Mapping[str, type[nn.Module]] = dict(zip(ACTIVATIONS, (nn.ReLU, nn.GELU, nn.Tanh, nn.SiLU), strict=True))


class Head(nn.Module):
    """What a task puts on an encoder: hidden vectors of tokens laid end to end to its logits."""

    is_per_text = False
    """Whether logits are those of texts, [N, C], or of tokens, [T, C]."""
    is_large = False
    """Compute in the encoder's precision. Other heads stay float32: answers are told apart by their logits."""
    takes_targets = False
    """Whether `forward` takes the batch's token targets as a third argument: what nobody asks for is not computed."""

    def tie(self, word: nn.Embedding) -> None:
        """Share the encoder's word embedding, where the head uses it."""

    def load_pretrained(self, read: Callable[[str], Tensor | None]) -> None:
        """Take pre-trained weights as the start; `read` gives a checkpoint's tensor by its name, where it has it."""


class TokenHead(Head):
    """Logits for each token: dropout on the input, then an MLP of `num_layers` linear maps.

    Span extraction is the case of two classes, "a span starts here" and "a span ends here".
    Source: NeMo 1.x's TokenClassifier.
    """

    def __init__(self, hidden_size: int, num_classes: int, *, num_layers: int, dropout: float, activation: str) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.activation = _ACTIVATIONS[activation]()
        self.hidden = nn.ModuleList(nn.Linear(hidden_size, hidden_size) for _ in range(num_layers - 1))
        self.out = nn.Linear(hidden_size, num_classes)

    def forward(self, hidden_TD: Tensor, starts_N: Tensor) -> Tensor:
        """Map [T, D] to logits [T, C]; where documents start is of no matter to a token."""
        hidden_TD = self.dropout(hidden_TD)
        for linear in self.hidden:
            hidden_TD = self.activation(linear(hidden_TD))
        return self.out(hidden_TD)


class SequenceHead(TokenHead):
    """Logits for each text: a TokenHead that reads nothing but the texts' first tokens.

    With two maps and tanh between them it is BERT's pooler and classifier. Source: NeMo 1.x's SequenceClassifier.
    """

    is_per_text = True

    def forward(self, hidden_TD: Tensor, starts_N: Tensor) -> Tensor:
        """Map [T, D] and the places of first tokens [N] to logits [N, C]."""
        # index_select: where several texts start at one place (those that fill a batch up), its gradient is a sum.
        return super().forward(hidden_TD.index_select(0, starts_N), starts_N)

    def load_pretrained(self, read: Callable[[str], Tensor | None]) -> None:
        """Take a pre-trained pooler as the hidden layer, if the head computes as BERT's pooler and classifier do."""
        if len(self.hidden) == 1 and isinstance(self.activation, nn.Tanh):
            pooler = {name: read(f"sentence_order.pooler.{name}") for name in ("weight", "bias")}
            _take(self.hidden[0], pooler)


class JointHead(Head):
    """Several heads on the same tokens: their logits side by side, [T, C1 + C2 + ...]."""

    def __init__(self, **heads: TokenHead) -> None:
        super().__init__()
        self.heads = nn.ModuleDict(heads)

    def forward(self, hidden_TD: Tensor, starts_N: Tensor) -> Tensor:
        """Map [T, D] to logits [T, C], in the order in which the heads were given."""
        return torch.cat([head(hidden_TD, starts_N) for head in self.heads.values()], dim=-1)


class VocabularyLinear(nn.Linear):
    """The map to the vocabulary: as logits, or as losses without keeping any. Processes may each have a part of it."""

    def losses(self, hidden_MD: Tensor, targets_M: Tensor) -> tuple[Tensor, Tensor]:
        """Compute each token's cross-entropy [M] and whether its target is the likeliest [M]: vocabulary_losses."""
        return vocabulary_losses(hidden_MD, self.weight, self.bias, targets_M)


class LanguageModelHead(nn.Module):
    """Logits over the vocabulary; the matrix is the word embedding, tied.

    BERT transforms first (dense, GELU, layer norm) and has a bias for each word; GPT-2 has neither.
    """

    def __init__(self, config: EncoderConfig, word: nn.Embedding) -> None:
        super().__init__()
        self.gelu = config.head_gelu
        self.dense = None if config.is_causal else nn.Linear(config.hidden_size, config.hidden_size)
        self.norm = None if config.is_causal else nn.LayerNorm(config.hidden_size, config.norm_epsilon)
        self.vocabulary = VocabularyLinear(config.hidden_size, config.vocabulary_size, bias=not config.is_causal)
        self.vocabulary.weight = word.weight

    def transform(self, hidden: Tensor) -> Tensor:
        """Map [..., D] to what the matrix is applied to, [..., D]."""
        if self.dense is not None and self.norm is not None:
            hidden = self.norm(gelu(self.dense(hidden), self.gelu))
        return hidden

    def forward(self, hidden: Tensor) -> Tensor:
        """Map [..., D] to logits [..., V]."""
        return self.vocabulary(self.transform(hidden))


class SentenceOrderHead(nn.Module):
    """Two logits a document, from its first token: are its two segments in order (0) or swapped (1)?"""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.pooler = nn.Linear(hidden_size, hidden_size)
        self.out = nn.Linear(hidden_size, 2)

    def forward(self, first_ND: Tensor) -> Tensor:
        """Map the documents' first hidden vectors [N, D] to logits [N, 2]."""
        return self.out(torch.tanh(self.pooler(first_ND)))


class PretrainingHead(Head):
    """Losses instead of logits: a vocabulary's logits for all tokens would fill gigabytes.

    At most `asked_share` of a batch's tokens, and one more a text, are asked for.
    """

    is_large = True
    takes_targets = True

    def __init__(self, config: EncoderConfig, *, asked_share: float, sentence_order: bool) -> None:
        super().__init__()
        self.asked_share = asked_share
        self.language_model = LanguageModelHead(config, nn.Embedding(config.vocabulary_size, config.hidden_size))
        self.sentence_order = SentenceOrderHead(config.hidden_size) if sentence_order else None

    def tie(self, word: nn.Embedding) -> None:
        """Make the word embedding the matrix to the vocabulary."""
        self.language_model.vocabulary.weight = word.weight

    def load_pretrained(self, read: Callable[[str], Tensor | None]) -> None:
        """Take the heads with which a checkpoint was pre-trained."""
        tied = "language_model.vocabulary.weight"
        _take(self, {name: read(name) for name, _ in self.named_parameters() if name != tied})

    def forward(self, hidden_TD: Tensor, starts_N: Tensor, token_targets: Mapping[str, Tensor]) -> Tensor:
        """Map [T, D] to the six columns named in config.py, float32 [T, 6].

        token_targets: `token` [T], what stands there; `order` [T], at a text's first token, 1 where its segments are
        swapped. Without them the likeliest tokens of each place and their probabilities, [T, 2 * NUM_GUESSES].
        """
        if not token_targets:
            return self._guess(hidden_TD)
        targets_T = token_targets["token"]
        columns_T6 = hidden_TD.new_zeros((len(targets_T), 6), dtype=torch.float32)
        is_asked_T = targets_T != NO_TARGET
        room = min(len(targets_T), int(self.asked_share * len(targets_T)) + len(starts_N))
        # Those asked for come first, in their order; their number is not known without asking the device.
        places_M = torch.sort(is_asked_T.byte(), descending=True, stable=True).indices[:room]
        hidden_MD = self.language_model.transform(hidden_TD.index_select(0, places_M))
        losses_M, is_right_M = self.language_model.vocabulary.losses(hidden_MD, targets_T[places_M])
        found_M3 = torch.stack([losses_M, is_asked_T[places_M].float(), is_right_M.float()], dim=1).float()
        places = [places_M]
        found = [torch.nn.functional.pad(found_M3, (0, 3))]
        if self.sentence_order is not None:
            logits_N2 = self.sentence_order(hidden_TD.index_select(0, starts_N)).float()
            order_N = token_targets["order"][starts_N]
            losses_N = torch.nn.functional.cross_entropy(logits_N2, order_N, ignore_index=NO_TARGET, reduction="none")
            order = [losses_N, (order_N != NO_TARGET).float(), (logits_N2.argmax(1) == order_N).float()]
            places.append(starts_N)
            found.append(torch.nn.functional.pad(torch.stack(order, dim=1), (3, 0)))
        return columns_T6.index_add(0, torch.cat(places), torch.cat(found))

    def _guess(self, hidden_TD: Tensor) -> Tensor:
        guesses = []
        for hidden in hidden_TD.split(1024):
            likeliest = self.language_model(hidden).float().softmax(-1).topk(NUM_GUESSES)
            guesses.append(torch.cat([likeliest.indices.float(), likeliest.values], dim=1))
        return torch.cat(guesses)


def _take(module: nn.Module, tensors: Mapping[str, Tensor | None]) -> None:
    """Copy tensors into a module's parameters; those that are not there leave them as they are."""
    with torch.no_grad():
        for name, tensor in tensors.items():
            if tensor is not None:
                module.get_parameter(name).copy_(tensor)


class PretrainingModel(nn.Module):
    """The network as it is pre-trained: an encoder and the heads that its checkpoint has."""

    def __init__(self, config: EncoderConfig, *, language_model: bool = True, sentence_order: bool = False) -> None:
        super().__init__()
        self.encoder = Encoder(config)
        self.language_model = LanguageModelHead(config, self.encoder.embeddings.word) if language_model else None
        self.sentence_order = SentenceOrderHead(config.hidden_size) if sentence_order else None

    def forward(
        self, token_ids_BL: Tensor, segment_ids_BL: Tensor | None = None, documents: PackedSequences | None = None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Compute (lm_logits_BLV, order_logits_B2) for rows that each begin with one document's first token.

        None where there is no head.
        """
        hidden_BLD = self.encoder(token_ids_BL, segment_ids=segment_ids_BL, documents=documents)
        return (
            None if self.language_model is None else self.language_model(hidden_BLD),
            None if self.sentence_order is None else self.sentence_order(hidden_BLD[:, 0]),
        )


class TaskModel(nn.Module):
    """An encoder with the head of one task: what is trained."""

    def __init__(self, encoder: Encoder, head: Head) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head
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
        """Compute the head's logits for documents laid end to end, which boundaries and longest tell `PackedSequences`.

        Every head takes (hidden_TD, starts_N); heads for whole texts read the hidden vectors at starts_N.
        """
        documents = PackedSequences(cu_seqlens_N1, max_seqlen)
        hidden_TD = self.encoder(token_ids_T, position_ids_T, segment_ids_T, documents)
        if not self.head.is_large:
            hidden_TD = hidden_TD.float()
        if self.head.takes_targets:
            return self.head(hidden_TD, documents.starts(), token_targets or {})
        return self.head(hidden_TD, documents.starts())


def new_pretraining_model(config: EncoderConfig, seed: int, **heads: bool) -> PretrainingModel:
    """Make a network with Megatron-LM's initial weights, a function of the seed alone."""
    model = PretrainingModel(config, **heads)
    initialize(model, torch.Generator().manual_seed(seed), num_layers=config.num_layers)
    return model
