"""The published names, what is known of each, and the way from a name to files on this machine.

A name such as `megatron-bert-345m-uncased` and a cache folder go in; the paths of its weights and vocabulary
and the numbers of its architecture come out. Files are looked for in `<home>/<name>/`, where a person may put
them, and else downloaded. `<home>/<name>/files.json` remembers the SHA-256 of each: the publisher gives none
for the weights, so the first file seen is what a later download has to match.

Source: names, architecture and the addresses of single files are those of NeMo 1.0.2 (MEGATRON_CONFIG_MAP in
nemo/collections/nlp/modules/common/megatron/megatron_utils.py), archives those of Megatron-LM's README, pages
those of NeMo's documentation.
"""

import difflib
import json
import sys
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from ..errors import CheckpointError, ConfigError
from .download import DownloadError, file_sha256, locked, writing
from .download import download as fetch

Role = Literal["vocabulary", "weights"]
ROLES: tuple[Role, ...] = ("vocabulary", "weights")  # the small one first: a missing network shows sooner
RECORD_NAME = "files.json"


@dataclass(frozen=True)
class Architecture:
    """The numbers of an encoder, named as in the JSON configurations of Megatron-LM and NeMo."""

    num_layers: int
    hidden_size: int
    num_attention_heads: int
    max_position_embeddings: int


@dataclass(frozen=True)
class Vocabulary:
    """Which words a model knows. `size` is the true number, without the rows that pad the embedding."""

    name: str
    size: int
    is_cased: bool


@dataclass(frozen=True)
class File:
    """One file of a published model. `size` (bytes) and `sha256` are None where no source gives them."""

    role: Role
    name: str
    format: Literal["torch", "zip", "vocabulary"]
    url: str
    mirrors: tuple[str, ...] = ()  # of the same bytes, which only a SHA-256 makes safe to try unasked
    size: int | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Published:
    """A published name. Several files of one role are alternatives: any will do, the first is downloaded."""

    name: str
    summary: str
    vocabulary: Vocabulary
    licence: str
    files: tuple[File, ...]
    page: str
    note: str = ""
    architecture: Architecture | None = None
    size: int | None = None  # bytes of the weights, about: `note` says where the number is from

    @property
    def num_parameters(self) -> int | None:
        """Count the encoder's parameters: embeddings, layers and final norm, but neither pooler nor heads."""
        if self.architecture is None:
            return None
        shape, hidden = self.architecture, self.architecture.hidden_size
        rows = self.vocabulary.size + shape.max_position_embeddings + 2  # 2 segments
        # A layer: qkv and out 4 h^2 + 4 h, an MLP of four times the width 8 h^2 + 5 h, two norms 4 h.
        return rows * hidden + shape.num_layers * (12 * hidden**2 + 13 * hidden) + 2 * hidden


_NGC = "https://api.ngc.nvidia.com/v2/models/nvidia"
_PAGE = "https://ngc.nvidia.com/catalog/models/nvidia"
_S3 = "https://s3.amazonaws.com/models.huggingface.co/bert"
_HUB = "https://huggingface.co"

_345M = Architecture(num_layers=24, hidden_size=1024, num_attention_heads=16, max_position_embeddings=512)
_UNCASED = Vocabulary("bert-large-uncased", 30_522, is_cased=False)
_CASED = Vocabulary("bert-large-cased", 28_996, is_cased=True)

_NGC_LICENCE = "not known here: read it on the page"
_BERT_LICENCE = "Apache-2.0 (the vocabulary, from Google's BERT)"
_GONE = (
    "In January 2025 users reported that NGC answered 410 Gone for its archives of this model. If so, sign "
    "in on the page or ask somebody who has the file. The size is an estimate: that of BioMegatron."
)
_BESIDE = (
    "Published without heads. NeMo takes the vocab.txt beside the weights and names {} as the tokenizer. The "
    "size is that of a conversion for transformers in half precision, EMBO/{}."
)


