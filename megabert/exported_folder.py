"""The folder of an exported model: an ONNX network, tokenizer files, settings of task and decoding, a manifest.

Reading it needs neither torch nor the run. `megabert.json` has what a run's JSON documents have; the manifest has the
SHA-256 of every file.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .checkpoints.native.manifest import MANIFEST, parse_text, read_manifest, read_verified, verify_file
from .errors import CheckpointError, ConfigError
from .inference import Predictor
from .json_documents import parse_json_object, read_json_object
from .model.config import EncoderConfig
from .onnx_session import CPU_TOKENS, GPU_TOKENS, OnnxSession, num_threads, open_lanes, open_network
from .tasks.restore_task import restore_task
from .tokenizers.load import stored_tokenizer

KIND = "onnx"
DOCUMENTS, NETWORK, PROOF = "megabert.json", "model.onnx", "proof.json"
VOCABULARIES = ("vocab.txt", "vocab.json", "merges.txt")
DIGEST_DIGITS = 16


def is_exported(path: Path) -> bool:
    """Whether a path is an exported folder, damaged or not."""
    file = path / MANIFEST
    return file.is_file() and (path / DOCUMENTS).exists() and "export" in read_json_object(file)


def load_exported(
    folder: Path,
    *,
    accelerator: str = "auto",
    precision: str = "auto",
    compiled: bool = False,
    threads: int | None = None,
    batch_size: int = 32,
    task_name: str | None = None,
    overrides: Sequence[str] = (),
    for_many: bool = True,
) -> Predictor:
    """Load an exported folder for inference: `for_many` texts, so that each thread can compute a batch, or for one.

    Raises CheckpointError where a file is missing, damaged, or not the one that was exported; ConfigError for options
    that an exported model does not have.
    """
    if precision != "auto" or compiled:
        option = "compile" if compiled else f"precision={precision}"
        raise ConfigError(f"{option}: an exported model computes as it was exported. Leave it out, or export again.")
    manifest = read_manifest(folder)
    if manifest.get("export") != KIND:
        raise CheckpointError(f"{folder} is an export of kind {manifest.get('export')!r:.40}, which is run elsewhere.")
    files = manifest["files"]
    for name in (DOCUMENTS, NETWORK):
        if name not in files:
            raise CheckpointError(f"the manifest of {folder} lacks {name}. Export the run again.")
    documents = parse_json_object(read_verified(folder / DOCUMENTS, files[DOCUMENTS]), str(folder / DOCUMENTS))
    texts = {
        name: parse_text(folder / name, read_verified(folder / name, files[name]))
        for name in VOCABULARIES
        if name in files
    }
    for name in files:
        verify_file(folder / name, files[name])
    task = restore_task(documents, folder, task_name, overrides=overrides)
    tokenizer = stored_tokenizer(documents, texts, str(folder))
    session = open_session(folder, documents, accelerator=accelerator, threads=threads, for_many=for_many)
    digest = hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()[:DIGEST_DIGITS]
    return Predictor(task, tokenizer, session, batch_size, digest)


def open_session(
    folder: Path,
    documents: Mapping[str, Any],
    *,
    accelerator: str = "auto",
    threads: int | None = None,
    for_many: bool = True,
) -> OnnxSession:
    """Open the network of an exported folder, `for_many` texts or for one; its files are not verified."""
    head = documents.get("head")
    if not isinstance(head, dict):
        raise CheckpointError(f"{folder / DOCUMENTS} lacks head. Export the run again.")
    config = EncoderConfig.from_dict(documents.get("encoder") or {})
    count = 1 if accelerator == "gpu" else num_threads(threads)
    return OnnxSession(
        open_network(folder / NETWORK, accelerator=accelerator, threads=threads),
        is_per_sequence=bool(head.get("is_per_sequence")),
        max_positions=config.max_positions,
        needs_targets=bool(head.get("takes_targets")),
        max_batch_tokens=GPU_TOKENS if accelerator == "gpu" else CPU_TOKENS * count,
        lanes=open_lanes(folder / NETWORK, count) if for_many else None,
    )
