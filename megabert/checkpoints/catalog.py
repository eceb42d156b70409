"""The published names, what is known of each, and the way from a name to files on this machine.

A name such as `megatron-bert-345m-uncased` and a cache folder go in; the paths of its weights and vocabulary
and the numbers of its architecture come out. Files are looked for in `<home>/<name>/`, where a person may put
them, and else downloaded. `<home>/<name>/files.json` remembers the SHA-256 of each: the publisher gives none
for the weights, so the first file seen is what a later download has to match.
"""

import difflib
import json
import shutil
import sys
import uuid
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, ConfigError
from .download import DownloadError, file_sha256, locked, writing
from .download import download as fetch
from .published import PUBLISHED, ROLES, File, Published, Role

RECORD_NAME = "files.json"
# The encoders that come with the package, a folder of our own format each.
SHIPPED = Path(__file__).parent.parent / "encoders"


@dataclass(frozen=True)
class Resolved:
    """Where the files of a name are; `sha256` is by file name.

    `weights` is None if there are none, `vocabulary` if it lies in the archive of the weights.
    """

    published: Published
    vocabulary: Path | None
    weights: Path | None
    sha256: dict[str, str]

    @property
    def is_cased(self) -> bool:
        """Tell whether text keeps its capital letters."""
        return self.published.vocabulary.is_cased


@dataclass(frozen=True)
class _Record:
    """What is remembered of a file in files.json. `mtime_ns` is its time of change, in nanoseconds."""

    size: int
    mtime_ns: int
    sha256: str
    source: str
    date: str


def cache_home(environment: Mapping[str, str]) -> Path:
    """Choose the folder of published files: MEGABERT_HOME, else `megabert` in the user's cache folder.

    Raises ConfigError if the environment names neither. Source: XDG Base Directory Specification 0.8.
    """
    user = environment.get("HOME") or environment.get("USERPROFILE") or ""
    if chosen := environment.get("MEGABERT_HOME"):
        # Only a shell replaces ~; a service file or a notebook hands it on as it is.
        return Path(user + chosen[1:] if user and chosen[:2] in ("~", "~/") else chosen).absolute()
    if Path(caches := environment.get("XDG_CACHE_HOME", "")).is_absolute():  # others are to be ignored
        return Path(caches) / "megabert"
    if user:
        return Path(user) / ".cache" / "megabert"
    raise ConfigError("HOME is not set. Say where published files are kept with MEGABERT_HOME.")


def unknown_name(name: str) -> ConfigError:
    """Make the error for a name that is not published, with the nearest right ones."""
    near = difflib.get_close_matches(name.lower(), list(PUBLISHED), n=3, cutoff=0.6)
    hint = f"Did you mean {' or '.join(near)}?" if near else f"There are {', '.join(PUBLISHED)}."
    return ConfigError(f"{name!r} is not the name of a published model. {hint} `megabert models` lists them.")


def find(name: str) -> Published:
    """Look a name or an alias up. Raises ConfigError, with the nearest names, if it is not there."""
    found = PUBLISHED.get(name) or next((row for row in PUBLISHED.values() if name in row.aliases), None)
    if found is None:
        raise unknown_name(name)
    return found


def in_cache(name: str, home: Path) -> bool:
    """Tell whether every file that `resolve` would give is there, without looking into them."""
    published = find(name)
    if published.is_shipped:
        return True
    return bool(published.files) and not _missing(published, ROLES, home / published.name)


def describe(home: Path) -> list[dict[str, Any]]:
    """List what is known of each name, as plain values for a table or JSON. `size` is in bytes, about."""
    rows = [
        asdict(row) | {"aliases": list(row.aliases), "parameters": row.num_parameters, "in_cache": in_cache(name, home)}
        for name, row in PUBLISHED.items()
    ]
    return [{key: value for key, value in row.items() if key != "files"} for row in rows]


def resolve(name: str, *, home: Path, weights: bool = True, download: bool = True) -> Resolved:
    """Find the files of a name in `home`, or download them there; without `weights` the vocabulary alone.

    Raises ConfigError for an unknown name, and CheckpointError if a file is not the right one or if it is not
    there and cannot be downloaded (without `download`: may not be), with the places to get it and to put it.
    """
    published = find(name)
    if published.is_shipped:
        from .native.manifest_folder import MANIFEST  # here: `megabert models` must not wait for torch

        folder = SHIPPED / published.name
        return Resolved(published, None, folder, {folder.name: file_sha256(folder / MANIFEST)})
    folder = home / published.name
    roles = ROLES if weights else ROLES[:1]
    missing = _missing(published, roles, folder)
    if missing and not download:
        raise CheckpointError(_by_hand(published, missing, folder, ["Nothing is downloaded in this run."]))
    for role in missing:
        _fetch(published, role, folder, missing)
    present = {role: _present(published, role, folder) for role in roles}
    sums = {file.name: _accept(published, file, folder) for file in present.values() if file is not None}
    paths = {role: folder / file.name for role, file in present.items() if file is not None}
    return Resolved(published, paths.get("vocabulary"), paths.get("weights"), sums)