def _bert_vocabulary(name: str, size: int, sha256: str) -> File:
    # Megatron-LM's README names the first address. Sizes and sums were taken from the files themselves.
    first, mirror = f"{_S3}/{name}-vocab.txt", f"{_HUB}/google-bert/{name}/resolve/main/vocab.txt"
    return File("vocabulary", "vocab.txt", "vocabulary", first, (mirror,), size, sha256)


def _megatron_bert_345m(version: str, archive: str) -> tuple[File, File]:
    # The single file comes first: NGC does not tell the length of the archive, so it could not be resumed.
    folder, path = f"{_NGC}/megatron_bert_345m/versions", "files/release/mp_rank_00/model_optim_rng.pt"
    return (
        File("weights", "model_optim_rng.pt", "torch", f"{folder}/{version}/{path}"),
        File("weights", f"megatron_bert_345m_{archive}.zip", "zip", f"{folder}/{archive}/zip"),
    )


def _biomegatron_345m(casing: str) -> tuple[File, File]:
    folder = f"{_NGC}/biomegatron345m{casing}/versions/0/files"
    return (
        File("weights", "MegatronBERT.pt", "torch", f"{folder}/MegatronBERT.pt"),
        File("vocabulary", "vocab.txt", "vocabulary", f"{folder}/vocab.txt"),
    )


_UNCASED_FILE = _bert_vocabulary(
    "bert-large-uncased", 231_508, "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"
)
_CASED_FILE = _bert_vocabulary(
    "bert-large-cased", 213_450, "eeaa9875b23b04b4c54ef759d03db9d1ba1554838f8fb26c5d96fa551df93d02"
)

_ROWS = (
    Published(
        name="megatron-bert-345m-uncased",
        summary="Megatron-BERT 345M, uncased: Wikipedia, RealNews, OpenWebText, CC-Stories",
        architecture=_345M,
        vocabulary=_UNCASED,
        licence=_NGC_LICENCE,
        size=668_000_000,
        files=(*_megatron_bert_345m("v0.0", "v0.1_uncased"), _UNCASED_FILE),
        page=f"{_PAGE}:megatron_bert_345m",
        note=f"NeMo took version v0.0, Megatron-LM and transformers name v0.1_uncased. {_GONE}",
    ),
    Published(
        name="megatron-bert-345m-cased",
        summary="Megatron-BERT 345M, cased: Wikipedia, RealNews, OpenWebText, CC-Stories",
        architecture=_345M,
        vocabulary=_CASED,
        licence=_NGC_LICENCE,
        size=665_000_000,
        files=(*_megatron_bert_345m("v0.1_cased", "v0.1_cased"), _CASED_FILE),
        page=f"{_PAGE}:megatron_bert_345m",
        note=_GONE,
    ),
    Published(
        name="biomegatron-bert-345m-uncased",
        summary="BioMegatron 345M, uncased: Megatron-BERT, trained on with PubMed",
        architecture=_345M,
        vocabulary=_UNCASED,
        licence=_NGC_LICENCE,
        size=668_000_000,
        files=_biomegatron_345m("uncased"),
        page=f"{_PAGE}:biomegatron345muncased",
        note=_BESIDE.format("bert-large-uncased", "BioMegatron345mUncased"),
    ),
    Published(
        name="biomegatron-bert-345m-cased",
        summary="BioMegatron 345M, cased: Megatron-BERT, trained on with PubMed",
        architecture=_345M,
        vocabulary=_CASED,
        licence=_NGC_LICENCE,
        size=665_000_000,
        files=_biomegatron_345m("cased"),
        page=f"{_PAGE}:biomegatron345mcased",
        note=_BESIDE.format("bert-large-cased", "BioMegatron345mCased"),
    ),
    Published(
        name="megatron-bert-uncased",
        summary="Uncased weights of your own: give them with --bert_checkpoint and --bert_config",
        vocabulary=_UNCASED,
        licence=_BERT_LICENCE,
        files=(_UNCASED_FILE,),
        page=f"{_HUB}/google-bert/bert-large-uncased",
    ),
    Published(
        name="megatron-bert-cased",
        summary="Cased weights of your own: give them with --bert_checkpoint and --bert_config",
        vocabulary=_CASED,
        licence=_BERT_LICENCE,
        files=(_CASED_FILE,),
        page=f"{_HUB}/google-bert/bert-large-cased",
    ),
)
PUBLISHED: Mapping[str, Published] = {row.name: row for row in _ROWS}


