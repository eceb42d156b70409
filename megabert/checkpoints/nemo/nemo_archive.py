"""NeMo's `.nemo` archives: model_config.yaml, weights and vocabulary in one tar file, read and written.

Three generations are read: fine-tuned models of NeMo 1.0 to 1.4 with a Megatron encoder (`bert_model.language_model`),
pre-trained MegatronBertModel and MegatronGPTModel of 1.5 and later (`model.language_model`), and those on
megatron.core (`model.encoder`); packed with gzip or not, or unpacked as a folder. What is written is for the second.
Sources in https://github.com/NVIDIA/NeMo, r1.0.0 to r1.23.0: nemo/core/connectors/save_restore_connector.py,
nemo/collections/nlp/parts/nlp_overrides.py, nemo/collections/nlp/modules/common/megatron/megatron_bert.py,
examples/nlp/language_modeling/{megatron_lm_ckpt_to_nemo.py,conf/megatron_bert_config.yaml}.
"""

import hashlib
import io
import json
import os
import re
import tarfile
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from ...errors import CheckpointError
from ...model.config import EncoderConfig
from ..files.containers import LazyTensor, open_region
from ..files.lazy_tensor import Region, open_regular
from ..files.tar_archive import is_tar, read_tar
from ..megatron.open_megatron import flatten, join_stages

CONFIG, WEIGHTS = "model_config.yaml", "model_weights.ckpt"
_LARGEST_TEXT = 2**26
_LARGEST_CONFIG = 2**18
_DEEPEST_CONFIG = 32


@dataclass(frozen=True)
class NemoFile:
    """An open archive: the weights of each tensor-parallel shard by Megatron-LM's names, and what lies beside them."""

    config: Mapping[str, Any]
    shards: Sequence[Mapping[str, LazyTensor]]
    heads: Mapping[str, LazyTensor]
    """Tensors of a fine-tuned model that are not the encoder's."""
    tokenizer_files: Mapping[str, bytes]
    encoder_config: Mapping[str, Any]
    checkpoint_version: float | None
    num_stages: int
    unknown_globals: frozenset[str]


# --- Reading ---


def is_nemo(path: Path) -> bool:
    """Whether a file is a tar archive, or a folder an unpacked one."""
    if path.is_dir():
        return (path / CONFIG).is_file()
    return is_tar(open_regular(path))


def open_nemo(path: Path) -> NemoFile:
    """Open an archive, none of its tensors yet. Raises CheckpointError if it is damaged or lacks a part."""
    members = _members(path)
    if CONFIG not in members:
        raise CheckpointError(f"{path} is a tar archive without {CONFIG}: it is no .nemo file.")
    if any(name.startswith("model_weights/") for name in members):
        raise CheckpointError(
            f"{path} holds a distributed checkpoint (model_weights/), which is not read in an archive. Take that "
            "folder out of it and give it."
        )
    config = _read_yaml(members[CONFIG])
    ranks = {rank: open_region(region) for rank, region in _ranks(path, members).items()}
    stages = sorted({stage for _, stage in ranks})
    shards_told = config.get("tensor_model_parallel_size")
    num_shards = max(max(shard for shard, _ in ranks) + 1, shards_told if isinstance(shards_told, int) else 1)
    wanted = [(shard, stage) for shard in range(num_shards) for stage in range(max(stages) + 1)]
    missing = [f"{shard}, stage {stage}" for shard, stage in wanted if (shard, stage) not in ranks]
    if missing:
        raise CheckpointError(f"{path} lacks the weights of tensor-parallel rank {'; '.join(missing[:8])}.")
    split = {rank: _split_names(flatten(opened.content), path) for rank, opened in ranks.items()}
    shards = [join_stages([split[shard, stage][0] for stage in stages], path) for shard in range(num_shards)]
    return NemoFile(
        config=config,
        shards=shards,
        heads=split[0, stages[-1]][1],
        tokenizer_files=_tokenizer_files(config, members),
        encoder_config=_encoder_config(config, members),
        checkpoint_version=_checkpoint_version(config, members),
        num_stages=len(stages),
        unknown_globals=frozenset().union(*(opened.unknown_globals for opened in ranks.values())),
    )


