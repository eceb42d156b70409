"""Open Megatron-LM's checkpoints: join pipeline stages, identify the era of the names, and read the network's shape.

Returns the lazy tensors of each tensor-parallel shard under the names of one era.
Source: the history of https://github.com/NVIDIA/Megatron-LM, tags v1.0 to core_v0.9.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import CheckpointError
from ..files.lazy_tensor import LazyTensor, Readable
from ..files.pickle_reader import Record
from ..files.torch_dist import is_torch_dist, open_torch_dist
from .megatron_names import ERAS, FINE_TUNED, Era
from .rank_files import RankFile, find_iteration, open_ranks

# Arguments whose other values mean a network that megabert does not support
REQUIRED_ARGUMENTS = {
    "swiglu": (False, None),
    "normalization": ("LayerNorm", None),
    "position_embedding_type": ("learned_absolute", None),
    "add_bias_linear": (True, None),
    "num_experts": (None, 0),
    "group_query_attention": (False, None),
    "squared_relu": (False, None),
    "untie_embeddings_and_output_weights": (False, None),
    "multi_latent_attention": (False, None),
}


@dataclass(frozen=True)
class MegatronFile:
    """An open checkpoint with its pipeline stages joined: weights of each tensor-parallel shard, arguments, version."""

    source: str
    era: Era
    shards: Sequence[Mapping[str, Readable]]
    arguments: dict[str, Any]
    version: float | None
    iteration: int | None
    num_stages: int = 1
    num_chunks: int = 1
    """Model chunks in each pipeline stage; more than 1 for an interleaved schedule."""
    container: str = "torch"
    unknown_globals: frozenset[str] = field(default=frozenset())
    notes: tuple[str, ...] = ()

    def has(self, part: str) -> bool:
        """Whether any tensor's name contains `part`."""
        return any(part in name for name in self.shards[0])


def open_megatron(path: Path) -> MegatronFile:
    """Open a Megatron-LM checkpoint with all its shards, without reading its tensors.

    Raises CheckpointError if a file is unreadable, a rank is missing, or the tensor names belong to no known era.
    """
    path = find_iteration(path)
    if path.is_dir() and is_torch_dist(path):
        return _open_torch_dist(path)
    ranks = open_ranks(path)
    shards, stages = sorted({shard for shard, _ in ranks}), sorted({stage for _, stage in ranks})
    first = ranks[0, 0].content
    arguments = _arguments(first.get("args"))
    _check_rank_count(path, arguments, len(shards), len(stages))
    chunks = {rank: _chunks_of(file) for rank, file in ranks.items()}
    num_chunks = len(chunks[0, 0])
    if any(len(chunks_of_rank) != num_chunks for chunks_of_rank in chunks.values()):
        raise CheckpointError(f"{path}: its ranks hold different numbers of interleaved parts (model0, model1, ...).")
    joined = [
        join_stages([chunks[shard, stage][chunk] for chunk in range(num_chunks) for stage in stages], path)
        for shard in shards
    ]
    named = [_plain_names(shard) for shard in joined]
    return MegatronFile(
        source=str(path),
        era=find_era(named[0][0], str(path)),
        shards=[weights for weights, _ in named],
        arguments=arguments,
        version=first.get("checkpoint_version"),
        iteration=first.get("iteration", first.get("total_iters")),
        num_stages=len(stages),
        num_chunks=num_chunks,
        container=ranks[0, 0].opened.kind,
        unknown_globals=frozenset().union(*(file.opened.unknown_globals for file in ranks.values())),
        notes=named[0][1],
    )


def _open_torch_dist(path: Path) -> MegatronFile:
    opened = open_torch_dist(path)
    return MegatronFile(
        source=str(path),
        era=find_era(opened.tensors, str(path)),
        shards=[opened.tensors],
        arguments=_arguments(opened.common.get("args")),
        version=opened.common.get("checkpoint_version"),
        iteration=opened.common.get("iteration"),
        container=opened.backend,
        unknown_globals=opened.unknown_globals,
    )


