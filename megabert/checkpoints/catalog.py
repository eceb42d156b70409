"""Resolve published names to files in the cache, downloading them where needed.

`resolve` returns the paths of a name's weights and vocabulary. The files are in `<home>/<name>/`, where a user may also
put them by hand. `<home>/<name>/files.json` records the SHA-256 of each: the publisher gives none for the weights, so
later downloads must match the first file.
"""

import difflib
import json
import shutil
import sys
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, ConfigError
from ..json_documents import read_json_object
from ..storage import atomic_file, atomic_write, file_sha256
from .cache_files import explain_write_errors, locked
from .download import download
from .native.manifest import MANIFEST
from .partial_download import DownloadError
from .published import ROLES, File, Published, Role, published_checkpoints

RECORD_NAME = "files.json"
# The encoders included in the package, one megabert folder each
SHIPPED = Path(__file__).parent.parent / "encoders"


@dataclass(frozen=True)
class Resolved:
    """The files of a name; `sha256` is by file name.

    `weights` is None if the name has none, `vocabulary` if it is in the archive of the weights.
    """

    published: Published
    vocabulary: Path | None
    weights: Path | None
    sha256: dict[str, str]


@dataclass(frozen=True)
class _Record:
    """The record of a file in files.json. `mtime_ns` is its modification time, in nanoseconds."""

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
        # Only a shell expands ~; a service file or a notebook passes it unchanged.
        return Path(user + chosen[1:] if user and chosen[:2] in ("~", "~/") else chosen).absolute()
    if Path(caches := environment.get("XDG_CACHE_HOME", "")).is_absolute():  # the specification ignores relative paths
        return Path(caches) / "megabert"
    if user:
        return Path(user) / ".cache" / "megabert"
    raise ConfigError("HOME is not set. Set MEGABERT_HOME to the folder for published files.")


def is_published(name: str) -> bool:
    """Whether a name or an alias is in the table."""
    return _look_up(name) is not None


def _look_up(name: str) -> Published | None:
    rows = published_checkpoints()
    return rows.get(name) or next((row for row in rows.values() if name in row.aliases), None)


def find(name: str) -> Published:
    """Look up a name or an alias. Raises ConfigError with the nearest names if it is unknown."""
    rows, published = published_checkpoints(), _look_up(name)
    if published is None:
        near = difflib.get_close_matches(name.lower(), list(rows), n=3, cutoff=0.6)
        hint = f"Did you mean {' or '.join(near)}?" if near else f"There are {', '.join(rows)}."
        raise ConfigError(
            f"{name!r} is neither a file or folder nor the name of a published model. {hint} `megabert models` lists "
            "them; a model of the Hugging Face hub has a name such as org/name."
        )
    return published


def in_cache(name: str, home: Path) -> bool:
    """Whether every file that `resolve` would return exists, without checking the content."""
    published = find(name)
    if published.is_shipped:
        return True
    return bool(published.files) and not _missing(published, ROLES, home / published.name)


def describe(home: Path) -> list[dict[str, Any]]:
    """List the published names with their properties, as plain values for a table or JSON. `size` is approximate."""
    rows = [
        asdict(row) | {"aliases": list(row.aliases), "parameters": row.num_parameters, "in_cache": in_cache(name, home)}
        for name, row in published_checkpoints().items()
    ]
    return [{key: value for key, value in row.items() if key != "files"} for row in rows]


def resolve(name: str, *, home: Path, weights: bool = True, download: bool = True) -> Resolved:
    """Find the files of a name in `home`, or download them; without `weights` only the vocabulary.

    Raises ConfigError for an unknown name, and CheckpointError if a file has the wrong content or is missing and cannot
    be downloaded (without `download`: must not be); the message names its address and its path in the cache.
    """
    published = find(name)
    if published.is_shipped:
        folder = SHIPPED / published.name
        return Resolved(published, None, folder, {folder.name: file_sha256(folder / MANIFEST)})
    folder = home / published.name
    roles = ROLES if weights else ROLES[:1]
    missing = _missing(published, roles, folder)
    if missing and not download:
        raise CheckpointError(_missing_message(published, missing, folder, ["Downloads are off in this run."]))
    for role in missing:
        _fetch(published, role, folder, missing)
    present = {role: _present(published, role, folder) for role in roles}
    sums = {file.name: _verify(published, file, folder) for file in present.values() if file is not None}
    paths = {role: folder / file.name for role, file in present.items() if file is not None}
    return Resolved(published, paths.get("vocabulary"), paths.get("weights"), sums)


