"""Text embeddings for retrieval: a bi-encoder of queries and passages, trained with in-batch and hard negatives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..config.schema import DataSettings, ModelSettings, OptimizerSettings, Settings, choice, linear_decay
from ..data.packing import NO_TARGET, Batch, Features, PlainSequences
from ..errors import ConfigError, InputError
from ..formats.rows import Row
from ..model.config import ACTIVATIONS, EncoderConfig
from ..tokenizers.wordpiece import Tokenizer
from .retrieval_data import (
    EmbeddingTask,
    Prediction,
    RetrievalData,
    RetrievalExample,
    RetrievalTrainData,
    data_files,
    kept_scores,
    ranking_scores,
    read_judged,
    read_pairs,
    read_training,
    text_number,
)
from .task import Logits, require_texts

if TYPE_CHECKING:
    from torch import Tensor

    from ..model.heads import Head

ROLES = ("query", "passage")
MAX_RANK = 1000
BLOCK = 256


@dataclass
class EmbeddingData:
    """How texts become tokens."""

    max_seq_length: int = 256
    """Most tokens of a passage; what is longer is cut."""
    max_query_length: int = 64
    """Most tokens of a query; what is longer is cut."""
    query_prompt: str = ""
    """Text before every query."""
    passage_prompt: str = ""
    """Text before every passage."""


@dataclass
class EmbeddingSettings:
    """What an embedding is, and its loss."""

    pooling: str = choice("mean", "mean", "cls", "last")
    """Which hidden states: the mean of all, that of the first, or of the last token."""
    normalize: bool = True
    """Embeddings have the length 1: similarity is the cosine. false: the inner product, as DPR."""
    projection: int = 0
    """Size of embeddings that a linear layer makes of the pooled hidden states; 0: no such layer."""
    projection_activation: str = choice("identity", "identity", *ACTIVATIONS)
    """What follows that layer."""
    num_encoders: int = 1
    """1: one encoder for queries and passages; 2: one each (DPR), both of which start from the same weights."""
    loss: str = choice("in_batch", "in_batch", "margin_mse")
    """in_batch: cross-entropy of the positive among all passages of a step; margin_mse: a teacher's margins."""
    temperature: float = 0.05
    """Divides similarities in the loss; 1 with normalize=false."""
    matryoshka_dimensions: list[int] = field(default_factory=list)
    """The loss also counts for the first so many dimensions, which can then be used alone, such as [64,128]."""


@dataclass
class TextEmbeddingModel(ModelSettings):
    """The network, its data, its loss and its optimizer."""

    dataset: EmbeddingData = field(default_factory=EmbeddingData)
    embedding: EmbeddingSettings = field(default_factory=EmbeddingSettings)
    train_ds: RetrievalTrainData = field(default_factory=RetrievalTrainData)
    validation_ds: RetrievalData = field(default_factory=RetrievalData)
    test_ds: RetrievalData = field(default_factory=RetrievalData)
    optim: OptimizerSettings = field(default_factory=linear_decay(2e-5))


@dataclass
class TextEmbeddingSettings(Settings):
    """All settings of a run."""

    model: TextEmbeddingModel = field(default_factory=TextEmbeddingModel)


