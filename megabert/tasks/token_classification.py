"""Token classification: a tag for each word, as in named-entity recognition."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ..config.schema import (
    DataSettings,
    HeadSettings,
    ModelSettings,
    OptimizerSettings,
    Settings,
    TrainDataSettings,
    TrainerSettings,
    choice,
    linear_decay,
)
from ..data.packing import NO_TARGET, Batch, Features
from ..data.windows import word_logits, word_windows
from ..errors import ConfigError, InputError
from ..formats.columns import Sentence, column_sentences, read_parallel, sentence_of
from ..formats.json_lines import JSON_SUFFIXES, read_json_lines
from ..formats.text_lines import read_lines
from ..metrics import tagging
from ..model.config import EncoderConfig
from ..model.heads import ACTIVATIONS, Head, TokenHead
from ..tokenizers.wordpiece import Tokenizer
from ..tokenizers.words import joined_words, split_words
from .tag_decoding import best_valid_tags, log_softmax
from .task import LabelledTask, constant, number_labels, require_length, text_of, unseen


@dataclass
class DatasetSettings:
    """How words become tokens, and tags labels."""

    data_dir: str | None = None
    """Folder of text_file and labels_file."""
    max_seq_length: int = 128
    """Tokens of a sentence with its special tokens; a longer one is read in windows that overlap."""
    pad_label: str = "O"
    """The tag of words outside of any entity."""
    ignore_extra_tokens: bool = True
    """Learn a word's tag at its first token only; false: at each of them."""
    ignore_start_end: bool = True
    """Learn nothing at [CLS] and [SEP]; false: pad_label."""
    class_balancing: str | None = choice(None, "weighted_loss")
    """weighted_loss: a tag counts in the loss in inverse proportion to its number of words."""
    constrained_decoding: bool = False
    """Answer with the likeliest valid sequence of tags, in which no I- stands without what it continues."""


@dataclass
class TokenData:
    """NeMo's two files, instead of `file`."""

    text_file: str | None = None
    """A sentence a line, words between blanks."""
    labels_file: str | None = None
    """The tags of each line's words."""


@dataclass
class TokenDataSettings(DataSettings, TokenData):
    """One set of data: `file` in CoNLL's columns, or text_file and labels_file."""


@dataclass
class TokenTrainSettings(TrainDataSettings, TokenData):
    """The training data: `file` in CoNLL's columns, or text_file and labels_file."""


@dataclass
class TokenHeadSettings(HeadSettings):
    """The head that scores each token."""

    num_fc_layers: int = 1
    """Linear maps."""
    fc_dropout: float = 0.1
    """Dropout on the head's input."""
    activation: str = choice("relu", *ACTIVATIONS)
    """Between linear maps."""


@dataclass
class TokenClassificationModel(ModelSettings):
    """The network, its data and its optimizer."""

    dataset: DatasetSettings = field(default_factory=DatasetSettings)
    head: TokenHeadSettings = field(default_factory=TokenHeadSettings)
    train_ds: TokenTrainSettings = field(default_factory=TokenTrainSettings)
    validation_ds: TokenDataSettings = field(default_factory=TokenDataSettings)
    test_ds: TokenDataSettings = field(default_factory=TokenDataSettings)
    optim: OptimizerSettings = field(default_factory=linear_decay(5e-5))


@dataclass
class TokenClassificationSettings(Settings):
    """All settings of a run."""

    trainer: TrainerSettings = field(default_factory=lambda: TrainerSettings(max_epochs=5))
    model: TokenClassificationModel = field(default_factory=TokenClassificationModel)


@dataclass(frozen=True)
class Example:
    """A text, its words as [start, end) characters, and their tags, None where the data give none."""

    id: str
    text: str
    words: tuple[tuple[int, int], ...]
    tags: tuple[str, ...] | None
    place: str


@dataclass(frozen=True)
class Span:
    """An entity: characters [start, end) of the untouched text; `score` is the mean probability of its words' tags."""

    type: str
    text: str
    start: int
    end: int
    score: float


@dataclass(frozen=True)
class Prediction:
    """The tag of each word and the entities that they make."""

    id: str
    text: str
    tags: tuple[str, ...]
    spans: tuple[Span, ...]


