"""Causal language model: pre-training of GPT-2's network on plain text."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from ..config.schema import LanguageModelSettings, ModelSettings, OptimizerSettings, Settings, TrainerSettings
from ..data.packing import Features
from ..errors import ConfigError, InputError
from ..model.config import EncoderConfig
from ..model.heads import PretrainingHead
from ..pretraining.next_token_corpus import NextTokenCorpus, next_token_features
from ..tokenizers.wordpiece import Tokenizer
from .language_modeling import (
    Asked,
    CorpusSettings,
    CorpusTrainSettings,
    Example,
    Measured,
    MeasuredSettings,
    Part,
    Prediction,
    PretrainingTask,
    long_training,
    test_settings,
)
from .task import require_length


@dataclass
class NextTokenSettings(CorpusSettings):
    """The corpora, and how they are cut."""

    max_seq_length: int = 1024
    """Tokens of a text."""
    eod_mask_loss: bool = False
    """Do not ask for the token that follows an end of document."""


@dataclass
class CausalLanguageModelModel(ModelSettings):
    """The network, its data and its optimizer."""

    language_model: LanguageModelSettings = field(
        default_factory=lambda: LanguageModelSettings(pretrained_model_name=None)
    )
    dataset: NextTokenSettings = field(default_factory=NextTokenSettings)
    train_ds: CorpusTrainSettings = field(default_factory=CorpusTrainSettings)
    validation_ds: MeasuredSettings = field(default_factory=MeasuredSettings)
    test_ds: MeasuredSettings = field(default_factory=test_settings)
    optim: OptimizerSettings = field(default_factory=lambda: long_training(1.5e-4, "CosineAnnealing"))


@dataclass
class CausalLanguageModelSettings(Settings):
    """All settings of a run."""

    trainer: TrainerSettings = field(default_factory=lambda: TrainerSettings(max_epochs=1, gradient_clip_val=1.0))
    model: CausalLanguageModelModel = field(default_factory=CausalLanguageModelModel)


class CausalLanguageModel(PretrainingTask):
    r"""Pre-train GPT-2's network as Megatron-LM does, or go on with a checkpoint.

        megabert corpus build TEXT -o corpus --vocab_file vocab.json --merges_file merges.txt
        megabert train causal_language_model model.dataset.data_prefix=[corpus] trainer.max_steps=100000 \
            model.tokenizer.vocab_file=vocab.json model.tokenizer.merges_file=merges.txt \
            "model.language_model.config={hidden_size: 1024, num_layers: 24, num_attention_heads: 16}"
        megabert evaluate RUN file=TEXT.txt
        megabert predict RUN text="Radium was found by Marie"

    Data: the token files of `megabert corpus build`, a document a sequence with the end-of-text token behind it, which
    are Megatron-LM's. `model.dataset.data_prefix` blends several and cuts each into training, validation and test by
    documents; `model.train_ds.file=PREFIX` names a whole one. In each epoch the documents are laid end to end in a new
    order and cut into texts of `max_seq_length` tokens, whose targets are the tokens moved by one. A WordPiece
    vocabulary (`vocab.txt`) serves as well as GPT-2's `vocab.json` and `merges.txt`.

    Scores: `lm_loss`, the mean cross-entropy of the next token, in nats; `perplexity`, its exponential; `lm_accuracy`
    per cent. A text file is measured document by document, a long one in texts of `max_seq_length`; `word_perplexity`
    counts its words, as they stand between blanks, instead of its tokens. Prediction gives the likeliest next tokens.
    """

    settings_type = CausalLanguageModelSettings
    default_shape: ClassVar[Mapping[str, Any]] = {"is_causal": True, "num_segments": 0, "max_positions": 1024}

    def __init__(self, settings: Any) -> None:
        """Check the length."""
        super().__init__(settings)
        require_length(settings.model.dataset.max_seq_length)

    def head(self, config: EncoderConfig) -> PretrainingHead:
        """Make the head that has the word embedding for its matrix."""
        if not config.is_causal:
            raise ConfigError("The network sees what comes next (BERT). Use masked_language_model.")
        return PretrainingHead(config, target_share=1.0, sentence_order=False)

    def corpus(self, part: Part, tokenizer: Tokenizer) -> NextTokenCorpus:
        """Cut a part of a corpus into texts of one length."""
        return NextTokenCorpus(
            part.tokens,
            (part.first, part.end),
            self.row_length,
            vocabulary_size=len(tokenizer),
            seed=self._seed(),
            source=part.source,
            no_loss_after=self._unasked(tokenizer),
        )

    def documents(self, examples: Sequence[Example], tokenizer: Tokenizer) -> list[Features]:
        """Cut each document, with the end-of-text token behind it, into texts; the last may be shorter."""
        encoded = tokenizer.encode_ids([example.text for example in examples])
        found = []
        for number, ids in enumerate(encoded):
            ids = np.concatenate([ids, [tokenizer.end_id]])
            for start in range(0, len(ids) - 1, self.row_length):
                item = next_token_features(ids[start : start + self.row_length + 1], self._unasked(tokenizer))
                found.append(replace(item, notes=number))
        return found

    def _unasked(self, tokenizer: Tokenizer) -> list[int]:
        return [tokenizer.end_id] if self.settings.model.dataset.eod_mask_loss else []

    def score(self, examples: Sequence[Example], predictions: Sequence[Prediction]) -> dict[str, float]:
        """Average over all tokens; for texts also over their words."""
        scores = super().score(examples, predictions)
        num_words = sum(item.num_words for item in predictions if isinstance(item, Measured))
        if num_words:
            scores["word_perplexity"] = math.exp(min(scores["lm_loss"] * scores["total"] / num_words, 700.0))
        return scores

    def questions(self, examples: Sequence[Example], tokenizer: Tokenizer) -> list[Features]:
        """Tokenize texts to go on with; of a long one the end is read."""
        found = []
        for number, example in enumerate(examples):
            ids = tokenizer.encode_ids([example.text])[0][-self.row_length :]
            if not len(ids):
                raise InputError(f"{example.id or 'text'}: there is no token in it. Give some text.")
            end = len(example.text)
            notes = Asked(number, ((len(ids) - 1, end, end),), tokenizer.tokens)
            found.append(Features(ids, np.zeros_like(ids), notes=notes))
        return found
