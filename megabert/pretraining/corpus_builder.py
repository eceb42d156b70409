"""A corpus for pre-training: documents to Megatron-LM's token files, in parallel, without duplicates, resumable.

Documents are handed in units of about a megabyte to processes that cut them into sentences and tokenize them; each
unit becomes a file in PREFIX.work, whole or not there, so that a build that was stopped goes on where it was. At the
end the units are joined, and documents whose text came before are left out. Memory holds a few units, 8 bytes a
document and 4 a sequence.
"""

import hashlib
import io
import json
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..formats.corpus_documents import corpus_files, read_documents
from ..storage import atomic_write
from ..tokenizers.load import read_tokenizer
from ..tokenizers.sentences import split_sentences
from ..tokenizers.wordpiece import Tokenizer
from .indexed_dataset import IndexedDatasetBuilder, files_of, token_dtype

UNIT_CHARACTERS = 1_000_000


@dataclass(frozen=True)
class BuildSettings:
    """How a corpus is made."""

    vocab_file: str
    """WordPiece vocabulary, or GPT-2's vocab.json."""
    merges_file: str | None = None
    """GPT-2's merges.txt; None: the one beside vocab.json."""
    lower_case: bool | None = None
    """Lower-case the text and strip accents; None: as the vocabulary says."""
    by_sentence: bool = True
    """A sequence is a sentence (BERT with sentence order); false: a whole document."""
    append_end: bool = False
    """End each document with the end-of-text token (GPT)."""
    json_key: str = "text"
    """Where JSON lines have the text."""


@dataclass(frozen=True)
class BuildReport:
    """What a build made of its input."""

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
    """Build PREFIX.bin and PREFIX.idx; `progress` is told the units that are done and the documents read so far.

    Raises InputError for input that cannot be read, and where the files are there already.
    """
    for file in files_of(prefix):
        if file.exists():
            raise InputError(f"{file} exists already. Remove it, or choose another prefix.")
    files = corpus_files(inputs)
    work = _open_work(prefix, files, settings)
    num_units = _tokenize_all(files, work, settings, workers, progress)
    report = _join(work, num_units, prefix, token_dtype(len(_tokenizer(settings))))
    shutil.rmtree(work)
    return report


def _open_work(prefix: Path, files: Sequence[Path], settings: BuildSettings) -> Path:
    """Make the folder of units, or take up one that was made of the same input with the same settings."""
    work = prefix.with_name(f"{prefix.name}.work")
    stamps = [[str(file.absolute()), file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    contents = "".join(_tokenizer(settings).files().values())
    vocabulary = hashlib.sha256(contents.encode()).hexdigest()
    facts = json.dumps({"settings": asdict(settings), "vocabulary": vocabulary, "files": stamps}, indent=1)
    made_of = work / "made_of.json"
    if made_of.is_file() and made_of.read_text(encoding="utf-8") != facts:
        raise InputError(f"{work} is of a build with other input or settings. Remove it, or choose another prefix.")
    work.mkdir(parents=True, exist_ok=True)
    atomic_write(made_of, facts)
    return work


def _units(files: Sequence[Path], json_key: str) -> Iterator[list[str]]:
    unit: list[str] = []
    size = 0
    for file in files:
        for document in read_documents(file, json_key):
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
            for number, unit in enumerate(_units(files, settings.json_key)):
                num_units, num_read = number + 1, num_read + len(unit)
                target = work / f"{number:08d}.npz"
                if target.is_file():
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
        raise InputError(f"{', '.join(map(str, files[:3]))} hold no text.")
    return num_units


_worker: dict[str, Tokenizer] = {}


def _start_worker(settings: BuildSettings) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallel part
    _worker["tokenizer"] = _tokenizer(settings)


def _tokenizer(settings: BuildSettings) -> Tokenizer:
    merges = settings.merges_file
    return read_tokenizer(
        Path(settings.vocab_file), None if merges is None else Path(merges), lower_case=settings.lower_case
    )


def _tokenize_unit(documents: Sequence[str], target: Path, settings: BuildSettings) -> None:
    tokenizer = _worker["tokenizer"]
    texts: list[str] = []
    owners: list[int] = []
    for number, document in enumerate(documents):
        paragraphs = document.split("\n")
        if settings.by_sentence:
            pieces = [part[start:end] for part in paragraphs for start, end in split_sentences(part)]
        else:
            pieces = [document]
        texts += pieces
        owners += [number] * len(pieces)
    encoded = tokenizer.encode_ids(texts)
    kept = [(ids, owner) for ids, owner in zip(encoded, owners, strict=True) if len(ids)]
    if settings.append_end:
        kept = _with_ends(kept, tokenizer.end_id)
    digests = [hashlib.blake2b(" ".join(text.split()).encode(), digest_size=8).digest() for text in documents]
    arrays = {
        "tokens": np.concatenate([ids for ids, _ in kept]) if kept else np.zeros(0, dtype=np.int64),
        "lengths": np.array([len(ids) for ids, _ in kept], dtype=np.int32),
        "sequences": np.bincount([owner for _, owner in kept], minlength=len(documents)).astype(np.int64),
        "digests": np.frombuffer(b"".join(digests), dtype="<u8"),
    }
    arrays["tokens"] = arrays["tokens"].astype(token_dtype(len(tokenizer)))
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, **arrays)
    atomic_write(target, content.getvalue())


def _with_ends(kept: Sequence[tuple[NDArray[np.int64], int]], end_id: int) -> list[tuple[NDArray[np.int64], int]]:
    """Put the end-of-text token behind the last sequence of each document."""
    is_last = [at + 1 == len(kept) or kept[at + 1][1] != owner for at, (_, owner) in enumerate(kept)]
    return [(np.append(ids, end_id) if ends else ids, owner) for (ids, owner), ends in zip(kept, is_last, strict=True)]


def _join(work: Path, num_units: int, prefix: Path, dtype: np.dtype[np.generic]) -> BuildReport:
    """Join the units, without documents that came before and those without a token."""
    units = [work / f"{number:08d}.npz" for number in range(num_units)]
    digests = np.concatenate([_read_array(unit, "digests") for unit in units])
    is_first = np.zeros(len(digests), dtype=np.bool_)
    is_first[np.unique(digests, return_index=True)[1]] = True
    num_documents = num_empty = num_sequences = num_tokens = done = 0
    with IndexedDatasetBuilder(prefix, dtype) as writer:
        for unit in units:
            with np.load(unit, allow_pickle=False) as arrays:
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


def _read_array(unit: Path, name: str) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    with np.load(unit, allow_pickle=False) as arrays:
        return arrays[name]
