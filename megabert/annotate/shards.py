"""Shards and ledger of a bulk job: each shard is whole or not there, and the ledger accounts for every document.

The ledger has a line for each document and then one for their shard, written when the shard has its final name. What
stands behind the last shard that is whole is dropped on resuming: an interrupted job ends with the bytes of one that
was not.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ..errors import InputError
from ..storage import atomic_file, atomic_write

MAX_SHARD_BYTES = 64 * 2**20
LEDGER = "ledger.jsonl"
JOB = "job.json"


class Encoding(Protocol):
    """How records become a file."""

    @property
    def ending(self) -> str:
        """Ending of the file's name, with its dot."""

    @property
    def separator(self) -> bytes:
        """What stands between two records."""

    @property
    def empty_head(self) -> bytes:
        """What begins a file without documents."""

    @property
    def tail(self) -> bytes:
        """What ends a file."""


@dataclass(frozen=True)
class Record:
    """A document as written, and its line of the ledger. `content` None: it failed, and is in the ledger only."""

    content: bytes | None
    line: Mapping[str, Any]
    head: bytes
    """What begins a file whose first document this is."""


@dataclass
class Ledger:
    """What the whole shards of a job hold."""

    shards: int = 0
    documents: int = 0
    failed: int = 0
    windows: int = 0
    entities: Counter[str] = field(default_factory=Counter)
    relations: Counter[str] = field(default_factory=Counter)
    ids: Any = field(default_factory=hashlib.sha256)
    """Hash of the documents' identifiers in order, to recognize a changed input on resuming."""
    size: int = 0
    """Bytes of the ledger file up to the last whole shard."""

    def add(self, line: Mapping[str, Any]) -> None:
        """Count a document's line."""
        self.documents += 1
        self.failed += line["status"] != "done"
        self.windows += line.get("windows", 0)
        self.entities.update(line.get("entities", {}))
        self.relations.update(line.get("relations", {}))
        self.ids.update(f"{line['id']}\n".encode())

    def summary(self) -> dict[str, Any]:
        """Return the totals."""
        return {
            "documents": self.documents,
            "written": self.documents - self.failed,
            "failed": self.failed,
            "windows": self.windows,
            "entities": dict(sorted(self.entities.items())),
            "relations": dict(sorted(self.relations.items())),
            "shards": self.shards,
        }


def read_ledger(folder: Path) -> Ledger:
    """Read how far a job got: the shards before the first that is missing or has other bytes than were written."""
    ledger = Ledger()
    path = folder / LEDGER
    if not path.exists():
        return ledger
    lines: list[dict[str, Any]] = []
    size = 0
    with path.open("rb") as file:
        for encoded in file:
            size += len(encoded)
            try:
                line = json.loads(encoded) if encoded.endswith(b"\n") else None
            except ValueError:
                line = None
            if not isinstance(line, dict):
                break  # torn by a kill
            if "shard" not in line:
                lines.append(line)
                continue
            if not _is_whole(folder / line["shard"], line):
                break
            for item in lines:
                ledger.add(item)
            ledger.shards += 1
            ledger.size = size
            lines = []
    return ledger


def _is_whole(path: Path, line: Mapping[str, Any]) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == line["sha256"]


def claim(folder: Path, job: Mapping[str, Any], *, resume: bool) -> Ledger:
    """Prepare the folder of a job: a new one, or one to resume. `job` is all on which the output depends.

    Raises InputError if the folder holds a job and `resume` is false, or another job and it is true.
    """
    kept = folder / JOB
    if not kept.exists():
        if folder.exists() and any(folder.iterdir()):
            raise InputError(f"{folder} is not empty. Name a new folder, or empty it.")
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write(kept, json.dumps(job, indent=2, ensure_ascii=False) + "\n")
        return Ledger()
    if not resume:
        raise InputError(f"{folder} has the output of an earlier command. Add --resume, or name a new folder.")
    before = json.loads(kept.read_bytes())
    changed = [f"{key} was {before.get(key)!r}" for key in job if job[key] != before.get(key)]
    if changed:
        raise InputError(f"{folder} was begun with other settings: {'; '.join(changed)}. Use them, or a new folder.")
    ledger = read_ledger(folder)
    if (folder / LEDGER).exists():
        os.truncate(folder / LEDGER, ledger.size)
    return ledger


class ShardWriter:
    """Write records to shards, and account for them in the ledger.

    A shard has `shard_size` documents, failed ones included; fewer where MAX_SHARD_BYTES come first. Content waits in
    memory until its shard is complete.
    """

    def __init__(self, folder: Path, encoding: Encoding, shard_size: int, ledger: Ledger) -> None:
        self._folder, self._encoding, self._shard_size = folder, encoding, shard_size
        self.ledger = ledger
        self._records: list[Record] = []
        self._size = 0

    def write(self, record: Record) -> None:
        """Add a record; a shard that becomes full is written."""
        self._records.append(record)
        self._size += len(record.content or b"")
        if len(self._records) == self._shard_size or self._size >= MAX_SHARD_BYTES:
            self.finish()

    def finish(self) -> None:
        """Write the documents that no shard has yet as the last one."""
        if not self._records:
            return
        written = [record for record in self._records if record.content is not None]
        head = written[0].head if written else self._encoding.empty_head
        tail = self._encoding.tail
        content = head + self._encoding.separator.join(record.content or b"" for record in written) + tail
        name = f"shard-{self.ledger.shards:05d}{self._encoding.ending}"
        atomic_write(self._folder / name, content)
        sizes = {"bytes": len(content), "head": len(head), "tail": len(tail)}
        shard = {"shard": name, "documents": len(self._records), "written": len(written), **sizes}
        lines = [*(record.line for record in self._records), shard | {"sha256": hashlib.sha256(content).hexdigest()}]
        encoded = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
        # The shard has its final name first: lines without it would be believed, it without lines is written again.
        with (self._folder / LEDGER).open("ab") as file:
            file.write(encoded)
            file.flush()
            os.fsync(file.fileno())
        for record in self._records:
            self.ledger.add(record.line)
        self.ledger.shards += 1
        self.ledger.size += len(encoded)
        self._records, self._size = [], 0


def join_shards(folder: Path, separator: bytes, output: Path) -> None:
    """Write the documents of all shards to one file: the first head, all records, the last tail."""
    with (folder / LEDGER).open("rb") as file:
        shards = [line for line in map(json.loads, file) if "shard" in line]
    shards = [shard for shard in shards if shard["written"]] or shards[:1]
    with atomic_file(output) as joined:
        for number, shard in enumerate(shards):
            with (folder / shard["shard"]).open("rb") as file:
                file.seek(0 if number == 0 else shard["head"])
                end = shard["bytes"] - (0 if number == len(shards) - 1 else shard["tail"])
                joined.write(separator if number else b"")
                while block := file.read(min(1 << 20, end - file.tell())):
                    joined.write(block)
