"""Masked language model: pre-training of BERT on plain text, and its continuation on the text of a domain."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..config.schema import ModelSettings, OptimizerSettings, Settings, TrainerSettings
from ..data.packing import Features
from ..data.windows import best_contexts, best_window_spans
from ..errors import ConfigError, InputError
from ..model.config import EncoderConfig
from ..model.heads import PretrainingHead
from ..pretraining.blend import Blend
from ..pretraining.indexed_dataset import InMemoryTokens
from ..pretraining.masked_corpus import MaskedCorpus, MaskedSequenceSettings
from ..pretraining.masking import Masking
from ..pretraining.sample_mapping import build_sample_mapping
from ..tokenizers.sentences import split_sentences
from ..tokenizers.wordpiece import Tokenizer
from .language_modeling import (
    Asked,
    CorpusSettings,
    CorpusTrainSettings,
    Example,
    MeasuredSettings,
    Part,
    PretrainingTask,
    long_training,
    spans_of,
    test_settings,
)
from .task import require_length

MASK = "[MASK]"


@dataclass
class MaskedTextSettings(CorpusSettings):
    """The corpora, and what is asked for in their texts; the defaults are Megatron-LM's."""

    max_seq_length: int = 512
    """Tokens of a text with its special tokens."""
    short_seq_prob: float = 0.1
    """Share of the texts that are made shorter, of a random length."""
    masked_lm_prob: float = 0.15
    """Share of a text's tokens that are asked for."""
    mask_share: float = 0.8
    """Of those, the share that is shown as [MASK]."""
    random_share: float = 0.1
    """Of those, the share that is shown as a random token; the rest is shown as it is."""
    max_ngram: int = 3
    """Words that are asked for together, at most; n of them with a probability that falls as 1 / n."""
    whole_word_masking: bool = True
    """Ask for all pieces of a word; false: for each piece by itself."""
    sentence_order: bool = True
    """Also ask whether a text's two segments are in their order; needs a corpus that is built by sentence."""


@dataclass
class MaskedLanguageModelModel(ModelSettings):
    """The network, its data and its optimizer."""

    dataset: MaskedTextSettings = field(default_factory=MaskedTextSettings)
    train_ds: CorpusTrainSettings = field(default_factory=CorpusTrainSettings)
    validation_ds: MeasuredSettings = field(default_factory=MeasuredSettings)
    test_ds: MeasuredSettings = field(default_factory=test_settings)
    optim: OptimizerSettings = field(default_factory=lambda: long_training(1e-4, "PolynomialDecayAnnealing"))


@dataclass
class MaskedLanguageModelSettings(Settings):
    """All settings of a run."""

    trainer: TrainerSettings = field(default_factory=lambda: TrainerSettings(max_epochs=1, gradient_clip_val=1.0))
    model: MaskedLanguageModelModel = field(default_factory=MaskedLanguageModelModel)


