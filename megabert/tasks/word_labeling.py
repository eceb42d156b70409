"""What tasks that label words share: their data settings, windows, targets, loss, and word logits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..config.schema import DataSettings, TrainDataSettings
from ..data.packing import NO_TARGET, Batch, Features
from ..data.word_windows import WordWindow, WordWindows, as_windows, token_windows, word_logits, word_windows
from ..errors import ConfigError, InputError
from ..formats.parallel_passes import by_parts
from ..formats.record_streams import derived, numbered
from ..formats.rows import Row
from ..formats.tag_schemes import find_scheme, standard_tags
from ..formats.tagged_words import WORD_KEYS, Sentence, has_words, read_parallel, sentence_of
from ..formats.text_lines import blank_split
from ..tokenizers.text_runs import KnownRuns, WordBounds
from ..tokenizers.wordpiece import Tokenizer
from ..tokenizers.words import WordCuts, joined_words, learn_cuts, split_words
from .label_report import label_warnings
from .labels import LabelKind, LabelledTask, device_constant, label_indices, require_labels
from .task import ExampleType, Logits, PredictionType, require_text

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class WordTargetSettings:
    """Which tokens have the targets of words."""

    ignore_extra_tokens: bool = True
    """Train on the first token of each word only; false: on all its tokens."""
    ignore_start_end: bool = True
    """Do not train on [CLS] and [SEP]; false: their target is the label of words outside, O."""


@dataclass
class RawTextSettings:
    """How raw text is cut into words."""

    split_at: str | None = None
    """Characters, such as -/, at which raw text is cut also inside words; null: as the training words show it."""
    pad_label: str = "O"
    """The tag of words outside of all entities or slots."""


@dataclass
class ParallelFiles:
    """NeMo's two files, instead of `file`."""

    text_file: str | None = None
    """A sentence a line, words separated by blanks."""
    labels_file: str | None = None
    """The labels of each line's words."""


@dataclass
class WordDataSettings(DataSettings, ParallelFiles):
    """One set of data: `file`, or text_file and labels_file."""


@dataclass
class WordTrainSettings(TrainDataSettings, ParallelFiles):
    """The training data: `file`, or text_file and labels_file."""


@dataclass(frozen=True)
class WordExample:
    """A string and its words as [start, end) characters."""

    id: str
    text: str
    words: Sequence[tuple[int, int]]
    location: str
    given: Mapping[str, Any] = field(default_factory=dict, kw_only=True, compare=False)
    """Other fields of the data, which rows of predictions repeat."""