def _alternatives(published: Published, role: Role) -> list[File]:
    return [file for file in published.files if file.role == role]


def _present(published: Published, role: Role, folder: Path) -> File | None:
    return next((file for file in _alternatives(published, role) if (folder / file.name).is_file()), None)


def _missing(published: Published, roles: Iterable[Role], folder: Path) -> list[Role]:
    needed = [role for role in roles if _alternatives(published, role)]
    return [role for role in needed if _present(published, role, folder) is None]


def _by_hand(published: Published, roles: Iterable[Role], folder: Path, reasons: Iterable[str]) -> str:
    """Say what is missing, why, where a person gets it and where it belongs."""
    by_hand = f"Where you have the file: megabert fetch {published.name} --from FILE_OR_FOLDER. Or put these in place:"
    lines = [f"{published.name} is not in the cache.", *reasons, by_hand]
    for role in roles:
        lines.append(f"  {role}, one of:" if len(_alternatives(published, role)) > 1 else f"  {role}:")
        for file in _alternatives(published, role):
            lines += [f"    {' or '.join((file.url, *file.mirrors))}", f"      as {folder / file.name}"]
    return "\n".join([*lines, f"Published at {published.page}", published.note]).rstrip()


def _fetch(published: Published, role: Role, folder: Path, missing: Iterable[Role]) -> None:
    """Download the file of one role from the first of its addresses that gives it, and record it."""
    file, reasons = _alternatives(published, role)[0], []
    known = _records(folder).get(file.name)
    sha256 = file.sha256 or (known.sha256 if known else None)

    def check(path: Path) -> None:
        if problem := _problem(published, file, path):
            raise DownloadError(f"{file.url}: {problem}")

    for url in (file.url, *file.mirrors):
        path = folder / file.name
        try:
            found = fetch(url, path, expected_size=file.size, expected_sha256=sha256, check=check)
            return _record(folder, file.name, found.sha256, source=url)
        except DownloadError as error:
            reasons.append(str(error))
    if known is not None and file.sha256 is None and known.sha256 in "".join(reasons):
        entry = f"the entry {file.name!r} of {folder / RECORD_NAME}"
        reasons.append(f"That sum was recorded on {known.date}. To take another file, remove {entry}.")
    raise CheckpointError(_by_hand(published, _missing(published, missing, folder), folder, reasons))


def _accept(published: Published, file: File, folder: Path) -> str:
    """See that a file in the cache is the recorded one, or record it, and return its SHA-256.

    A file whose size and time of change are the recorded ones is not read again: that would cost a second of
    every start. It guards against accidents; who can write to the folder can change the record as well.
    """
    path, known, status = folder / file.name, _records(folder).get(file.name), (folder / file.name).stat()
    if known is not None and (known.size, known.mtime_ns) == (status.st_size, status.st_mtime_ns):
        return known.sha256
    sha256 = file_sha256(path)
    problem = _problem(published, file, path)
    if problem or file.sha256 not in (None, sha256):
        problem = problem or f"it has SHA-256 {sha256}, but {file.sha256} is expected"
        raise CheckpointError(f"{path}: {problem}. Put the right file there, or remove it for a new one.")
    if known is not None and known.sha256 != sha256:
        raise CheckpointError(
            f"{path}: it has SHA-256 {sha256}, but {known.sha256} was recorded on {known.date}. "
            f"If that is on purpose, remove the entry {file.name!r} of {folder / RECORD_NAME}."
        )
    _record(folder, file.name, sha256, source=known.source if known else "found in the cache")
    return sha256


def _problem(published: Published, file: File, path: Path) -> str:
    """Say why a file cannot be what it should, or return ''. It is told by what the file holds, not by its name."""
    size = path.stat().st_size
    if file.size is not None and size != file.size:
        return f"it has {size:,} bytes, but {file.size:,} are expected"
    if file.role == "weights" and published.architecture is None:
        seen = _check_start(file, path)
    else:
        seen = _CHECKS[file.format](published, path)
    return f"it is no {file.format} file of this model: {seen}" if seen else ""


