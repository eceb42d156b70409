"""Our own format: a folder of safetensors, JSON and text with a manifest of SHA-256 sums, whole or not there at all.

Tensors go to the disk one after another and come back only when they are asked for, so a folder may be larger than
memory. Several processes may write one together, each some of a group's tensors in a file of its own; who reads sees
no difference. `run` says what the folders of a training run hold, `convert` writes one that holds a language model.
Source: section Format of https://github.com/huggingface/safetensors.
"""

import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...data.prefetch import prefetch
from ...errors import CheckpointError
from ...storage import atomic_folder, replace_folder
from ..files.containers import SAFETENSORS_DTYPES, open_file
from ..files.lazy_tensor import LazyTensor, Loaded, Readable

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
# Behind a group's name, where several processes wrote it.
PART = re.compile(r"-\d{5}-of-\d{5}$")
_CHUNK = 2**24
_CODES = {dtype: code for code, dtype in SAFETENSORS_DTYPES.items()}


@dataclass(frozen=True)
class Contents:
    """What a checkpoint holds: groups of tensors, JSON documents and text files, by file name without suffix."""

    tensors: Mapping[str, Mapping[str, Readable | Tensor]]
    documents: Mapping[str, Any]
    texts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class OpenFolder:
    """An open checkpoint folder: as `Contents`, with tensors that are not read yet."""

    path: Path
    manifest: Mapping[str, Any]
    tensors: Mapping[str, Mapping[str, LazyTensor]]
    documents: Mapping[str, Any]
    texts: Mapping[str, str]


def write_file(path: Path, pieces: Iterable[bytes | memoryview]) -> dict[str, Any]:
    """Write a new file from pieces, on the disk when this returns; gives its size and SHA-256.

    Each piece is summed while it is written: both take about as long.
    """
    summed, size = hashlib.sha256(), 0
    with path.open("xb") as file, ThreadPoolExecutor(1) as summer:
        for piece in pieces:
            done = summer.submit(summed.update, piece)
            file.write(piece)
            done.result()
            size += len(piece)
        file.flush()
        os.fsync(file.fileno())
    return {"size": size, "sha256": summed.hexdigest()}


def safetensors_pieces(
    entries: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
    tensors: Iterable[Tensor],
    metadata: Mapping[str, str] | None = None,
) -> Iterable[bytes | memoryview]:
    """Give a safetensors file piece by piece; `tensors` come in the order of `entries` (dtype and shape by name)."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, (dtype, shape) in entries.items():
        start, end = end, end + torch.Size(shape).numel() * dtype.itemsize
        header[name] = {"dtype": _CODES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # so that the numbers are aligned
    yield len(text).to_bytes(8, "little") + text
    for (name, (dtype, shape)), tensor in zip(entries.items(), tensors, strict=True):
        assert (tensor.dtype, tuple(tensor.shape)) == (dtype, shape), name
        # Bytes, since numpy has no bfloat16.
        yield tensor.contiguous().flatten().view(torch.uint8).numpy().data


def write(
    final: Path,
    tensors: Mapping[str, Mapping[str, Readable | Tensor]],
    documents: Mapping[str, Any],
    texts: Mapping[str, str],
    facts: Mapping[str, Any],
) -> None:
    """Write a checkpoint folder; it appears by a rename when all of it is on the disk, and replaces one of its name.

    `facts` go into the manifest beside the files' sums.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(final) as partial, ThreadPoolExecutor(max(len(tensors), 1)) as writers:
        names = {group: f"{group}.safetensors" for group in tensors}
        jobs = {group: writers.submit(_write_tensors, partial / names[group], tensors[group]) for group in tensors}
        sums = {names[group]: job.result() for group, job in jobs.items()}
        _write_documents(partial, sums, documents, texts, facts)


def write_together(
    final: Path,
    own: Mapping[str, Mapping[str, Readable | Tensor]],
    documents: Mapping[str, Any],
    texts: Mapping[str, str],
    facts: Mapping[str, Any],
    *,
    part: int,
    num_parts: int,
    all_gather_text: Callable[[str], list[str]],
) -> None:
    """Write a checkpoint folder as `write` does, with other processes: each its `own` tensors, the first all else.

    `all_gather_text` gives every process the texts of all, in the order of parts. Where one process fails,
    all raise, and the folder does not appear.
    """
    partial = final.with_name(all_gather_text(f"{final.name}.tmp-{uuid.uuid4().hex[:8]}")[0])

    def begin() -> None:
        if part == 0:
            partial.mkdir(parents=True)

    def write_own() -> dict[str, Any]:
        names = {group: f"{group}-{part + 1:05d}-of-{num_parts:05d}.safetensors" for group in own if own[group]}
        return {name: _write_tensors(partial / name, own[group]) for group, name in names.items()}

    def finish() -> None:
        if part == 0:
            _write_documents(partial, sums, documents, texts, facts)
            replace_folder(partial, final)

    try:
        _all_do(begin, all_gather_text)
        sums = {name: record for records in _all_do(write_own, all_gather_text) for name, record in records.items()}
        _all_do(finish, all_gather_text)
    except OSError:
        if part == 0:
            shutil.rmtree(partial, ignore_errors=True)
        raise


