"""The manifest of a folder: size and SHA-256 of each file, sealed by its own SHA-256; imports no torch.

Checkpoints and exported folders have one; it is written last.
"""

import hashlib
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ...errors import CheckpointError
from ...json_documents import parse_json_object, parse_sealed, sealed

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
_CHUNK = 2**24


def write_file(path: Path, pieces: Iterable[bytes | memoryview]) -> dict[str, Any]:
    """Write and fsync a new file; returns its manifest entry, size and SHA-256.

    Each piece is hashed while it is written, since both take about as long.
    """
    digest, size = hashlib.sha256(), 0
    with path.open("xb") as file, ThreadPoolExecutor(1) as hasher:
        for piece in pieces:
            hashed = hasher.submit(digest.update, piece)
            file.write(piece)
            hashed.result()
            size += len(piece)
        file.flush()
        os.fsync(file.fileno())
    return {"size": size, "sha256": digest.hexdigest()}


def write_manifest(folder: Path, files: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Write the manifest of files whose entries `write_file` returned, with other facts."""
    write_file(folder / MANIFEST, [sealed({"format_version": FORMAT_VERSION, **facts, "files": files})])


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read a folder's manifest, verified by its own SHA-256. Raises CheckpointError if it is damaged."""
    file = folder / MANIFEST
    try:
        data = file.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}. Use another checkpoint of the run.") from None
    version = parse_json_object(data, str(file)).get("format_version")
    if version != FORMAT_VERSION:
        raise CheckpointError(f"{file} is of format {version!r:.40}; this version of megabert reads {FORMAT_VERSION}.")
    manifest = parse_sealed(data, str(file))
    files = manifest.get("files")
    if not isinstance(files, dict):
        raise CheckpointError(f"{file} lists no files. Use another checkpoint of the run.")
    if any(Path(name).name != name for name in files):
        raise CheckpointError(f"{file} names files outside its folder.")
    return manifest


def verify_manifest_folder(folder: Path) -> None:
    """Compare all files of a checkpoint with its manifest. Raises CheckpointError if one is missing or damaged."""
    for name, entry in read_manifest(folder)["files"].items():
        verify_file(folder / name, entry)


def verify_file(file: Path, entry: Any) -> None:
    """Compare a file, which may be larger than memory, with its manifest entry."""
    digest = hashlib.sha256()
    try:
        expected = entry["sha256"]
        if file.stat().st_size != entry["size"]:
            raise CheckpointError(f"{file} has {file.stat().st_size} bytes; its manifest has {entry['size']}.")
        with file.open("rb") as opened:
            while piece := opened.read(_CHUNK):
                digest.update(piece)
    except (OSError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file} cannot be read: {error!r}. Use another checkpoint of the run.") from None
    if digest.hexdigest() != expected:
        raise CheckpointError(
            f"{file} is damaged: its SHA-256 is {digest.hexdigest()[:16]}..., its manifest has "
            f"{str(expected)[:16]}.... Use another checkpoint of the run."
        )


def read_verified(file: Path, entry: Any) -> bytes:
    """Read a small file that equals its manifest entry."""
    verify_file(file, entry)
    return file.read_bytes()


def parse_text(file: Path, data: bytes) -> str:
    """Decode a text file. Raises CheckpointError if it is not UTF-8."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{file} is not text in UTF-8: {error}.") from None