def _check_rank_count(path: Path, arguments: dict[str, Any], num_shards: int, num_stages: int) -> None:
    """Compare with the arguments, to detect missing ranks at the end."""
    expected_shards = arguments.get("tensor_model_parallel_size", arguments.get("model_parallel_size"))
    expected_stages = arguments.get("pipeline_model_parallel_size")
    for kind, expected, actual in (("tensor", expected_shards, num_shards), ("pipeline", expected_stages, num_stages)):
        if isinstance(expected, int) and expected != actual:
            raise CheckpointError(
                f"{path}: its arguments specify {expected} {kind}-parallel parts, {actual} found. "
                "Give the folder that holds all mp_rank_* folders."
            )


def _arguments(stored: Any) -> dict[str, Any]:
    state = stored.state if isinstance(stored, Record) else stored
    return {str(name): value for name, value in state.items()} if isinstance(state, dict) else {}


def _chunks_of(file: RankFile) -> list[dict[str, LazyTensor]]:
    """List the model chunks in a rank's file: one, or several for an interleaved pipeline schedule."""
    content = file.content
    if "model0" in content:
        trees: list[Any] = []
        while f"model{len(trees)}" in content:
            trees.append(content[f"model{len(trees)}"])
    else:
        trees = [content.get("model", content.get("state_dict", content))]
    chunks = [flatten(tree) for tree in trees]
    if not all(chunks):
        raise CheckpointError(f"{file.label} holds no tensors under 'model'. Is it a model's checkpoint?")
    return chunks


def flatten(tree: Any) -> dict[str, LazyTensor]:
    """Flatten nested dictionaries to dotted names, without the prefix `module.` of wrappers.

    Values other than tensors, and `_extra_state`, are dropped.
    """
    flat: dict[str, LazyTensor] = {}
    pending: list[tuple[str, Any]] = [("", tree)]
    while pending:
        prefix, value = pending.pop()
        if isinstance(value, dict):
            pending.extend((f"{prefix}.{name}" if prefix else str(name), item) for name, item in value.items())
        elif isinstance(value, LazyTensor) and not prefix.endswith("_extra_state"):
            flat[re.sub(r"^(module\.)+", "", prefix)] = value
    return flat


# Prefixes of the encoders of retrievers, which have two encoders or a shared one
_TOWERS = ("query_model.", "question_model.", "shared_model.", "retriever.ict_model.", "ict_model.")


def _plain_names(weights: Mapping[str, LazyTensor]) -> tuple[dict[str, LazyTensor], tuple[str, ...]]:
    """Convert the names of wrapped, flat and partial files to those of a complete network; returns them and notes."""
    for tower in _TOWERS:
        encoder = {name.removeprefix(tower): item for name, item in weights.items() if name.startswith(tower)}
        if encoder:
            inner, notes = _plain_names(encoder)
            return inner, (f"of the encoders in the file the one under {tower.rstrip('.')} was taken", *notes)
    if any(".linear_qkv." in name or name.startswith("language_model.") for name in weights):
        return dict(weights), ()
    # GPT-2 of 2019 has no nesting; the names of a lone encoder begin with its embedding.
    flat = {_FLAT_EMBEDDING.sub(r"embedding.\1", name): item for name, item in weights.items()}
    top = (*_TOP, *(rule.sources[0].partition(".")[0] + "." for rule in FINE_TUNED))
    return {name if name.startswith(top) else f"language_model.{name}": item for name, item in flat.items()}, ()


_FLAT_EMBEDDING = re.compile(r"^((word|position|tokentype)_embeddings\.)")
_TOP = ("language_model.", "lm_head.", "binary_head.", "word_embeddings_for_head.")
_LAYER = re.compile(r"\.layers\.(\d+)\.")


