"""Masked language model: pre-training of BERT on plain text, and continued pre-training on the text of a domain."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..config.schema import OptimizerSettings
from ..data.packing import Features
from ..data.windows import half_overlapping_spans, max_context_masks
from ..errors import ConfigError, InputError
from ..model.config import EncoderConfig
from ..pretraining.blend import Blend
from ..pretraining.indexed_dataset import InMemoryTokens
from ..pretraining.masked_corpus import MaskedCorpus, MaskedSequenceSettings
from ..pretraining.masking import Masking
from ..pretraining.sample_mapping import build_sample_mapping
from ..tokenizers.sentences import split_sentences
from ..tokenizers.wordpiece import Tokenizer
from .corpus_data import DocumentRange, Example
from .language_modeling import (
    CorpusModel,
    CorpusSettings,
    MaskPositions,
    PretrainingSettings,
    PretrainingTask,
    pretraining_optimizer,
)

if TYPE_CHECKING:
    from ..model.pretraining_heads import PretrainingHead

MASK = "[MASK]"


@dataclass
class MaskedCorpusSettings(CorpusSettings):
    """The corpora, and the pre-training objectives; the defaults are Megatron-LM's."""

    max_seq_length: int = 512
    """Tokens of a sequence with its special tokens."""
    short_seq_prob: float = 0.1
    """Share of the sequences that are made shorter, of a random length."""
    masked_lm_prob: float = 0.15
    """Share of a sequence's tokens that are predicted (masked positions)."""
    mask_share: float = 0.8
    """Share of the masked positions that show [MASK]."""
    random_share: float = 0.1
    """Share of the masked positions that show a random token; the rest show the original one."""
    max_ngram: int = 3
    """Largest number of consecutive words that are masked together (n-gram masking); n with probability ~ 1 / n."""
    whole_word_masking: bool = True
    """Mask all word pieces of a word; false: each piece by itself."""
    sentence_order: bool = True
    """Add sentence-order prediction, whether two segments are swapped; needs a corpus that is built by sentence."""


@dataclass
class MaskedLanguageModelModel(CorpusModel):
    """The network, its data and its optimizer."""

    dataset: MaskedCorpusSettings = field(default_factory=MaskedCorpusSettings)
    optim: OptimizerSettings = field(default_factory=lambda: pretraining_optimizer(1e-4, "PolynomialDecayAnnealing"))


@dataclass
class MaskedLanguageModelSettings(PretrainingSettings):
    """All settings of a run."""

    model: MaskedLanguageModelModel = field(default_factory=MaskedLanguageModelModel)


