"""Data of the tasks of retrieval: settings, training examples with negatives, judged queries with their passages.

Also what tasks share whose predictions are embeddings.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config.schema import DataSettings, TrainDataSettings
from ..data.packing import Features
from ..errors import ConfigError, InputError
from ..formats.data_files import expand_names
from ..formats.json_lines import has_objects, object_rows
from ..formats.passages import iterate_texts, read_candidates, read_texts
from ..formats.relevance import check_documents, check_judged, read_qrels, read_run
from ..formats.rows import Row
from ..metrics.retrieval import average, mrr_at_10, ranked, score_run
from .task import ExampleType, Logits, Task

FILES = ("passages", "queries", "query_to_passages", "qrels", "run")


@dataclass
class RetrievalData(DataSettings):
    """Queries, passages and which of them belong together; or `file`, JSON lines with their texts."""

    passages: str | None = None
    """Passages: lines `id<TAB>text`, or JSON lines with _id, title and text (BEIR)."""
    queries: str | None = None
    """Queries, in the same formats."""
    query_to_passages: str | None = None
    """Lines `query<TAB>passage<TAB>passage...` of ids, the relevant passage first, as NeMo has them."""
    qrels: str | None = None
    """Judgements: TREC's lines `query 0 passage grade`, or BEIR's table."""
    run: str | None = None
    """A ranking in TREC's format: negatives of training, candidates that validation re-ranks, a teacher's scores."""


@dataclass
class RetrievalTrainData(RetrievalData, TrainDataSettings):
    """The training data."""

    batch_size: int = 32
    """Queries, each with its passages, per micro-batch."""
    num_negatives: int = 10
    """Negatives of each query: those of query_to_passages, or the first ones of the run that are not relevant."""
    max_positives: int = 4
    """Most relevant passages of a query that become an example each, those of the highest grade first."""
    negative_margin: float | None = None
    """Leave out negatives that score more than this share of the positive in the run, such as 0.95."""


@dataclass(frozen=True)
class RetrievalExample:
    """A query with passages; of training the relevant one first. Either may be missing: a text that is embedded."""

    id: str
    query: str = ""
    passages: tuple[str, ...] = ()
    passage_ids: tuple[str, ...] = ()
    scores: tuple[float, ...] | None = None
    """A teacher's."""
    grades: Mapping[str, int] | None = None
    """Judgements of the passages by id, where the query is scored."""
    text: str = ""
    given: Mapping[str, Any] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class Prediction:
    """The embedding of a text."""

    id: str
    text: str
    embedding: NDArray[np.float32]


class EmbeddingTask(Task[ExampleType, Prediction]):
    """A task whose logits are the embeddings of texts, which its loss compares."""

    groups_sequences = True
    contrasts_sequences = True
    is_embedding = True

    def decode(self, examples: Sequence[Any], features: Sequence[Features], logits: Logits) -> list[Prediction]:
        """Return the embeddings."""
        return [Prediction(item.id, item.text, vector) for item, vector in zip(examples, logits, strict=True)]

    def to_json(self, prediction: Prediction) -> dict[str, Any]:
        """Return the text and its embedding."""
        return {"id": prediction.id, "text": prediction.text, "embedding": prediction.embedding.tolist()}


def data_files(data: RetrievalData) -> list[str]:
    """List the files that settings name."""
    named = (getattr(data, name) for name in FILES)
    return [*expand_names(data.file), *(name for name in named if name)]


def read_training(
    data: RetrievalTrainData, *, needs_scores: bool, notes: list[str], depth: int = 0
) -> list[RetrievalExample]:
    """Read examples of training: a query with a relevant passage and negatives, `num_negatives` of a file's.

    With a depth an example has all others among the first so many passages of the run, and relevant passages that are
    not among them are left out.
    """
    if data.file:
        rows = (row for file in expand_names(data.file) for row in object_rows(Path(file)))
        examples = [example for row in rows for example in _row_examples(row, data.num_negatives)]
    else:
        examples = _joined_examples(data, notes, depth)
    if needs_scores:
        complete = [example for example in examples if example.scores is not None]
        if len(complete) < len(examples):
            notes.append(f"{len(examples) - len(complete)} examples without a teacher's scores are left out.")
        examples = complete
    if not examples:
        found = f" and is among the first {depth} of the run, beside others" if depth and data.run else ""
        raise InputError(
            f"There is no example to train on: no query has a relevant passage that the data contain{found}."
        )
    return examples if data.num_samples < 0 else examples[: data.num_samples]