class TokenClassification(LabelledTask[Example, Prediction]):
    r"""Tag the words of a text, above all to find named entities.

        megabert train token_classification model.train_ds.file=train.conll model.validation_ds.file=dev.conll \
            model.language_model.pretrained_model_name=biomegatron-bert-345m-cased
        megabert evaluate RUN file=test.conll output_dir=OUT
        megabert predict RUN text="BRCA1 and IL-2 in breast cancer."

    Data: CoNLL's columns in `file`, a word a line with its tag in the last column (tabs or blanks) and an empty line
    between sentences; or NeMo's two files, `text_file` and `labels_file`, a sentence and its tags on the same line of
    each; or JSON lines with `tokens` and `tags`. Tags in IOB1, IOB2 or IOBES are turned into IOB2; tags of another
    kind are taken as they are. To predict, a *.txt file of raw text, a sentence or paragraph a line, or JSON lines
    with `text`. `megabert import iob` makes the two files of columns.

    A word is tagged by its first token. A sentence longer than `max_seq_length` is read in windows that overlap by
    half; each word is tagged where most of its surroundings are seen, and none is lost. Raw text is cut into words at
    blanks and at punctuation on the ends of what stands between: `(p53)` is three words, `IL-2` one.

    Answers: entities with type, mean probability of their words' tags, and characters of the untouched text; beside
    them the text with tags in brackets as NeMo writes it, and the tags of all words. With
    `model.dataset.constrained_decoding=true` no I- stands without what it continues.

    Scores: `f1`, `precision` and `recall` of entities as conlleval counts them: type and all words agree, and an I-
    that cannot continue an entity opens one. `strict_` figures count only entities that a B- opens. Beside them each
    type's figures, `macro_f1` over types, and `word_accuracy`. NeMo 1.x reports single tags, O included: that report
    is written to `report_tag.txt`.
    """

    settings_type = TokenClassificationSettings
    main_score = "f1"

    def __init__(self, settings: TokenClassificationSettings) -> None:
        super().__init__(settings)
        self.dataset = settings.model.dataset
        require_length(self.dataset.max_seq_length)

    @property
    def row_length(self) -> int:
        """Tokens of a window."""
        return self.dataset.max_seq_length

    def files(self, data: Any) -> list[str]:
        """Give `file`, or the two files."""
        return word_files(data, self.dataset.data_dir)

    def read_files(self, files: Sequence[str]) -> list[Example]:
        """Read one file in columns, or two in parallel."""
        if len(files) == 1:
            return self.read(Path(files[0]))
        return self._examples(read_parallel(Path(files[0]), Path(files[1])))

    def read(self, path: Path) -> list[Example]:
        """Read CoNLL's columns or JSON lines; a *.txt or *.raw of lines without tabs is raw text, a sentence a line."""
        if path.suffix in JSON_SUFFIXES:
            rows = read_json_lines(path)
            if any("text" not in row.values for row in rows):
                return self._examples([sentence_of(row) for row in rows])
            return [
                self._raw(row.text("text"), str(row.values.get("id", n)), row.place) for n, row in enumerate(rows, 1)
            ]
        lines = read_lines(path)
        is_raw = path.suffix in (".txt", ".raw") and not any("\t" in line for line in lines)
        if is_raw and not _are_columns(lines):
            return [self._raw(line, str(n), f"{path}:{n}") for n, line in enumerate(lines, start=1) if line.strip()]
        return self._examples(column_sentences(path, lines))

    def _raw(self, text: str, name: str, place: str) -> Example:
        return Example(name, text, split_words(text), None, place)

    def _examples(self, sentences: Sequence[Sentence]) -> list[Example]:
        are_entities = any(tag[:2] in ("B-", "I-", "E-", "S-") for item in sentences for tag in item.tags or ())
        examples = []
        for number, sentence in enumerate(sentences, start=1):
            tags = sentence.tags
            if tags is not None and are_entities:
                tags = to_iob2(tags, self.dataset.pad_label, sentence.place)
            text, words = " ".join(sentence.words), joined_words(sentence.words)
            examples.append(Example(str(number), text, words, tags, sentence.place))
        return examples

    def example(self, **fields: Any) -> Example:
        """Make an example from `text`."""
        return self._raw(text_of(fields), str(fields.get("id", "text")), "the text")

    def learn_labels(self, examples: Sequence[Example]) -> None:
        """List the tags, pad_label first and the others alphabetically; weigh them if that is asked for."""
        counts = Counter(tag for example in examples for tag in example.tags or ())
        if not counts:
            raise InputError("the training data have no tags. Add a tag to each word.")
        pad = self.dataset.pad_label
        self.take_labels([pad, *sorted(set(counts) - {pad})], counts, self.dataset.class_balancing)

    def unseen_labels(self, examples: Sequence[Example]) -> dict[str, str]:
        """List tags that were not trained."""
        return unseen(self.labels, ((item.tags or (), item.place) for item in examples))

    def features(self, examples: Sequence[Example], tokenizer: Tokenizer, *, with_targets: bool) -> list[Features]:
        """Tokenize words, long sentences in several windows; each word is asked for in one of them."""
        texts = [[item.text[start:end] for start, end in item.words] for item in examples]
        tags = [self._numbers(item) for item in examples] if with_targets else None
        features = []
        for window in word_windows(texts, tokenizer, self.dataset.max_seq_length):
            if tags is None:
                features.append(window.features())
                continue
            first_only, edge = self.dataset.ignore_extra_tokens, NO_TARGET if self.dataset.ignore_start_end else 0
            targets = window.targets(tags[window.text], first_only=first_only, edge=edge)
            weight = float(np.array(self.weights)[targets[targets != NO_TARGET]].sum())
            features.append(window.features({}, {"tag": targets}, weight))
        return features

    def _numbers(self, example: Example) -> NDArray[np.int64]:
        if example.tags is None:
            raise InputError(f"{example.place}: the words have no tags. Add them, or predict instead.")
        return number_labels(self.labels, example.tags)

    def head(self, config: EncoderConfig) -> Head:
        """Score the tags at each token."""
        settings = self.settings.model.head
        return TokenHead(
            config.hidden_size,
            len(self.labels),
            num_layers=settings.num_fc_layers,
            dropout=settings.fc_dropout,
            activation=settings.activation,
        )

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Sum the cross-entropy over tokens that have a tag, weighted by tag."""
        weights_C = constant(tuple(self.weights), logits.device) if self.dataset.class_balancing else None
        return F.cross_entropy(logits, batch.token_targets["tag"], weight=weights_C, reduction="sum")

    def decode(
        self, examples: Sequence[Example], features: Sequence[Features], logits: Sequence[NDArray[np.float32]]
    ) -> list[Prediction]:
        """Tag each word by its first token."""
        counts = [len(example.words) for example in examples]
        found = word_logits([feature.notes for feature in features], logits, counts)
        return [self._predict(example, log_softmax(scores)) for example, scores in zip(examples, found, strict=True)]

    def _predict(self, example: Example, log_probabilities_WC: NDArray[np.float64]) -> Prediction:
        tags, scores = choose_tags(log_probabilities_WC, self.labels, constrained=self.dataset.constrained_decoding)
        return Prediction(example.id, example.text, tags, find_spans(example.text, example.words, tags, scores))

    def score(self, examples: Sequence[Example], predictions: Sequence[Prediction]) -> dict[str, float]:
        """Score entities and words against the examples' tags."""
        gold = [_known(example) for example in examples]
        return _scores(gold, [item.tags for item in predictions])

    def label_pairs(
        self, examples: Sequence[Example], predictions: Sequence[Prediction]
    ) -> Mapping[str, Sequence[tuple[str, str]]]:
        """Give each word's tag and the predicted one."""
        pairs = zip(examples, predictions, strict=True)
        return {"tag": [pair for item, found in pairs for pair in zip(_known(item), found.tags, strict=True)]}

    def to_json(self, prediction: Prediction) -> dict[str, Any]:
        """Give the entities, and NeMo's text with tags in brackets."""
        return {
            "id": prediction.id,
            "text": prediction.text,
            "entities": [vars(span) for span in prediction.spans],
            "tagged": _tagged(prediction),
            "tags": list(prediction.tags),
        }

    @classmethod
    def score_files(cls, gold: Path, predictions: Path) -> dict[str, Any]:
        """Score a file in columns, or of JSON lines as `megabert predict` writes them."""
        task = cls(cls.settings_type())
        expected = [_known(example) for example in task.read(gold)]
        if predictions.suffix in (".jsonl", ".json"):
            found: list[tuple[str, ...]] = [tuple(row.get("tags")) for row in read_json_lines(predictions)]
        else:
            found = [_known(example) for example in task.read(predictions)]
        lengths = [list(map(len, tags)) for tags in (expected, found)]
        if lengths[0] != lengths[1]:
            raise InputError(f"{predictions} has other sentences or words than {gold}. Predict the same file.")
        return _scores(expected, found)

    def write_predictions(
        self, folder: Path, examples: Sequence[Example], predictions: Sequence[Prediction]
    ) -> Mapping[str, str]:
        """Give predictions.txt: word, gold tag and predicted tag, as conlleval takes them."""
        sentences = []
        for example, prediction in zip(examples, predictions, strict=True):
            gold = example.tags or prediction.tags
            words = [example.text[start:end] for start, end in example.words]
            lines = [" ".join(row) for row in zip(words, gold, prediction.tags, strict=True)]
            sentences.append("".join(f"{line}\n" for line in lines))
        return {"predictions.txt": "\n".join(sentences)}


