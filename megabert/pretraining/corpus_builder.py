"""Resumable, parallel building of pre-training corpora: documents to Megatron-LM's token files, deduplicated.

Worker processes split units of about a megabyte into sentences and tokenize them; each unit is written atomically to
PREFIX.work, so that an interrupted build resumes. At the end the units are merged without duplicate documents. Memory
holds a few units, 8 bytes per document and 4 per sequence.
"""

import hashlib
import io
import json
import multiprocessing
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..formats.corpus_documents import LONGEST_DOCUMENT_MB, corpus_files, read_documents
from ..storage import atomic_write
from ..tokenizers.load import read_tokenizer
from ..tokenizers.sentences import split_sentences
from ..tokenizers.wordpiece import Tokenizer
from .indexed_dataset import IndexedDatasetBuilder, files_of, token_dtype

UNIT_CHARACTERS = 1_000_000


@dataclass(frozen=True)
class BuildSettings:
    """Settings of a corpus build; an interrupted build resumes only with equal settings."""

    vocab_file: str
    """WordPiece vocabulary, or GPT-2's vocab.json."""
    merges_file: str | None = None
    """GPT-2's merges.txt; None: the one beside vocab.json."""
    lower_case: bool | None = None
    """Lower-case the text and strip accents; None: if the vocabulary has no capitals."""
    by_sentence: bool = True
    """A sequence is a sentence (BERT with sentence-order prediction); false: a whole document."""
    append_end: bool = False
    """End each document with the end-of-text token (GPT)."""
    json_key: str = "text"
    """The key of the text in JSON lines."""
    max_document_mb: float = LONGEST_DOCUMENT_MB
    """A longer line or document is an error."""


@dataclass(frozen=True)
class BuildReport:
    """Counts of a finished build; `num_documents` leaves out duplicates and empty documents."""

    num_documents: int
    num_duplicates: int
    num_empty: int
    num_sequences: int
    num_tokens: int


def build(
    inputs: Sequence[Path],
    prefix: Path,
    settings: BuildSettings,
    *,
    workers: int,
    progress: Callable[[int, int], None] | None = None,
) -> BuildReport:
    """Build PREFIX.bin and PREFIX.idx; `progress` receives the numbers of finished units and of documents read.

    Raises InputError for input that cannot be read, and if the files exist already.
    """
    bin_file, idx_file = files_of(prefix)
    # The index is written last; without it, tokens beside a folder of units are those of an interrupted build.
    for file in [idx_file] if _work_folder(prefix).is_dir() else [bin_file, idx_file]:
        if file.exists():
            if idx_file.exists():  # complete: its build was killed while it removed the units
                shutil.rmtree(_work_folder(prefix), ignore_errors=True)
            raise InputError(f"{file} exists already. Remove it, or choose another prefix.")
    files = corpus_files(inputs)
    work = _open_work_folder(prefix, files, settings)
    num_units = _tokenize_all(files, work, settings, workers, progress)
    report = _merge(work, num_units, prefix, token_dtype(len(_tokenizer(settings))))
    shutil.rmtree(work)
    return report


