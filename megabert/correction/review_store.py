"""Files of a review: a log of decisions, and the documents as they are corrected, both complete after each decision.

OUT has the finished documents, training data as they are; OUT.unfinished those that were begun; OUT.decisions.jsonl a
line a decision: document, revision, decision, who and when as far as given, and the entities that it left. The log is
written first and decides: documents are written anew from it at each start, so that a kill loses no decision.
"""

import hashlib
import json
import os
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import ConfigError, InputError
from ..formats.documents.convert_documents import write_documents
from ..formats.documents.document import Document
from ..formats.documents.document_formats import find_format
from ..formats.documents.document_lines import document_of, values_of
from ..formats.documents.losses import Losses
from ..formats.documents.sources import safe_file_name
from ..storage import atomic_write, lock_file
from .decisions import UNDO, Decision, ReviewState, decide

MAX_NAME = 100


class Outdated(InputError):  # noqa: N818  (an answer, not a failure)
    """A decision about an older revision of a document: another person, or another window, decided before."""


class ReviewStore:
    """The documents of a review, and their files. Decisions may come from several threads."""

    def __init__(self, documents: Iterable[Document], output: Path, format_name: str, *, keeps_time: bool = True):
        """Read the log, if there is one, and write the documents as it left them.

        Raises InputError for a log of other documents, and for files at OUT that no review wrote.
        """
        self.form, self.output, self.keeps_time = find_format(format_name), output, keeps_time
        ending = next((end for end in self.form.endings if output.name.lower().endswith(end)), "")
        self.unfinished = output.with_name(f"{output.name[: len(output.name) - len(ending)]}.unfinished{ending}")
        self.log_path = output.with_name(f"{output.name}.decisions.jsonl")
        self.history = [[ReviewState.of(document)] for document in documents]
        self.numbers = {states[0].document.id: number for number, states in enumerate(self.history)}
        self.losses = Losses()
        self._lock = threading.Lock()
        names = {safe_file_name(name) for name in self.numbers} if self.form.files else self.numbers
        if len(names) < len(self.history):
            raise InputError("two documents have the same identifier, or file name. Give each its own.")
        if not self.history:
            raise InputError("there is no document to review.")
        for path in (self.output, self.unfinished):
            if path.exists() and not self.log_path.exists():
                raise ConfigError(f"{path} exists, without the log of a review ({self.log_path.name}). Name another.")
        self._log = self.log_path.open("a+b")
        if lock_file(self._log.fileno()) is False:
            raise ConfigError(f"another process reviews to {output}. Wait for it, or name another file.")
        self._read_log()
        self._write(range(len(self.history)))

    def state(self, number: int) -> ReviewState:
        """Return a document's state."""
        return self.history[number][-1]

    def decide(self, number: int, revision: int, decision: Decision, who: str = "") -> ReviewState:
        """Apply a decision and return the new state once it is on the disk.

        Raises OSError where it cannot be written, Outdated unless `revision` is the document's, InputError for a
        decision that does not fit.
        """
        with self._lock:
            states = self.history[number]
            if revision != states[-1].revision:
                raise Outdated("The document was changed meanwhile. It is shown as it is now.")
            state = self._undone(states) if decision.kind == UNDO else decide(states[-1], decision)
            about: dict[str, Any] = {"who": who.strip()[:MAX_NAME]} if who.strip() else {}
            about |= {"when": time.strftime("%Y-%m-%dT%H:%M:%S%z")} if self.keeps_time else {}
            self._append(state, decision, about)
            if decision.kind == UNDO:
                del states[-2:]
            states.append(state)
            self._write([number])
            return state

    def close(self) -> None:
        """Close the log."""
        self._log.close()

    def _undone(self, states: Sequence[ReviewState]) -> ReviewState:
        if len(states) < 2:
            raise InputError("There is no decision to undo.")
        return replace(states[-2], revision=states[-1].revision + 1)

    def _append(self, state: ReviewState, decision: Decision, about: dict[str, Any]) -> None:
        line = {
            "document": state.document.id, "sha256": _digest(state.document), "revision": state.revision,
            "decision": decision.to_json(), **about, "entities": _entity_values(state),
            "open": sorted(state.open), "finished": state.is_finished,
        }  # fmt: skip
        end = self._log.seek(0, os.SEEK_END)
        try:
            self._log.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
            self._log.flush()
            os.fsync(self._log.fileno())
        except OSError:
            with suppress(OSError):
                self._log.truncate(end)
            raise

    def _read_log(self) -> None:
        """Replay the log; an incomplete last line, of a killed process, is cut off: it was never confirmed."""
        self._log.seek(0)
        content = self._log.read()
        whole = content[: content.rfind(b"\n") + 1]
        self._log.truncate(len(whole))
        for number, line in enumerate(whole.split(b"\n")[:-1], start=1):
            self._replay(line, f"{self.log_path}:{number}")

    def _replay(self, line: bytes, location: str) -> None:
        try:
            values = json.loads(line)
            states = self.history[self.numbers[values["document"]]]
            document = states[0].document
            if values["sha256"] != _digest(document):
                raise InputError(f"{location}: document {document.id} had another text. Review to another file.")
            state = _state(values, document, location)
            is_undo = values["decision"]["kind"] == UNDO
        except KeyError as error:
            raise InputError(
                f"{location}: there is no {error} among the documents, or in the line. Give the documents of this "
                "review, or review to another file."
            ) from None
        except (ValueError, TypeError) as error:
            raise InputError(
                f"{location}: no line of a review: {error}. Restore it, or review to another file."
            ) from None
        if is_undo:
            del states[-2:]
        states.append(state)

    def _write(self, numbers: Iterable[int]) -> None:
        """Write the documents of the review, whichever of these have changed."""
        if self.form.files is not None:
            for state in map(self.state, numbers):
                if state.revision:
                    self._write_pair(state)
            return
        states = [states[-1] for states in self.history]
        self._write_stream([item for item in states if item.is_finished], self.output)
        self._write_stream([item for item in states if item.revision and not item.is_finished], self.unfinished)

    def _write_stream(self, states: Sequence[ReviewState], path: Path) -> None:
        if states:
            self.losses = Losses()
            write_documents((state.corrected() for state in states), path, self.form.name, self.losses)
        else:
            path.unlink(missing_ok=True)

    def _write_pair(self, state: ReviewState) -> None:
        """Write the files of one document, and remove them from the other folder."""
        assert self.form.files is not None
        files = self.form.files(state.corrected(), self.losses)
        target = self.output if state.is_finished else self.unfinished
        for folder in (self.output, self.unfinished):
            for name, content in files.items():
                if folder == target:
                    folder.mkdir(parents=True, exist_ok=True)
                    atomic_write(folder / name, content)
                else:
                    (folder / name).unlink(missing_ok=True)


def _entity_values(state: ReviewState) -> list[dict[str, Any]]:
    bare = replace(state.document, passages=(), entities=state.entities, relations=())
    values: list[dict[str, Any]] = values_of(bare).get("entities", [])
    return values


def _digest(document: Document) -> str:
    return hashlib.sha256(document.text().encode()).hexdigest()[:16]


def _state(values: Mapping[str, Any], document: Document, location: str) -> ReviewState:
    """Read the state after a decision from its line."""
    entities = document_of({"id": "", "passages": [], "entities": values["entities"]}, location).entities
    is_finished, revision = bool(values["finished"]), int(values["revision"])
    return ReviewState(document, entities, frozenset(values["open"]), revision, is_finished)