def _alternatives(published: Published, role: Role) -> list[File]:
    return [file for file in published.files if file.role == role]


def _present(published: Published, role: Role, folder: Path) -> File | None:
    return next((file for file in _alternatives(published, role) if (folder / file.name).is_file()), None)


def _missing(published: Published, roles: Iterable[Role], folder: Path) -> list[Role]:
    needed = [role for role in roles if _alternatives(published, role)]
    return [role for role in needed if _present(published, role, folder) is None]


def _missing_message(published: Published, roles: Iterable[Role], folder: Path, reasons: Iterable[str]) -> str:
    """Describe which files are missing, why, where to get them and where to put them."""
    remedy = f"If you have the file: megabert fetch {published.name} --from FILE_OR_FOLDER. Or put these in place:"
    lines = [f"{published.name} is not in the cache.", *reasons, remedy]
    for role in roles:
        lines.append(f"  {role}, one of:" if len(_alternatives(published, role)) > 1 else f"  {role}:")
        for file in _alternatives(published, role):
            lines += [f"    {' or '.join((file.url, *file.mirrors))}", f"      as {folder / file.name}"]
    return "\n".join([*lines, f"Published at {published.page}", published.note]).rstrip()


def _fetch(published: Published, role: Role, folder: Path, missing: Iterable[Role]) -> None:
    """Download the file of one role from the first address that provides it, and record it."""
    file, reasons = _alternatives(published, role)[0], []
    recorded = _read_records(folder).get(file.name)
    sha256 = file.sha256 or (recorded.sha256 if recorded else None)

    def check(path: Path) -> None:
        if problem := _find_problem(published, file, path):
            raise DownloadError(f"{file.url}: {problem}")

    for url in (file.url, *file.mirrors):
        path = folder / file.name
        try:
            downloaded = download(url, path, expected_size=file.size, expected_sha256=sha256, check=check)
            return _record(folder, file.name, downloaded.sha256, source=url)
        except DownloadError as error:
            reasons.append(str(error))
    if recorded is not None and file.sha256 is None and recorded.sha256 in "".join(reasons):
        entry = f"the entry {file.name!r} of {folder / RECORD_NAME}"
        reasons.append(f"That sum was recorded on {recorded.date}. To take another file, remove {entry}.")
    raise CheckpointError(_missing_message(published, _missing(published, missing, folder), folder, reasons))


def _verify(published: Published, file: File, folder: Path) -> str:
    """Check that a file in the cache matches its record, or record it; returns its SHA-256.

    A file with the recorded size and modification time is not read again, which would take a second at every start.
    This guards against accidents; whoever can write to the folder can also change the record.
    """
    path, recorded, status = folder / file.name, _read_records(folder).get(file.name), (folder / file.name).stat()
    if recorded is not None and (recorded.size, recorded.mtime_ns) == (status.st_size, status.st_mtime_ns):
        return recorded.sha256
    sha256 = file_sha256(path)
    problem = _find_problem(published, file, path)
    if problem or file.sha256 not in (None, sha256):
        problem = problem or f"it has SHA-256 {sha256}, but {file.sha256} is expected"
        raise CheckpointError(f"{path}: {problem}. Put the right file there, or remove it for a new one.")
    if recorded is not None and recorded.sha256 != sha256:
        raise CheckpointError(
            f"{path}: it has SHA-256 {sha256}, but {recorded.sha256} was recorded on {recorded.date}. "
            f"If that is on purpose, remove the entry {file.name!r} of {folder / RECORD_NAME}."
        )
    _record(folder, file.name, sha256, source=recorded.source if recorded else "found in the cache")
    return sha256


def _find_problem(published: Published, file: File, path: Path) -> str:
    """Check the content of a file, whatever its name; returns the reason why it is not the expected one, or ''."""
    size = path.stat().st_size
    if file.size is not None and size != file.size:
        return f"it has {size:,} bytes, but {file.size:,} are expected"
    if file.role == "weights" and published.architecture is None:
        problem = _check_start(file, path)
    else:
        problem = _CHECKS[file.format](published, path)
    return f"it is no {file.format} file of this model: {problem}" if problem else ""


def _check_start(file: File, path: Path) -> str:
    # torch.save writes a zip since PyTorch 1.6 and wrote a pickle before.
    with path.open("rb") as handle:
        start = handle.read(4)
    is_pickle = file.format == "torch" and start[:1] == b"\x80"
    return "" if is_pickle or zipfile.is_zipfile(path) else f"it starts with {start!r} or is cut off"