def _open_work_folder(prefix: Path, files: Sequence[Path], settings: BuildSettings) -> Path:
    """Create the folder of units, or reuse one of the same input and settings."""
    work = _work_folder(prefix)
    stamps = [[str(file.absolute()), file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    contents = "".join(_tokenizer(settings).files().values())
    vocabulary = hashlib.sha256(contents.encode()).hexdigest()
    description = json.dumps({"settings": asdict(settings), "vocabulary": vocabulary, "files": stamps}, indent=1)
    made_of = work / "made_of.json"
    if made_of.is_file() and made_of.read_bytes() != description.encode():
        raise InputError(
            f"{work} belongs to a build with other input or settings. Remove it, or choose another prefix."
        )
    work.mkdir(parents=True, exist_ok=True)
    atomic_write(made_of, description)
    return work


def _work_folder(prefix: Path) -> Path:
    return prefix.with_name(f"{prefix.name}.work")


def _units(files: Sequence[Path], settings: BuildSettings) -> Iterator[list[str]]:
    unit: list[str] = []
    size = 0
    for file in files:
        for document in read_documents(file, settings.json_key, max_mb=settings.max_document_mb):
            unit.append(document)
            size += len(document)
            if size >= UNIT_CHARACTERS:
                yield unit
                unit, size = [], 0
    if unit:
        yield unit


def _tokenize_all(
    files: Sequence[Path],
    work: Path,
    settings: BuildSettings,
    workers: int,
    progress: Callable[[int, int], None] | None,
) -> int:
    done = num_read = num_units = 0
    # spawn: a fork of a process with threads (tokenizers, torch) may hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(settings,)) as pool:
        running: set[Future[None]] = set()
        try:
            for number, unit in enumerate(_units(files, settings)):
                num_units, num_read = number + 1, num_read + len(unit)
                target = work / f"{number:08d}.unit"
                if _read_unit(target) is not None:
                    done += 1
                else:
                    running.add(pool.submit(_tokenize_unit, unit, target, settings))
                if len(running) >= 2 * workers:
                    finished, running = wait(running, return_when=FIRST_COMPLETED)
                    done += sum(future.result() is None for future in finished)
                if progress is not None:
                    progress(done, num_read)
            for future in list(running):
                future.result()
                done += 1
                if progress is not None:
                    progress(done, num_read)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    if not num_units:
        raise InputError(f"{', '.join(map(str, files[:3]))} contain no text.")
    return num_units


def _write_unit(target: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, **arrays)
    atomic_write(target, hashlib.sha256(content.getvalue()).digest() + content.getvalue())


def _read_unit(unit: Path) -> dict[str, NDArray[Any]] | None:
    """Read a unit's arrays; None if it is missing or does not match its SHA-256, so that it is made again."""
    if not unit.is_file():
        return None
    data = unit.read_bytes()
    sha256, content = data[:32], data[32:]
    if hashlib.sha256(content).digest() != sha256:
        return None
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        return dict(arrays)


_worker: dict[str, Tokenizer] = {}


def _start_worker(settings: BuildSettings) -> None:
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the worker processes are parallel already
    _worker["tokenizer"] = _tokenizer(settings)


def _exit_with_parent() -> None:
    """End this worker when the process that started it ends, even if that was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker has a parent"
    parent.join()
    os._exit(1)


def _tokenizer(settings: BuildSettings) -> Tokenizer:
    merges = settings.merges_file
    return read_tokenizer(
        Path(settings.vocab_file), None if merges is None else Path(merges), lower_case=settings.lower_case
    )


def _tokenize_unit(documents: Sequence[str], target: Path, settings: BuildSettings) -> None:
    tokenizer = _worker["tokenizer"]
    pieces: list[str] = []
    owners: list[int] = []  # the document of each piece
    for number, document in enumerate(documents):
        if settings.by_sentence:
            paragraphs = document.split("\n")
            split = [part[start:end] for part in paragraphs for start, end in split_sentences(part)]
        else:
            split = [document]
        pieces += split
        owners += [number] * len(split)
    encoded = tokenizer.encode_ids(pieces)
    kept = [(ids, owner) for ids, owner in zip(encoded, owners, strict=True) if len(ids)]
    if settings.append_end:
        is_last = [n + 1 == len(kept) or kept[n + 1][1] != owner for n, (_, owner) in enumerate(kept)]
        kept = [
            (np.append(ids, tokenizer.end_id) if last else ids, owner)
            for (ids, owner), last in zip(kept, is_last, strict=True)
        ]
    digests = [hashlib.blake2b(" ".join(document.split()).encode(), digest_size=8).digest() for document in documents]
    arrays = {
        "tokens": np.concatenate([ids for ids, _ in kept]) if kept else np.zeros(0, dtype=np.int64),
        "lengths": np.array([len(ids) for ids, _ in kept], dtype=np.int32),
        "sequences": np.bincount([owner for _, owner in kept], minlength=len(documents)).astype(np.int64),
        "digests": np.frombuffer(b"".join(digests), dtype="<u8"),
    }
    arrays["tokens"] = arrays["tokens"].astype(token_dtype(len(tokenizer)))
    _write_unit(target, arrays)


def _merge(work: Path, num_units: int, prefix: Path, dtype: np.dtype[np.generic]) -> BuildReport:
    """Merge the units without duplicates of earlier documents and documents without a token."""
    units = [work / f"{number:08d}.unit" for number in range(num_units)]
    digests = np.concatenate([_read_sound_unit(unit)["digests"] for unit in units])
    is_first = np.zeros(len(digests), dtype=np.bool_)
    is_first[np.unique(digests, return_index=True)[1]] = True
    num_documents = num_empty = num_sequences = num_tokens = done = 0
    with IndexedDatasetBuilder(prefix, dtype) as writer:
        for unit in units:
            arrays = _read_sound_unit(unit)
            tokens, lengths, sequences = arrays["tokens"], arrays["lengths"], arrays["sequences"]
            is_new = is_first[done : done + len(sequences)]
            done += len(sequences)
            num_empty += int((is_new & (sequences == 0)).sum())
            is_kept = is_new & (sequences > 0)
            of_sequence = np.repeat(is_kept, sequences)
            writer.add(tokens[np.repeat(of_sequence, lengths)], lengths[of_sequence], sequences[is_kept])
            num_documents += int(is_kept.sum())
            num_sequences += int(of_sequence.sum())
            num_tokens += int(lengths[of_sequence].sum())
    return BuildReport(num_documents, int((~is_first).sum()), num_empty, num_sequences, num_tokens)


def _read_sound_unit(unit: Path) -> dict[str, NDArray[Any]]:
    arrays = _read_unit(unit)
    if arrays is None:
        raise InputError(f"{unit} was damaged during the build. Repeat the command: only this unit is made again.")
    return arrays
