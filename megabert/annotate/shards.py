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
from typing import Any

from ..errors import InputError
from ..storage import TEMPORARY, atomic_write
from .shard_formats import ShardFormat

MAX_SHARD_BYTES = 64 * 2**20
LEDGER = "ledger.jsonl"
JOB = "job.json"


@dataclass(frozen=True)
class ShardRecord:
    """A document's line of the ledger, and the document as its format's worker rendered it; None: it failed."""

    line: Mapping[str, Any]
    content: Any = None


@dataclass
class Ledger:
    """What the whole shards of a job hold."""

    shards: int = 0
    documents: int = 0
    failed: int = 0
    faults: int = 0
    windows: int = 0
    entities: Counter[str] = field(default_factory=Counter)
    relations: Counter[str] = field(default_factory=Counter)
    names: Any = field(default_factory=hashlib.sha256)
    """Hash of identifiers and faults in their order, to recognize a changed input on resuming."""
    size: int = 0
    """Bytes of the ledger file up to the last whole shard."""

    def add(self, line: Mapping[str, Any]) -> None:
        """Count a line of a document, or of a fault in the input."""
        add_name(self.names, line.get("fault") or line["id"])
        if "fault" in line:
            self.faults += 1
            return
        self.documents += 1
        self.failed += line["status"] == "failed"
        self.windows += line.get("windows", 0)
        self.entities.update(line.get("entities", {}))
        self.relations.update(line.get("relations", {}))

    def summary(self) -> dict[str, Any]:
        """Return the totals."""
        return {
            "documents": self.documents,
            "written": self.documents - self.failed,
            "failed": self.failed,
            "faults": self.faults,
            "windows": self.windows,
            "entities": dict(sorted(self.entities.items())),
            "relations": dict(sorted(self.relations.items())),
            "shards": self.shards,
        }


def add_name(digest: Any, name: str) -> None:
    """Add the identifier of a document, or the message of a fault, to the hash of the input's names."""
    digest.update(f"{name}\n".encode())


def read_ledger(folder: Path, output: ShardFormat) -> Ledger:
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
            shard = folder / line["shard"]
            if not shard.exists() or output.digest(shard) != line["sha256"]:
                break
            for item in lines:
                ledger.add(item)
            ledger.shards += 1
            ledger.size = size
            lines = []
    return ledger


def _check_same(before: Mapping[str, Any], job: Mapping[str, Any], folder: Path) -> None:
    # A setting that is off is the same as one that an older version did not have.
    keys = {**before, **job}
    changed = [f"{key} was {before.get(key)!r}" for key in keys if (job.get(key) or None) != (before.get(key) or None)]
    if changed:
        raise InputError(f"{folder} was begun with other settings: {'; '.join(changed)}. Use them, or a new folder.")


def claim(folder: Path, job: Mapping[str, Any], output: ShardFormat, *, resume: bool) -> Ledger:
    """Prepare the folder of a job: a new one, or one to resume. `job` is all on which the output depends.

    Raises InputError if the folder holds a job and `resume` is false, or another job and it is true.
    """
    kept = folder / JOB
    # A command that failed before its first shard leaves nothing to resume.
    if kept.exists() and not resume and {item.name for item in folder.iterdir()} <= {JOB}:
        kept.unlink()
    if not kept.exists():
        # A temporary file is that of a process that was killed while it described the job.
        if folder.exists() and any(TEMPORARY not in item.name for item in folder.iterdir()):
            raise InputError(f"{folder} is not empty. Name a new folder, or empty it.")
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write(kept, json.dumps(job, indent=2, ensure_ascii=False) + "\n")
        return Ledger()
    if not resume:
        raise InputError(f"{folder} has the output of an earlier command. Add --resume, or name a new folder.")
    _check_same(json.loads(kept.read_bytes()), job, folder)
    ledger = read_ledger(folder, output)
    if (folder / LEDGER).exists():
        os.truncate(folder / LEDGER, ledger.size)
    return ledger


class ShardWriter:
    """Write records to shards, and account for them in the ledger.

    A shard has `shard_size` documents, failed ones included; fewer where MAX_SHARD_BYTES come first. Documents wait in
    memory until their shard is complete.
    """

    def __init__(self, folder: Path, output: ShardFormat, shard_size: int, ledger: Ledger) -> None:
        self._folder, self._shard_size = folder, shard_size
        self.output, self.ledger = output, ledger
        self._records: list[ShardRecord] = []
        self._size = 0

    @property
    def num_waiting(self) -> int:
        """Count the records that no shard has yet."""
        return len(self._records)

    def write(self, record: ShardRecord) -> None:
        """Add a record; a shard that becomes full is written."""
        self._records.append(record)
        self._size += self.output.size(record.content)
        if len(self._records) == self._shard_size or self._size >= MAX_SHARD_BYTES:
            self.finish()

    def finish(self) -> None:
        """Write the records that no shard has yet as the last one."""
        if not self._records:
            return
        contents = [record.content for record in self._records if record.content is not None]
        name = f"shard-{self.ledger.shards:05d}{self.output.ending}"
        details = self.output.write(self._folder / name, contents)
        shard = {"shard": name, "documents": len(contents), **details}
        shard["sha256"] = self.output.digest(self._folder / name)
        lines = [*(record.line for record in self._records), shard]
        encoded = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
        # The shard has its final name first: one without lines is written again, lines without it are dropped.
        with (self._folder / LEDGER).open("ab") as file:
            file.write(encoded)
            file.flush()
            os.fsync(file.fileno())
        for record in self._records:
            self.ledger.add(record.line)
        self.ledger.shards += 1
        self.ledger.size += len(encoded)
        self._records, self._size = [], 0


def shard_lines(folder: Path) -> list[dict[str, Any]]:
    """Return the ledger's lines of shards, none where the input had no documents."""
    if not (folder / LEDGER).exists():
        return []
    with (folder / LEDGER).open("rb") as file:
        return [line for line in map(json.loads, file) if "shard" in line]
