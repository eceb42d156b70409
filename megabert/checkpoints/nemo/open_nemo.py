"""Open NeMo's `.nemo` archives: model_config.yaml, weights and vocabulary in a tar file or an unpacked folder.

Three generations are read, compressed with gzip or not: fine-tuned models of NeMo 1.0 to 1.4 with a Megatron encoder
(`bert_model.language_model`), MegatronBertModel and MegatronGPTModel of 1.5 and later (`model.language_model`), and
those on megatron.core (`model.encoder`).
Sources in https://github.com/NVIDIA/NeMo, r1.0.0 to r1.23.0: nemo/core/connectors/save_restore_connector.py,
nemo/collections/nlp/parts/nlp_overrides.py, nemo/collections/nlp/modules/common/megatron/megatron_bert.py,
examples/nlp/language_modeling/{megatron_lm_ckpt_to_nemo.py,conf/megatron_bert_config.yaml}.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ...errors import CheckpointError
from ...json_documents import parse_json
from ..files.lazy_tensor import Region, open_regular
from ..files.tar_archive import is_tar, read_tar
from ..files.weight_files import LazyTensor, open_region
from ..megatron.megatron_arguments import to_number
from ..megatron.open_megatron import MegatronFile, find_era, flatten, join_stages
from ..tensor_names import rename, without_wrappers

CONFIG, WEIGHTS = "model_config.yaml", "model_weights.ckpt"
_LARGEST_MEMBER = 2**26  # apart from weights
_LARGEST_CONFIG = 2**18
_DEEPEST_CONFIG = 32


@dataclass(frozen=True)
class NemoFile:
    """An open archive: the network under Megatron-LM's names, the tensors of other heads, and the tokenizer's files."""

    megatron: MegatronFile
    heads: Mapping[str, LazyTensor]
    tokenizer_files: Mapping[str, bytes]


def is_nemo(path: Path) -> bool:
    """Whether a path is a tar archive, or a folder with a model_config.yaml."""
    if path.is_dir():
        return (path / CONFIG).is_file()
    return is_tar(open_regular(path))


def open_nemo(path: Path) -> NemoFile:
    """Open an archive without reading its tensors. Raises CheckpointError if it is damaged or incomplete."""
    members = _members(path)
    if CONFIG not in members:
        raise CheckpointError(f"{path} is a tar archive without {CONFIG}: it is no .nemo file.")
    if any(name.startswith("model_weights/") for name in members):
        raise CheckpointError(
            f"{path} holds a distributed checkpoint (model_weights/), which is not read in an archive. Take that "
            "folder out of it and give it."
        )
    config = _model_config(read_yaml(members[CONFIG]))
    ranks = {rank: open_region(region) for rank, region in _ranks(path, members).items()}
    stages = sorted({stage for _, stage in ranks})
    declared = config.get("tensor_model_parallel_size")
    num_shards = max(max(shard for shard, _ in ranks) + 1, declared if isinstance(declared, int) else 1)
    num_shards = min(num_shards, len(ranks) + 8)  # enough to name those that are missing, whatever is declared
    expected = [(shard, stage) for shard in range(num_shards) for stage in range(max(stages) + 1)]
    missing = [f"{shard}, stage {stage}" for shard, stage in expected if (shard, stage) not in ranks]
    if missing:
        raise CheckpointError(f"{path} lacks the weights of tensor-parallel rank {'; '.join(missing[:8])}.")
    split = {rank: _split_names(flatten(opened.content, str(path)), path) for rank, opened in ranks.items()}
    shards = [join_stages([split[shard, stage][0] for stage in stages], path) for shard in range(num_shards)]
    megatron = MegatronFile(
        source=str(path),
        era=find_era(shards[0], str(path)),
        shards=shards,
        arguments=_megatron_arguments(config, _encoder_config(config, members)),
        version=_checkpoint_version(config, members),
        iteration=None,
        num_stages=len(stages),
        container=".nemo",
        unknown_globals=frozenset().union(*(opened.unknown_globals for opened in ranks.values())),
    )
    return NemoFile(megatron, split[0, stages[-1]][1], _tokenizer_files(config, members))


def _model_config(document: dict[str, Any]) -> dict[str, Any]:
    """Return the model's part of a training's whole configuration, or the document if it is the model's.

    A training's has `model` beside `trainer` and `exp_manager`; Lightning's hparams.yaml has it in `cfg`.
    """
    if _SIZES & document.keys():
        return document
    inner = (document[name] for name in ("model", "cfg") if isinstance(document.get(name), dict))
    return next((_model_config(item) for item in inner), document)


def _members(path: Path) -> dict[str, Region]:
    if path.is_file():
        members = read_tar(open_regular(path))
        # An unpacked archive that was packed again as a folder
        folders = {name.partition("/")[0] for name in members}
        is_folder = len(folders) == 1 and CONFIG not in members
        return {name.partition("/")[2]: item for name, item in members.items()} if is_folder else members
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return {str(file.relative_to(path)): open_regular(file) for file in files}


_RANK = re.compile(rf"(?:(?:mp_rank_(\d\d)|tp_rank_(\d\d)_pp_rank_(\d\d\d))/)?{re.escape(WEIGHTS)}")


def _ranks(path: Path, members: Mapping[str, Region]) -> dict[tuple[int, int], Region]:
    """Find the weights of each (tensor-parallel rank, pipeline stage)."""
    ranks: dict[tuple[int, int], Region] = {}
    for name, region in members.items():
        if (match := _RANK.fullmatch(name)) is not None:
            rank = (int(match[1] or match[2] or 0), int(match[3] or 0))
            if rank in ranks:
                raise CheckpointError(f"{path} holds the weights of rank {rank} twice: {name}.")
            ranks[rank] = region
    if not ranks:
        raise CheckpointError(f"{path} holds no {WEIGHTS}.")
    return ranks


def _split_names(weights: Mapping[str, LazyTensor], path: Path) -> tuple[dict[str, LazyTensor], dict[str, LazyTensor]]:
    """Remove the prefixes of NeMo's modules; returns the network's tensors, and those of other heads."""
    for prefix in ("bert_model.", "model.", ""):
        inside = {name: item for name, item in weights.items() if name.startswith(prefix)}
        network = rename(inside, lambda name: without_wrappers(name.removeprefix(prefix)), str(path))  # noqa: B023
        if any("layers.0." in name for name in network):
            return network, {name: item for name, item in weights.items() if not name.startswith(prefix)}
    raise CheckpointError(f"{path} holds no layers of a Megatron network. Is it of another NeMo model?")


def read_yaml(region: Region) -> dict[str, Any]:
    """Read plain values. Aliases are refused: a few of them expand to any size, and NeMo writes none."""
    document = _read_member(region, _LARGEST_CONFIG)
    try:
        _check_yaml(region, document)
        config = yaml.safe_load(document)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise region.error(f"it cannot be read as YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(config, dict):
        raise region.error("it holds no mapping.")
    return config


def _check_yaml(region: Region, document: bytes) -> None:
    """Refuse aliases and deep nesting, which take a YAML reader too much time, before the document is loaded."""
    depth = 0
    for event in yaml.parse(document, yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST_CONFIG:
            raise region.error(f"its values are nested more than {_DEEPEST_CONFIG} deep.")
        if isinstance(event, yaml.AliasEvent):
            raise region.error("it has YAML aliases, which NeMo does not write.")


def _read_member(region: Region, most: int = _LARGEST_MEMBER) -> bytes:
    if region.size > most:
        raise region.error(f"{region.size} bytes; at most {most} are read.")
    return bytes(region.read(0, region.size))


def _read_json(region: Region) -> Any:
    return parse_json(_read_member(region), region.label)


def _tokenizer_files(config: Mapping[str, Any], members: Mapping[str, Region]) -> dict[str, bytes]:
    """Find the vocabulary: the member that the configuration names, or a well-known name after a hash."""
    tokenizer = config.get("tokenizer")
    names = tokenizer if isinstance(tokenizer, dict) else {}
    merges = _find_artifact(names.get("merge_file"), ("merges.txt", "merge_file"), members)
    vocabulary = _find_artifact(names.get("vocab_file"), ("vocab.txt", "vocab.json", "tokenizer.vocab_file"), members)
    if vocabulary is None:
        return {}
    if merges is not None:
        return {"vocab.json": _read_member(members[vocabulary]), "merges.txt": _read_member(members[merges])}
    return {"vocab.txt": _read_member(members[vocabulary])}


def _find_artifact(configured: object, ends: tuple[str, ...], members: Mapping[str, Region]) -> str | None:
    if isinstance(configured, str) and configured.removeprefix("nemo:") in members:
        return configured.removeprefix("nemo:")
    return next((name for name in members for end in ends if name == end or name.endswith(f"_{end}")), None)


_ENCODER_CONFIG = re.compile(r".*encoder_config\.json|([0-9a-f]{32}_)?(bert|megatron)\w*config\.json", re.DOTALL)


def _encoder_config(config: Mapping[str, Any], members: Mapping[str, Region]) -> dict[str, Any]:
    """Find the sizes of NeMo 1.0's encoder, in language_model.config or in a member of their own."""
    language_model = config.get("language_model")
    sizes = language_model.get("config") if isinstance(language_model, dict) else None
    for name, region in members.items():
        if _ENCODER_CONFIG.fullmatch(name):
            content = _read_json(region)
            sizes = content if isinstance(content, dict) else sizes
    return {str(key).replace("-", "_"): value for key, value in sizes.items()} if isinstance(sizes, dict) else {}


