"""Embeddings of a dictionary's names by a run: written once, then searched for the names nearest to a mention.

The store is beside the dictionary, in DICT/vectors-DIGEST. In annotation the search runs where the network is: a
SearchSession computes embedding and nearest names in one call, so workers need neither network nor GPU.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from ..data.packing import Features
from ..errors import InputError
from ..inference import Predictor, RunOptions, Session, SessionOutput
from ..load_predictor import load_predictor
from ..retrieval.embedding_store import EmbeddingStore, StoreOptions, write_store
from ..retrieval.exact_search import DeviceSearch, search
from ..tokenizers.wordpiece import Tokenizer
from .dictionary import Dictionary
from .linker import NUM_CANDIDATES

BATCH_SIZE = 512
"""Token budget of a batch, in names of the greatest length."""
MAX_TOKENS = 32
GPU_SHARE = 0.5
"""Part of the free GPU memory that vectors may take; larger ones are searched on the CPU."""
_BASE = 4096  # row numbers cross as two float32 numbers, exact up to 2**36


def vectors_folder(dictionary: Dictionary, digest: str) -> Path:
    """Return the folder of a run's vectors of the names."""
    return dictionary.folder / f"vectors-{digest[:16]}"


def embed_names(
    dictionary: Dictionary,
    run: Path,
    *,
    dtype: str = "float16",
    dimensions: int | None = None,
    accelerator: str = "auto",
    precision: str = "auto",
    progress: Callable[[int, int], None] = lambda *_: None,
) -> Path:
    """Write the vectors of all names by a run; resumes what an interrupted call left. Returns their folder."""
    predictor = load_predictor(run, accelerator=accelerator, precision=precision)
    folder = vectors_folder(dictionary, predictor.digest)
    session, total = _embedding_session(predictor), len(dictionary)

    def embed(texts: Sequence[str]) -> NDArray[np.float32]:
        features = name_features(predictor.tokenizer, texts, _length(predictor))
        return _unit(_run(session, features, _length(predictor), predictor.tokenizer.pad_id))

    write_store(
        folder,
        _numbered(dictionary),
        embed,
        about={"run": predictor.digest, "dictionary": dictionary.digest},
        options=StoreOptions(dtype, dimensions),
        resume=folder.exists(),
        progress=lambda done: progress(done, total),
    )
    return folder


def _numbered(dictionary: Dictionary) -> Iterator[tuple[str, str]]:
    for start in range(0, len(dictionary), 10_000):
        for number, name in enumerate(dictionary.names(start, min(start + 10_000, len(dictionary))), start=start):
            yield str(number), name


def _embedding_session(predictor: Predictor) -> Session:
    """Return the session that embeds: that of an embedding task itself, of others the mean of the hidden states."""
    return predictor.session if predictor.task.is_embedding else predictor.session.without_head()


def _length(predictor: Predictor) -> int:
    return min(predictor.task.row_length, MAX_TOKENS)


def name_features(tokenizer: Tokenizer, texts: Sequence[str], max_length: int) -> list[Features]:
    """Tokenize names, each a sequence; what is longer is cut."""
    features = []
    for ids in tokenizer.encode_ids(list(texts)):
        kept = ids[: max_length - 2]
        token_ids = np.concatenate([[tokenizer.cls_id], kept, [tokenizer.sep_id]]).astype(np.int64)
        features.append(Features(token_ids, np.zeros_like(token_ids)))
    return features


def _run(session: Session, features: Sequence[Features], max_length: int, pad_id: int) -> NDArray[np.float32]:
    output = session.run(features, batch_size=BATCH_SIZE, max_length=max_length, pad_id=pad_id)
    vectors = np.stack(output.logits)
    if not np.isfinite(vectors).all():
        raise InputError("the network's outputs are not finite numbers. Use --precision 32 or another run.")
    return vectors


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(norms > 0, norms, 1)).astype(np.float32)