class TextEmbedding(EmbeddingTask[RetrievalExample]):
    r"""Train embeddings of texts, in which a query is near the passages that answer it (a bi-encoder, DPR).

        megabert train text_embedding model.train_ds.passages=collection.tsv model.train_ds.queries=queries.tsv \
            model.train_ds.qrels=qrels.txt model.language_model.pretrained_model_name=megabert-mini-uncased
        megabert predict RUN text="how do statins work" role=query

    Data: passages and queries, `id<TAB>text` or BEIR's JSON lines, with judgements (`qrels`), or NeMo's
    `query_to_passages`. Hard negatives are those of `query_to_passages`, or the first passages of `run`, a ranking in
    TREC's format, that are not relevant; `negative_margin` leaves out those that probably are. Or `file`: JSON lines
    with `query`, `positive` (a text or several), `negatives`, and perhaps a teacher's `scores` of all of them; names of
    sentence-transformers, FlagEmbedding and DPR are read, too.

    The other passages of a step are negatives, too, those of all micro-batches and processes: with
    `trainer.accumulate_grad_batches` the batch can be as large as one likes, since gradients are cached (exactly, with
    the same dropout masks). Passages that are known to be relevant are no negatives.

    Validation ranks all passages for each query, or the candidates of `run` or `query_to_passages` alone.

    Metrics: `ndcg@10`, `mrr@10`, `recall@100` and `map`, per cent, as trec_eval and MS MARCO compute them; a query for
    which nothing is found counts 0.

    Predictions: the embedding. Bulk embedding and search: [retrieve](../how-to/retrieve.md).
    """

    settings_type: ClassVar[type[Settings]] = TextEmbeddingSettings
    main_score = "ndcg@10"
    can_distil = True
    input_fields: ClassVar[Mapping[str, type]] = {"text": str, "role": str}

    def __init__(self, settings: TextEmbeddingSettings) -> None:
        super().__init__(settings)
        self.embedding = settings.model.embedding
        if self.embedding.num_encoders not in (1, 2):
            raise ConfigError(f"model.embedding.num_encoders={self.embedding.num_encoders}; give 1 or 2.")
        if self.embedding.temperature <= 0:
            raise ConfigError(f"model.embedding.temperature={self.embedding.temperature}; give more than 0.")

    def file_groups(self, data: DataSettings) -> list[list[str]]:
        """List the files of a set of data."""
        assert isinstance(data, RetrievalData)
        return [[file] for file in data_files(data)]

    def read(self, path: Path) -> list[RetrievalExample]:
        """Read texts with ids, or JSON lines of queries with their passages."""
        return self._with_passages(read_pairs(path), {})

    def read_data(self, data: DataSettings) -> list[RetrievalExample]:
        """Read the examples of training, or judged queries followed by the passages."""
        if isinstance(data, RetrievalTrainData):
            needs_scores = self.embedding.loss == "margin_mse"
            return read_training(data, needs_scores=needs_scores, notes=self.notes)
        assert isinstance(data, RetrievalData)
        return self._with_passages(*read_judged(data))

    def _with_passages(self, examples: list[RetrievalExample], texts: Mapping[str, str]) -> list[RetrievalExample]:
        """Take queries and passages apart: each text is embedded once."""
        queries = [item for item in examples if item.query]
        passages = dict(texts) or {text: text for item in queries for text in item.passages}
        made = [RetrievalExample(i.id, i.query, (), i.passage_ids, None, i.grades, i.query, i.given) for i in queries]
        made += [item for item in examples if not item.query]
        return made + [RetrievalExample(name, passages=(text,), text=text) for name, text in passages.items()]

    def example(self, **fields: Any) -> RetrievalExample:
        """Make an example from `text` and perhaps `role`, query or passage."""
        (text,) = require_texts(fields, "text", optional=("role",))
        role = fields.get("role") or "passage"
        if role not in ROLES:
            raise InputError(f"role is {role!r}; expected query or passage.")
        name = str(fields.get("id", "text"))
        return RetrievalExample(name, text if role == "query" else "", () if role == "query" else (text,), text=text)

    def features(
        self, examples: Sequence[RetrievalExample], tokenizer: Tokenizer, *, with_targets: bool
    ) -> list[Features]:
        """Tokenize texts; of an example of training the query and its passages, which stay in one batch."""
        queries = iter(self._rows([item.query for item in examples if item.query], tokenizer, "query"))
        texts = iter(self._rows([text for item in examples for text in item.passages], tokenizer, "passage"))
        features = []
        for number, item in enumerate(examples):
            pairs = [next(queries)] if item.query else []
            pairs += [next(texts) for _ in item.passages]
            rows, num_cut = [row for row, _ in pairs], sum(count for _, count in pairs)
            roles = [0] * bool(item.query) + [1] * len(item.passages)
            targets: dict[str, Any] = {}
            parts: tuple[int, ...] = ()
            if is_group := len(rows) > 1:
                parts = tuple(len(row) for row in rows)
                targets = {
                    "query": np.full(len(rows), text_number(item.id)),
                    "passage": np.array([-1, *map(text_number, item.passage_ids)]),
                    "score": np.array([0, *kept_scores(item)], dtype=np.float32),
                }
            ids = np.concatenate(rows)
            token_targets = {"role": np.repeat(roles, [len(row) for row in rows])} if self._has_two() else {}
            weight = float(is_group)
            features.append(Features(ids, np.zeros_like(ids), targets, token_targets, weight, number, parts, num_cut))
        return features

    def text_features(self, texts: Sequence[str], tokenizer: Tokenizer, role: str) -> Sequence[Features]:
        """Tokenize texts that are embedded in a role."""
        refused = [text for text in texts if not isinstance(text, str) or not text.strip()]
        examples = [self.example(text=text, role=role) for text in (texts if self._has_two() else refused or texts[:1])]
        if self._has_two():
            return self.features(examples, tokenizer, with_targets=False)
        length, prompt = self._limits(role)
        edges = tokenizer.edges()
        ids, lengths = tokenizer.encode_joined([prompt + text for text in texts] if prompt else texts)
        kept = np.minimum(lengths, length - sum(map(len, edges)))
        columns = {"notes": np.arange(len(kept)), "num_cut": lengths - kept}
        return PlainSequences.between(edges, ids, np.cumsum(lengths) - lengths, kept, **columns)

    def _limits(self, role: str) -> tuple[int, str]:
        """Return the most tokens of a text in a role, and its prompt."""
        dataset = self.settings.model.dataset
        if role == "query":
            return min(dataset.max_query_length, self.row_length), dataset.query_prompt
        return self.row_length, dataset.passage_prompt

    def _has_two(self) -> bool:
        return self.embedding.num_encoders == 2

    def _rows(self, texts: Sequence[str], tokenizer: Tokenizer, role: str) -> list[tuple[NDArray[np.int64], int]]:
        """Tokenize texts; returns for each the token ids, and how many were cut."""
        length, prompt = self._limits(role)
        first, last = tokenizer.edges()
        room = length - len(first) - len(last)
        return [
            (np.concatenate([first, ids[:room], last]).astype(np.int64), max(len(ids) - room, 0))
            for ids in tokenizer.encode_ids([prompt + text for text in texts])
        ]

    def head(self, config: EncoderConfig) -> Head:
        """Pool the hidden states of a text; with two encoders the head has that of passages."""
        from ..model.heads import DualEmbeddingHead, EmbeddingHead, Projection

        settings = self.embedding
        if self._has_two():
            if settings.projection:
                raise ConfigError("model.embedding.projection needs num_encoders=1. Leave one of both out.")
            return DualEmbeddingHead(config, settings.pooling, normalize=settings.normalize)
        width, activation = settings.projection, settings.projection_activation
        project = Projection(config.hidden_size, width, activation) if width else None
        return EmbeddingHead(settings.pooling, normalize=settings.normalize, project=project)

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Sum the queries' losses, the mean over all Matryoshka dimensions; 0 where there are no pairs."""
        from ..model.contrastive_loss import in_batch_losses, margin_mse, truncated

        if "passage" not in batch.targets:
            return logits.sum() * 0
        keys_N, passages_N = batch.targets["query"], batch.targets["passage"]
        is_query_N, is_passage_N = passages_N == -1, passages_N >= 0  # neither is a filler
        is_first_P = is_query_N.roll(1)[is_passage_N]
        sizes = self.embedding.matryoshka_dimensions
        total = logits.new_zeros(())
        for size in {logits.shape[1], *sizes}:
            embeddings_ND = truncated(logits, size, normalize=self.embedding.normalize)
            queries_QD, passages_PD = embeddings_ND[is_query_N], embeddings_ND[is_passage_N]
            positives_Q = is_first_P.nonzero()[:, 0]
            if self.embedding.loss == "margin_mse":
                own_P = is_first_P.long().cumsum(0) - 1
                scores_P = (queries_QD[own_P] * passages_PD).sum(1)
                errors_P = margin_mse(scores_P, batch.targets["score"][is_passage_N], positives_Q[own_P])
                others_Q = own_P.bincount(minlength=len(positives_Q)).clamp(min=2) - 1
                losses = errors_P / others_Q[own_P]
            else:
                losses = in_batch_losses(
                    queries_QD,
                    passages_PD,
                    positives_Q,
                    temperature=self.scale,
                    query_keys_Q=keys_N[is_query_N],
                    owners_P=keys_N[is_passage_N].where(is_first_P, -1),
                    passage_keys_P=passages_N[is_passage_N],
                )
            total = total + losses.sum()
        return total / len({logits.shape[1], *sizes})

    @property
    def scale(self) -> float:
        """What divides inner products in the losses."""
        return self.embedding.temperature if self.embedding.normalize else 1.0

    def aligned_logits(
        self, examples: Sequence[RetrievalExample], own: Sequence[Features], logits: Logits, student: Sequence[Features]
    ) -> list[NDArray[np.float32]]:
        """Return the embeddings, scaled so that inner products are what the losses compare."""
        return [item / np.float32(self.scale**0.5) for item in logits]

    def distillation_loss(self, logits: Tensor, teacher: Tensor, batch: Batch, temperature: float) -> Tensor:
        """Sum over queries and unlabelled texts the divergence of their similarities to all other texts."""
        from ..model.distillation_loss import similarity_divergences

        passages_N = batch.targets["passage"]
        is_row_N = (passages_N == -1) | (passages_N == NO_TARGET)
        return similarity_divergences(logits, teacher, is_row_N, scale=self.scale, temperature=temperature)

    def score(self, examples: Sequence[RetrievalExample], predictions: Sequence[Prediction]) -> dict[str, float]:
        """Rank the passages for each judged query."""
        queries = [number for number, item in enumerate(examples) if item.grades is not None]
        places = [number for number, item in enumerate(examples) if not item.query]
        if not queries or not places:
            raise InputError(
                "There is nothing to score: no query has judgements, or there is no passage. Give JSON lines of query, "
                "positive and negatives; rankings of a collection are scored by megabert score retrieval."
            )
        names = [examples[place].id for place in places]
        passages = np.stack([predictions[place].embedding for place in places])
        run: dict[str, dict[str, float]] = {}
        for start in range(0, len(queries), BLOCK):
            own = queries[start : start + BLOCK]
            scores = np.stack([predictions[number].embedding for number in own]) @ passages.T
            for number, row in zip(own, scores, strict=True):
                allowed = set(examples[number].passage_ids)
                best = range(len(row)) if allowed else np.argpartition(-row, min(MAX_RANK, len(row)) - 1)[:MAX_RANK]
                chosen = {names[place]: float(row[place]) for place in best}
                run[examples[number].id] = {n: v for n, v in chosen.items() if not allowed or n in allowed}
        return ranking_scores({examples[number].id: examples[number].grades or {} for number in queries}, run)

    def from_json(self, example: RetrievalExample, row: Row) -> Prediction:
        """Read an embedding."""
        return Prediction(example.id, example.text, np.array(row.get("embedding"), dtype=np.float32))

    def gold(self, example: RetrievalExample) -> dict[str, Any]:
        """Return the judgements."""
        return {"grades": dict(example.grades)} if example.grades else {}