def read_pairs(path: Path) -> list[RetrievalExample]:
    """Read JSON lines of queries with passages, all in one example each; or texts with ids."""
    if has_objects(path):
        rows = object_rows(path)
        if any(name in row.values for row in rows for name in QUERY):
            return [_judged_row(row, number) for number, row in enumerate(rows, 1)]
    return [
        RetrievalExample(name, passages=(text,), passage_ids=(name,), text=text)
        for name, text, _ in iterate_texts(path)
    ]


# Names in the files of sentence-transformers, FlagEmbedding and DPR, ours first.
QUERY = ("query", "anchor", "question")
POSITIVE = ("positive", "positives", "pos", "positive_ctxs")
NEGATIVES = ("negatives", "negative", "neg", "hard_negatives", "hard_negative_ctxs", "negative_ctxs")


def _query(row: Row) -> str:
    return row.string(next((name for name in QUERY if name in row.values), QUERY[0]))


def _texts(row: Row, names: Sequence[str]) -> tuple[str, ...]:
    """Return the texts under all names that a row has, and under numbered ones, negative_1; [] where it has none."""
    found: list[str] = []
    for key in row.values:
        if key not in names and not (re.fullmatch(r"(.+)_\d+", key) and key.rpartition("_")[0] in names):
            continue
        value = row.values[key]
        items = [value] if isinstance(value, str) else [] if value is None else value
        if isinstance(items, list) and all(isinstance(item, dict) for item in items):  # DPR's passages
            items = [" ".join(filter(None, (item.get("title"), item.get("text")))) for item in items]
        found += Row({key: items}, row.location).strings(key) if items else []
    return tuple(found)


def _row_examples(row: Row, num_negatives: int) -> list[RetrievalExample]:
    """Make an example of each positive of a JSON object with query, positive, negatives and perhaps scores."""
    query, positives, negatives = _query(row), _texts(row, POSITIVE), _texts(row, NEGATIVES)
    if not positives:
        raise InputError(f"{row.location}: there is no 'positive', the text of a relevant passage.")
    scores = row.values.get("scores")
    if scores is not None and (not isinstance(scores, list) or len(scores) != len(positives) + len(negatives)):
        raise InputError(f"{row.location}: 'scores' has not one number for each of the positives and negatives.")
    examples = []
    for number, positive in enumerate(positives):
        texts = (positive, *negatives[:num_negatives])
        own = None if scores is None else (scores[number], *scores[len(positives) :][:num_negatives])
        examples.append(RetrievalExample(query, query, texts, texts, own))
    return examples


def _judged_row(row: Row, number: int) -> RetrievalExample:
    positives, negatives = _texts(row, POSITIVE), _texts(row, NEGATIVES)
    texts = tuple(dict.fromkeys((*positives, *negatives)))
    grades = {text: int(text in positives) for text in texts} if positives else None
    query = _query(row)
    given = row.others("scores", "id", *QUERY, *POSITIVE, *NEGATIVES)
    return RetrievalExample(row.identifier(number), query, texts, texts, None, grades, query, given)


def _joined_examples(data: RetrievalTrainData, notes: list[str], depth: int) -> list[RetrievalExample]:
    """Join queries, passages, judgements and negatives by their ids."""
    passages, queries = _required_texts(data, "passages"), _required_texts(data, "queries")
    run = read_run(Path(data.run)) if data.run else {}
    if data.run:
        check_documents(run, passages, Path(data.run))
    groups: list[tuple[str, str, list[str]]] = []
    if data.query_to_passages:
        for query, (positive, *others) in read_candidates(Path(data.query_to_passages)).items():
            groups.append((query, positive, others[: data.num_negatives]))
    else:
        groups = _judged_groups(data, run, depth, notes)
    examples, unknown = [], set()
    for query, positive, negatives in groups:
        if query not in queries or positive not in passages:
            unknown.add(query if query not in queries else positive)
            continue
        names = (positive, *(name for name in negatives if name in passages))
        scores = run.get(query, {})
        own = tuple(scores[name] for name in names) if all(name in scores for name in names) else None
        examples.append(RetrievalExample(query, queries[query], tuple(passages[name] for name in names), names, own))
    if unknown:
        notes.append(f"{len(unknown)} queries or passages are unknown and left out; the first is {min(unknown)!r}.")
    return examples