class WordLabelingTask(LabelledTask[ExampleType, PredictionType]):
    """A task with one label of each of its word kinds for each word.

    Its examples have the fields of `WordExample`. A token target has the name of its kind.
    """

    input_fields: ClassVar[Mapping[str, type]] = {"text": str, "tokens": list}
    example_type: ClassVar[Any]
    """The class of its examples."""

    def __init__(
        self,
        settings: Any,
        *word_kinds: LabelKind,
        target_settings: WordTargetSettings,
        other_kinds: Sequence[LabelKind] = (),
        class_balancing: str | None = None,
    ) -> None:
        super().__init__(settings, *word_kinds, *other_kinds, class_balancing=class_balancing)
        self.word_kinds = word_kinds
        self.target_settings = target_settings
        self.cuts: dict[str, Any] = {}
        self._kept_cuts: tuple[tuple[str | None, dict[str, Any]], WordCuts] | None = None
        self._known_runs: KnownRuns | None = None

    def file_groups(self, data: Any) -> list[list[str]]:
        """Return `file`, or text_file and labels_file in data_dir; a data_dir alone has NeMo's names of files."""
        if data.text_file is None:
            return super().file_groups(data) or self._files_of_folder(data)
        if data.file is not None:
            raise ConfigError("file and text_file are both given. Give one of them.")
        names = [data.text_file] if data.labels_file is None else [data.text_file, data.labels_file]
        return [[str(Path(self.settings.model.dataset.data_dir or "") / name) for name in names]]

    def _files_of_folder(self, data: Any) -> list[list[str]]:
        model = self.settings.model
        part = "train" if data is model.train_ds else "dev" if data is model.validation_ds else None
        if model.dataset.data_dir is None or part is None:
            return []
        return [[str(Path(model.dataset.data_dir) / f"{kind}_{part}.txt") for kind in ("text", "labels")]]

    def read_files(self, files: Sequence[str]) -> Sequence[ExampleType]:
        """Read one file, or a text file and a labels file in parallel."""
        paths = [Path(file) for file in files]
        return self.read(paths[0]) if len(paths) == 1 else self.labelled(read_parallel(*paths))

    def labelled(self, sentences: Sequence[Sentence]) -> Sequence[ExampleType]:
        """Make examples from sentences with the labels of their words."""
        raise NotImplementedError

    def unlabelled(self, text: str, name: str, location: str) -> ExampleType:
        """Make an example from raw text, split into words."""
        return self.example_type(name, text, self.split(text), location)

    def tokenized(self, words: Sequence[str], name: str, location: str) -> ExampleType:
        """Make an example from words, joined by blanks."""
        return self.example_type(name, " ".join(words), joined_words(words), location)

    def split(self, text: str) -> tuple[tuple[int, int], ...]:
        """Cut raw text into words: as the training data are cut, or at model.dataset.split_at."""
        return split_words(text, self._word_cuts())

    def _word_cuts(self) -> WordCuts:
        """Return the same object while nothing changes: it keeps what it split."""
        given = (self.settings.model.dataset.split_at, self.cuts)
        if self._kept_cuts is None or any(a is not b for a, b in zip(given, self._kept_cuts[0], strict=True)):
            characters, cuts = given
            kept = WordCuts.from_document(cuts) if characters is None else WordCuts(apart=characters)
            self._kept_cuts = given, kept
        return self._kept_cuts[1]

    def split_texts(self, texts: Sequence[str], tokenizer: Tokenizer) -> tuple[list[WordBounds], WordWindows]:
        """Cut many raw texts into words, as `split` does, and make their windows."""
        cuts, known = self._word_cuts(), self._known_runs
        if known is None or known.cuts is not cuts or known.tokenizer is not tokenizer:
            self._known_runs = known = KnownRuns(cuts, tokenizer)
        found = known(texts)
        numbers, ends = found.bounds_W2.ravel().tolist(), np.cumsum(2 * found.num_words).tolist()
        words = [WordBounds(numbers[start:end]) for start, end in pairwise([0, *ends])]
        tokens = found.token_ids, found.token_words, found.num_tokens
        return words, token_windows(*tokens, tokenizer, self.row_length, self.margin)

    def learn_word_cuts(self, examples: Sequence[ExampleType]) -> None:
        """Learn from the words of the training data how raw text is cut."""
        words = derived(examples, lambda examples: map(self.words, examples))
        self.cuts = learn_cuts(words, by_parts).to_document()

    def restore_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned; older runs cut raw text at blanks and punctuation on the ends of words."""
        super().restore_state({"cuts": {}} | dict(state))

    def words(self, example: Any) -> list[str]:
        """Return an example's words as the network sees them."""
        return [example.text[start:end] for start, end in self.spans(example)]

    @property
    def margin(self) -> int | None:
        """Least number of tokens of context of each word on both sides; None: windows overlap by half."""
        return None

    def unlabelled_row(self, row: Row, number: int) -> ExampleType:
        """Make an example from a JSON object with `tokens` or `text`."""
        name = row.identifier(number)
        if has_words(row):
            example = self.tokenized(sentence_of(row).words, name, row.location)
        else:
            example = self.unlabelled(row.string("text"), name, row.location)
        return replace(example, given=row.others("id", "text", *WORD_KEYS))  # type: ignore[type-var]

    def unlabelled_lines(self, path: Path, lines: Sequence[str]) -> Sequence[ExampleType]:
        """Make examples from lines of raw text."""
        return derived(
            lines,
            lambda lines: (
                self.unlabelled(line, str(number), f"{path}:{number}")
                for number, line in numbered(lines)
                if line.strip()
            ),
        )

    def example(self, **fields: Any) -> ExampleType:
        """Make an example from `text`, or from `tokens`: a list of words, or a string with blanks between them."""
        name, tokens = str(fields.get("id", "text")), fields.get("tokens")
        if tokens is None:
            return self.unlabelled(require_text(fields), name, "the text")
        unexpected = sorted(set(fields) - {"tokens", "id"})
        if unexpected:
            raise InputError(f"unexpected field {', '.join(unexpected)} beside tokens. Give tokens=... or text=...")
        words = blank_split(tokens) if isinstance(tokens, str) else list(tokens)
        return self.tokenized(Row({"tokens": words}, "the tokens").strings("tokens"), name, "the tokens")

    def warnings_about(
        self, kind: LabelKind, counts: Mapping[str, int], examples: Sequence[ExampleType]
    ) -> Sequence[str]:
        """Compare the labels with the words, too."""

        def labels_of(examples: Iterable[Any]) -> set[str]:
            return {word for item in examples for word in self.words(item) if word in counts}

        words = set[str]().union(*by_parts(examples, labels_of))
        return label_warnings(kind.name, counts, kind.first, words)

    def features(
        self, examples: Sequence[ExampleType], tokenizer: Tokenizer, *, with_targets: bool
    ) -> Sequence[Features]:
        """Tokenize words, long examples in several windows; each word has targets in one of them."""
        words = [self.words(example) for example in examples]
        untargeted = word_windows(words, tokenizer, self.row_length, self.margin)
        if not with_targets:
            return untargeted
        windows = untargeted.windows()
        edge = NO_TARGET if self.target_settings.ignore_start_end else 0
        numbers = {
            kind.name: {label: number for number, label in enumerate(getattr(self, kind.outputs))}
            for kind in self.word_kinds
        }
        indices = [
            {
                kind.name: label_indices(numbers[kind.name], require_labels(example, kind.field))
                for kind in self.word_kinds
            }
            for example in examples
        ]
        num_windows = Counter(window.example for window in windows)
        features = []
        for window in windows:
            targets = {
                name: window.targets(of_words, first_only=self.target_settings.ignore_extra_tokens, edge=edge)
                for name, of_words in indices[window.example].items()
            }
            share = 1 / num_windows[window.example]
            features.append(self.window_features(window, examples[window.example], targets, share))
        return features

    def window_features(
        self, window: WordWindow, example: ExampleType, targets: dict[str, NDArray[np.int64]], share: float
    ) -> Features:
        """Make a window's features; `share` is 1 divided by the number of the example's windows.

        The weight is that of the targets of the first kind.
        """
        kind = self.word_kinds[0]
        indices = targets[kind.name][targets[kind.name] != NO_TARGET]
        weight = len(indices) if kind.weights is None else np.array(getattr(self, kind.weights))[indices].sum()
        return window.features({}, targets, float(weight))

    def to_row(self, example: Any, prediction: PredictionType) -> dict[str, Any]:
        """Return also the [start, end) characters of each word."""
        return super().to_row(example, prediction) | {"words": [list(span) for span in self.spans(example)]}

    def spans(self, example: Any) -> Sequence[tuple[int, int]]:
        """Return the [start, end) characters of an example's words."""
        spans: Sequence[tuple[int, int]] = example.words
        return spans

    def word_loss(self, logits: Tensor, batch: Batch, kind: LabelKind) -> Tensor:
        """Sum the cross-entropy over the tokens that have a target, weighted by class."""
        from torch.nn import functional as F

        weights_C = None
        if self.class_balancing and kind.weights is not None:
            weights_C = device_constant(tuple(getattr(self, kind.weights)), logits.device)
        return F.cross_entropy(logits, batch.token_targets[kind.name], weight=weights_C, reduction="sum")

    def word_logits(
        self, examples: Sequence[Any], features: Sequence[Features], logits: Sequence[NDArray[np.float32]]
    ) -> list[NDArray[np.float64]]:
        """Gather the logits of each example's words, [W, C]."""
        num_words = [len(example.words) for example in examples]
        return word_logits(features, logits, num_words, self.window_pooling)

    def unlabelled_features(self, examples: Sequence[ExampleType], tokenizer: Tokenizer) -> list[Features]:
        """Tokenize words; a window's weight is the number of words that have their logits in it."""
        own = self.features(examples, tokenizer, with_targets=False)
        return [replace(item, weight=float(len(item.notes.word_positions()))) for item in own]

    def aligned_logits(
        self, examples: Sequence[Any], own: Sequence[Features], logits: Logits, student: Sequence[Features]
    ) -> list[NDArray[np.float32]]:
        """Return each word's logits at the student's token whose logits are that word's."""
        of_words = self.word_logits(examples, own, logits)
        aligned = []
        for item in student:
            window: WordWindow = item.notes
            positions, num_classes = window.word_positions(), of_words[window.example].shape[1]
            aligned.append(np.full((len(item), num_classes), np.nan, dtype=np.float32))
            aligned[-1][positions] = of_words[window.example][window.words[positions]]
        return aligned

    @property
    def window_pooling(self) -> str:
        """How the logits of a word that several windows show become one."""
        return "best_context"

    def with_windows(self, predictions: Sequence[Any], features: Sequence[Features]) -> list[Any]:
        """Add to each prediction the number of windows that were read."""
        counts = np.bincount(as_windows(features).examples, minlength=len(predictions)).tolist()
        return [
            item if item.windows == count else replace(item, windows=count)
            for item, count in zip(predictions, counts, strict=True)
        ]


def standard_rows(rows: Sequence[Row]) -> list[Row]:
    """Convert the tags of predictions to IOBES, whatever scheme they have."""
    tags = [row.strings("tags") for row in rows]
    scheme = find_scheme((tag for item in tags for tag in item), "O")
    return [
        Row(row.values | {"tags": list(standard_tags(item, scheme, "O", row.location))}, row.location)
        for row, item in zip(rows, tags, strict=True)
    ]


def require_word_labels(example: Any, row: Row, labels: Sequence[str]) -> tuple[str, ...]:
    """Return the predicted labels of a row; raises InputError unless there is one for each word of the example."""
    if len(labels) != len(example.words):
        raise InputError(
            f"{row.location}: {len(labels)} labels for the {len(example.words)} words of {example.location}. Predict "
            "the file that is scored against."
        )
    return tuple(labels)
