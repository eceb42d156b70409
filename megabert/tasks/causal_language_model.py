"""Causal language model: pre-training of GPT-2's network on plain text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ..config.schema import LanguageModelSettings, OptimizerSettings
from ..data.packing import Features
from ..errors import ConfigError, InputError
from ..model.config import EncoderConfig
from ..pretraining.next_token_corpus import NextTokenCorpus, next_token_features
from ..tokenizers.wordpiece import Tokenizer
from .corpus_data import DocumentRange, Example
from .language_modeling import (
    CorpusModel,
    CorpusSettings,
    MaskPositions,
    Measured,
    Prediction,
    PretrainingSettings,
    PretrainingTask,
    pretraining_optimizer,
)

if TYPE_CHECKING:
    from ..model.heads import PretrainingHead


@dataclass
class NextTokenSettings(CorpusSettings):
    """The corpora, and how they are cut into sequences."""

    max_seq_length: int = 1024
    """Tokens of a sequence."""
    eod_mask_loss: bool = False
    """Do not predict the token that follows an end of document."""


@dataclass
class CausalLanguageModelModel(CorpusModel):
    """The network, its data and its optimizer."""

    language_model: LanguageModelSettings = field(
        default_factory=lambda: LanguageModelSettings(pretrained_model_name=None)
    )
    dataset: NextTokenSettings = field(default_factory=NextTokenSettings)
    optim: OptimizerSettings = field(default_factory=lambda: pretraining_optimizer(1.5e-4, "CosineAnnealing"))


@dataclass
class CausalLanguageModelSettings(PretrainingSettings):
    """All settings of a run."""

    model: CausalLanguageModelModel = field(default_factory=CausalLanguageModelModel)


class CausalLanguageModel(PretrainingTask):
    r"""Pre-train GPT-2's network as Megatron-LM does, or continue pre-training from a checkpoint.

        megabert corpus build TEXT -o corpus --vocab_file vocab.json --merges_file merges.txt
        megabert train causal_language_model model.dataset.data_prefix=[corpus] trainer.max_steps=100000 \
            model.tokenizer.vocab_file=vocab.json model.tokenizer.merges_file=merges.txt \
            "model.language_model.config={hidden_size: 1024, num_layers: 24, num_attention_heads: 16}"
        megabert evaluate RUN file=TEXT.txt
        megabert predict RUN text="Radium was found by Marie"

    Data: the token files of `megabert corpus build`, a document a sequence with the end-of-text token behind it; their
    format is that of Megatron-LM. `model.dataset.data_prefix` blends several and splits each into training, validation
    and test by documents; `model.train_ds.file=PREFIX` names a whole one. In each epoch the documents are concatenated
    in a new order and cut into sequences of `max_seq_length` tokens; the targets are the next tokens. The vocabulary
    is GPT-2's, `vocab.json` and `merges.txt`, or WordPiece (`vocab.txt`).

    Metrics: `lm_loss`, the mean cross-entropy of the next token, in nats; `perplexity`, its exponential; `lm_accuracy`
    per cent. A text file is evaluated document by document, a long one in sequences of `max_seq_length`;
    `word_perplexity` is per word, as separated by blanks, instead of per token. Predictions are the most likely next
    tokens.
    """

    settings_type = CausalLanguageModelSettings
    default_shape: ClassVar[Mapping[str, Any]] = {"is_causal": True, "num_segments": 0, "max_positions": 1024}

    def head(self, config: EncoderConfig) -> PretrainingHead:
        """Make a language-model head, tied to the word embedding."""
        from ..model.heads import PretrainingHead

        if not config.is_causal:
            raise ConfigError("The network is not causal (BERT). Use masked_language_model.")
        return PretrainingHead(config, target_share=1.0, sentence_order=False)

    def corpus(self, part: DocumentRange, tokenizer: Tokenizer) -> NextTokenCorpus:
        """Cut documents of token files into sequences of one length."""
        return NextTokenCorpus(
            part.tokens,
            (part.first, part.end),
            self.row_length,
            vocabulary_size=len(tokenizer),
            seed=self._seed,
            source=part.source,
            no_loss_after=self._unasked(tokenizer),
        )

    def document_features(self, examples: Sequence[Example], tokenizer: Tokenizer) -> list[Features]:
        """Cut each document, with the end-of-text token behind it, into sequences; the last may be shorter."""
        features = []
        for number, ids in enumerate(tokenizer.encode_ids([example.text for example in examples])):
            ids = np.concatenate([ids, [tokenizer.end_id]])
            for start in range(0, len(ids) - 1, self.row_length):
                sequence = next_token_features(ids[start : start + self.row_length + 1], self._unasked(tokenizer))
                features.append(replace(sequence, notes=number))
        return features

    def _unasked(self, tokenizer: Tokenizer) -> list[int]:
        return [tokenizer.end_id] if self.settings.model.dataset.eod_mask_loss else []

    def mask_features(self, examples: Sequence[Example], tokenizer: Tokenizer) -> list[Features]:
        """Tokenize strings to continue; of a long one only the end is read."""
        features = []
        for number, example in enumerate(examples):
            ids = tokenizer.encode_ids([example.text])[0][-self.row_length :]
            if not len(ids):
                raise InputError(f"{example.id or 'text'} has no token. Give some text.")
            end = len(example.text)
            notes = MaskPositions(number, ((len(ids) - 1, end, end),), tokenizer.tokens)
            features.append(Features(ids, np.zeros_like(ids), notes=notes))
        return features

    def score(self, examples: Sequence[Example], predictions: Sequence[Prediction]) -> dict[str, float]:
        """Average over all tokens; for text files also over words."""
        scores = super().score(examples, predictions)
        num_words = sum(item.num_words for item in predictions if isinstance(item, Measured))
        if num_words:
            scores["word_perplexity"] = math.exp(min(scores["lm_loss"] * scores["total"] / num_words, 700.0))
        return scores
