"""Open Megatron-LM's checkpoints: join pipeline stages, identify the era of the names, and read the network's shape.

Returns the lazy tensors of each tensor-parallel shard under the names of one era.
Source: the history of https://github.com/NVIDIA/Megatron-LM, tags v1.0 to core_v0.9.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import CheckpointError
from ..files.lazy_tensor import LazyTensor, Readable
from ..files.pickle_reader import Record
from ..files.torch_dist import is_torch_dist, open_torch_dist
from ..other_formats import refuse_other_content
from ..tensor_names import rename, without_wrappers
from .megatron_arguments import Arguments, read_arguments, to_number
from .megatron_names import CORE_GPT, ERAS, FINE_TUNED, Era
from .rank_files import RankFile, find_iteration, open_ranks


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
        return open_distributed(path)
    ranks = open_ranks(path)
    shards, stages = sorted({shard for shard, _ in ranks}), sorted({stage for _, stage in ranks})
    first = ranks[0, 0].content
    arguments = _arguments(first.get("args"))
    _check_rank_count(path, arguments, len(shards), len(stages))
    _check_order(ranks, len(shards))
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
        version=read_version(first.get("checkpoint_version"), str(path)),
        iteration=_iteration(first),
        num_stages=len(stages),
        num_chunks=num_chunks,
        container=ranks[0, 0].opened.kind,
        unknown_globals=frozenset().union(*(file.opened.unknown_globals for file in ranks.values())),
        notes=named[0][1],
    )


def open_distributed(path: Path) -> MegatronFile:
    """Open the folder of a distributed checkpoint of megatron.core, without reading its tensors."""
    opened = open_torch_dist(path)
    tensors = rename(opened.tensors, without_wrappers, str(path))
    return MegatronFile(
        source=str(path),
        era=find_era(tensors, str(path)),
        shards=[tensors],
        arguments=_arguments(opened.common.get("args")),
        version=read_version(opened.common.get("checkpoint_version"), str(path)),
        iteration=_iteration(opened.common),
        container=opened.backend,
        unknown_globals=opened.unknown_globals,
    )


def read_version(value: object, source: str) -> float | None:
    """Read a checkpoint_version, which decides the layout of the query-key-value rows; some tools store it as text."""
    number = to_number(value)
    if value is not None and (number is None or number < 0):
        raise CheckpointError(f"{source}: its checkpoint_version is {value!r:.40}; expected a number, such as 3.0.")
    return number


def _iteration(content: Mapping[str, Any]) -> int | None:
    value = content.get("iteration", content.get("total_iters"))
    return value if isinstance(value, int) else None


def _check_rank_count(path: Path, arguments: dict[str, Any], num_shards: int, num_stages: int) -> None:
    """Compare with the arguments, to detect missing ranks at the end."""
    typed = Arguments(arguments, str(path))
    expected_shards = typed.integer("tensor_model_parallel_size") or typed.integer("model_parallel_size")
    expected_stages = typed.integer("pipeline_model_parallel_size")
    for kind, expected, actual in (("tensor", expected_shards, num_shards), ("pipeline", expected_stages, num_stages)):
        if expected not in (None, actual):
            raise CheckpointError(
                f"{path}: its arguments specify {expected} {kind}-parallel parts, {actual} found. "
                "Give the folder that holds all mp_rank_* folders."
            )


def _check_order(ranks: Mapping[tuple[int, int], RankFile], num_shards: int) -> None:
    """Compare the shards' places with the ranks that wrote them: consecutive ranks hold consecutive shards.

    Tools that write the same arguments into every file leave nothing to compare.
    """
    wrote = [_arguments(ranks[shard, 0].content.get("args")).get("rank") for shard in range(num_shards)]
    shards = [rank % num_shards for rank in wrote if type(rank) is int]
    for place, shard in enumerate(shards):
        if sorted(shards) == list(range(num_shards)) and shard != place:
            raise CheckpointError(
                f"{ranks[place, 0].label} was written by rank {wrote[place]}, so it holds shard {shard} of "
                f"{num_shards}, not {place}. Put each file back into its mp_rank folder."
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
    refuse_other_content(content, file.label)
    chunks = [flatten(tree, file.label) for tree in trees]
    if not all(chunks):
        raise CheckpointError(f"{file.label} holds no tensors under 'model'. Is it a model's checkpoint?")
    return chunks


def flatten(tree: Any, source: str) -> dict[str, LazyTensor]:
    """Flatten nested dictionaries to dotted names, without what wrappers add to them.

    Values other than tensors, and `_extra_state`, are dropped.
    """
    flat: dict[str, LazyTensor] = {}
    pending: list[tuple[str, Any]] = [("", tree)]
    while pending:
        prefix, value = pending.pop()
        if isinstance(value, dict):
            pending.extend((f"{prefix}.{name}" if prefix else str(name), item) for name, item in value.items())
        elif isinstance(value, LazyTensor) and not prefix.endswith("_extra_state"):
            flat[prefix] = value
    return rename(flat, without_wrappers, source)


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
# What the first pipeline stage holds, and the last
_FIRST, _LAST = re.compile(r"\bposition_embeddings\."), re.compile(r"\bfinal_(layer)?norm\.")


def join_stages(stages: Sequence[Mapping[str, Any]], path: Path) -> dict[str, Any]:
    """Join pipeline stages, each of which numbers its layers from 0, into consecutive layer numbers.

    Interleaved stages are given as chunk 0 of every stage, then chunk 1 of every stage: chunk v of stage p holds the
    layers from v * L/V + p * L/(P * V) on. Source: Megatron-LM v2.6, megatron/model/transformer.py.
    """
    joined: dict[str, Any] = {}
    offset = 0
    for place, stage in enumerate(stages):
        _check_place(stage, place, len(stages), path)
        numbers = {int(match[1]) for name in stage if (match := _LAYER.search(name))}
        if numbers != set(range(len(numbers))):
            raise CheckpointError(f"{path}: a pipeline stage holds layers {sorted(numbers)}; expected 0, 1, 2, ...")
        for name, tensor in stage.items():
            joined[_LAYER.sub(lambda match: f".layers.{int(match[1]) + offset}.", name)] = tensor  # noqa: B023
        offset += len(numbers)
    return joined


def _check_place(stage: Mapping[str, Any], place: int, count: int, path: Path) -> None:
    """Raise CheckpointError if a stage but the first holds the embeddings, or one but the last the last norm."""
    for pattern, expected in ((_FIRST, 0), (_LAST, count - 1)):
        wrong = next((name for name in stage if place != expected and pattern.search(name)), None)
        if wrong is not None:
            raise CheckpointError(
                f"{path}: part {place + 1} of {count} holds {wrong}, which belongs to part {expected + 1}: the files "
                "of the ranks stand in another order. Put each back into its folder."
            )


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


def find_shape(file: MegatronFile, ignored: Collection[str] = ()) -> tuple[dict[str, Any], list[str]]:
    """Read the network's shape from tensors and arguments; returns the known properties and the assumptions.

    Raises CheckpointError for arguments of another network, unless they are among those to be `ignored`.
    """
    arguments = Arguments(file.arguments, file.source)
    num_layers = len({int(match[1]) for name in file.shards[0] if (match := _LAYER.search(name))})
    expected = arguments.integer("num_layers")
    if expected not in (None, num_layers):
        raise CheckpointError(
            f"{file.source}: its arguments specify {expected} layers, {num_layers} found. Is a file missing?"
        )
    has_bert_parts = file.has("tokentype_embeddings") or file.has("lm_head.")
    is_gpt = file.era is CORE_GPT if file.era.is_core else not has_bert_parts
    kind = "causal (no segment embedding and no head of BERT's)" if is_gpt else "bidirectional"
    shape, notes = read_arguments(arguments, is_core=file.era.is_core, is_gpt=is_gpt, ignored=ignored)
    return {"num_layers": num_layers, "is_causal": is_gpt} | shape, [f"attention: {kind}", *notes]
