"""Folders of sentence-transformers: modules.json names what follows the network, from and to settings of embeddings.

Source: sentence-transformers 2 to 6: Transformer, Pooling, Dense and Normalize; encode_query and encode_document.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ...errors import CheckpointError
from ...json_documents import parse_json, read_json_object
from ..files.lazy_tensor import Readable, checked, in_memory
from ..files.weight_files import LazyTensor, open_file

MODULES = "modules.json"
MODULE_FILES = (
    MODULES, "sentence_bert_config.json", "config_sentence_transformers.json", "[0-9]_*/config.json",
    "[0-9]_*/model.safetensors", "[0-9]_*/pytorch_model.bin",
)  # fmt: skip
EMBEDDING_TASKS = ("text_embedding", "entity_linking")
_POOLING, _LENGTHS, _PROMPTS = "1_Pooling/config.json", "sentence_bert_config.json", "config_sentence_transformers.json"
_TYPE = "sentence_transformers.models."
_SETFIT, _VECTOR, _WEIGHTS = "model_head.pkl", "sentence_embedding", ("model.safetensors", "pytorch_model.bin")
# Ours of activations by the names of PyTorch's classes
_ACTIVATIONS = {"Identity": "identity", "Tanh": "tanh", "ReLU": "relu", "GELU": "gelu", "SiLU": "silu"}
# Their names of poolings by ours; before version 6 each is a switch of its own.
_POOLINGS = {"mean": "mean", "cls": "cls", "last": "lasttoken"}
_SWITCHES = {"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token", "last": "pooling_mode_lasttoken"}


def pooling_of(task: str, model: Mapping[str, Any]) -> tuple[str, bool]:
    """Return how the settings of a task of embeddings pool hidden states, and whether embeddings are normalized."""
    if task == "entity_linking":
        return model.get("dataset", {}).get("pooling", "cls"), True
    embedding = model.get("embedding", {})
    return embedding.get("pooling", "mean"), embedding.get("normalize", True)


def read_embedding(
    folder: Path, length: int, *, lowers: bool
) -> tuple[dict[str, Any], list[str], dict[str, Readable]] | None:
    """Return a folder's settings of `text_embedding`, what it does not state, and the head's tensors.

    None without a module of pooling.

    `length` is the tokenizer's, `lowers` whether it lower-cases. Raises CheckpointError for what is not computed.
    """
    modules = parse_json((folder / MODULES).read_bytes(), str(folder / MODULES))
    entries = [item if isinstance(item, dict) else {} for item in (modules if isinstance(modules, list) else [])]
    entries = [item for item in entries if not str(item.get("type")).endswith(".Dropout")]
    names = [str(item.get("type", "")).rpartition(".")[2] for item in entries]
    if names == ["Transformer"]:  # a cross-encoder
        return None
    others = [name for name in ("Dense", "Normalize") if name in names]
    if names != ["Transformer", "Pooling", *others] or entries[0].get("path"):
        raise CheckpointError(
            f"{folder / MODULES} lists {', '.join(names) or 'no modules'}; computed are Transformer (in the folder "
            "itself), Pooling, perhaps Dense and Normalize, in this order. Its encoder is loaded by "
            "megabert.load_encoder."
        )
    stated = _read(folder / _LENGTHS)
    if stated.get("do_lower_case") and not lowers:
        raise CheckpointError(
            f"{folder / _LENGTHS}: do_lower_case is true, and the tokenizer keeps capitals. Set do_lower_case in "
            "tokenizer_config.json where the vocabulary is lower-cased, else remove it here."
        )
    longest = stated.get("max_seq_length")
    length = min(longest, length) if type(longest) is int and longest >= 8 else length
    is_normalized = names[-1] == "Normalize"
    prompts, notes = _prompts(folder, is_normalized=is_normalized)
    places = []
    for place in (entry.get("path") for entry in entries[1:3]):
        if not isinstance(place, str) or Path(place).name != place or place in ("", ".."):
            raise CheckpointError(f"{folder / MODULES}: the path {place!r:.60} is no folder beside it.")
        places.append(place)
    pooling = _read_pooling(folder / places[0] / "config.json", has_prompts=any(prompts))
    projection, head = _read_dense(folder / places[1]) if "Dense" in others else ({}, {})
    dataset: dict[str, Any] = {"max_seq_length": length, "max_query_length": length}
    dataset |= dict(zip(("query_prompt", "passage_prompt"), prompts, strict=True))
    settings = {"dataset": dataset, "embedding": {"pooling": pooling, "normalize": is_normalized, **projection}}
    if (folder / _SETFIT).is_file():
        notes.append(f"{_SETFIT}, the classifier of SetFit, is a pickle and is not read: embeddings only")
    notes.append(f"embeddings: {pooling}{', of length 1' * is_normalized}; {length} tokens are read")
    return settings, notes, head


def _read_dense(folder: Path) -> tuple[dict[str, Any], dict[str, Readable]]:
    """Return the settings of a linear layer behind the pooling, and its tensors."""
    stated = read_json_object(folder / "config.json")
    name = str(stated.get("activation_function")).rpartition(".")[2]
    if name not in _ACTIVATIONS or stated.get("use_residual"):
        what = "a residual connection" if name in _ACTIVATIONS else f"the activation {name:.40}"
        raise CheckpointError(f"{folder}: Dense with {what} is not computed; {', '.join(_ACTIVATIONS)} are.")
    if any((stated.get(key) or _VECTOR) != _VECTOR for key in ("module_input_name", "module_output_name")):
        raise CheckpointError(f"{folder}: Dense changes something else than {_VECTOR}, which is not computed.")
    file = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), folder / _WEIGHTS[0])
    content = open_file(file).content
    tensors = content if isinstance(content, dict) else {}
    weight, bias = tensors.get("linear.weight"), tensors.get("linear.bias")
    if not isinstance(weight, LazyTensor) or len(weight.shape) != 2:
        raise CheckpointError(f"{file} holds no matrix linear.weight, as Dense does.")
    num_outputs = weight.shape[0]
    bias = bias if isinstance(bias, LazyTensor) else in_memory(torch.zeros(num_outputs))
    weight, bias = (checked(item, str(file), name) for name, item in (("linear.weight", weight), ("linear.bias", bias)))
    return (
        {"projection": num_outputs, "projection_activation": _ACTIVATIONS[name]},
        {"head.project.weight": weight, "head.project.bias": bias},
    )


def _read(path: Path) -> dict[str, Any]:
    return read_json_object(path) if path.is_file() else {}


def _read_pooling(path: Path, *, has_prompts: bool) -> str:
    stated = read_json_object(path)
    switches = [key for key, value in stated.items() if key.startswith("pooling_mode_") and value]
    modes = stated.get("pooling_mode", switches)
    modes = [modes] if isinstance(modes, str) else modes
    known = {theirs: ours for ours, theirs in [*_POOLINGS.items(), *_SWITCHES.items()]}
    if not isinstance(modes, list) or len(modes) != 1 or str(modes[0]) not in known:
        raise CheckpointError(f"{path}: pooling by {modes!r:.80} is not computed; one of {', '.join(_POOLINGS)} is.")
    if has_prompts and not stated.get("include_prompt", True):
        raise CheckpointError(f"{path}: include_prompt is false: pooling without the prompt's tokens is not computed.")
    return known[modes[0]]


def _prompts(folder: Path, *, is_normalized: bool) -> tuple[tuple[str, str], list[str]]:
    """Return the prompts of queries and passages, and notes."""
    stated = _read(folder / _PROMPTS)
    prompts = stated.get("prompts") or {}
    if not isinstance(prompts, dict) or not all(isinstance(text, str) for text in prompts.values()):
        raise CheckpointError(f"{folder / _PROMPTS}: prompts are {prompts!r:.60}, no table of names and texts.")
    passage = next((prompts[name] for name in ("document", "passage", "corpus") if name in prompts), "")
    notes = []
    if stated.get("default_prompt_name"):
        notes.append(f"the default prompt ({stated['default_prompt_name']!r:.40}) is for neither queries nor passages")
    similarity = stated.get("similarity_fn_name") or "cosine"
    if not is_normalized and similarity != "dot":
        remedy = " (model.embedding.normalize=true)" if similarity == "cosine" else ""
        notes.append(f"similarity is the inner product, in the folder {similarity!r:.40}{remedy}")
    given = (prompts.get("query", ""), passage)
    return given, [*notes, *([f"prompts of queries and of passages: {given[0]!r}, {given[1]!r}"] if any(given) else [])]


def embedding_files(task: str, model: Mapping[str, Any], width: int) -> dict[str, Any]:
    """Return the JSON files of sentence-transformers for the settings of a task of embeddings."""
    pooling, is_normalized = pooling_of(task, model)
    dataset = model.get("dataset", {})
    names = ["Transformer", "Pooling", *(["Normalize"] if is_normalized else [])]
    paths = ["", "1_Pooling", "2_Normalize"]
    prompts = {"query": dataset.get("query_prompt", ""), "document": dataset.get("passage_prompt", "")}
    return {
        MODULES: [
            {"idx": number, "name": str(number), "path": path, "type": _TYPE + name}
            for number, (name, path) in enumerate(zip(names, paths, strict=False))
        ],
        _POOLING: {"word_embedding_dimension": width, **{key: own == pooling for own, key in _SWITCHES.items()}},
        **({"2_Normalize/config.json": {}} if is_normalized else {}),
        _LENGTHS: {"max_seq_length": dataset["max_seq_length"], "do_lower_case": False},
        _PROMPTS: {"prompts": prompts, "similarity_fn_name": "cosine" if is_normalized else "dot"},
    }