def choose_tags(
    log_probabilities_WC: NDArray[np.float64], labels: Sequence[str], *, constrained: bool
) -> tuple[tuple[str, ...], NDArray[np.float64]]:
    """Choose each word's tag, or the likeliest valid sequence of them; gives tags and their probabilities."""
    if constrained:
        chosen = best_valid_tags(log_probabilities_WC, labels)
    else:
        chosen = log_probabilities_WC.argmax(axis=1)
    scores = np.exp(log_probabilities_WC[np.arange(len(chosen)), chosen])
    return tuple(labels[number] for number in chosen), scores


def find_spans(
    text: str, words: Sequence[tuple[int, int]], tags: Sequence[str], scores: NDArray[np.float64]
) -> tuple[Span, ...]:
    """Give the entities that the words' tags make; `scores` are the tags' probabilities."""
    spans = []
    for kind, first, end in tagging.entities(tags):
        start, stop = words[first][0], words[end - 1][1]
        spans.append(Span(kind, text[start:stop], start, stop, float(scores[first:end].mean())))
    return tuple(spans)


def word_files(data: Any, data_dir: str | None) -> list[str]:
    """List the files of a set of data: `file`, or text_file and labels_file in data_dir."""
    if data.text_file is None:
        return [] if data.file is None else [data.file]
    if data.file is not None:
        raise ConfigError("file and text_file are both given. Give one of them.")
    names = [data.text_file] if data.labels_file is None else [data.text_file, data.labels_file]
    return [str(Path(data_dir or "") / name) for name in names]