@dataclass(frozen=True)
class NearestNames:
    """The names nearest to a text, and its embedding, by which the similarity of any name is computed."""

    names: NDArray[np.int64]
    vector: NDArray[np.float32]
    store: EmbeddingStore

    def similarities(self, names: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the cosine similarities of names."""
        return self.store.rows(names) @ self.vector


@dataclass(frozen=True)
class SearchSession:
    """A session whose outputs are embedding and numbers of the nearest names, [D + 2 K], in place of the embedding."""

    session: Session
    store: EmbeddingStore
    on_device: DeviceSearch | None

    @property
    def needs_targets(self) -> bool:
        """Names have none."""
        return False

    @property
    def max_positions(self) -> int:
        """The most tokens of a sequence."""
        return self.session.max_positions

    def without_head(self) -> Session:
        """Refuse: the embedding is what is searched."""
        raise NotImplementedError

    def run(self, features: Sequence[Features], **options: Unpack[RunOptions]) -> SessionOutput:
        """Embed names and search."""
        if not features:
            return SessionOutput([], None)
        output = self.session.run(features, **options)
        vectors = _unit(np.stack(output.logits))
        queries, k = vectors[:, : self.store.dimensions], min(NUM_CANDIDATES, len(self.store))
        queries = _unit(queries) if queries.shape != vectors.shape else queries
        _, rows = self.on_device.search(queries, k) if self.on_device else search(self.store, queries, k)
        high, low = np.divmod(rows, _BASE)
        return SessionOutput(list(np.concatenate([queries, high, low], axis=1).astype(np.float32)), None)


@dataclass(frozen=True)
class DenseIndex:
    """The search by embeddings of a dictionary's names."""

    run_digest: str
    tokenizer: Tokenizer
    max_length: int
    store: EmbeddingStore
    session: Session

    def with_session(self, session: Session) -> "DenseIndex":
        """Return the search with the session of another process."""
        return replace(self, session=session)

    def __getstate__(self) -> dict[str, Any]:
        """Pickle the store as its folder: each process maps the files itself."""
        return {**self.__dict__, "store": self.store.folder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, store=EmbeddingStore(state["store"]))

    def search(self, texts: Sequence[str]) -> list[NearestNames]:
        """Embed texts and find the nearest names of each."""
        if not texts:
            return []
        features = name_features(self.tokenizer, texts, self.max_length)
        rows = _run(self.session, features, self.max_length, self.tokenizer.pad_id)
        size = self.store.dimensions
        vectors, (high, low) = rows[:, :size], np.split(rows[:, size:].astype(np.int64), 2, axis=1)
        return [NearestNames(*item, self.store) for item in zip(high * _BASE + low, vectors, strict=True)]


def open_dense(dictionary: Dictionary, run: Path, *, accelerator: str, precision: str) -> DenseIndex:
    """Open the vectors of a run. Raises InputError if the dictionary has none of it."""
    predictor = load_predictor(run, accelerator=accelerator, precision=precision)
    folder = vectors_folder(dictionary, predictor.digest)
    if not folder.exists():
        others = sorted(item.name.partition("-")[2] for item in dictionary.folder.glob("vectors-*"))
        found = f"it has those of the runs {', '.join(others)}" if others else "it has those of no run"
        raise InputError(
            f"{dictionary.folder} has no vectors of {run} ({predictor.digest[:16]}): {found}. "
            f"Make them: megabert dictionary embed {dictionary.folder} {run}."
        )
    store = EmbeddingStore(folder)
    if store.manifest.get("dictionary") != dictionary.digest or len(store) != len(dictionary):
        raise InputError(f"{folder} has the vectors of another dictionary. Remove it, and embed the names again.")
    session = _embedding_session(predictor)
    search_session = SearchSession(session, store, _on_device(store, session))
    return DenseIndex(predictor.digest, predictor.tokenizer, _length(predictor), store, search_session)


def _on_device(store: EmbeddingStore, session: Session) -> DeviceSearch | None:
    """Copy the vectors to the GPU of the network where they fit."""
    device = getattr(session, "device", None)
    if device is None or device.type != "cuda":
        return None
    import torch

    size = sum(block.values.nbytes for block in store.blocks(2**20))
    free, _ = torch.cuda.mem_get_info(device)
    return DeviceSearch(store.blocks(2**18), device) if size < GPU_SHARE * free else None
