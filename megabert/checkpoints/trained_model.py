"""Read a fine-tuned model: a run's best checkpoint, or a Hugging Face folder with its head as a run."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..storage import file_sha256
from ..tokenizers.load import stored_tokenizer
from ..tokenizers.wordpiece import Tokenizer
from .native import run_checkpoints

DIGEST_DIGITS = 16
# Files of a Hugging Face folder on which answers depend
_MODEL_FILES = (".json", ".txt", ".safetensors", ".bin")

_MEGATRON_FILES = ("latest_checkpointed_iteration.txt", "mp_rank_*", "release", "iter_*", "model_optim_rng.pt")


@dataclass(frozen=True)
class TrainedModel:
    """A fine-tuned model's files: a checkpoint's contents, and what its files do not state."""

    folder: Path
    contents: run_checkpoints.Contents
    digest: str
    notes: tuple[str, ...] = ()


def trained_documents(path: Path) -> tuple[Mapping[str, Any], str]:
    """Return the documents of a model that `load_run` loads, and its digest."""
    if (folder := _huggingface_folder(path)) is not None:
        trained = _read_huggingface(folder)
        return trained.contents.documents, trained.digest
    folder, opened = run_checkpoints.open_best(path, groups=())
    return opened.documents, _digest(folder)


def _is_native(path: Path) -> bool:
    return any((path / name).exists() for name in (run_checkpoints.MANIFEST, run_checkpoints.CHECKPOINTS))


def _huggingface_folder(path: Path) -> Path | None:
    if not path.exists() or _is_native(path):
        return None
    from .huggingface.open_huggingface import find_folder

    return find_folder(path)


def read_trained(path: Path) -> TrainedModel:
    """Read a run folder's best checkpoint, a checkpoint folder, or a Hugging Face folder with its head."""
    if (folder := _huggingface_folder(path)) is not None:
        return _read_huggingface(folder)
    _refuse_untrained(path)
    folder, contents = run_checkpoints.read_best(path, groups=("model",))
    if "encoder" in contents.documents and "run" not in contents.documents:
        raise CheckpointError(
            f"{path} holds an encoder without the head of a task, as `megabert convert --to megabert` writes it. Give "
            "a run; of other programs a folder with its head, which `--to huggingface` keeps."
        )
    return TrainedModel(folder, contents, _digest(folder))


def _refuse_untrained(path: Path) -> None:
    """Raise CheckpointError that names what stands at a path instead of a trained model, where that is known."""
    from .other_formats import name_other_folder, refuse_other_format

    if not path.exists():
        return
    refuse_other_format(path)
    if path.is_file():
        raise CheckpointError(
            f"{path} is a file; a trained model is a folder: of `megabert train`, of `megabert export`, or of "
            "transformers. `megabert inspect` shows what a checkpoint's file holds; an encoder is trained first."
        )
    if not _is_native(path) and (other := name_other_folder(path)) is not None:
        raise CheckpointError(other)
    if any(True for name in _MEGATRON_FILES for _ in path.glob(name)):
        raise CheckpointError(
            f"{path} is a checkpoint of Megatron-LM, which has no head of a task. Train one from it: megabert train "
            f"TASK model.language_model.pretrained_model_name={path}. `megabert inspect` shows what it holds."
        )


def _with_added_tokens(cuts: Mapping[str, Any], tokenizer: Tokenizer) -> tuple[dict[str, Any], list[str]]:
    """Add the tokenizer's added tokens to how raw text is cut into words; returns it and what does not count."""
    rules = tokenizer.rules
    found: dict[str, list[str]] = {"tokens": [], "uncased_tokens": []}
    apart = [token for token in rules.added_tokens if len(token.content.split()) == 1]
    for token in apart:
        if not (token.special and rules.split_special_tokens):
            is_uncased = token.normalized and tokenizer.lower_case
            found["uncased_tokens" if is_uncased else "tokens"].append(token.content)
    several = [token.content for token in rules.added_tokens if token not in apart]
    notes = [f"added tokens of several words are not found in a text: {', '.join(several[:6])}"] if several else []
    return {**cuts, **found}, notes


def _digest(checkpoint: Path) -> str:
    return file_sha256(checkpoint / run_checkpoints.MANIFEST)[:DIGEST_DIGITS]


def _read_huggingface(folder: Path) -> TrainedModel:
    """Read a Hugging Face folder as a run. Raises CheckpointError if it has no head or no vocabulary."""
    from .huggingface.open_huggingface import NO_WEIGHTS, SUFFIXES
    from .huggingface.sentence_modules import MODULE_FILES
    from .model_source import ModelSource, open_source
    from .vocabulary_rows import fit_vocabulary

    opened = open_source(ModelSource(folder), home=Path())
    checkpoint, tokenizer = opened.checkpoint, opened.tokenizer
    if "tokenizer" in checkpoint.documents:  # a run's own: transformers' splits a text at special tokens in it, too
        texts = {name: content.decode() for name, content in checkpoint.tokenizer_files.items()}
        tokenizer = stored_tokenizer(checkpoint.documents, texts, str(folder))
    if checkpoint.head_problem:
        raise CheckpointError(checkpoint.head_problem)
    if "run" not in checkpoint.documents:
        raise CheckpointError(
            f"{folder} holds no head of a task that is known: its class is neither ForTokenClassification, "
            "ForSequenceClassification nor ForQuestionAnswering, and there is no modules.json of sentence-transformers "
            "either. An encoder is loaded by load_encoder or load_embedder."
        )
    if tokenizer is None:
        raise CheckpointError(f"{folder} has no vocabulary: tokenizer.json or vocab.txt. Add that of the model.")
    tensors = fit_vocabulary(checkpoint, len(tokenizer), tokenizer.source)
    weights = {name: item for name, item in tensors.items() if name.startswith("encoder.")} | dict(checkpoint.head)
    if "language_model" in checkpoint.documents["run"]["task"]:
        order = checkpoint.documents["settings"]["model"]["dataset"].get("sentence_order")
        heads = ("language_model.", "sentence_order.") if order else ("language_model.",)
        weights |= {f"head.{name}": item for name, item in tensors.items() if name.startswith(heads)}
    documents = dict(checkpoint.documents)
    documents["encoder"] = {**checkpoint.shape, "vocabulary_size": len(tokenizer)}
    documents["tokenizer"] = tokenizer.to_document()
    notes = list(checkpoint.notes)
    if "cuts" in documents.get("task", {}) and "tokenizer" not in checkpoint.documents:
        cuts, note = _with_added_tokens(documents["task"]["cuts"], tokenizer)
        documents["task"] = documents["task"] | {"cuts": cuts}
        notes += note
    if checkpoint.lower_case is None:
        casing = "is lower-cased, as the vocabulary is" if tokenizer.lower_case else "keeps its capitals"
        notes.append(f"casing is not stated: text {casing}")
    # Weights may have other names, beside which a trainer's optimizer counts for nothing.
    others = [file for file in folder.iterdir() if file.suffix in SUFFIXES and NO_WEIGHTS.match(file.name) is None]
    named = [file for file in folder.iterdir() if file.suffix in _MODEL_FILES]
    files = [file for file in {*named, *others} if file.is_file()]
    files = sorted([*files, *(file for pattern in MODULE_FILES[3:] for file in folder.glob(pattern))])
    sums = "".join(f"{file.name} {file_sha256(file)}\n" for file in files)
    contents = run_checkpoints.Contents({"model": weights}, documents, tokenizer.files())
    return TrainedModel(folder, contents, hashlib.sha256(sums.encode()).hexdigest()[:DIGEST_DIGITS], tuple(notes))
