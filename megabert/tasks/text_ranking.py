"""Text ranking: a cross-encoder reads a query and a passage together and scores how well they fit."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..config.schema import DataSettings, ModelSettings, OptimizerSettings, Settings, choice, linear_decay
from ..data.drawn_features import DrawnGroups
from ..data.packing import Batch, Features
from ..data.windows import sequence_windows
from ..errors import ConfigError, InputError
from ..formats.rows import Row
from ..model.config import EncoderConfig
from ..tokenizers.wordpiece import Tokenizer
from .head_settings import OutputHeadSettings, head_options
from .retrieval_data import (
    RetrievalData,
    RetrievalExample,
    RetrievalTrainData,
    data_files,
    kept_scores,
    ranking_scores,
    read_judged,
    read_pairs,
    read_training,
)
from .task import Logits, Task, by_example, require_texts

if TYPE_CHECKING:
    from torch import Tensor

    from ..model.heads import Head


@dataclass
class RankingData:
    """How a query and a passage become tokens."""

    max_seq_length: int = 256
    """Tokens of a query and a passage with their special tokens; of the longer one the end is cut."""
    loss: str = choice("listwise", "listwise", "bce", "margin_mse")
    """listwise: the relevant passage among the query's, as NeMo; bce: each passage singly; margin_mse: a teacher's
    margins."""


@dataclass
class RankingTrainData(RetrievalTrainData):
    """The training data."""

    batch_size: int = 8
    """Queries, each with its passages, per micro-batch."""
    num_negatives: int = 10
    """Negatives of each query: those of query_to_passages, or passages of the run that are not relevant."""
    run_depth: int = 100
    """Relevant passages and negatives are drawn from the run's first so many; 0: all relevant, first negatives."""


@dataclass
class TextRankingModel(ModelSettings):
    """The network, its data and its optimizer."""

    dataset: RankingData = field(default_factory=RankingData)
    classifier_head: OutputHeadSettings = field(default_factory=OutputHeadSettings)
    train_ds: RankingTrainData = field(default_factory=RankingTrainData)
    validation_ds: RetrievalData = field(default_factory=RetrievalData)
    test_ds: RetrievalData = field(default_factory=RetrievalData)
    optim: OptimizerSettings = field(default_factory=linear_decay(2e-5))


@dataclass
class TextRankingSettings(Settings):
    """All settings of a run."""

    model: TextRankingModel = field(default_factory=TextRankingModel)


@dataclass(frozen=True)
class Prediction:
    """The scores of a query's passages, by id."""

    id: str
    text: str
    scores: dict[str, float]