class MaskedLanguageModel(PretrainingTask):
    r"""Pre-train BERT as Megatron-LM does, or continue pre-training from a checkpoint on the text of a domain.

        megabert vocabulary train TEXT --size 30000 -o vocab.txt
        megabert corpus build TEXT -o corpus --vocab_file vocab.txt
        megabert train masked_language_model model.dataset.data_prefix=[corpus] trainer.max_steps=100000 \
            model.language_model.pretrained_model_name=null model.tokenizer.vocab_file=vocab.txt \
            "model.language_model.config={hidden_size: 1024, num_layers: 24, num_attention_heads: 16}"
        megabert evaluate RUN file=TEXT.txt
        megabert predict RUN text="Radium was found by [MASK] Curie."

    With `model.language_model.pretrained_model_name=CHECKPOINT` pre-training continues from its weights, including its
    pre-training heads; this is how BioMegatron was trained on PubMed's text. The run is a checkpoint for every other
    task (`model.language_model.pretrained_model_name=RUN`), and `megabert convert` writes it in any format.

    Data: the token files of `megabert corpus build`, in Megatron-LM's format. `model.dataset.data_prefix` blends
    several and splits each into training, validation and test by documents; `model.train_ds.file=PREFIX` names a whole
    one. A sequence is as many consecutive sentences of a document as fit; sequences are packed without padding. Masked
    positions are resampled each epoch, as a function of seed, epoch and sequence.

    Objectives: masked language modeling with whole-word and n-gram masking (up to three words): 15 % of the tokens are
    predicted, of which 80 % are shown as [MASK], 10 % as a random token, 10 % unchanged. With
    `model.dataset.sentence_order` also sentence-order prediction: a sequence's two segments are swapped half of the
    time, and the network predicts whether they are.

    Metrics: `lm_loss`, the mean cross-entropy of the masked tokens, in nats; `perplexity`, its exponential;
    `lm_accuracy` and `order_accuracy` per cent. The masked positions of validation data are always the same.
    """

    settings_type = MaskedLanguageModelSettings

    def __init__(self, settings: MaskedLanguageModelSettings) -> None:
        """Check the shares: the settings' types allow any number."""
        super().__init__(settings)
        dataset = settings.model.dataset
        for name in ("short_seq_prob", "masked_lm_prob", "mask_share", "random_share"):
            if not 0 <= getattr(dataset, name) <= 1:
                raise ConfigError(f"model.dataset.{name}={getattr(dataset, name):g} is no share. Give 0 to 1.")
        if dataset.mask_share + dataset.random_share > 1:
            raise ConfigError("model.dataset.mask_share and random_share are more than 1 together.")
        if dataset.max_ngram < 1:
            raise ConfigError(f"model.dataset.max_ngram={dataset.max_ngram}; at least 1 is needed.")

    def head(self, config: EncoderConfig) -> PretrainingHead:
        """Make the language-model head, and the one for sentence order."""
        from ..model.pretraining_heads import PretrainingHead

        dataset = self.settings.model.dataset
        if config.is_causal:
            raise ConfigError("A causal network (GPT) cannot predict masked tokens. Use causal_language_model.")
        return PretrainingHead(config, target_share=dataset.masked_lm_prob, sentence_order=dataset.sentence_order)

    def corpus(self, part: DocumentRange, tokenizer: Tokenizer) -> MaskedCorpus:
        """Cut documents of token files into runs of sentences."""
        dataset = self.settings.model.dataset
        masking = Masking(
            masked_lm_prob=dataset.masked_lm_prob,
            max_ngram=dataset.max_ngram,
            whole_words=dataset.whole_word_masking,
            mask_share=dataset.mask_share,
            random_share=dataset.random_share,
        )
        plan = MaskedSequenceSettings(masking, dataset.sentence_order, self._seed)
        runs = build_sample_mapping(
            part.tokens,
            part.first,
            part.end,
            dataset.max_seq_length - plan.num_special,
            short_seq_prob=dataset.short_seq_prob,
            seed=self._seed,
        )
        return MaskedCorpus(part.tokens, runs, plan, tokenizer, part.source)

    def document_features(self, examples: Sequence[Example], tokenizer: Tokenizer) -> Blend:
        """Split documents into sentences, and mask each document by itself as corpora are masked."""
        corpora = []
        for example in examples:
            lines = example.text.split("\n")
            sentences = [line[start:end] for line in lines for start, end in split_sentences(line)]
            tokens = InMemoryTokens([[ids for ids in tokenizer.encode_ids(sentences) if len(ids)]])
            corpora.append(self.corpus(DocumentRange(tokens, 0, 1, example.id), tokenizer))
        return Blend(corpora, None, self._seed)

    def mask_features(self, examples: Sequence[Example], tokenizer: Tokenizer) -> list[Features]:
        """Tokenize strings with [MASK] in them, long ones in overlapping windows."""
        features = []
        for number, example in enumerate(examples):
            masks = [match.span() for match in re.finditer(re.escape(MASK), example.text)]
            if not masks:
                raise InputError(f"{example.id or 'text'} has no {MASK}. Write one in place of a token to predict.")
            ids, positions = _encode_with_masks(example.text, masks, tokenizer)
            spans = half_overlapping_spans(len(ids), self.row_length - 2)
            for (start, end), has_max_context in zip(spans, max_context_masks(len(ids), spans), strict=True):
                shown = tuple(
                    (position - start + 1, *mask)
                    for position, mask in zip(positions, masks, strict=True)
                    if start <= position < end and has_max_context[position - start]
                )
                token_ids = np.concatenate([[tokenizer.cls_id], ids[start:end], [tokenizer.sep_id]])
                notes = MaskPositions(number, shown, tokenizer.tokens)
                features.append(Features(token_ids, np.zeros_like(token_ids), notes=notes))
        return features


def _encode_with_masks(
    text: str, masks: Sequence[tuple[int, int]], tokenizer: Tokenizer
) -> tuple[NDArray[np.int64], list[int]]:
    """Tokenize the strings between the masks; returns all ids and the positions of the masks among them."""
    bounds = [0, *(bound for mask in masks for bound in mask), len(text)]
    pieces = tokenizer.encode_ids([text[bounds[at] : bounds[at + 1]] for at in range(0, len(bounds), 2)])
    parts, positions, length = [pieces[0]], [], len(pieces[0])
    for piece in pieces[1:]:
        positions.append(length)
        parts += [np.array([tokenizer.mask_id]), piece]
        length += 1 + len(piece)
    return np.concatenate(parts), positions
