"""Adapters in PEFT's format: adapter_config.json, adapter_model.safetensors, the head under modules_to_save.

transformers' BERT has separate query, key and value, each with matrices of its own; megabert's fused projection has
one A for all three when it is trained here, and their A's stacked, with a B of blocks, when it comes from PEFT. Rows of
B are those of a bias, and converted by its rule. Source: peft's LoraConfig and save_pretrained.

Shape legend: I inputs, O outputs, R rank.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import CheckpointError, ConfigError
from ...json_documents import parse_json_object
from ...model.config import EncoderConfig
from ..files.lazy_tensor import check_finite, open_regular
from ..files.safetensors_file import open_safetensors, safetensors_pieces
from ..mapping import Rule
from ..native.manifest import write_file
from .huggingface_names import HuggingFaceArchitecture
from .task_heads import TASK_HEADS
from .write_huggingface import architecture_of

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_TASK_TYPES = {
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
}
# Settings of LoRA that change the function, with the values that mean nothing
_REFUSED = {
    "use_dora": (False, None),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "bias": ("none",),
    "layer_replication": (None,),
    "lora_bias": (False, None),
}


@dataclass(frozen=True)
class PeftAdapter:
    """Adapters by megabert's names of linear layers of the encoder: (A [R, I], B [O, R]); the head's tensors."""

    config: Mapping[str, Any]
    """rank, alpha, dropout, rank_stabilized."""
    matrices: Mapping[str, tuple[Tensor, Tensor]]
    head: Mapping[str, Tensor]
    source: str = ""


def _linear_rules(architecture: HuggingFaceArchitecture) -> Iterator[tuple[tuple[str, ...], str, Rule]]:
    """Yield (their names, our name, the bias' rule) of linear layers, without `.bias`, their prefix and `encoder.`."""
    for rule in architecture.rules:
        if rule.target and re.search(r"\.(qkv|out|up|down)\.bias$", rule.target) and "encoder.layers" in rule.target:
            theirs = tuple(architecture.prefix + source.removesuffix(".bias") for source in rule.sources)
            yield theirs, rule.target.removeprefix("encoder.").removesuffix(".bias"), rule


def open_peft(folder: Path, config: EncoderConfig, *, task: str) -> PeftAdapter:
    """Read a folder of PEFT. Raises CheckpointError for tensors or settings that have no place in the network."""
    settings = _read_config(folder / CONFIG)
    tensors = {}
    for name, item in open_safetensors(open_regular(folder / WEIGHTS))[0].items():
        tensor = item.read().float()
        check_finite(tensor, str(folder / WEIGHTS), name)
        tensors[name.removeprefix(_PREFIX)] = tensor
    rank = settings["rank"]
    matrices: dict[str, tuple[Tensor, Tensor]] = {}
    for theirs, ours, rule in _linear_rules(architecture_of(config)):
        for number in range(config.num_layers):
            names = [name.replace("*", str(number)) for name in theirs]
            pairs = [_take_pair(tensors, name, folder) for name in names]
            if any(pair is not None for pair in pairs):
                matrices[ours.replace("*", str(number))] = _join(pairs, rule, config, rank, str(folder))
    head = {}
    if task in TASK_HEADS:
        for rule in TASK_HEADS[task].rules:
            for name in [name for name in tensors if name.startswith(str(rule.source).removesuffix("*"))]:
                assert rule.target is not None
                head[rule.target.removesuffix("*") + name.rpartition(".")[2]] = tensors.pop(name)
    if tensors or not matrices:
        what = f"has tensors without a place: {', '.join(sorted(tensors)[:6])}" if tensors else "has no LoRA matrices"
        raise CheckpointError(f"{folder / WEIGHTS} {what}. Is it an adapter of this network and task ({task})?")
    return PeftAdapter(settings, matrices, head, str(folder))


def _read_config(file: Path) -> dict[str, Any]:
    try:
        document = parse_json_object(file.read_bytes(), str(file))
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}. Give the folder that PEFT wrote.") from None
    if document.get("peft_type") != "LORA":
        raise CheckpointError(f"{file}: peft_type is {document.get('peft_type')!r:.40}; only LORA is read.")
    for key, allowed in _REFUSED.items():
        if document.get(key, allowed[0]) not in allowed:
            raise CheckpointError(f"{file}: {key}={document[key]!r:.60} is not supported, only {allowed[0]!r}.")
    match document:
        case {"r": int() as rank, "lora_alpha": int() | float() as alpha} if rank > 0 and alpha > 0:
            dropout = document.get("lora_dropout") or 0.0
            stabilized = bool(document.get("use_rslora"))
            return {"rank": rank, "alpha": float(alpha), "dropout": float(dropout), "rank_stabilized": stabilized}
    raise CheckpointError(f"{file} lacks r or lora_alpha, positive numbers.")


