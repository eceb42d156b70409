"""Entity linking: embeddings of names in which those of one concept are near each other (SapBERT)."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..config.schema import (
    DataSettings,
    ModelSettings,
    OptimizerSettings,
    Settings,
    TrainDataSettings,
    choice,
    linear_decay,
)
from ..data.packing import Batch, Features
from ..errors import InputError
from ..formats.data_files import expand_names
from ..formats.dictionaries.concept import Concept, DictionaryOptions
from ..formats.dictionaries.curies import single_identifiers
from ..formats.dictionaries.dictionary_formats import detect, read_concepts
from ..formats.text_lines import read_lines
from ..metrics.linking import RankedMention, accuracy_scores
from ..model.config import EncoderConfig
from ..tokenizers.wordpiece import Tokenizer
from .retrieval_data import EmbeddingTask, Prediction, text_number
from .task import require_text

if TYPE_CHECKING:
    from torch import Tensor

    from ..model.heads import Head

RANKS = (1, 5, 20)
BLOCK = 512


@dataclass
class EntityLinkingData:
    """How names become tokens and pairs."""

    max_seq_length: int = 32
    """Most tokens of a name; what is longer is cut."""
    pooling: str = choice("cls", "cls", "mean")
    """The embedding of a name: the hidden state of its first token, as SapBERT, or the mean of all."""
    pairs_per_concept: int = 20
    """Most pairs of synonyms that a concept of a dictionary has in training, chosen by the seed."""
    dictionary: Any = None
    """File, or several, of concepts in which names are looked up in validation; null: among the validated names."""
    prefix: str | None = None
    """Prefix of identifiers that have none and do not show their vocabulary."""
    types: list[str] = field(default_factory=list)
    """Types of mentions that are read from annotated documents; []: all."""


@dataclass
class MultiSimilaritySettings:
    """The loss: multi-similarity with online hard pairs; NeMo's names, SapBERT's values."""

    scale_pos: float = 1.0
    """Scale of positive pairs."""
    scale_neg: float = 60.0
    """Scale of negative pairs."""
    offset: float = 0.5
    """Similarity from which negative pairs count more, positive ones less."""
    margin: float = 0.2
    """Pairs count within this margin of the hardest pair of the other kind."""


@dataclass
class NamesSettings(DataSettings):
    """One data set of names."""

    data_file: Any = None
    """NeMo's name of `file`."""


@dataclass
class TrainNamesSettings(TrainDataSettings):
    """The training data."""

    data_file: Any = None
    """NeMo's name of `file`."""


@dataclass
class EntityLinkingModel(ModelSettings):
    """The network, its data, its loss and its optimizer."""

    dataset: EntityLinkingData = field(default_factory=EntityLinkingData)
    train_ds: TrainNamesSettings = field(default_factory=TrainNamesSettings)
    validation_ds: NamesSettings = field(default_factory=NamesSettings)
    test_ds: NamesSettings = field(default_factory=NamesSettings)
    loss: MultiSimilaritySettings = field(default_factory=MultiSimilaritySettings)
    optim: OptimizerSettings = field(default_factory=linear_decay(2e-5))


@dataclass
class EntityLinkingSettings(Settings):
    """All settings of a run."""

    model: EntityLinkingModel = field(default_factory=EntityLinkingModel)


@dataclass(frozen=True)
class Example:
    """A name of a concept, or for training two; without identifiers the concept is unknown."""

    id: str
    text: str
    identifiers: tuple[str, ...] = ()
    synonym: str | None = None
    is_candidate: bool = False
    """Whether it is a name of the dictionary in which others are looked up."""