def _all_do(work: Callable[[], Any], all_gather_text: Callable[[str], list[str]]) -> list[Any]:
    """Do one's part of a work and hear what came of everybody's. Raises OSError in all if one could not."""
    failure: OSError | None = None
    answer: dict[str, Any] = {}
    try:
        answer["done"] = work()
    except OSError as error:
        failure, answer["failed"] = error, [error.errno, error.strerror, str(error.filename)]
    answers = [json.loads(text) for text in all_gather_text(json.dumps(answer))]
    if failure is not None:
        raise failure
    for other in answers:
        if "failed" in other:
            raise OSError(*other["failed"])
    return [other["done"] for other in answers]


def _write_documents(
    partial: Path,
    sums: dict[str, Any],
    documents: Mapping[str, Any],
    texts: Mapping[str, str],
    facts: Mapping[str, Any],
) -> None:
    """Write all but the tensors, whose files' sums are given, and last the manifest."""
    files = {f"{name}.json": _json_bytes(document) for name, document in documents.items()}
    files |= {name: text.encode() for name, text in texts.items()}
    sums |= {name: write_file(partial / name, [data]) for name, data in files.items()}
    manifest = _manifest_bytes({"format_version": FORMAT_VERSION, **facts, "files": sums})
    write_file(partial / MANIFEST, [manifest])


def open_folder(folder: Path, *, groups: tuple[str, ...]) -> OpenFolder:
    """Open a checkpoint's documents, texts and the named groups of tensors, each verified against the manifest.

    Raises CheckpointError if a file is missing, damaged or not in the manifest.
    """
    manifest = read_manifest(folder)
    tensors: dict[str, dict[str, LazyTensor]] = {}
    documents, texts = {}, {}
    for name, record in manifest["files"].items():
        stem, _, suffix = name.rpartition(".")
        if suffix == "safetensors":
            group = PART.sub("", stem)
            if group in groups:
                tensors.setdefault(group, {}).update(_open_tensors(folder / name, record))
        elif suffix == "json" and name not in TEXT_FILES:
            documents[stem] = json.loads(_read_verified(folder / name, record))
        else:
            texts[name] = _read_verified(folder / name, record).decode()
    missing = [group for group in groups if group not in tensors]
    if missing:
        raise CheckpointError(f"{folder} holds no {', '.join(missing)}. Is it a checkpoint of a training run?")
    return OpenFolder(folder, manifest, tensors, documents, texts)


# JSON of others, kept byte for byte: GPT-2's vocabulary.
TEXT_FILES = ("vocab.json",)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read a folder's manifest, verified against its own SHA-256. Raises CheckpointError if it is damaged."""
    file = folder / MANIFEST
    try:
        data = file.read_bytes()
        manifest = json.loads(data)
        if manifest["format_version"] != FORMAT_VERSION:
            raise CheckpointError(
                f"{file} is of format {manifest['format_version']}; this version of megabert reads {FORMAT_VERSION}."
            )
        names = list(manifest["files"])
        # Written again it must be the same bytes: then no bit of it, not even of its white space, has changed.
        expected = _manifest_bytes({key: value for key, value in manifest.items() if key != "sha256"})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file} is damaged: {error!r}. Use another checkpoint of the run.") from None
    if any(Path(name).name != name for name in names):
        raise CheckpointError(f"{file} names files outside its folder.")
    if data != expected:
        raise CheckpointError(f"{file} is damaged: it does not match its own SHA-256. Use another checkpoint.")
    return dict(manifest)


def _manifest_bytes(manifest: Mapping[str, Any]) -> bytes:
    sha256 = hashlib.sha256(_json_bytes(manifest)).hexdigest()
    return _json_bytes({**manifest, "sha256": sha256})


def _open_tensors(file: Path, record: Any) -> Mapping[str, LazyTensor]:
    _verify(file, record)
    opened = open_file(file)
    content = opened.content
    if opened.kind != "safetensors" or not isinstance(content, dict):
        raise CheckpointError(f"{file} is no safetensors file.")
    return content


def _verify(file: Path, record: Any) -> None:
    """Compare a file with its record, in pieces: it may be larger than memory."""
    found, size = hashlib.sha256(), 0
    try:
        expected = record["sha256"]
        if file.stat().st_size != record["size"]:
            raise CheckpointError(f"{file} has {file.stat().st_size} bytes; its manifest says {record['size']}.")
        with file.open("rb") as opened:
            while piece := opened.read(_CHUNK):
                found.update(piece)
                size += len(piece)
    except (OSError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file} cannot be read: {error!r}. Use another checkpoint of the run.") from None
    if found.hexdigest() != expected:
        raise CheckpointError(
            f"{file} is damaged: its SHA-256 is {found.hexdigest()[:16]}..., its manifest says "
            f"{str(expected)[:16]}.... Use another checkpoint of the run."
        )


def _read_verified(file: Path, record: Any) -> bytes:
    _verify(file, record)
    return file.read_bytes()


def _write_tensors(file: Path, tensors: Mapping[str, Readable | Tensor]) -> dict[str, Any]:
    readables = {name: Loaded(item) if isinstance(item, Tensor) else item for name, item in tensors.items()}
    entries = {name: (item.dtype, tuple(item.shape)) for name, item in readables.items()}
    # Fetched from a device, or read, while those before are written.
    with closing(prefetch(lambda item: item.read(), readables.values())) as read:
        return write_file(file, safetensors_pieces(entries, read))


def _json_bytes(document: Any) -> bytes:
    return (json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