@dataclass(frozen=True)
class Resolved:
    """Where the files of a name are. `weights` is None if there are none; `sha256` is by file name."""

    published: Published
    vocabulary: Path
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
    """Look a name up. Raises ConfigError, with the nearest names, if it is not there."""
    if name not in PUBLISHED:
        raise unknown_name(name)
    return PUBLISHED[name]


def in_cache(name: str, home: Path) -> bool:
    """Tell whether every file that `resolve` would give is there, without looking into them."""
    return not _missing(find(name), ROLES, home / name)


def describe(home: Path) -> list[dict[str, Any]]:
    """List what is known of each name, as plain values for a table or JSON. `size` is in bytes, about."""
    rows = [
        asdict(row) | {"parameters": row.num_parameters, "in_cache": in_cache(name, home)}
        for name, row in PUBLISHED.items()
    ]
    return [{key: value for key, value in row.items() if key != "files"} for row in rows]


def resolve(name: str, *, home: Path, weights: bool = True, download: bool = True) -> Resolved:
    """Find the files of a name in `home`, or download them there; without `weights` the vocabulary alone.

    Raises ConfigError for an unknown name, and CheckpointError if a file is not the right one or if it is not
    there and cannot be downloaded (without `download`: may not be), with the places to get it and to put it.
    """
    published, folder = find(name), home / name
    roles = ROLES if weights else ROLES[:1]
    missing = _missing(published, roles, folder)
    if missing and not download:
        raise CheckpointError(_by_hand(published, missing, folder, ["Nothing is downloaded in this run."]))
    for role in missing:
        _fetch(published, role, folder, missing)
    present = {role: _present(published, role, folder) for role in roles}
    sums = {file.name: _accept(published, file, folder) for file in present.values() if file is not None}
    paths = {role: folder / file.name for role, file in present.items() if file is not None}
    return Resolved(published, paths["vocabulary"], paths.get("weights"), sums)


def _alternatives(published: Published, role: Role) -> list[File]:
    return [file for file in published.files if file.role == role]


def _present(published: Published, role: Role, folder: Path) -> File | None:
    return next((file for file in _alternatives(published, role) if (folder / file.name).is_file()), None)


def _missing(published: Published, roles: Iterable[Role], folder: Path) -> list[Role]:
    needed = [role for role in roles if _alternatives(published, role)]
    return [role for role in needed if _present(published, role, folder) is None]


def _by_hand(published: Published, roles: Iterable[Role], folder: Path, reasons: Iterable[str]) -> str:
    """Say what is missing, why, where a person gets it and where it belongs."""
    lines = [f"{published.name} is not in the cache.", *reasons, "Put these files in place by hand:"]
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
    """Say why a file cannot be what it should, or return ''. A log-in page instead of weights is common."""
    size, num_words = path.stat().st_size, published.vocabulary.size
    if file.size is not None and size != file.size:
        return f"it has {size:,} bytes, but {file.size:,} are expected"
    with path.open("rb") as handle:
        if file.format == "vocabulary":
            num_lines = sum(1 for _ in handle)
            is_right, seen = num_lines == num_words, f"it has {num_lines:,} lines instead of {num_words:,}"
        else:
            # torch.save writes a zip since PyTorch 1.6 and wrote a pickle before.
            start = handle.read(4)
            is_pickle = file.format == "torch" and start[:1] == b"\x80"
            is_right, seen = is_pickle or zipfile.is_zipfile(path), f"it starts with {start!r} or is cut off"
    return "" if is_right else f"it is no {file.format} file of this model: {seen}"


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
