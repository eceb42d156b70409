"""Causal language model: pre-training of GPT-2's network on plain text."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ..config.schema import LanguageModelSettings, OptimizerSettings, choice
from ..data.packing import NO_TARGET, Features
from ..errors import ConfigError, InputError
from ..formats.data_files import data_suffix
from ..formats.text_lines import read_text
from ..model.config import EncoderConfig
from ..pretraining.next_token_corpus import NextTokenCorpus, next_token_features
from ..tokenizers.wordpiece import Tokenizer
from .corpus_data import Corpora, DocumentRange, Example
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
    from ..model.pretraining_heads import PretrainingHead


@dataclass
class NextTokenSettings(CorpusSettings):
    """The corpora, and how they are cut into sequences."""

    max_seq_length: int = 1024
    """Tokens of a sequence."""
    eod_mask_loss: bool = False
    """Do not predict the token that follows an end of document."""
    overlapping_eval: int = 0
    """WikiText-103: sequences of a text file begin this many tokens apart, and count their last ones; 0: no overlap."""
    detokenizer: str = choice("none", "none", "wikitext")
    """Undo WikiText's tokenization of evaluated text files, as Megatron-LM does; words are counted before."""
    cloze: str = choice("none", "none", "loose", "strict")
    """LAMBADA: predict only the last token (loose) or word (strict) of each evaluated text."""


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
        megabert generate RUN prompt="Radium was found by Marie" temperature=0.8 top_p=0.9
        megabert evaluate RUN file=TEXT.txt model.dataset.overlapping_eval=32 model.dataset.detokenizer=wikitext

    Data: the token files of `megabert corpus build`, a document a sequence with the end-of-text token behind it; their
    format is that of Megatron-LM. `model.dataset.data_prefix` blends several and splits each into training, validation
    and test by documents; `model.train_ds.file=PREFIX` names a whole one. In each epoch the documents are concatenated
    in a new order and cut into sequences of `max_seq_length` tokens; the targets are the next tokens. The vocabulary
    is GPT-2's, `vocab.json` and `merges.txt`, or WordPiece (`vocab.txt`).

    Metrics: `lm_loss`, the mean cross-entropy of the next token, in nats; `perplexity`, its exponential; `lm_accuracy`
    per cent. A text file is evaluated document by document, a long one in sequences of `max_seq_length`;
    `word_perplexity` is per word, as separated by blanks, instead of per token. `model.dataset.overlapping_eval`
    evaluates as Megatron-LM's zero-shot WikiText-103, `model.dataset.cloze` as its LAMBADA (`cloze_accuracy`).
    Predictions are the most likely next tokens; `megabert generate` continues a text.
    """

    settings_type = CausalLanguageModelSettings
    default_shape: ClassVar[Mapping[str, Any]] = {"is_causal": True, "num_segments": 0, "max_positions": 1024}

    def head(self, config: EncoderConfig) -> PretrainingHead:
        """Make a language-model head, tied to the word embedding."""
        from ..model.pretraining_heads import PretrainingHead

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

    def read(self, path: Path) -> Sequence[Example]:
        """Read token files or documents; with overlapping sequences or a detokenizer a text file is one document."""
        examples = super().read(path)
        dataset = self.settings.model.dataset
        if isinstance(examples, Corpora):
            return examples
        if (dataset.overlapping_eval or dataset.detokenizer != "none") and data_suffix(path) == ".txt":
            examples = [Example("1", read_text(path))]
        return examples

    def document_features(self, examples: Sequence[Example], tokenizer: Tokenizer) -> list[Features]:
        """Cut each document into sequences; the last may be shorter."""
        dataset, features = self.settings.model.dataset, []
        texts = [example.text for example in examples]
        if dataset.detokenizer == "wikitext":
            texts = [wikitext_detokenized(text) for text in texts]
        if dataset.cloze != "none":
            return self._cloze_features(texts, tokenizer)
        stride = dataset.overlapping_eval or self.row_length
        if stride > self.row_length:
            raise ConfigError(f"model.dataset.overlapping_eval={stride} is more than max_seq_length={self.row_length}.")
        for number, ids in enumerate(tokenizer.encode_ids(texts)):
            if not dataset.overlapping_eval:
                ids = np.concatenate([ids, [tokenizer.end_id]])  # predicted, too; Megatron-LM's evaluation has none
            # As Megatron-LM, which reads ceil(max(targets - stride, 0) / stride) + 1 sequences
            num_targets = len(ids) - 1
            count = max(-(-max(num_targets - stride, 0) // stride) + 1, 1) if num_targets > 0 else 0
            for start in range(0, count * stride, stride):
                sequence = next_token_features(ids[start : start + self.row_length + 1], self._unasked(tokenizer))
                if start and stride < self.row_length:
                    sequence = _without_targets(sequence, self.row_length - stride)
                if sequence.weight:
                    features.append(replace(sequence, notes=number))
        return features

    def count_words(self, text: str) -> int:
        """Count words; with overlapping sequences as Megatron-LM does: between blanks, the first one left out."""
        if self.settings.model.dataset.overlapping_eval:
            return max(len(text.strip().split(" ")) - 1, 1)
        return super().count_words(text)

    def _cloze_features(self, texts: Sequence[str], tokenizer: Tokenizer) -> list[Features]:
        """Ask for the last token or word of each text only; of a long text the end is read."""
        is_strict, features = self.settings.model.dataset.cloze == "strict", []
        for number, text in enumerate(texts):
            words = text.split()
            start = text.rfind(words[-1]) if words and is_strict else len(text)
            context, last = tokenizer.encode_ids([text[:start].strip(), f" {words[-1]}" if words and is_strict else ""])
            ids = np.concatenate([context, last])
            num_asked = len(last) if is_strict else 1
            if len(ids) <= num_asked:
                raise InputError(f"text {number + 1} ({text[:40]!r}) has nothing before its end. Give longer texts.")
            sequence = next_token_features(ids[-(self.row_length + 1) :])
            features.append(replace(_without_targets(sequence, len(sequence.token_ids) - num_asked), notes=number))
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
        if self.settings.model.dataset.cloze != "none":
            measured = [item for item in predictions if isinstance(item, Measured)]
            is_right = [item.num_right == item.num_asked for item in measured]
            return {"cloze_accuracy": 100 * sum(is_right) / len(is_right), "total": float(len(is_right))}
        return scores


def _without_targets(sequence: Features, count: int) -> Features:
    """Remove the targets of the first tokens."""
    targets = sequence.token_targets["token"].copy()
    targets[:count] = NO_TARGET
    return replace(sequence, token_targets={"token": targets}, weight=float((targets != NO_TARGET).sum()))


# Literal replacements of WikiText's tokenization, in their order, then pairs of brackets and quotation marks.
# Source: wikitext_detokenizer in Megatron-LM's tasks/zeroshot_gpt/detokenizer.py.
NUMBER_MARKS = ((" @-@ ", "-"), (" @,@ ", ","), (" @.@ ", "."))
PUNCTUATION = tuple((f" {mark} ", f"{mark} ") for mark in ":;.!?,")
PAIRS = (
    (r"\(\s*([^\)]*?)\s*\)", r"(\1)"),
    (r"\[\s*([^\]]*?)\s*\]", r"[\1]"),
    (r"{\s*([^}]*?)\s*}", r"{\1}"),
    (r"\"\s*([^\"]*?)\s*\"", r'"\1"'),
    (r"'\s*([^']*?)\s*'", r"'\1'"),
)
HEADINGS = (("= = = =", "===="), ("= = =", "==="), ("= =", "=="))
REST = ((" \N{DEGREE SIGN} ", "\N{DEGREE SIGN}"), (" \n", "\n"), ("\n ", "\n"), (" N ", " 1 "), (" 's", "'s"))


def wikitext_detokenized(text: str) -> str:
    """Undo the tokenization of WikiText, as Megatron-LM's zero-shot evaluation does."""
    text = text.replace("s '", "s'")
    text = re.sub(r"/' [0-9]/", r"/'[0-9]/", text)
    for old, new in (*NUMBER_MARKS, *PUNCTUATION):
        text = text.replace(old, new)
    for pattern, replacement in PAIRS:
        text = re.sub(pattern, replacement, text)
    for old, new in (*HEADINGS, *REST):
        text = text.replace(old, new)
    return text
