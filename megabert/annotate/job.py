"""A bulk job: documents of many files through the pipeline to shards and a ledger; it can be resumed."""

import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from operator import attrgetter
from typing import Any

from ..data.prefetch import prefetch
from ..errors import InputError, MegabertError
from ..formats.documents.abbreviations import with_abbreviations
from ..formats.documents.convert_documents import read_documents
from ..formats.documents.document import Document
from ..formats.documents.losses import Losses
from ..formats.documents.sources import Faults, ReadOptions
from ..formats.documents.training_examples import PairOptions
from ..inference import Predictor, Session
from .annotator import EntityAnnotator, RelationAnnotator, annotate, without_annotations
from .entity_linker import EntityLinker
from .pipeline import process_chunks
from .remote_session import RemoteSession
from .shard_formats import ShardFormat
from .shards import Ledger, ShardRecord, ShardWriter, add_name

CHUNK_DOCUMENTS = 64
"""Documents that are annotated together: about two batches of 32 x 512 tokens."""
CHUNKS_WRITTEN = 8
"""Chunks that wait to be written, at most."""
_type = attrgetter("type")


@dataclass(frozen=True)
class Inputs:
    """Which documents a job reads."""

    paths: tuple[str, ...]
    format: str | None = None
    unit: str = "code-points"
    id_column: str | None = None
    text_column: str | None = None
    lines_are_documents: bool = False
    skip_faults: bool = False
    """Report what is wrong in the input and go on, instead of stopping."""
    part: tuple[int, int] = (0, 1)
    """Of N machines the number of this one, from 0, and N."""


@dataclass(frozen=True)
class Chunk:
    """Documents in the order of the input, and messages of faults at their places."""

    items: tuple[Document | str, ...]


@dataclass(frozen=True)
class ReadDocuments:
    """Read the chunks of a job that follow `skip` items, whose names must have the hash `names`."""

    inputs: Inputs
    skip: int = 0
    names: str = ""

    def __call__(self) -> Iterator[Chunk]:
        """Yield the chunks. Raises InputError for a fault in the input unless they are skipped."""
        items = self._items()
        digest = hashlib.sha256()
        num_skipped = 0
        for item in itertools.islice(items, self.skip):
            add_name(digest, item if isinstance(item, str) else item.id)
            num_skipped += 1
        if self.skip and (num_skipped < self.skip or digest.hexdigest() != self.names):
            raise InputError("the input has other documents than when the job began. Annotate it to a new folder.")
        while chunk := tuple(itertools.islice(items, CHUNK_DOCUMENTS)):
            yield Chunk(chunk)

    def _items(self) -> Iterator[Document | str]:
        """Yield the documents of this machine, and the messages of faults where they occur."""
        messages: list[str] = []
        faults = Faults(messages.append if self.inputs.skip_faults else None)
        inputs = self.inputs
        options = ReadOptions(faults, inputs.id_column, inputs.text_column, inputs.lines_are_documents)
        part, num_parts = inputs.part
        documents = read_documents(inputs.paths, options, format_name=inputs.format, unit=inputs.unit)
        for number, document in enumerate(documents):
            is_own = number % num_parts == part
            yield from messages if is_own else ()
            messages.clear()
            if is_own:
                yield document
        yield from messages


