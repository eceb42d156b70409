"""Heads of pre-training: the vocabulary's (masked or next tokens) and sentence-order prediction, and their models.

Shape legend: T tokens, B rows, L tokens a row, N documents, M tokens with targets, D hidden, V vocabulary.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from .attention import PackedSequences
from .config import NUM_PREDICTIONS, EncoderConfig
from .encoder import Encoder
from .heads import Head, copy_into
from .layers import Embedding, gelu
from .vocabulary_loss import NO_TARGET, vocabulary_losses


class VocabularyLinear(nn.Linear):
    """The linear map to vocabulary logits, or to losses without storing logits; tensor parallelism replaces it."""

    def losses(self, hidden_MD: Tensor, targets_M: Tensor) -> tuple[Tensor, Tensor]:
        """Compute each token's cross-entropy [M] and whether its target has the highest logit [M]."""
        return vocabulary_losses(hidden_MD, self.weight, self.bias, targets_M)


class LanguageModelHead(nn.Module):
    """Logits over the vocabulary, with weights tied to the word embedding.

    BERT has a transform (dense, GELU, layer norm) and a bias; GPT-2 has neither.
    """

    def __init__(self, config: EncoderConfig, word: nn.Embedding) -> None:
        super().__init__()
        self.gelu = config.head_gelu
        self.dense = None if config.is_causal else nn.Linear(config.hidden_size, config.hidden_size)
        self.norm = None if config.is_causal else nn.LayerNorm(config.hidden_size, config.norm_epsilon)
        self.vocabulary = VocabularyLinear(config.hidden_size, config.vocabulary_size, bias=not config.is_causal)
        self.vocabulary.weight = word.weight

    def transform(self, hidden: Tensor) -> Tensor:
        """Apply BERT's transform to [..., D]; the identity for GPT-2."""
        if self.dense is not None and self.norm is not None:
            hidden = self.norm(gelu(self.dense(hidden), self.gelu))
        return hidden

    def forward(self, hidden: Tensor) -> Tensor:
        """Map [..., D] to logits [..., V]."""
        return self.vocabulary(self.transform(hidden))


class SentenceOrderHead(nn.Module):
    """Sentence-order prediction from each document's first token: segments in order (0) or swapped (1)."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.pooler = nn.Linear(hidden_size, hidden_size)
        self.out = nn.Linear(hidden_size, 2)

    def forward(self, first_ND: Tensor) -> Tensor:
        """Map the hidden states of first tokens [N, D] to logits [N, 2]."""
        return self.out(torch.tanh(self.pooler(first_ND)))


class PretrainingHead(Head):
    """Language-model and sentence-order losses instead of logits, which for all tokens would fill gigabytes.

    At most `target_share` of a batch's tokens, and one more for each sequence, may have targets.
    """

    uses_encoder_precision = True
    takes_targets = True

    def __init__(self, config: EncoderConfig, *, target_share: float, sentence_order: bool) -> None:
        super().__init__()
        self.target_share = target_share
        self.language_model = LanguageModelHead(config, Embedding(config.vocabulary_size, config.hidden_size))
        self.sentence_order = SentenceOrderHead(config.hidden_size) if sentence_order else None

    def tie(self, word: nn.Embedding) -> None:
        """Tie the vocabulary weights to the word embedding."""
        self.language_model.vocabulary.weight = word.weight

    def load_pretrained(self, read: Callable[[str], Tensor | None]) -> None:
        """Load the heads of a pre-trained checkpoint."""
        tied = "language_model.vocabulary.weight"
        copy_into(self, {name: read(name) for name, _ in self.named_parameters() if name != tied})

    def forward(self, hidden_TD: Tensor, starts_N: Tensor, token_targets: Mapping[str, Tensor]) -> Tensor:
        """Map [T, D] to the six columns named in config.py, float32 [T, 6].

        token_targets: `token` [T], token ids; `order` [T], set at the first token of a sequence, 1 if its segments are
        swapped. Without targets returns the most probable token ids and their probabilities, [T, 2 * NUM_PREDICTIONS].
        """
        if not token_targets:
            return self._predict(hidden_TD)
        targets_T = token_targets["token"]
        columns_T6 = hidden_TD.new_zeros((len(targets_T), 6), dtype=torch.float32)
        has_target_T = targets_T != NO_TARGET
        max_targets = min(len(targets_T), int(self.target_share * len(targets_T)) + len(starts_N))
        # Tokens with targets first, in order, up to a static number: their count is unknown without a host sync.
        indices_M = torch.sort(has_target_T.byte(), descending=True, stable=True).indices[:max_targets]
        hidden_MD = self.language_model.transform(hidden_TD.index_select(0, indices_M))
        losses_M, is_correct_M = self.language_model.vocabulary.losses(hidden_MD, targets_T[indices_M])
        token_columns_M3 = torch.stack([losses_M, has_target_T[indices_M].float(), is_correct_M.float()], dim=1).float()
        indices = [indices_M]
        values = [torch.nn.functional.pad(token_columns_M3, (0, 3))]
        if self.sentence_order is not None:
            logits_N2 = self.sentence_order(hidden_TD.index_select(0, starts_N)).float()
            order_N = token_targets["order"][starts_N]
            losses_N = torch.nn.functional.cross_entropy(logits_N2, order_N, ignore_index=NO_TARGET, reduction="none")
            order = [losses_N, (order_N != NO_TARGET).float(), (logits_N2.argmax(1) == order_N).float()]
            indices.append(starts_N)
            values.append(torch.nn.functional.pad(torch.stack(order, dim=1), (3, 0)))
        return columns_T6.index_add(0, torch.cat(indices), torch.cat(values))

    def _predict(self, hidden_TD: Tensor) -> Tensor:
        predictions = []
        # An exported network must not depend on the number of chunks.
        chunks = (hidden_TD,) if torch.compiler.is_exporting() else hidden_TD.split(1024)
        for hidden in chunks:
            top = self.language_model(hidden).float().softmax(-1).topk(NUM_PREDICTIONS)
            predictions.append(torch.cat([top.indices.float(), top.values], dim=1))
        return torch.cat(predictions)


class PretrainingModel(nn.Module):
    """A pre-trained model: an encoder and the heads of its checkpoint."""

    def __init__(self, config: EncoderConfig, *, language_model: bool = True, sentence_order: bool = False) -> None:
        super().__init__()
        self.encoder = Encoder(config)
        self.language_model = LanguageModelHead(config, self.encoder.embeddings.word) if language_model else None
        self.sentence_order = SentenceOrderHead(config.hidden_size) if sentence_order else None

    def forward(
        self, token_ids_BL: Tensor, segment_ids_BL: Tensor | None = None, documents: PackedSequences | None = None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Compute (lm_logits_BLV, order_logits_B2), None without the head; each row starts with a document."""
        hidden_BLD = self.encoder(token_ids_BL, segment_ids=segment_ids_BL, documents=documents)
        return (
            None if self.language_model is None else self.language_model(hidden_BLD),
            None if self.sentence_order is None else self.sentence_order(hidden_BLD[:, 0]),
        )