class TextRanking(Task[RetrievalExample, Prediction]):
    r"""Train a cross-encoder, which scores a query and a passage read together; it re-ranks what a search has found.

        megabert train text_ranking model.train_ds.passages=collection.tsv model.train_ds.queries=queries.tsv \
            model.train_ds.qrels=qrels.txt model.train_ds.run=bm25.trec \
            model.language_model.pretrained_model_name=megabert-mini-uncased
        megabert predict RUN query="statins" passage="Statins lower cholesterol."

    Data are those of `text_embedding`: a query has a relevant passage and `num_negatives` others, from `run` or from
    NeMo's `query_to_passages`. Of a run both are drawn as they are when it is re-ranked, from its first `run_depth`
    passages: trained on relevant passages that the run lacks beside its first ones a network learns that passages with
    the query's words are not relevant. Validation re-ranks the candidates of `run` or `query_to_passages`.

    Metrics: `ndcg@10`, `mrr@10`, `recall@100` and `map` of the re-ranked candidates, per cent; with
    `query_to_passages` alone its first passage is the relevant one.

    Predictions: the score of each passage. Re-ranking a ranking: [retrieve](../how-to/retrieve.md).
    """

    settings_type: ClassVar[type[Settings]] = TextRankingSettings
    main_score = "ndcg@10"
    can_distil = True
    groups_sequences = True
    input_fields: ClassVar[Mapping[str, type]] = {"query": str, "passage": str}

    def file_groups(self, data: DataSettings) -> list[list[str]]:
        """List the files of a set of data."""
        assert isinstance(data, RetrievalData)
        return [[file] for file in data_files(data)]

    def read(self, path: Path) -> list[RetrievalExample]:
        """Read JSON lines of queries with their passages."""
        examples = read_pairs(path)
        if any(not item.query for item in examples):
            raise InputError(f"{path}: there are no queries. Give JSON lines with `query`, `positive`, `negatives`.")
        return examples

    def read_data(self, data: DataSettings) -> list[RetrievalExample]:
        """Read the examples of training, or judged queries with their candidates."""
        if isinstance(data, RankingTrainData):
            if not (data.file or data.run or data.query_to_passages):
                raise ConfigError("Training needs negatives: model.train_ds.run=FILE, or query_to_passages=FILE.")
            needs_scores = self.settings.model.dataset.loss == "margin_mse"
            return read_training(data, needs_scores=needs_scores, notes=self.notes, depth=data.run_depth)
        assert isinstance(data, RetrievalData)
        if not (data.file or data.run or data.query_to_passages):
            raise InputError(
                "There are no candidates to rank: model.validation_ds.run=FILE, or query_to_passages=FILE."
            )
        examples = read_judged(data)[0]
        if all(item.grades is None for item in examples):
            raise InputError(f"{', '.join(data_files(data))}: no query has a relevant passage, so none can be scored.")
        return examples

    def example(self, **fields: Any) -> RetrievalExample:
        """Make an example from `query` and `passage`."""
        query, passage = require_texts(fields, "query", "passage")
        return RetrievalExample(str(fields.get("id", "query")), query, (passage,), ("passage",), text=query)

    def features(
        self, examples: Sequence[RetrievalExample], tokenizer: Tokenizer, *, with_targets: bool
    ) -> Sequence[Features]:
        """Tokenize pairs; of training groups, which stay in one batch, with negatives resampled each epoch."""
        texts = dict.fromkeys(text for item in examples for text in item.passages)
        passages = dict(zip(texts, tokenizer.encode_ids(list(texts)), strict=True))
        queries = tokenizer.encode_ids([item.query for item in examples])

        def pair(number: int, text: str) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
            ids = (queries[number], passages[text])
            (window,), num_cut = sequence_windows(*ids, self.row_length, tokenizer, is_truncated=True)
            return *window, num_cut

        if not with_targets or any(item.grades is not None for item in examples):
            pairs = ((number, *pair(number, text)) for number, item in enumerate(examples) for text in item.passages)
            return [
                Features(ids, segments, weight=0.0, notes=number, num_cut=num_cut)
                for number, ids, segments, num_cut in pairs
            ]

        def group(number: int, places: NDArray[np.int64]) -> Features:
            item = examples[number]
            rows = [pair(number, item.passages[place]) for place in places]
            scores = np.array(kept_scores(item), dtype=np.float32)[places]
            targets = {"is_first": (np.arange(len(rows)) == 0).astype(np.int64), "score": scores}
            ids, segments = (np.concatenate([row[place] for row in rows]) for place in (0, 1))
            return Features(ids, segments, targets, notes=(number, places), parts=tuple(len(row[0]) for row in rows))

        numbers = {text: number for number, text in enumerate(passages)}
        sizes = np.array([len(ids) for ids in passages.values()])
        members = [np.array([numbers[text] for text in item.passages], dtype=np.int64) for item in examples]
        groups = list(zip(queries, members, strict=True))
        lengths = [np.minimum(len(query) + sizes[own] + 3, self.row_length) for query, own in groups]
        digest = hashlib.sha256()
        for array in (*passages.values(), *(array for both in groups for array in both)):
            digest.update(array.tobytes())
        count = self.settings.model.train_ds.num_negatives
        return DrawnGroups(group, lengths, digest.hexdigest(), count, self.settings.seed)

    def unlabelled_features(self, examples: Sequence[RetrievalExample], tokenizer: Tokenizer) -> list[Features]:
        """Tokenize queries with their passages, those of a query together."""
        groups = self.features([replace(item, grades=None) for item in examples], tokenizer, with_targets=True)
        return [replace(item, targets={}) for item in groups]

    def aligned_logits(
        self, examples: Sequence[RetrievalExample], own: Sequence[Features], logits: Logits, student: Sequence[Features]
    ) -> list[NDArray[np.float32]]:
        """Return the scores of the passages of each query."""
        scores = by_example(len(examples), own, logits)
        taught = []
        for item in student:
            number, places = item.notes if item.parts else (item.notes, 0)  # of the passages that were drawn
            taught.append(np.stack(scores[number])[places])
        return taught

    def distillation_loss(self, logits: Tensor, teacher: Tensor, batch: Batch, temperature: float) -> Tensor:
        """Sum over queries the mean squared error of the margins between the first passage and the others."""
        import torch

        from ..model.contrastive_loss import margin_mse

        if not batch.parts:
            return logits.sum() * 0
        sizes_G = torch.tensor(batch.parts, device=logits.device)
        groups_N = torch.arange(len(sizes_G), device=logits.device).repeat_interleave(sizes_G)
        errors_N = margin_mse(logits[:, 0], teacher[:, 0], (sizes_G.cumsum(0) - sizes_G)[groups_N])
        return (errors_N / sizes_G[groups_N]).sum()

    def head(self, config: EncoderConfig) -> Head:
        """Score a pair at its first token."""
        from ..model.heads import SequenceHead

        return SequenceHead(config.hidden_size, 1, **head_options(self.settings.model.classifier_head))

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Sum the queries' losses; bce and margin_mse are the mean over a query's passages."""
        from torch.nn import functional as F

        from ..model.contrastive_loss import group_positions, listwise_losses, margin_mse

        if "is_first" not in batch.targets:
            return logits.sum() * 0
        is_real_N = batch.targets["is_first"] >= 0  # fillers have a negative one
        scores_N, is_first_N = logits[is_real_N, 0], batch.targets["is_first"][is_real_N] == 1
        if not len(scores_N):
            return logits.sum() * 0
        kind = self.settings.model.dataset.loss
        if kind == "listwise":
            return listwise_losses(scores_N, is_first_N).sum()
        groups_N, _ = group_positions(is_first_N)
        if kind == "bce":
            losses_N = F.binary_cross_entropy_with_logits(scores_N, is_first_N.float(), reduction="none")
        else:
            firsts_G = is_first_N.nonzero()[:, 0]
            losses_N = margin_mse(scores_N, batch.targets["score"][is_real_N], firsts_G[groups_N])
        return (losses_N / groups_N.bincount()[groups_N]).sum()

    def decode(
        self, examples: Sequence[RetrievalExample], features: Sequence[Features], logits: Logits
    ) -> list[Prediction]:
        """Collect the scores of each query's passages."""
        scores = by_example(len(examples), features, [float(logit[0]) for logit in logits])
        pairs = zip(examples, scores, strict=True)
        return [Prediction(item.id, item.query, dict(zip(item.passage_ids, own, strict=True))) for item, own in pairs]

    def score(self, examples: Sequence[RetrievalExample], predictions: Sequence[Prediction]) -> dict[str, float]:
        """Score the rankings of the candidates."""
        judged = {item.id: item.grades for item in examples if item.grades is not None}
        if not judged:
            raise InputError("There is nothing to score: no query has judgements.")
        return ranking_scores(judged, {item.id: item.scores for item in predictions if item.scores})

    def from_json(self, example: RetrievalExample, row: Row) -> Prediction:
        """Read the scores of passages."""
        return Prediction(example.id, example.query, {str(k): float(v) for k, v in row.get("scores").items()})

    def gold(self, example: RetrievalExample) -> dict[str, Any]:
        """Return the judgements."""
        return {"grades": dict(example.grades)} if example.grades else {}