def _judged_groups(
    data: RetrievalTrainData, run: Mapping[str, Mapping[str, float]], depth: int, notes: list[str]
) -> list[tuple[str, str, list[str]]]:
    if not data.qrels:
        raise ConfigError("Training needs judgements: model.train_ds.qrels=FILE, or query_to_passages=FILE.")
    groups, num_missed = [], 0
    for query, grades in read_qrels(Path(data.qrels)).items():
        positives = sorted((name for name, grade in grades.items() if grade > 0), key=lambda name: -grades[name])
        scores = run.get(query, {})
        found = ranked(scores)[: depth or None]
        candidates = [name for name in found if grades.get(name, 0) <= 0]
        if depth:
            own = [name for name in positives if name in found] if candidates else []
            num_missed += len(positives) - len(own)
            positives = own
        for positive in positives[: data.max_positives]:
            bound = scores.get(positive)
            negatives = candidates
            if data.negative_margin is not None and bound is not None:
                negatives = [name for name in candidates if scores[name] <= data.negative_margin * bound]
            groups.append((query, positive, negatives if depth else negatives[: data.num_negatives]))
    if num_missed:
        notes.append(f"{num_missed} relevant passages are not among the first {depth} of the run, and are left out.")
    return groups


def _required_texts(data: RetrievalData, name: str) -> dict[str, str]:
    file = getattr(data, name)
    if not file:
        raise ConfigError(f"The {name} are not given. Name their file: model.train_ds.{name}=FILE (or validation_ds).")
    return read_texts(Path(file))


def read_judged(data: RetrievalData) -> tuple[list[RetrievalExample], dict[str, str]]:
    """Read the queries that are scored, with judgements and perhaps candidates, and the passages by id."""
    if data.file:
        examples = [example for file in expand_names(data.file) for example in read_pairs(Path(file))]
        return examples, {text: text for example in examples for text in example.passages}
    passages, queries = _required_texts(data, "passages"), _required_texts(data, "queries")
    candidates: Mapping[str, Iterable[str]] = {}
    if data.query_to_passages:
        candidates = read_candidates(Path(data.query_to_passages))
        check_documents(
            {query: dict.fromkeys(names) for query, names in candidates.items()}, passages, Path(data.query_to_passages)
        )
    elif data.run:
        run = read_run(Path(data.run))
        check_documents(run, passages, Path(data.run))
        candidates = {query: ranked(scores) for query, scores in run.items()}
    if data.qrels:
        qrels = read_qrels(Path(data.qrels))
    elif data.query_to_passages:  # as NeMo: the first one is relevant
        qrels = {query: {next(iter(names)): 1} for query, names in candidates.items()}
    else:
        raise ConfigError("Scores need judgements: model.validation_ds.qrels=FILE, or query_to_passages=FILE.")
    if unknown := sorted(set(qrels) - set(queries)):
        raise InputError(f"{data.qrels}: the query {unknown[0]!r} is not in {data.queries}.")
    check_judged(qrels, queries, passages, Path(data.qrels or data.query_to_passages or ""))
    examples = []
    for query, grades in qrels.items():
        names = tuple(candidates.get(query, ()))
        texts = tuple(passages[name] for name in names)
        examples.append(RetrievalExample(query, queries[query], texts, names, None, grades, queries[query]))
    return examples if data.num_samples < 0 else examples[: data.num_samples], passages


def ranking_scores(
    judgements: Mapping[str, Mapping[str, int]], run: Mapping[str, Mapping[str, float]]
) -> dict[str, float]:
    """Compute the main scores of rankings, per cent; a query without a ranking counts 0."""
    means = average(score_run(judgements, run))
    rankings = {query: ranked(scores)[:10] for query, scores in run.items()}
    named = {"ndcg@10": "ndcg_cut_10", "recall@100": "recall_100", "map": "map"}
    scores = {name: 100 * means[measure] for name, measure in named.items()}
    return scores | {"mrr@10": 100 * mrr_at_10(judgements, rankings)}


def text_number(text: str) -> int:
    """Return a number of 62 bits for an id; the same in all processes."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little") >> 2


def kept_scores(example: RetrievalExample) -> Sequence[float]:
    """Return a teacher's scores, NaN where there are none."""
    return example.scores or (float("nan"),) * len(example.passages)