def _members(path: Path) -> dict[str, Region]:
    if path.is_file():
        return read_tar(open_regular(path))
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return {str(file.relative_to(path)): open_regular(file) for file in files}


_RANK = re.compile(rf"(?:(?:mp_rank_(\d\d)|tp_rank_(\d\d)_pp_rank_(\d\d\d))/)?{re.escape(WEIGHTS)}")


def _ranks(path: Path, members: Mapping[str, Region]) -> dict[tuple[int, int], Region]:
    """Find the weights of each (tensor-parallel rank, pipeline stage)."""
    ranks: dict[tuple[int, int], Region] = {}
    for name, region in members.items():
        if (found := _RANK.fullmatch(name)) is not None:
            rank = (int(found[1] or found[2] or 0), int(found[3] or 0))
            if rank in ranks:
                raise CheckpointError(f"{path} holds the weights of rank {rank} twice: {name}.")
            ranks[rank] = region
    if not ranks:
        raise CheckpointError(f"{path} holds no {WEIGHTS}.")
    return ranks


def _split_names(weights: Mapping[str, LazyTensor], path: Path) -> tuple[dict[str, LazyTensor], dict[str, LazyTensor]]:
    """Take the prefixes of NeMo's modules away; returns the network's tensors, and those of other heads."""
    for prefix in ("bert_model.", "model.", ""):
        own = {_stripped(name, prefix): item for name, item in weights.items() if name.startswith(prefix)}
        if any("layers.0." in name for name in own):
            others = {name: item for name, item in weights.items() if not name.startswith(prefix)}
            return own, others
    raise CheckpointError(f"{path} holds no layers of a Megatron network. Is it of another NeMo model?")


def _stripped(name: str, prefix: str) -> str:
    return re.sub(r"^(module\.)+", "", name.removeprefix(prefix))


