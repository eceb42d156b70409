"""Write Hugging Face's folders: config.json, safetensors (in shards where they are large), tokenizer files.

Our tensors go in; out comes what `transformers` loads by `from_pretrained`, heads of fine-tuned runs included.
Source: transformers' configuration and modeling files of megatron_bert, bert and gpt2.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import ConfigError
from ...model.config import EncoderConfig
from ..files.lazy_tensor import Loaded, Readable
from ..mapping import Rule, Written, write_tensors
from ..native.manifest_folder import safetensors_pieces, write_file
from ..tensor_names import SEGMENT, WORD
from .open_huggingface import ARCHITECTURES, GELUS, HEAD_ACTIVATION, NUM_SEGMENTS, HuggingFaceArchitecture

LARGEST_SHARD = 5 * 10**9  # bytes, as transformers cuts


@dataclass(frozen=True)
class TaskHead:
    """How transformers names a head of ours: the end of its class, and its tensors."""

    class_end: str
    rules: Sequence[Rule]


_SEQUENCE = TaskHead(
    "ForSequenceClassification",
    # transformers' pooler is our head's hidden layer: dense, then tanh.
    [Rule("bert.pooler.dense.*", "head.hidden.0.*"), Rule("classifier.*", "head.out.*")],
)
# By the names of our tasks.
TASK_HEADS = {
    "question_answering": TaskHead("ForQuestionAnswering", [Rule("qa_outputs.*", "head.out.*")]),
    "token_classification": TaskHead("ForTokenClassification", [Rule("classifier.*", "head.out.*")]),
    "text_classification": _SEQUENCE,
    "relation_extraction": _SEQUENCE,
    "glue": _SEQUENCE,
    "zero_shot": _SEQUENCE,
}
_CLASS_STARTS = {
    "megatron-bert": "MegatronBert",
    "megatron-bert-residual-post-layernorm": "MegatronBert",
    "bert": "Bert",
    "gpt2": "GPT2",
}


def architecture_of(config: EncoderConfig) -> HuggingFaceArchitecture:
    """Choose the architecture of a network."""
    for row in ARCHITECTURES.values():
        if (row.norm_place, row.is_causal) == (config.norm_place, config.is_causal):
            return row
    raise ConfigError(f"transformers has no causal network with norm_place {config.norm_place}.")


def write_folder(
    folder: Path,
    tensors: Mapping[str, Readable],
    config: EncoderConfig,
    *,
    tokenizer_files: Mapping[str, bytes],
    lower_case: bool | None,
    head: Mapping[str, Readable],
    task: str | None,
    task_config: Mapping[str, Any],
) -> list[str]:
    """Write an empty folder full; returns what a user should know of it.

    `head` are the tensors of a fine-tuned run's head and `task` its task; `task_config` goes into config.json
    (id2label and the like).
    """
    architecture = architecture_of(config)
    task_head = _task_head(task, head) if head else None
    documents = {"config.json": config_of(config, architecture, tensors, task_head) | dict(task_config)}
    if "vocab.txt" in tokenizer_files:
        documents["tokenizer_config.json"] = {
            "tokenizer_class": "BertTokenizer",
            "do_lower_case": bool(lower_case),
            "model_max_length": config.max_positions,
        }
    elif tokenizer_files:
        documents["tokenizer_config.json"] = {
            "tokenizer_class": "GPT2Tokenizer",
            "model_max_length": config.max_positions,
        }
    for name, document in documents.items():
        write_file(folder / name, [(json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()])
    for name, data in tokenizer_files.items():
        write_file(folder / name, [data])
    if config.num_segments == 0 and not config.is_causal:
        tensors = {**tensors, SEGMENT: Loaded(torch.zeros(2, config.hidden_size, dtype=tensors[WORD].dtype))}
    written = list(_named(tensors, architecture, config))
    if task_head is not None:
        written += write_tensors(head, task_head.rules, config.head_dim)
    _write_weights(folder, written)
    return list(_notes(architecture, config, tokenizer_files))


def _notes(
    architecture: HuggingFaceArchitecture, config: EncoderConfig, tokenizer_files: Mapping[str, bytes]
) -> Iterator[str]:
    if architecture.name not in _OF_TRANSFORMERS:
        yield (
            f"WARNING: transformers has no network that takes its residuals behind the layer norm. config.json says "
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
        yield "no vocabulary was given or lies beside the source: the folder has no tokenizer (--vocab-file FILE)."


_OF_TRANSFORMERS = ("megatron-bert", "bert", "gpt2")


def config_of(
    config: EncoderConfig,
    architecture: HuggingFaceArchitecture,
    tensors: Mapping[str, Readable],
    task_head: TaskHead | None,
) -> dict[str, Any]:
    """Give config.json for a network."""
    values = config.to_dict()
    document: dict[str, Any] = {
        "architectures": [_class_name(architecture, tensors, task_head)],
        "model_type": architecture.name,
        **{theirs: values[ours] for theirs, ours in architecture.config_keys.items()},
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
    start = _CLASS_STARTS[architecture.name]
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


def _task_head(task: str | None, head: Mapping[str, Readable]) -> TaskHead:
    if task not in TASK_HEADS:
        raise ConfigError(f"transformers has no class for the head of {task}; known are {', '.join(TASK_HEADS)}.")
    found = TASK_HEADS[task]
    patterns = {rule.ours.removesuffix(".*") for rule in found.rules if rule.ours}
    own = {name.rpartition(".")[0] for name in head}
    if own != patterns:
        raise ConfigError(
            f"transformers' {found.class_end} has a head of {', '.join(sorted(patterns))} only; this run's has "
            f"{', '.join(sorted(own))}. Train with the number of layers that it has, or convert the encoder alone."
        )
    return found


def _named(
    tensors: Mapping[str, Readable], architecture: HuggingFaceArchitecture, config: EncoderConfig
) -> Iterator[Written]:
    for written in write_tensors(tensors, architecture.rules, config.head_dim):
        names = tuple(name if name.startswith("cls.") else architecture.prefix + name for name in written.names)
        yield replace(written, names=names)


def _write_weights(folder: Path, written: Sequence[Written]) -> None:
    """Write one file, or several of at most LARGEST_SHARD bytes with an index."""
    shards: list[list[Written]] = [[]]
    size = 0
    for item in written:
        num_bytes = torch.Size(item.shape).numel() * item.dtype.itemsize * len(item.names)
        if shards[-1] and size + num_bytes > LARGEST_SHARD:
            shards.append([])
            size = 0
        shards[-1].append(item)
        size += num_bytes
    if len(shards) == 1:
        _write_shard(folder / "model.safetensors", shards[0])
        return
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_shard(folder / name, shard)
        places |= {their: name for item in shard for their in item.names}
    total = sum(torch.Size(item.shape).numel() * item.dtype.itemsize * len(item.names) for item in written)
    index = {"metadata": {"total_size": total}, "weight_map": places}
    write_file(folder / "model.safetensors.index.json", [(json.dumps(index, indent=2) + "\n").encode()])


def _write_shard(file: Path, written: Sequence[Written]) -> None:
    entries = {name: (item.dtype, item.shape) for item in written for name in item.names}
    write_file(file, safetensors_pieces(entries, _parts(written), {"format": "pt"}))


def _parts(written: Sequence[Written]) -> Iterator[Tensor]:
    for item in written:
        yield from item.read()