def _take_pair(tensors: dict[str, Tensor], name: str, folder: Path) -> tuple[Tensor, Tensor] | None:
    pair = [tensors.pop(f"{name}.lora_{part}.weight", None) for part in "AB"]
    if pair[0] is None and pair[1] is None:
        return None
    a, b = pair
    if a is None or b is None or a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
        raise CheckpointError(f"{folder / WEIGHTS}: lora_A and lora_B of {name} are not [R, I] and [O, R].")
    return a, b


def _join(
    pairs: list[tuple[Tensor, Tensor] | None], rule: Rule, config: EncoderConfig, rank: int, source: str
) -> tuple[Tensor, Tensor]:
    """Stack the A's of separate layers and put their B's into blocks; parts without an adapter have rows of zeros."""
    present = [pair for pair in pairs if pair is not None]
    if any(a.shape[0] != rank for a, _ in present):
        raise CheckpointError(f"{source}: {rule.target} has another rank than r={rank}.")
    try:
        stacked = torch.cat([a for a, _ in present])
        parts, column = [], 0
        for pair in pairs:
            rows = present[0][1].shape[0]
            block = torch.zeros(rows, len(stacked))
            if pair is not None:
                block[:, column : column + rank] = pair[1]
                column += rank
            parts.append(block)
        return stacked, rule.op.read(parts, config.head_dim) if rule.op else parts[0]
    except RuntimeError as error:
        raise CheckpointError(f"{source}: {rule.target} does not fit: {str(error).splitlines()[0]}") from None


def write_peft(folder: Path, adapter: PeftAdapter, config: EncoderConfig, *, task: str, base: str) -> None:
    """Write a folder that PEFT loads onto the base in transformers' format.

    Raises ConfigError if transformers has no class for the task's head.
    """
    architecture = architecture_of(config)
    if task not in TASK_HEADS:
        raise ConfigError(f"transformers has no class for the head of {task}; known are {', '.join(TASK_HEADS)}.")
    head = TASK_HEADS[task]
    rank = adapter.config["rank"]
    tensors: dict[str, Tensor] = {}
    targets = set()
    for theirs, ours, rule in _linear_rules(architecture):
        for number in range(config.num_layers):
            pair = adapter.matrices.get(ours.replace("*", str(number)))
            if pair is None:
                continue
            targets |= set(theirs)
            for name, (a, b) in zip(theirs, _split(pair, rule, config, rank), strict=True):
                start = f"{_PREFIX}{name.replace('*', str(number))}.lora_"
                tensors |= {f"{start}A.weight": a.contiguous(), f"{start}B.weight": b.contiguous()}
    for rule in head.rules:
        start = str(rule.target).removesuffix("*")
        for name, item in adapter.head.items():
            if name.startswith(start):
                tensors[_PREFIX + str(rule.source).removesuffix("*") + name.removeprefix(start)] = item.contiguous()
    document = {
        "peft_type": "LORA",
        "task_type": _TASK_TYPES[head.class_end],
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": adapter.config["alpha"],
        "lora_dropout": adapter.config["dropout"],
        "use_rslora": adapter.config["rank_stabilized"],
        "bias": "none",
        "fan_in_fan_out": config.is_causal,
        "inference_mode": True,
        "target_modules": "|".join(re.escape(name).replace(r"\*", r"\d+") for name in sorted(targets)),
        "modules_to_save": sorted({str(rule.source).split(".")[-2] if rule.source != "bert.pooler.dense.*" else "pooler"
                                   for rule in head.rules}),
    }  # fmt: skip
    write_file(folder / CONFIG, [(json.dumps(document, indent=2) + "\n").encode()])
    entries = {name: (item.dtype, tuple(item.shape)) for name, item in tensors.items()}
    write_file(folder / WEIGHTS, safetensors_pieces(entries, tensors.values(), {"format": "pt"}))


def _split(pair: tuple[Tensor, Tensor], rule: Rule, config: EncoderConfig, rank: int) -> list[tuple[Tensor, Tensor]]:
    """Split a fused projection's matrices: each part takes the one block of columns that its rows use."""
    a, b = pair
    parts = rule.op.write(b, config.head_dim) if rule.op else [b]
    if len(a) == rank:
        return [(a, part) for part in parts]
    separate = []
    for part in parts:
        used = [start for start in range(0, len(a), rank) if bool(part[:, start : start + rank].any())] or [0]
        if len(used) > 1 or len(a) % rank:
            # An adapter from PEFT that was trained on here: its blocks are full, so all parts have the larger rank.
            raise ConfigError(
                f"The adapters of query, key and value have rank {len(a)}, the others {rank}: a fused projection that "
                "was trained on from PEFT's format has no place in it. Merge it: megabert merge RUN -o FOLDER."
            )
        separate.append((a[used[0] : used[0] + rank], part[:, used[0] : used[0] + rank]))
    return separate
