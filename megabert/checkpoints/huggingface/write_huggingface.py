"""Write Hugging Face's folders: config.json, safetensors (in shards where they are large), tokenizer files.

`transformers` loads the folder by `from_pretrained`, with the heads of fine-tuned runs.
Source: transformers' configuration and modeling files of megatron_bert, bert and gpt2.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ...errors import ConfigError
from ...model.config import EncoderConfig
from ...tokenizers.load import load_tokenizer
from ...tokenizers.rules import TokenizerRules
from ..files.lazy_tensor import Readable, in_memory, num_bytes
from ..files.safetensors_file import safetensors_pieces
from ..mapping import ForeignTensors, write_tensors
from ..native.manifest import write_file
from ..tensor_names import SEGMENT, WORD
from .huggingface_names import (
    ARCHITECTURES,
    GELUS,
    HEAD_ACTIVATION,
    NUM_SEGMENTS,
    RESIDUAL_POST_NORM,
    HuggingFaceArchitecture,
)
from .sentence_modules import EMBEDDING_TASKS, embedding_files
from .task_heads import (
    DESCRIPTION,
    TaskHead,
    describe_task,
    find_task_head,
    head_config,
    is_language_model_run,
    merged_head,
)

LARGEST_SHARD = 5 * 10**9  # bytes, transformers' limit


def architecture_of(config: EncoderConfig) -> HuggingFaceArchitecture:
    """Return the architecture of a network."""
    for row in ARCHITECTURES.values():
        if (row.norm_place, row.is_causal) == (config.norm_place, config.is_causal):
            return row
    raise ConfigError(f"transformers has no causal network with norm_place {config.norm_place}.")


def write_huggingface(
    folder: Path,
    tensors: Mapping[str, Readable],
    config: EncoderConfig,
    *,
    tokenizer_files: Mapping[str, bytes],
    lower_case: bool | None,
    rules: TokenizerRules,
    head: Mapping[str, Readable],
    run: Mapping[str, Any],
) -> list[str]:
    """Write all files into an empty folder; returns notes for the user.

    `head` and `run` are the head's tensors and the JSON documents of a fine-tuned run.
    """
    architecture = architecture_of(config)
    head = merged_head(run, head)
    task_head = find_task_head(run, head) if head else None
    tokenizer = load_tokenizer(tokenizer_files, lower_case=lower_case, rules=rules, source="the vocabulary")
    documents = {"config.json": huggingface_config(config, architecture, tensors, task_head)}
    if task_head is not None:
        documents["config.json"] |= head_config(run)
        # transformers' pooler is a layer of the head.
        tensors = {name: item for name, item in tensors.items() if not name.startswith("sentence_order.")}
    task = run.get("run", {}).get("task")
    is_embedding = task in EMBEDDING_TASKS
    if is_embedding:
        documents |= embedding_files(task, run["settings"]["model"], config.hidden_size)
    if task_head is not None or is_embedding or is_language_model_run(run):
        stored = {"lower_case": lower_case} if tokenizer is None else tokenizer.to_document()
        documents[DESCRIPTION] = describe_task(run) | {"tokenizer": stored}
    if tokenizer_files:
        is_bert = "vocab.txt" in tokenizer_files
        documents["tokenizer_config.json"] = {
            "tokenizer_class": "BertTokenizer" if is_bert else "GPT2Tokenizer",
            **({"do_lower_case": bool(lower_case)} if is_bert else {}),
            "model_max_length": config.max_positions,
            **_rules_config(rules),
        }
    for name, document in documents.items():
        (folder / name).parent.mkdir(exist_ok=True)
        write_file(folder / name, [(json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()])
    for name, data in tokenizer_files.items():
        write_file(folder / name, [data])
    if tokenizer is not None:
        write_file(folder / "tokenizer.json", [tokenizer.to_fast_json().encode()])
    if config.num_segments == 0 and not config.is_causal:
        tensors = {**tensors, SEGMENT: in_memory(torch.zeros(2, config.hidden_size, dtype=tensors[WORD].dtype))}
    converted = list(_with_prefix(tensors, architecture, config))
    if task_head is not None:
        converted += write_tensors(head, task_head.rules, config.head_dim)
    _write_weights(folder, converted)
    return list(_notes(architecture, config, tokenizer_files))


def _rules_config(rules: TokenizerRules) -> dict[str, Any]:
    """Return the entries of tokenizer_config.json for rules that differ from transformers' defaults."""
    document = rules.to_document()
    added = document.pop("added_tokens", [])
    if added:
        document["added_tokens_decoder"] = {str(entry.pop("id")): entry for entry in added}
    return document