class MaskedLanguageModel(PretrainingTask):
    r"""Pre-train BERT as Megatron-LM does, or go on with a checkpoint on the text of a domain.

        megabert vocabulary train TEXT --size 30000 -o vocab.txt
        megabert corpus build TEXT -o corpus --vocab_file vocab.txt
        megabert train masked_language_model model.dataset.data_prefix=[corpus] trainer.max_steps=100000 \
            model.language_model.pretrained_model_name=null model.tokenizer.vocab_file=vocab.txt \
            "model.language_model.config={hidden_size: 1024, num_layers: 24, num_attention_heads: 16}"
        megabert evaluate RUN file=TEXT.txt
        megabert predict RUN text="Radium was found by [MASK] Curie."

    With `model.language_model.pretrained_model_name=CHECKPOINT` training goes on from its weights, the heads with which
    it was pre-trained included: this is how BioMegatron came from PubMed's text. The run is a checkpoint for every
    other task (`model.language_model.pretrained_model_name=RUN`), and `megabert convert` writes it in any format.

    Data: the token files of `megabert corpus build`, which are Megatron-LM's. `model.dataset.data_prefix` blends
    several and cuts each into training, validation and test by documents; `model.train_ds.file=PREFIX` names a whole
    one. A text is a run of a document's sentences, as many as fit; texts are laid end to end, so short documents cost
    no padding. What is masked is drawn anew in each epoch, a function of seed, epoch and text.

    Objectives: whole words and runs of up to three words are asked for, 15 % of the tokens, of which 80 % are shown as
    [MASK], 10 % as a random token, 10 % as they are. With `model.dataset.sentence_order` a text's two segments are
    swapped half of the time and the network says whether they are.

    Scores: `lm_loss`, the mean cross-entropy of the tokens that are asked for, in nats; `perplexity`, its exponential;
    `lm_accuracy` and `order_accuracy` per cent. Masks of validation texts are always the same.
    """

    settings_type = MaskedLanguageModelSettings

    def __init__(self, settings: Any) -> None:
        """Check the shares, which the command line gives as plain numbers."""
        super().__init__(settings)
        dataset = settings.model.dataset
        require_length(dataset.max_seq_length)
        for name in ("short_seq_prob", "masked_lm_prob", "mask_share", "random_share"):
            if not 0 <= getattr(dataset, name) <= 1:
                raise ConfigError(f"model.dataset.{name}={getattr(dataset, name):g} is no share. Give 0 to 1.")
        if dataset.mask_share + dataset.random_share > 1:
            raise ConfigError("model.dataset.mask_share and random_share are more than 1 together.")
        if dataset.max_ngram < 1:
            raise ConfigError(f"model.dataset.max_ngram={dataset.max_ngram}; at least 1 is needed.")

    def head(self, config: EncoderConfig) -> PretrainingHead:
        """Make the language-model head, and the one for the order of segments."""
        dataset = self.settings.model.dataset
        if config.is_causal:
            raise ConfigError("A causal network (GPT) cannot guess masked tokens. Use causal_language_model.")
        return PretrainingHead(config, target_share=dataset.masked_lm_prob, sentence_order=dataset.sentence_order)

    def corpus(self, part: Part, tokenizer: Tokenizer) -> MaskedCorpus:
        """Cut a part of a corpus into runs of sentences."""
        dataset = self.settings.model.dataset
        masking = Masking(
            masked_lm_prob=dataset.masked_lm_prob,
            max_ngram=dataset.max_ngram,
            whole_words=dataset.whole_word_masking,
            mask_share=dataset.mask_share,
            random_share=dataset.random_share,
        )
        plan = MaskedSequenceSettings(masking, dataset.sentence_order, self._seed())
        runs = build_sample_mapping(
            part.tokens,
            part.first,
            part.end,
            dataset.max_seq_length - plan.num_special,
            short_seq_prob=dataset.short_seq_prob,
            seed=self._seed(),
        )
        return MaskedCorpus(part.tokens, runs, plan, tokenizer, part.source)

    def documents(self, examples: Sequence[Example], tokenizer: Tokenizer) -> Blend:
        """Cut documents into sentences and ask as in corpora, of each document by itself."""
        corpora = []
        for example in examples:
            lines = example.text.split("\n")
            sentences = [line[start:end] for line in lines for start, end in split_sentences(line)]
            tokens = InMemoryTokens([[ids for ids in tokenizer.encode_ids(sentences) if len(ids)]])
            corpora.append(self.corpus(Part(tokens, 0, 1, example.id), tokenizer))
        return Blend(corpora, None, self._seed())

    def questions(self, examples: Sequence[Example], tokenizer: Tokenizer) -> list[Features]:
        """Tokenize texts with [MASK] in them, long ones in windows that overlap."""
        found = []
        for number, example in enumerate(examples):
            masks = spans_of(example.text, MASK)
            if not masks:
                raise InputError(
                    f"{example.id or 'text'}: there is no {MASK} in it. Write one where a token is asked for."
                )
            ids, places = _tokens_between(example.text, masks, tokenizer)
            spans = best_window_spans(len(ids), self.row_length - 2)
            for (start, end), is_best in zip(spans, best_contexts(len(ids), spans), strict=True):
                asked = tuple(
                    (place - start + 1, *mask)
                    for place, mask in zip(places, masks, strict=True)
                    if start <= place < end and is_best[place - start]
                )
                token_ids = np.concatenate([[tokenizer.cls_id], ids[start:end], [tokenizer.sep_id]])
                notes = Asked(number, asked, tokenizer.tokens)
                found.append(Features(token_ids, np.zeros_like(token_ids), notes=notes))
        return found


def _tokens_between(
    text: str, masks: Sequence[tuple[int, int]], tokenizer: Tokenizer
) -> tuple[np.ndarray[Any, np.dtype[np.int64]], list[int]]:
    """Tokenize what stands between the masks; returns all ids and the places of the masks among them."""
    bounds = [0, *(bound for mask in masks for bound in mask), len(text)]
    pieces = tokenizer.encode_ids([text[bounds[at] : bounds[at + 1]] for at in range(0, len(bounds), 2)])
    parts, places, length = [pieces[0]], [], len(pieces[0])
    for piece in pieces[1:]:
        places.append(length)
        parts += [np.array([tokenizer.mask_id]), piece]
        length += 1 + len(piece)
    return np.concatenate(parts), places
