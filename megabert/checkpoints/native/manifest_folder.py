"""megabert's checkpoint folder: safetensors, JSON and text files, with a manifest of SHA-256 sums; written atomically.

Tensors are written one after another and read lazily, so a folder may be larger than memory. Several processes may
write a folder together, each some tensors of a group in a file of its own; readers see one group.
`run_checkpoints` defines the folders of a training run, `convert` writes those of a language model.
"""

import json
import re
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ...data.prefetch import prefetch
from ...errors import CheckpointError, MegabertError
from ...json_documents import json_bytes, parse_json_object
from ...storage import atomic_folder, replace_folder, temporary_name
from ..files.lazy_tensor import LazyTensor, Readable, in_memory, open_regular
from ..files.safetensors_file import open_safetensors, safetensors_pieces
from .manifest import parse_text, read_manifest, read_verified, verify_file, write_file, write_manifest

# The suffix of a group's files where several processes wrote them
_PART = re.compile(r"-\d{5}-of-\d{5}$")
# JSON files of tokenizers, kept byte for byte
_TEXT_FILES = ("vocab.json",)


@dataclass(frozen=True)
class Contents:
    """The content of a checkpoint: groups of tensors and JSON documents by file name without suffix, text files."""

    tensors: Mapping[str, Mapping[str, Readable | Tensor]]
    documents: Mapping[str, Any]
    texts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class OpenFolder:
    """An open checkpoint folder: its manifest, and its content with lazy tensors."""

    manifest: Mapping[str, Any]
    tensors: Mapping[str, Mapping[str, LazyTensor]]
    documents: Mapping[str, Any]
    texts: Mapping[str, str]


def write_manifest_folder(final: Path, contents: Contents, facts: Mapping[str, Any]) -> None:
    """Write a checkpoint folder atomically, replacing one of the same name. `facts` are added to the manifest."""
    final.parent.mkdir(parents=True, exist_ok=True)
    groups = contents.tensors
    with atomic_folder(final) as partial, ThreadPoolExecutor(max(len(groups), 1)) as writers:
        names = {group: f"{group}.safetensors" for group in groups}
        jobs = {group: writers.submit(_write_tensors, partial / names[group], groups[group]) for group in groups}
        sums = {names[group]: job.result() for group, job in jobs.items()}
        _write_documents(partial, sums, contents, facts)


def write_sharded_folder(
    final: Path,
    contents: Contents,
    facts: Mapping[str, Any],
    *,
    part: int,
    num_parts: int,
    all_gather_text: Callable[[str], list[str]],
) -> None:
    """Write a checkpoint folder from several processes: each its own tensors, part 0 also everything else.

    `all_gather_text` returns the strings of all processes in the order of parts. If one process fails, all raise, and
    the folder does not appear.
    """
    partial = final.with_name(all_gather_text(temporary_name(final).name)[0])

    def begin() -> None:
        if part == 0:
            partial.mkdir(parents=True)

    def write_shard() -> dict[str, Any]:
        suffix = f"-{part + 1:05d}-of-{num_parts:05d}.safetensors"
        groups = {f"{group}{suffix}": tensors for group, tensors in contents.tensors.items() if tensors}
        return {name: _write_tensors(partial / name, tensors) for name, tensors in groups.items()}

    def finish() -> None:
        if part == 0:
            _write_documents(partial, sums, contents, facts)
            replace_folder(partial, final)

    try:
        run_on_all(begin, all_gather_text)
        shards = run_on_all(write_shard, all_gather_text)
        sums = {name: entry for entries in shards for name, entry in entries.items()}
        run_on_all(finish, all_gather_text)
    except Exception:
        if part == 0:
            shutil.rmtree(partial, ignore_errors=True)
        raise


def run_on_all(work: Callable[[], Any], all_gather_text: Callable[[str], list[str]]) -> list[Any]:
    """Run a function on all processes and gather the results. If it fails on one, all raise.

    The process that failed raises its own error; the others raise an OSError like it, or a MegabertError that names it.
    """
    failure: Exception | None = None
    outcome: dict[str, Any] = {}
    try:
        outcome["result"] = work()
    except OSError as error:
        failure, outcome["os_error"] = error, [error.errno, error.strerror or str(error), str(error.filename)]
    except Exception as error:  # whatever it is: the others would wait for this process
        failure, outcome["error"] = error, f"{type(error).__name__}: {error}"
    outcomes = [json.loads(text) for text in all_gather_text(json.dumps(outcome))]
    if failure is not None:
        raise failure
    for number, other in enumerate(outcomes):
        if "os_error" in other:
            raise OSError(*other["os_error"])
        if "error" in other:
            raise MegabertError(f"process {number + 1} of {len(outcomes)} failed: {other['error']}")
    return [other["result"] for other in outcomes]


def _write_documents(partial: Path, sums: dict[str, Any], contents: Contents, facts: Mapping[str, Any]) -> None:
    """Write documents and text files, and last the manifest. `sums` are the entries of the tensor files."""
    files = {f"{name}.json": json_bytes(document) for name, document in contents.documents.items()}
    files |= {name: text.encode() for name, text in contents.texts.items()}
    sums |= {name: write_file(partial / name, [data]) for name, data in files.items()}
    write_manifest(partial, sums, facts)


def open_manifest_folder(folder: Path, *, groups: tuple[str, ...]) -> OpenFolder:
    """Open a checkpoint's documents, text files and the named groups of tensors, verified by the manifest's sums.

    Raises CheckpointError if a file is missing or damaged.
    """
    manifest = read_manifest(folder)
    if "export" in manifest:
        raise CheckpointError(
            f"{folder} is an exported model, which has no tensors to read. Give the run that it was exported from; "
            "predict, evaluate, annotate, serve, link, embed, index, search and rerank take both."
        )
    documents, texts = {}, {}
    for name, entry in manifest["files"].items():
        stem, _, suffix = name.rpartition(".")
        if suffix == "json" and name not in _TEXT_FILES:
            documents[stem] = parse_json_object(read_verified(folder / name, entry), str(folder / name))
        elif suffix != "safetensors":
            texts[name] = parse_text(folder / name, read_verified(folder / name, entry))
    return OpenFolder(manifest, _open_tensors(folder, manifest["files"], groups), documents, texts)


def _open_tensors(folder: Path, files: Mapping[str, Any], groups: tuple[str, ...]) -> dict[str, dict[str, LazyTensor]]:
    tensors: dict[str, dict[str, LazyTensor]] = {}
    for name, entry in files.items():
        stem, _, suffix = name.rpartition(".")
        group = _PART.sub("", stem)
        if suffix == "safetensors" and group in groups:
            verify_file(folder / name, entry)
            tensors.setdefault(group, {}).update(open_safetensors(open_regular(folder / name))[0])
    missing = [group for group in groups if group not in tensors]
    if missing:
        raise CheckpointError(f"{folder} holds no {', '.join(missing)}. Is it a checkpoint of a training run?")
    return tensors


def _write_tensors(file: Path, tensors: Mapping[str, Readable | Tensor]) -> dict[str, Any]:
    readables = {name: in_memory(item) if isinstance(item, Tensor) else item for name, item in tensors.items()}
    entries = {name: (item.dtype, tuple(item.shape)) for name, item in readables.items()}
    # The next tensors are copied from the device, or read, while the previous ones are written.
    with closing(prefetch(lambda item: item.read(), readables.values())) as loaded:
        return write_file(file, safetensors_pieces(entries, loaded))