def _checkpoint_version(config: Mapping[str, Any], members: Mapping[str, Region]) -> float | None:
    """Find the checkpoint version, which determines the layout of the query-key-value rows.

    NeMo 1.0 stores that of the Megatron-LM file in a member of its own. From 1.5 on rows are [heads, 3, dim], except in
    models converted from old files: NeMo's converter only renames tensors, and `megatron_legacy` in the configuration
    makes its attention read [3, heads, dim].
    """
    member = next((name for name in members if name.endswith("megatron_checkpoint_version.json")), None)
    if member is not None:
        content = _read_json(members[member])
        values = list(content.values()) if isinstance(content, dict) else [content]
        return next((number for value in values if (number := to_number(value)) is not None), 0.0)
    if "megatron_legacy" in config or "encoder_seq_length" in config or "num_layers" in config:
        return 0.0 if config.get("megatron_legacy") else 3.0
    return None


# The configuration of a task of NeMo 1.0 holds the encoder's in language_model.config; its other keys do not shape it.
_ENCODER_OF_TASK = "language_model"
# Of these keys a model's configuration has one.
_SIZES = {"num_layers", _ENCODER_OF_TASK}


def _megatron_arguments(nemo_config: Mapping[str, Any], encoder_config: Mapping[str, Any]) -> dict[str, Any]:
    """Convert NeMo's configuration to the arguments of Megatron-LM, which has the same names for most of them."""
    if _ENCODER_OF_TASK in nemo_config and "num_layers" not in nemo_config:
        parallel = {name: nemo_config[name] for name in nemo_config if name.endswith("_model_parallel_size")}
        # megatron-lm 2.2, which runs the encoder, gets the fused kernel switched off.
        return {"bias_gelu_fusion": False, **encoder_config, **parallel}
    config = {**encoder_config, **nemo_config}
    is_core = bool(config.pop("mcore_bert", False) or config.pop("mcore_gpt", False))
    is_gpt = "gpt" in str(config.get("target", "")).lower()
    arguments = {str(name): value for name, value in config.items()}
    names = ("bias_gelu_fusion", "bias_activation_fusion")
    fusions = [arguments.pop(name, None) for name in names]
    # BERT on NeMo's own layers reads the first name, all others the second. The fused kernel is on by default.
    given = [value for value in (fusions[::-1] if is_core or is_gpt else fusions) if value is not None]
    arguments["bias_gelu_fusion"] = given[0] if given else "num_layers" in nemo_config
    # "We don't use this in NeMo": its layers take the residual from before the norm.
    arguments.pop("apply_residual_connection_post_layernorm", None)
    if not is_gpt:
        arguments.pop("openai_gelu", None)  # not passed on to BERT
    if str(arguments.get("normalization")).lower() == "layernorm1p":
        arguments["apply_layernorm_1p"] = True
    return arguments