def _check_weights(published: Published, path: Path) -> str:
    """Open the checkpoint and compare its network with the published one, without reading tensors."""
    from .open import open_checkpoint  # imports torch, which takes a second
    from .vocabulary_rows import is_padded

    assert published.architecture is not None, "_find_problem checks networks of known architecture"
    try:
        config = asdict(published.architecture)
        rows = open_checkpoint(path, config=config, config_source="the catalog").config.vocabulary_size
    except CheckpointError as error:
        return str(error)
    num_tokens = published.vocabulary.size
    if num_tokens is None or is_padded(num_tokens, rows):
        return ""
    return f"it has {rows:,} rows for {num_tokens:,} tokens"


def _check_vocabulary(published: Published, path: Path) -> str:
    with path.open("rb") as handle:
        num_lines = sum(1 for _ in handle)
    num_tokens = published.vocabulary.size
    if num_tokens is None:
        return "" if b"[MASK]" in path.read_bytes()[: 2**26] else "it has no [MASK]"
    return "" if num_lines == num_tokens else f"it has {num_lines:,} lines instead of {num_tokens:,}"


def _check_json(published: Published, path: Path) -> str:
    try:
        read_json_object(path)
    except CheckpointError as error:
        return str(error)
    return ""


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
    """Copy a user's files into the cache, each checked by its content, and resolve the name.

    `source` is a file or a folder of files. Raises CheckpointError if none of them belongs to the name.
    """
    published = find(name)
    if published.is_shipped:
        raise ConfigError(f"{name} comes with megabert; there is nothing to fetch.")
    folder = home / published.name
    if not source.exists():
        raise CheckpointError(f"{source} does not exist.")
    files = sorted(path for path in source.iterdir() if path.is_file()) if source.is_dir() else [source]
    taken, reasons = _take(published, files, folder)
    if not taken:
        raise CheckpointError("\n  ".join([f"{source} holds no file of {published.name}:", *dict.fromkeys(reasons)]))
    return resolve(name, home=home)


def _take(published: Published, files: Sequence[Path], folder: Path) -> tuple[set[Role], list[str]]:
    """Copy the first file of each role; returns the roles that have one, and why files have none."""
    taken: set[Role] = set()
    reasons = []
    for role in ROLES:
        for path in files:
            file, problems = _match_role(published, role, path)
            if file is not None and role not in taken:
                _copy(path, folder / file.name)
                _record(folder, file.name, file_sha256(folder / file.name), source=f"by hand, {path.name}")
                taken.add(role)
            reasons += problems
    return taken, reasons


def _match_role(published: Published, role: Role, path: Path) -> tuple[File | None, list[str]]:
    """Match a path's content with the files of a role; returns the match, or the reasons why there is none."""
    problems = []
    for file in _alternatives(published, role):
        problem = _find_problem(published, file, path)
        if not problem and file.sha256 in (None, file_sha256(path)):
            return file, []
        problems.append(f"{path.name} as {file.name}: {problem or 'it has another SHA-256 than the published file'}")
    return None, problems


def _copy(source: Path, target: Path) -> None:
    """Copy a file atomically."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as opened, atomic_file(target) as copy:
        shutil.copyfileobj(opened, copy)


def _read_records(folder: Path) -> dict[str, _Record]:
    path = folder / RECORD_NAME
    if not path.exists():
        return {}
    hint = "Remove it; it will be written again."
    kinds = {"size": int, "mtime_ns": int, "sha256": str, "source": str, "date": str}
    records = {}
    for name, entry in read_json_object(path, hint=hint).items():
        if not isinstance(entry, dict) or {key: type(value) for key, value in entry.items()} != kinds:
            raise CheckpointError(f"{path} is damaged: {name[:80]!r} is no record of a file. {hint}")
        records[name] = _Record(**entry)
    return records


def _record(folder: Path, name: str, sha256: str, *, source: str) -> None:
    """Write the record of a file, and print its SHA-256."""
    path, status = folder / RECORD_NAME, (folder / name).stat()
    record = _Record(status.st_size, status.st_mtime_ns, sha256, source, str(datetime.now(UTC)))
    with locked(path), explain_write_errors(path):
        records = _read_records(folder) | {name: record}
        atomic_write(path, json.dumps(records, default=asdict, indent=2))
    print(f"{folder / name}: {record.size:,} bytes, SHA-256 {sha256}", file=sys.stderr)
