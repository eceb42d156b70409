"""What stands on an encoder: heads for tokens, sequences and vocabulary, and the whole networks made with them.

Shape legend: T tokens, B rows, L tokens a row, N documents, D hidden, C classes, V vocabulary.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .attention import Documents
from .encoder import Encoder, initialize
from .layers import gelu
from .shape import EncoderConfig

ACTIVATIONS: Mapping[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh, "silu": nn.SiLU}


class TokenHead(nn.Module):
    """Logits for each token: dropout on the input, then an MLP of `num_layers` linear maps.

    Span extraction is the case of two classes, "a span starts here" and "a span ends here".
    Source: NeMo 1.x's TokenClassifier.
    """

    is_per_text = False

    def __init__(self, hidden_size: int, num_classes: int, *, num_layers: int, dropout: float, activation: str) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.activation = ACTIVATIONS[activation]()
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

    def start_from_pooler(self, weight: Tensor, bias: Tensor) -> None:
        """Take a pre-trained pooler as the hidden layer, if the head computes as BERT's pooler and classifier do."""
        if len(self.hidden) == 1 and isinstance(self.activation, nn.Tanh):
            linear = self.hidden[0]
            with torch.no_grad():
                linear.weight.copy_(weight)  # type: ignore[operator]
                linear.bias.copy_(bias)  # type: ignore[operator]


class JointHead(nn.Module):
    """Several heads on the same tokens: their logits side by side, [T, C1 + C2 + ...]."""

    is_per_text = False

    def __init__(self, **heads: TokenHead) -> None:
        super().__init__()
        self.heads = nn.ModuleDict(heads)

    def forward(self, hidden_TD: Tensor, starts_N: Tensor) -> Tensor:
        """Map [T, D] to logits [T, C], in the order in which the heads were given."""
        return torch.cat([head(hidden_TD, starts_N) for head in self.heads.values()], dim=-1)


class LanguageModelHead(nn.Module):
    """Logits over the vocabulary; the matrix is the word embedding, tied.

    BERT transforms first (dense, GELU, layer norm) and has a bias for each word; GPT-2 has neither.
    """

    def __init__(self, config: EncoderConfig, word: nn.Embedding) -> None:
        super().__init__()
        self.gelu = config.head_gelu
        self.dense = None if config.is_causal else nn.Linear(config.hidden_size, config.hidden_size)
        self.norm = None if config.is_causal else nn.LayerNorm(config.hidden_size, config.norm_epsilon)
        self.vocabulary = nn.Linear(config.hidden_size, config.vocabulary_size, bias=not config.is_causal)
        self.vocabulary.weight = word.weight

    def forward(self, hidden: Tensor) -> Tensor:
        """Map [..., D] to logits [..., V]."""
        if self.dense is not None and self.norm is not None:
            hidden = self.norm(gelu(self.dense(hidden), self.gelu))
        return self.vocabulary(hidden)


class SentenceOrderHead(nn.Module):
    """Two logits a document, from its first token: are its two segments in order (0) or swapped (1)?"""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.pooler = nn.Linear(hidden_size, hidden_size)
        self.out = nn.Linear(hidden_size, 2)

    def forward(self, first_ND: Tensor) -> Tensor:
        """Map the documents' first hidden vectors [N, D] to logits [N, 2]."""
        return self.out(torch.tanh(self.pooler(first_ND)))


class PretrainingModel(nn.Module):
    """The network as it is pre-trained: an encoder and the heads that its checkpoint has."""

    def __init__(self, config: EncoderConfig, *, language_model: bool = True, sentence_order: bool = False) -> None:
        super().__init__()
        self.encoder = Encoder(config)
        self.language_model = LanguageModelHead(config, self.encoder.embeddings.word) if language_model else None
        self.sentence_order = SentenceOrderHead(config.hidden_size) if sentence_order else None

    def forward(
        self, token_ids_BL: Tensor, segment_ids_BL: Tensor | None = None, documents: Documents | None = None
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
    """An encoder with the head of one task: what fine-tuning trains."""

    def __init__(self, encoder: Encoder, head: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head

    def forward(
        self,
        token_ids_T: Tensor,
        position_ids_T: Tensor,
        segment_ids_T: Tensor,
        boundaries_N1: Tensor,
        longest: int,
    ) -> Tensor:
        """Compute the head's logits for documents laid end to end; `Documents` says what the last two arguments are.

        Every head takes (hidden_TD, starts_N); heads for whole texts read the hidden vectors at starts_N. Heads
        compute in float32 also where the encoder does not: they are small, and answers are told apart by their logits.
        """
        documents = Documents(boundaries_N1, longest)
        hidden_TD = self.encoder(token_ids_T, position_ids_T, segment_ids_T, documents)
        return self.head(hidden_TD.float(), documents.starts())


def new_pretraining_model(config: EncoderConfig, seed: int, **heads: bool) -> PretrainingModel:
    """Make a network with Megatron-LM's initial weights, a function of the seed alone."""
    model = PretrainingModel(config, **heads)
    initialize(model, torch.Generator().manual_seed(seed), num_layers=config.num_layers)
    return model