def _read_yaml(region: Region) -> dict[str, Any]:
    """Read plain values. Anchors are refused: a few of them make a text of any size, and NeMo writes none."""
    if region.size > _LARGEST_CONFIG:
        raise region.error(f"{region.size} bytes; at most {_LARGEST_CONFIG} are read.")
    text = bytes(region.read(0, region.size))
    try:
        _check_events(region, text)
        config = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise region.error(f"it cannot be read as YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(config, dict):
        raise region.error("it holds no mapping.")
    return config


def _check_events(region: Region, text: bytes) -> None:
    """Refuse what takes a reader of YAML much time, as soon as it shows."""
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST_CONFIG:
            raise region.error(f"its values are nested more than {_DEEPEST_CONFIG} deep.")
        if isinstance(event, yaml.AliasEvent):
            raise region.error("it has YAML aliases, which NeMo does not write.")


def _read_text(region: Region) -> bytes:
    if region.size > _LARGEST_TEXT:
        raise region.error(f"{region.size} bytes; at most {_LARGEST_TEXT} are read.")
    return bytes(region.read(0, region.size))


def _read_json(region: Region) -> Any:
    try:
        return json.loads(_read_text(region))
    except (ValueError, RecursionError) as error:
        raise region.error(f"it cannot be read as JSON: {error}") from None


def _tokenizer_files(config: Mapping[str, Any], members: Mapping[str, Region]) -> dict[str, bytes]:
    """Find the vocabulary: the member that the configuration names, or one called so behind its hash."""
    tokenizer = config.get("tokenizer")
    named = tokenizer if isinstance(tokenizer, dict) else {}
    merges = _artefact(named.get("merge_file"), ("merges.txt", "merge_file"), members)
    vocabulary = _artefact(named.get("vocab_file"), ("vocab.txt", "vocab.json", "tokenizer.vocab_file"), members)
    if vocabulary is None:
        return {}
    if merges is not None:
        return {"vocab.json": _read_text(members[vocabulary]), "merges.txt": _read_text(members[merges])}
    return {"vocab.txt": _read_text(members[vocabulary])}


def _artefact(named: object, ends: tuple[str, ...], members: Mapping[str, Region]) -> str | None:
    if isinstance(named, str) and named.removeprefix("nemo:") in members:
        return named.removeprefix("nemo:")
    return next((name for name in members for end in ends if name == end or name.endswith(f"_{end}")), None)


def _encoder_config(config: Mapping[str, Any], members: Mapping[str, Region]) -> dict[str, Any]:
    """Find the sizes of NeMo 1.0's encoder: in language_model.config, or in a member of their own."""
    language_model = config.get("language_model")
    found = language_model.get("config") if isinstance(language_model, dict) else None
    for name, region in members.items():
        if name.endswith("encoder_config.json") or re.fullmatch(
            r"([0-9a-f]{32}_)?(bert|megatron)\w*config\.json", name
        ):
            content = _read_json(region)
            found = content if isinstance(content, dict) else found
    return {str(key).replace("-", "_"): value for key, value in found.items()} if isinstance(found, dict) else {}


def _checkpoint_version(config: Mapping[str, Any], members: Mapping[str, Region]) -> float | None:
    """Tell the version, which says how the query-key-value rows lie.

    NeMo 1.0 keeps that of the Megatron-LM file in a member of its own. From 1.5 on rows are [heads, 3, dim], unless
    the model was converted from an old file: its converter only renames, and `megatron_legacy` in the configuration
    makes the attention read [3, heads, dim].
    """
    member = next((name for name in members if name.endswith("megatron_checkpoint_version.json")), None)
    if member is not None:
        content = _read_json(members[member])
        values = list(content.values()) if isinstance(content, dict) else [content]
        found = next((value for value in values if isinstance(value, int | float)), 0)
        return float(found or 0)
    if "megatron_legacy" in config or "encoder_seq_length" in config or "num_layers" in config:
        return 0.0 if config.get("megatron_legacy") else 3.0
    return None


_COPIED = (
    "num_layers",
    "hidden_size",
    "ffn_hidden_size",
    "num_attention_heads",
    "kv_channels",
    "max_position_embeddings",
    "layernorm_epsilon",
    "openai_gelu",
    "onnx_safe",
    "position_embedding_type",
    "tensor_model_parallel_size",
    "pipeline_model_parallel_size",
)


def arguments_of(file: NemoFile) -> dict[str, Any]:
    """Give NeMo's configuration as the arguments of Megatron-LM that shape a network.

    Raises CheckpointError for a block type that is none of Megatron-LM's.
    """
    config = {**file.encoder_config, **file.config}
    arguments = {name: config[name] for name in _COPIED if config.get(name) is not None}
    block = config.get("transformer_block_type", "pre_ln")
    if block != "pre_ln":
        raise CheckpointError(f"{CONFIG}: transformer_block_type is {block!r}; only 'pre_ln' is read.")
    for key, allowed in (("normalization", "layernorm"), ("activation", "gelu")):
        if config.get(key, allowed) != allowed:
            raise CheckpointError(f"{CONFIG}: {key} is {config[key]!r}; only {allowed!r} is read.")
    if config.get("bias") is False:
        arguments["add_bias_linear"] = False
    # NeMo 1.0 switches the fused kernel off, later versions have it on; their models have a num_layers of their own.
    default = "num_layers" in file.config
    fused = config.get("bias_gelu_fusion", config.get("bias_activation_fusion", default))
    arguments["bias_gelu_fusion"] = bool(fused)
    arguments["apply_residual_connection_post_layernorm"] = bool(config.get("apply_residual_connection_post_layernorm"))
    return arguments


# --- Writing ---


def config_of(
    config: EncoderConfig, tensor_parallel: int, pipeline_parallel: int, *, has_binary_head: bool
) -> dict[str, Any]:
    """Give the model_config.yaml of a network for MegatronBertModel and MegatronGPTModel of NeMo 1.6 to 1.23."""
    openai = (config.gelu, config.head_gelu) == ("tanh", "tanh")
    name = "gpt_model.MegatronGPTModel" if config.is_causal else "bert_model.MegatronBertModel"
    return {
        "target": f"nemo.collections.nlp.models.language_modeling.megatron_{name}",
        "nemo_version": "1.23.0",
        "micro_batch_size": 4,
        "tensor_model_parallel_size": tensor_parallel,
        "pipeline_model_parallel_size": pipeline_parallel,
        "encoder_seq_length": config.max_positions,
        "max_position_embeddings": config.max_positions,
        "num_layers": config.num_layers,
        "hidden_size": config.hidden_size,
        "ffn_hidden_size": config.ffn_size,
        "num_attention_heads": config.num_heads,
        "kv_channels": None,
        "hidden_dropout": config.hidden_dropout,
        "attention_dropout": config.attention_dropout,
        "layernorm_epsilon": config.norm_epsilon,
        "apply_residual_connection_post_layernorm": config.norm_place == "pre_residual_normed",
        "openai_gelu": openai,
        "onnx_safe": False,
        "bias_gelu_fusion": config.gelu == "tanh" and not openai,
        "megatron_legacy": False,
        "bert_binary_head": has_binary_head,
        "make_vocab_size_divisible_by": 128,
        "pre_process": True,
        "post_process": True,
    }


def write_nemo(
    dest: Path,
    ranks: Mapping[tuple[int, int], Callable[[], Mapping[str, Tensor]]],
    config: Mapping[str, Any],
    tokenizer_files: Mapping[str, bytes],
    *,
    lower_case: bool | None,
) -> None:
    """Write an archive; it appears by a rename when all of it is on the disk.

    `ranks` gives for (tensor-parallel rank, pipeline stage) the function that makes its tensors, named as
    Megatron-LM v2.6 does; one rank is in memory at a time.
    """
    partial = dest.with_name(f".{dest.name}.tmp-{uuid.uuid4().hex[:8]}")
    weights = partial.with_suffix(".ckpt")
    try:
        with tarfile.open(partial, "x", format=tarfile.GNU_FORMAT) as archive:
            artefacts = {f"{hashlib.md5(data).hexdigest()}_{name}": data for name, data in tokenizer_files.items()}  # noqa: S324
            tokenizer = _tokenizer_config(artefacts, lower_case)
            _add(archive, CONFIG, yaml.safe_dump({**config, "tokenizer": tokenizer}, sort_keys=False).encode())
            for name, data in artefacts.items():
                _add(archive, name, data)
            for rank, make in ranks.items():
                torch.save({_nemo_name(name): tensor for name, tensor in make().items()}, weights)
                archive.add(weights, f"./{_folder_of(rank, ranks)}{WEIGHTS}", filter=_anonymous)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(dest)
    finally:
        weights.unlink(missing_ok=True)
        partial.unlink(missing_ok=True)


def _tokenizer_config(artefacts: Mapping[str, bytes], lower_case: bool | None) -> dict[str, Any]:
    files = {name.partition("_")[2]: f"nemo:{name}" for name in artefacts}
    bert = "BertWordPieceCase" if lower_case is False else "BertWordPieceLowerCase"
    return {
        "library": "megatron",
        "type": "GPT2BPETokenizer" if "merges.txt" in files else bert,
        "model": None,
        "vocab_file": files.get("vocab.json", files.get("vocab.txt")),
        "merge_file": files.get("merges.txt"),
    }


def _nemo_name(name: str) -> str:
    # The module of the last stage's copy has a plain name; Megatron-LM renames it where it saves.
    return f"model.{name.replace('word_embeddings_for_head.', 'word_embeddings.')}"


def _folder_of(rank: tuple[int, int], ranks: Mapping[tuple[int, int], object]) -> str:
    shard, stage = rank
    if max(stage for _, stage in ranks):
        return f"tp_rank_{shard:02d}_pp_rank_{stage:03d}/"
    return f"mp_rank_{shard:02d}/" if len(ranks) > 1 else ""


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(f"./{name}")
    entry.size, entry.mode = len(data), 0o644
    archive.addfile(entry, io.BytesIO(data))


def _anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """Leave out who wrote it and when."""
    entry.uid = entry.gid = entry.mtime = 0
    entry.uname = entry.gname = ""
    return entry