def _check_start(file: File, path: Path) -> str:
    # torch.save writes a zip since PyTorch 1.6 and wrote a pickle before.
    with path.open("rb") as handle:
        start = handle.read(4)
    is_pickle = file.format == "torch" and start[:1] == b"\x80"
    return "" if is_pickle or zipfile.is_zipfile(path) else f"it starts with {start!r} or is cut off"


def _check_weights(published: Published, path: Path) -> str:
    """Open the checkpoint and compare its network with the published one; no tensor is read."""
    # torch takes a second to import, and what only asks for names or finds a known file does not need it.
    from ..checkpoints import open as foreign

    assert published.architecture is not None, "what is not known of a network is not compared"
    try:
        told = asdict(published.architecture)
        rows = foreign.open_checkpoint(path, config=told, config_source="the catalog").config.vocabulary_size
    except CheckpointError as error:
        return str(error)
    words = published.vocabulary.size
    return "" if words is None or foreign.is_padded(words, rows) else f"it has {rows:,} rows for {words:,} words"


def _check_vocabulary(published: Published, path: Path) -> str:
    with path.open("rb") as handle:
        num_lines = sum(1 for _ in handle)
    words = published.vocabulary.size
    if words is None:
        return "" if b"[MASK]" in path.read_bytes()[: 2**26] else "it has no [MASK]"
    return "" if num_lines == words else f"it has {num_lines:,} lines instead of {words:,}"


def _check_json(published: Published, path: Path) -> str:
    try:
        document = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        return str(error)
    return "" if isinstance(document, dict) else "it holds no JSON object"


def _check_merges(published: Published, path: Path) -> str:
    return "" if path.read_bytes()[:8] == b"#version" else "it does not begin with #version"


_CHECKS: Mapping[str, Callable[[Published, Path], str]] = {
    "torch": _check_weights,
    "zip": _check_weights,
    "nemo": _check_weights,
    "vocabulary": _check_vocabulary,
    "json": _check_json,
    "merges": _check_merges,
}


def put(name: str, source: Path, home: Path) -> Resolved:
    """Copy files that a person has into the cache, each checked by what it holds, and resolve the name.

    `source` is a file or a folder of files. Raises CheckpointError if none of them is one of this name's.
    """
    published = find(name)
    if published.is_shipped:
        raise ConfigError(f"{name} comes with megabert; there is nothing to fetch.")
    folder = home / published.name
    if not source.exists():
        raise CheckpointError(f"{source} does not exist.")
    files = sorted(path for path in source.iterdir() if path.is_file()) if source.is_dir() else [source]
    taken: dict[Role, Path] = {}
    reasons = []
    for role in ROLES:
        for path in files:
            fitting, problems = _fitting(published, role, path)
            if fitting is not None and role not in taken:
                _copy(path, folder / fitting.name)
                _record(folder, fitting.name, file_sha256(folder / fitting.name), source=f"by hand, {path.name}")
                taken[role] = path
            reasons += problems
    if not taken:
        raise CheckpointError("\n  ".join([f"{source} holds no file of {published.name}:", *dict.fromkeys(reasons)]))
    return resolve(name, home=home)


def _fitting(published: Published, role: Role, path: Path) -> tuple[File | None, list[str]]:
    """Find the file of a role that a path's content is; returns it, or the reasons why it is none."""
    problems = []
    for file in _alternatives(published, role):
        problem = _problem(published, file, path)
        if not problem and file.sha256 in (None, file_sha256(path)):
            return file, []
        problems.append(f"{path.name} as {file.name}: {problem or 'it has another SHA-256 than the published file'}")
    return None, problems


def _copy(source: Path, target: Path) -> None:
    """Copy a file so that it is there whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.tmp-{uuid.uuid4().hex[:8]}")
    try:
        shutil.copyfile(source, partial)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def _records(folder: Path) -> dict[str, _Record]:
    path = folder / RECORD_NAME
    if not path.exists():
        return {}
    try:
        return {name: _Record(**entry) for name, entry in json.loads(path.read_bytes()).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is damaged ({error}). Remove it; it will be written anew.") from error


def _record(folder: Path, name: str, sha256: str, *, source: str) -> None:
    """Remember a file, and tell its SHA-256."""
    path, status = folder / RECORD_NAME, (folder / name).stat()
    entry = _Record(status.st_size, status.st_mtime_ns, sha256, source, str(datetime.now(UTC)))
    unfinished = folder / f".{RECORD_NAME}.new"
    with locked(path), writing(path):
        records = _records(folder) | {name: entry}
        unfinished.write_text(json.dumps(records, default=asdict, indent=2))
        unfinished.replace(path)
    print(f"{folder / name}: {entry.size:,} bytes, SHA-256 {sha256}", file=sys.stderr)