def _are_columns(lines: Sequence[str]) -> bool:
    """Tell columns from raw text: their lines have all the same few fields, and empty lines stand between."""
    widths = {len(line.split()) for line in lines if line.strip()}
    return len(widths) == 1 and widths <= {2, 3, 4} and any(not line.strip() for line in lines)


def to_iob2(tags: tuple[str, ...], outside: str, place: str) -> tuple[str, ...]:
    """Turn tags in IOB1, IOB2 or IOBES into IOB2; raises InputError for one of another kind."""
    for tag in tags:
        prefix, dash, kind = tag.partition("-")
        if tag != outside and not (prefix in ("B", "I", "E", "S") and dash and kind):
            raise InputError(f"{place}: the tag {tag!r} is neither {outside} nor one such as B-TYPE or I-TYPE.")
    found = [outside] * len(tags)
    for kind, start, end in tagging.entities(tags):
        found[start:end] = [f"B-{kind}", *[f"I-{kind}"] * (end - start - 1)]
    return tuple(found)


def _known(example: Example) -> tuple[str, ...]:
    if example.tags is None:
        raise InputError(f"{example.place}: the words have no tags to score against. Add them.")
    return example.tags


def _scores(gold: Sequence[tuple[str, ...]], found: Sequence[tuple[str, ...]]) -> dict[str, float]:
    pairs = [pair for tags in zip(gold, found, strict=True) for pair in zip(*tags, strict=True)]
    right = sum(a == b for a, b in pairs)
    return tagging.entity_scores(gold, found) | {"word_accuracy": 100.0 * right / len(pairs), "total": len(gold)}


def _tagged(prediction: Prediction) -> str:
    parts, end = [], 0
    for span in prediction.spans:
        parts += [prediction.text[end : span.start], f"{span.text}[{span.type}]"]
        end = span.end
    return "".join([*parts, prediction.text[end:]])