class EntityLinking(EmbeddingTask[Example]):
    r"""Train embeddings of names, in which the names of one concept are near each other (SapBERT).

        megabert train entity_linking model.train_ds.file=diseases.obo model.validation_ds.file=names.txt \
            model.dataset.dictionary=diseases.obo model.language_model.pretrained_model_name=biomegabert-mini-uncased
        megabert predict RUN text="bronchial asthma"

    Data: any file that `megabert dictionary build` reads, several files too (their concepts are merged by identifier):
    all pairs of names of a concept, at most `pairs_per_concept`, are training pairs. Annotated documents are read as
    mentions with their abbreviations written out: with a dictionary beside them, or in a second training that starts
    from a run (`model.language_model.lm_checkpoint=RUN`), mentions move near their concept's names. Pairs may be given,
    too: lines `id||name||name` (SapBERT), or tab-separated (NeMo).

    The loss compares all names of a step, over all micro-batches and processes. With `model.dataset.dictionary`
    validated names are looked up in it; otherwise each among the others.

    Metrics: `acc@1`, `acc@5` and `acc@20` by names, `concept_acc@` by distinct concepts, by cosine similarity. The
    linker adds character n-grams and abbreviations: [link](../how-to/link.md).

    Predictions: the embedding.
    """

    settings_type: ClassVar[type[Settings]] = EntityLinkingSettings
    main_score = "acc@1"
    input_fields: ClassVar[Mapping[str, type]] = {"text": str}

    def file_groups(self, data: DataSettings) -> list[list[str]]:
        """List the files of a set of data, under either name of the setting."""
        return [[file] for file in expand_names(data.file or getattr(data, "data_file", None))]

    def read(self, path: Path) -> list[Example]:
        """Read the names of a file, of pairs both."""
        pairs = _read_pairs(path, self._options())
        if pairs is None:
            return [
                Example(f"{concept.id}#{number}", name, (concept.id, *concept.alternatives))
                for number, (concept, name) in enumerate(self._names(path), start=1)
            ]
        names = dict.fromkeys((name, concept) for concept, *both in pairs for name in both)
        return [Example(str(number), name, (concept,)) for number, (name, concept) in enumerate(names, start=1)]

    def read_data(self, data: DataSettings) -> list[Example]:
        """Read the pairs of training data; of others the names, and those of the dictionary to look them up in."""
        if data is self.settings.model.train_ds:
            return self._read_training_pairs(data)
        examples = list(super().read_data(data))
        return examples + self._candidates() if examples else examples

    def _candidates(self) -> list[Example]:
        dictionary = self.settings.model.dataset.dictionary
        files = [dictionary] if isinstance(dictionary, str) else list(dictionary or ())
        names = (item for file in files for item in self._names(Path(file)))
        return [
            Example(f"dictionary#{number}", name, (concept.id, *concept.alternatives), is_candidate=True)
            for number, (concept, name) in enumerate(names, start=1)
        ]

    def _options(self) -> DictionaryOptions:
        dataset = self.settings.model.dataset
        return DictionaryOptions(dataset.prefix, types=frozenset(dataset.types))

    def _names(self, path: Path) -> Iterator[tuple[Concept, str]]:
        """Stream the names of a dictionary with their concepts; of mentions each once."""
        seen: set[tuple[str, str]] = set()
        form = detect(path)
        for concept in read_concepts(path, form, self._options()):
            for name in concept.names:
                if name.strip() and (concept.id, name.lower()) not in seen:
                    seen.add((concept.id, name.lower()))
                    yield concept, name

    def _read_training_pairs(self, data: DataSettings) -> list[Example]:
        pairs: list[tuple[str, str, str]] = []
        names: dict[str, dict[str, str]] = {}
        main: dict[str, str] = {}  # of any identifier that of the first concept that has it
        for file in self.files(data):
            given = _read_pairs(Path(file), self._options())
            pairs += given or ()
            for concept, name in self._names(Path(file)) if given is None else ():
                own = main.setdefault(concept.id, concept.id)
                for other in concept.alternatives:
                    main.setdefault(other, own)
                names.setdefault(own, {}).setdefault(name.lower(), name)
        for identifier, synonyms in names.items():
            pairs += self._pairs_of(identifier, list(synonyms.values()))
        if not pairs:
            raise InputError(
                f"{', '.join(self.files(data))}: no concept has two names. Give a dictionary with synonyms, or pairs."
            )
        pairs = pairs if data.num_samples < 0 else pairs[: data.num_samples]
        return [
            Example(str(number), first, (identifier,), second)
            for number, (identifier, first, second) in enumerate(pairs, start=1)
        ]

    def _pairs_of(self, identifier: str, names: list[str]) -> list[tuple[str, str, str]]:
        """Choose pairs of a concept's names."""
        most = self.settings.model.dataset.pairs_per_concept
        rng = random.Random(f"{self.settings.seed} {identifier}")  # noqa: S311  (no secret)
        count = len(names) * (len(names) - 1) // 2
        if count <= 4 * most:
            chosen = list(itertools.combinations(names, 2))
            chosen = chosen if count <= most else rng.sample(chosen, most)
        else:
            chosen = [(a, b) for a, b in (rng.sample(names, 2) for _ in range(most))]
        return [(identifier, *pair) for pair in chosen]

    def example(self, **fields: Any) -> Example:
        """Make an example from `text`, a name."""
        return Example(str(fields.get("id", "text")), require_text(fields))

    def features(self, examples: Sequence[Example], tokenizer: Tokenizer, *, with_targets: bool) -> list[Features]:
        """Tokenize names; both of a training pair stay in one batch."""
        firsts = tokenizer.encode_ids([example.text for example in examples])
        seconds = iter(tokenizer.encode_ids([item.synonym for item in examples if item.synonym is not None]))
        features = []
        for number, (example, ids) in enumerate(zip(examples, firsts, strict=True)):
            rows = [self._row(ids, tokenizer)]
            if example.synonym is not None:
                rows.append(self._row(next(seconds), tokenizer))
            token_ids = np.concatenate(rows)
            targets: dict[str, Any] = {}
            if with_targets:
                if not example.identifiers:
                    raise InputError(f"{example.text!r} has no identifier. Give each name one.")
                concept = text_number(example.identifiers[0])
                targets = {"concept": concept if example.synonym is None else np.array([concept, concept])}
            parts = () if example.synonym is None else tuple(len(row) for row in rows)
            num_cut = max(len(ids) + 2 - len(rows[0]), 0)
            segment_ids, weight = np.zeros_like(token_ids), float(len(rows))
            features.append(
                Features(token_ids, segment_ids, targets, weight=weight, notes=number, parts=parts, num_cut=num_cut)
            )
        return features

    def _row(self, ids: NDArray[np.int64], tokenizer: Tokenizer) -> NDArray[np.int64]:
        kept = ids[: self.row_length - 2]
        return np.concatenate([[tokenizer.cls_id], kept, [tokenizer.sep_id]]).astype(np.int64)

    def head(self, config: EncoderConfig) -> Head:
        """Pool the hidden states of a name to one vector of length 1."""
        from ..model.heads import EmbeddingHead

        return EmbeddingHead(self.settings.model.dataset.pooling, normalize=True)

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Sum the multi-similarity loss over all names as anchors."""
        from ..model.multi_similarity_loss import multi_similarity_losses

        settings = self.settings.model.loss
        return multi_similarity_losses(
            logits,
            batch.targets["concept"],
            scale_positive=settings.scale_pos,
            scale_negative=settings.scale_neg,
            base=settings.offset,
            margin=settings.margin,
        ).sum()

    def score(self, examples: Sequence[Example], predictions: Sequence[Prediction]) -> dict[str, float]:
        """Rank the names of the dictionary for each name, or without one the other names of the data."""
        places = [number for number, item in enumerate(examples) if item.is_candidate]
        has_dictionary = bool(places)
        places = places or list(range(len(examples)))
        queries = [number for number, item in enumerate(examples) if not item.is_candidate and item.identifiers]
        if not queries:
            raise InputError("There is nothing to score: no name has an identifier.")
        vectors = np.stack([item.embedding for item in predictions])
        identifiers = [single_identifiers(examples[number].identifiers) for number in places]
        k = min(RANKS[-1] + (not has_dictionary), len(places))
        ranked = []
        for start in range(0, len(queries), BLOCK):
            own = queries[start : start + BLOCK]
            similarities = vectors[own] @ vectors[places].T
            if not has_dictionary:
                similarities[np.arange(len(own)), own] = -np.inf
            best = np.argsort(-similarities, axis=1, kind="stable")[:, :k]
            for number, row in zip(own, best, strict=True):
                gold = single_identifiers(examples[number].identifiers)
                ranked.append(RankedMention(gold, [[identifiers[place] for place in row]]))
        scores = accuracy_scores(ranked, RANKS)
        return {name: value for name, value in scores.items() if not name.startswith(("all_", "mentions"))}

    def gold(self, example: Example) -> dict[str, Any]:
        """Return the identifiers."""
        return {"identifiers": list(example.identifiers)} if example.identifiers else {}


def _read_pairs(path: Path, options: DictionaryOptions) -> list[tuple[str, str, str]] | None:
    """Read lines id||name||name, or tab-separated; None for a file of another kind."""
    form = detect(path)
    if form not in ("biosyn", "table"):
        return None
    pairs = []
    separator = "||" if form == "biosyn" else "\t"
    for number, line in enumerate(read_lines(path), start=1):
        cells = [cell.strip() for cell in line.split(separator)]
        if len(cells) != 3 or not all(cells) or (number == 1 and cells[0].lower().endswith("id")):
            return None
        pairs.append((options.curie(cells[0], f"{path}:{number}"), cells[1], cells[2]))
    return pairs