@dataclass
class AnnotateChunks:
    """What a worker does with each chunk; called once with the sessions of its process."""

    entity_runs: Sequence[Predictor]
    relation_runs: Sequence[Predictor]
    pairs: PairOptions
    existing: str
    """What becomes of annotations of the input: keep, replace, or use (relations hold between these entities only)."""
    abbreviations: bool
    skip_faults: bool
    output: ShardFormat
    linkers: Sequence[EntityLinker] = ()
    """Applied to the entities in their order, before relations."""

    def __call__(self, sessions: Sequence[Session]) -> Callable[[Chunk], tuple[list[ShardRecord], Losses]]:
        """Return the function from a chunk to its records, and to what the format could not hold."""
        runs = (*self.entity_runs, *self.relation_runs)
        predictors = [replace(predictor, session=item) for predictor, item in zip(runs, sessions, strict=False)]
        num_entity_runs = len(self.entity_runs)
        others = iter(sessions[len(runs) :])
        linkers = [replace(item, linker=item.linker.with_sessions(others)) for item in self.linkers]
        use_predicted = self.existing != "use"
        annotators = [
            *(EntityAnnotator(item) for item in predictors[:num_entity_runs]),
            *linkers,
            *(RelationAnnotator(item, self.pairs, use_predicted) for item in predictors[num_entity_runs:]),
        ]
        return partial(self._annotate_chunk, annotators)

    def _annotate_chunk(self, annotators: Sequence[Any], chunk: Chunk) -> tuple[list[ShardRecord], Losses]:
        losses = Losses()
        documents = [item for item in chunk.items if isinstance(item, Document)]
        try:
            done = iter(self._records(annotators, documents, losses))
        except MegabertError:
            if not self.skip_faults:
                raise
            # Annotated one by one, the document that fails is found, and the others are annotated.
            done = (self._record_or_failure(annotators, document, losses) for document in documents)
        records = [ShardRecord({"fault": item}) if isinstance(item, str) else next(done) for item in chunk.items]
        return records, losses

    def _records(self, annotators: Sequence[Any], documents: Sequence[Document], losses: Losses) -> list[ShardRecord]:
        if self.existing == "replace":
            documents = [without_annotations(document) for document in documents]
        if self.abbreviations:
            documents = [with_abbreviations(document) for document in documents]
        records = []
        for item in annotate(annotators, documents):
            document = item.document
            line = {
                "id": document.id,
                "location": document.location,
                "windows": item.windows,
                "entities": dict(sorted(Counter(map(_type, document.entities)).items())),
                "relations": dict(sorted(Counter(map(_type, document.relations)).items())),
                "status": "done",
            }
            records.append(ShardRecord(line, self.output.render(document, losses)))
        return records

    def _record_or_failure(self, annotators: Sequence[Any], document: Document, losses: Losses) -> ShardRecord:
        try:
            return self._records(annotators, [document], losses)[0]
        except MegabertError as error:
            return ShardRecord(
                {"id": document.id, "location": document.location, "status": "failed", "error": str(error)}
            )


def run_job(
    inputs: Inputs,
    work: AnnotateChunks,
    sessions: Sequence[Session],
    writer: ShardWriter,
    workers: int,
    progress: Callable[[Ledger, int], None] = lambda *_: None,
    process: Callable[[ReadDocuments], Iterator[Any]] | None = None,
) -> Losses:
    """Annotate the documents that the writer's ledger does not have yet; returns what the format could not hold.

    `progress` is called after each chunk with the ledger and the number of documents that wait for their shard.
    `process` annotates chunks instead of the sessions and workers.
    """
    ledger, losses = writer.ledger, Losses()
    read = ReadDocuments(inputs, ledger.documents + ledger.faults, ledger.names.hexdigest())
    if workers:  # the networks stay in this process
        entity_runs, relation_runs = (
            [replace(predictor, session=RemoteSession(None, -1)) for predictor in runs]
            for runs in (work.entity_runs, work.relation_runs)
        )
        remote = iter(RemoteSession(None, -1) for _ in sessions)
        linkers = [replace(item, linker=item.linker.with_sessions(remote)) for item in work.linkers]
        work = replace(work, entity_runs=entity_runs, relation_runs=relation_runs, linkers=linkers)

    def write(done: tuple[Sequence[ShardRecord], Losses] | Exception) -> Losses:
        if isinstance(done, Exception):  # what is before it is written
            raise done
        for record in done[0]:
            writer.write(record)
        return done[1]

    done = _until_error(process(read) if process else process_chunks(read, work, sessions, workers))
    # In a thread of its own, since writing waits for the disk.
    with closing(prefetch(write, done, depth=CHUNKS_WRITTEN)) as written:
        for lost in written:
            losses += lost
            progress(ledger, writer.num_waiting)
    writer.finish()
    return losses


def _until_error(items: Iterator[Any]) -> Iterator[Any]:
    """Yield items; an exception is the last one."""
    try:
        yield from items
    except Exception as error:
        yield error