def join_stages(stages: Sequence[Mapping[str, Any]], path: Path) -> dict[str, Any]:
    """Join pipeline stages, each of which numbers its layers from 0, into consecutive layer numbers.

    Interleaved stages are given as chunk 0 of every stage, then chunk 1 of every stage: chunk v of stage p holds the
    layers from v * L/V + p * L/(P * V) on. Source: Megatron-LM v2.6, megatron/model/transformer.py.
    """
    joined: dict[str, Any] = {}
    offset = 0
    for stage in stages:
        numbers = {int(match[1]) for name in stage if (match := _LAYER.search(name))}
        if numbers != set(range(len(numbers))):
            raise CheckpointError(f"{path}: a pipeline stage holds layers {sorted(numbers)}; expected 0, 1, 2, ...")
        for name, tensor in stage.items():
            joined[_LAYER.sub(lambda match: f".layers.{int(match[1]) + offset}.", name)] = tensor  # noqa: B023
        offset += len(numbers)
    return joined


def find_era(weights: Mapping[str, Any], source: str) -> Era:
    """Identify the era of tensor names. Raises CheckpointError if they belong to no known era."""
    for era in ERAS:
        if any(era.evidence.match(name) for name in weights):
            return era
    if any("bert.embeddings.LayerNorm" in name for name in weights):
        raise CheckpointError(
            f"{source} was written before 29 October 2019, when Megatron-LM's BERT was the original, post-norm BERT "
            "under other names. Such files were never published and are not read."
        )
    raise CheckpointError(
        f"{source}: its tensor names belong to no known version of Megatron-LM, for example "
        f"{', '.join(sorted(weights)[:3])}."
    )


def find_shape(file: MegatronFile) -> tuple[dict[str, Any], list[str]]:
    """Read the network's shape from tensors and arguments; returns the known properties and the assumptions."""
    arguments, notes = file.arguments, []
    for name, allowed in REQUIRED_ARGUMENTS.items():
        if arguments.get(name, allowed[0]) not in allowed:
            raise CheckpointError(
                f"{file.source}: its argument {name} is {arguments[name]!r}; megabert's encoder has "
                f"{name}={allowed[0]!r} only."
            )
    num_layers = len({int(match[1]) for name in file.shards[0] if (match := _LAYER.search(name))})
    if arguments.get("num_layers", num_layers) != num_layers:
        raise CheckpointError(
            f"{file.source}: its arguments specify {arguments['num_layers']} layers, {num_layers} found. Is a file "
            "missing?"
        )
    shape: dict[str, Any] = {"num_layers": num_layers}
    is_gpt = file.era.name.endswith("GPT") or not (file.has("tokentype_embeddings") or file.has("lm_head."))
    shape["is_causal"] = is_gpt
    notes.append("attention: " + ("causal (no segment embedding and no head of BERT's)" if is_gpt else "bidirectional"))
    if "num_attention_heads" in arguments:
        shape["num_heads"] = arguments["num_attention_heads"]
    openai = bool(arguments.get("openai_gelu"))
    fused = bool(arguments.get("bias_gelu_fusion"))
    shape["gelu"] = "tanh" if openai or fused else "erf"
    shape["head_gelu"] = "tanh" if openai else "erf"
    because = "openai_gelu" if openai else "bias_gelu_fusion" if fused else "no fused or OpenAI gelu in the arguments"
    notes.append(f"gelu: {shape['gelu']} ({because if arguments else 'the file has no arguments'})")
    shape["norm_epsilon"] = arguments.get("layernorm_epsilon", arguments.get("norm_epsilon", 1e-5))
    notes.append(f"layer norm epsilon: {shape['norm_epsilon']}")
    normed = bool(arguments.get("apply_residual_connection_post_layernorm"))
    shape["norm_place"] = "pre_residual_normed" if normed else "pre"
    notes.append("residual: " + ("from after the layer norm" if normed else "from before the layer norm"))
    return shape, notes