def _notes(
    architecture: HuggingFaceArchitecture, config: EncoderConfig, tokenizer_files: Mapping[str, bytes]
) -> Iterator[str]:
    if architecture.name == RESIDUAL_POST_NORM:
        yield (
            f"WARNING: transformers has no network that takes its residuals after the layer norm. config.json has "
            f"model_type {architecture.name}, which its Auto classes refuse; MegatronBert classes would compute "
            "something else. megabert reads the folder as it is."
        )
    if config.gelu != config.head_gelu and not config.is_causal:
        yield (
            f"transformers has one activation for the MLPs ({config.gelu}, as trained) and the language-model head "
            f"(trained with {config.head_gelu}): vectors and task heads agree exactly, masked-language-model logits "
            "in about three digits. megabert reads both from config.json."
        )
    if not tokenizer_files:
        yield "no vocabulary was given or found beside the source: the folder has no tokenizer (--vocab-file FILE)."


def huggingface_config(
    config: EncoderConfig,
    architecture: HuggingFaceArchitecture,
    tensors: Mapping[str, Readable],
    task_head: TaskHead | None,
) -> dict[str, Any]:
    """Return the content of config.json."""
    values = config.to_dict()
    document: dict[str, Any] = {
        "architectures": [_class_name(architecture, tensors, task_head)],
        "model_type": architecture.name,
        **{key: values[name] for key, name in architecture.config_keys.items()},
        architecture.activation_key: GELUS[config.gelu][0],
        "initializer_range": 0.02,
        "tie_word_embeddings": True,
        "dtype": str(tensors[WORD].dtype).removeprefix("torch."),
    }
    if config.is_causal:
        return document | {"embd_pdrop": config.hidden_dropout}
    document |= {"pad_token_id": 0, "position_embedding_type": "absolute"}
    if config.gelu != config.head_gelu:
        document[HEAD_ACTIVATION] = GELUS[config.head_gelu][0]
    if config.num_segments == 0:
        document |= {"type_vocab_size": 2, NUM_SEGMENTS: 0}
    return document


def _class_name(
    architecture: HuggingFaceArchitecture, tensors: Mapping[str, Readable], task_head: TaskHead | None
) -> str:
    start = architecture.class_prefix
    if task_head is not None:
        return start + task_head.class_end
    if architecture.is_causal:
        return f"{start}LMHeadModel"
    has_language_model, has_order = "language_model.dense.weight" in tensors, "sentence_order.out.weight" in tensors
    ends = {
        (True, True): "ForPreTraining",
        (True, False): "ForMaskedLM",
        (False, True): "ForNextSentencePrediction",
        (False, False): "Model",
    }
    return start + ends[has_language_model, has_order]


def _with_prefix(
    tensors: Mapping[str, Readable], architecture: HuggingFaceArchitecture, config: EncoderConfig
) -> Iterator[ForeignTensors]:
    for item in write_tensors(tensors, architecture.rules, config.head_dim):
        names = tuple(name if name.startswith("cls.") else architecture.prefix + name for name in item.names)
        yield replace(item, names=names)


def _shards(converted: Sequence[ForeignTensors]) -> tuple[list[list[ForeignTensors]], int]:
    """Divide tensors into shards of at most LARGEST_SHARD bytes; also returns the bytes of all."""
    shards: list[list[ForeignTensors]] = [[]]
    size = total = 0
    for item in converted:
        item_size = num_bytes(item) * len(item.names)
        if shards[-1] and size + item_size > LARGEST_SHARD:
            shards.append([])
            size = 0
        shards[-1].append(item)
        size, total = size + item_size, total + item_size
    return shards, total


def _write_weights(folder: Path, converted: Sequence[ForeignTensors]) -> None:
    """Write one file, or several of at most LARGEST_SHARD bytes with an index."""
    shards, total = _shards(converted)
    if len(shards) == 1:
        _write_shard(folder / "model.safetensors", shards[0])
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_shard(folder / file, shard)
        weight_map |= {name: file for item in shard for name in item.names}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    write_file(folder / "model.safetensors.index.json", [(json.dumps(index, indent=2) + "\n").encode()])


def _write_shard(file: Path, converted: Sequence[ForeignTensors]) -> None:
    entries = {name: (item.dtype, item.shape) for item in converted for name in item.names}
    tensors = (tensor for item in converted for tensor in item.read())
    write_file(file, safetensors_pieces(entries, tensors, {"format": "pt"}))
