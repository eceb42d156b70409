"""Open Megatron-LM's checkpoints: its folders and files, the ranks in them, the arguments that shape a network.

A path goes in; out come the weights of each tensor-parallel shard under the names of one era, pipeline stages joined,
none of them read yet. What this module knows was read in Megatron-LM's history (github.com/NVIDIA/Megatron-LM, tags
v1.0 to core_v0.9).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import CheckpointError
from ..files.containers import LazyTensor, Opened, looks_like_weights, open_files
from ..files.lazy_tensor import Readable
from ..files.pickle_reader import Record
from ..files.torch_dist import is_torch_dist, open_torch_dist
from .megatron_names import ERAS, FINE_TUNED, Era

Weights = Mapping[str, Readable]

# Arguments whose other values mean a network that this package does not have.
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
    """A checkpoint with its pipeline stages joined: weights of each tensor-parallel shard, arguments, version."""

    source: str
    era: Era
    shards: Sequence[Weights]
    arguments: dict[str, Any]
    version: float | None
    iteration: int | None
    num_stages: int = 1
    num_chunks: int = 1
    """Parts of the network in each pipeline stage; more than 1 where they are interleaved."""
    container: str = "torch"
    unknown_globals: frozenset[str] = field(default=frozenset())
    notes: tuple[str, ...] = ()

    def has(self, part: str) -> bool:
        """Whether any tensor's name holds `part`."""
        return any(part in name for name in self.shards[0])


@dataclass(frozen=True)
class _Part:
    """The file of one rank."""

    label: str
    opened: Opened


Rank = tuple[int, int]  # in the tensor-parallel and in the pipeline-parallel group


def open_megatron(path: Path) -> MegatronFile:
    """Open a Megatron-LM checkpoint: all its shards, none of its tensors yet.

    Raises CheckpointError if a file cannot be read, a rank is missing, or the names are of no era known here.
    """
    path = find_iteration(path)
    if path.is_dir() and is_torch_dist(path):
        return _open_torch_dist(path)
    parts = _open_parts(path)
    stages, shards = {stage for _, stage in parts}, {shard for shard, _ in parts}
    missing = [
        f"mp_rank_{shard:02d}" + (f"_{stage:03d}" if max(stages) else "")
        for shard in range(max(shards) + 1)
        for stage in range(max(stages) + 1)
        if (shard, stage) not in parts
    ]
    if missing:
        raise CheckpointError(f"{path} lacks {', '.join(missing)}: a checkpoint needs the files of all its ranks.")
    first = _top_level(parts[0, 0])
    arguments = _arguments(first.get("args"))
    _check_rank_count(path, arguments, len(shards), len(stages))
    chunks = {rank: _chunks_of(part) for rank, part in parts.items()}
    num_chunks = len(chunks[0, 0])
    if any(len(found) != num_chunks for found in chunks.values()):
        raise CheckpointError(f"{path}: its ranks hold different numbers of interleaved parts (model0, model1, ...).")
    joined = [
        join_stages([chunks[shard, stage][chunk] for chunk in range(num_chunks) for stage in sorted(stages)], path)
        for shard in sorted(shards)
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
        container=parts[0, 0].opened.kind,
        unknown_globals=frozenset().union(*(part.opened.unknown_globals for part in parts.values())),
        notes=named[0][1],
    )


def _open_torch_dist(path: Path) -> MegatronFile:
    found = open_torch_dist(path)
    arguments = _arguments(found.common.get("args"))
    return MegatronFile(
        source=str(path),
        era=find_era(found.tensors, str(path)),
        shards=[found.tensors],
        arguments=arguments,
        version=found.common.get("checkpoint_version"),
        iteration=found.common.get("iteration"),
        container=found.backend,
        unknown_globals=found.unknown_globals,
    )


# --- Which files ---


def find_iteration(path: Path) -> Path:
    """Follow a checkpoint's folder to the iteration that its tracker names, or to its only or last one."""
    if not path.is_dir():
        return path
    tracker = path / "latest_checkpointed_iteration.txt"
    if tracker.is_file():
        content = tracker.read_text(encoding="utf-8", errors="replace").strip()
        folder = path / (content if content == "release" else f"iter_{content:0>7}")
        if not (content == "release" or content.isdigit()) or not folder.is_dir():
            raise CheckpointError(
                f"{tracker} says {content[:40]!r}, but there is no folder {folder.name[:40]} beside it. "
                "Give the iteration's folder itself."
            )
        return folder
    if (path / "release").is_dir():
        return path / "release"
    iterations = [folder for folder in path.glob("iter_*") if re.fullmatch(r"iter_\d+", folder.name)]
    return max(iterations, key=lambda folder: int(folder.name[5:]), default=path)


_RANK = re.compile(r"mp_rank_(\d{2,3})(?:_(\d{3}))?(?:_(\d{3}))?")


def _open_parts(path: Path) -> dict[Rank, _Part]:
    files = [path] if path.is_file() else _rank_files(path)
    parts: dict[Rank, _Part] = {}
    for file in files:
        for member, opened in open_files(file).items():
            label = f"{file}: {member}" if member else str(file)
            rank = _rank_of(f"{file.parent.name}/{member}") if path.is_dir() or member else (0, 0)
            if rank in parts:
                raise CheckpointError(f"{parts[rank].label} and {label} are of one rank. Remove the wrong one.")
            parts[rank] = _Part(label, opened)
    if len(parts) == 1:  # one rank's file alone; its arguments tell whether there should be others
        return {(0, 0): next(iter(parts.values()))}
    return parts


def _rank_files(path: Path) -> list[Path]:
    """List the weight files below an iteration's folder; the optimizer's own files and folders are passed over."""
    ranks = sorted(folder for folder in path.glob("mp_rank_*") if folder.is_dir() and _RANK.fullmatch(folder.name))
    files = [file for folder in ranks or [path] if (file := _weights_in(folder)) is not None]
    if not files:
        raise CheckpointError(
            f"{path} holds no checkpoint: expected model_optim_rng.pt, MegatronBERT.pt, mp_rank_* folders, "
            "latest_checkpointed_iteration.txt, config.json, or any single weight file."
        )
    return files


_WEIGHTS = ("model_optim_rng.pt", "model_rng.pt", "MegatronBERT.pt", "model_weights.ckpt")
_OPTIMIZER = ("optim.pt", "distrib_optim.pt")


def _weights_in(folder: Path) -> Path | None:
    for name in _WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    files = [file for file in sorted(folder.iterdir()) if file.is_file() and file.name not in _OPTIMIZER]
    files = [file for file in files if looks_like_weights(file)]
    if len(files) > 1:
        names = ", ".join(file.name for file in files[:6])
        raise CheckpointError(f"{folder} holds {len(files)} weight files ({names}). Give one of them.")
    return files[0] if files else None


def _rank_of(label: str) -> Rank:
    found = _RANK.search(label)
    return (int(found[1]), int(found[2] or 0)) if found else (0, 0)


def _check_rank_count(path: Path, arguments: dict[str, Any], num_shards: int, num_stages: int) -> None:
    """Compare with the arguments, so that shards that went missing from the end are noticed."""
    told_shards = arguments.get("tensor_model_parallel_size", arguments.get("model_parallel_size"))
    told_stages = arguments.get("pipeline_model_parallel_size")
    for what, told, found in (("tensor", told_shards, num_shards), ("pipeline", told_stages, num_stages)):
        if isinstance(told, int) and told != found:
            raise CheckpointError(
                f"{path}: its arguments say {told} {what}-parallel parts, {found} found. "
                "Give the folder that holds all mp_rank_* folders."
            )


# --- What is in a file ---


def _top_level(part: _Part) -> dict[str, Any]:
    if not isinstance(part.opened.content, dict):
        kind = type(part.opened.content).__name__
        raise CheckpointError(f"{part.label} holds a {kind}, not a checkpoint's dictionary.")
    return part.opened.content


def _arguments(stored: Any) -> dict[str, Any]:
    state = stored.state if isinstance(stored, Record) else stored
    return {str(name): value for name, value in state.items()} if isinstance(state, dict) else {}


def _chunks_of(part: _Part) -> list[dict[str, LazyTensor]]:
    """List the parts of the network in a rank's file: one, or several where pipeline stages are interleaved."""
    content = _top_level(part)
    if "model0" in content:
        trees: list[Any] = []
        while f"model{len(trees)}" in content:
            trees.append(content[f"model{len(trees)}"])
    else:
        trees = [content.get("model", content.get("state_dict", content))]
    chunks = [flatten(tree) for tree in trees]
    if not all(chunks):
        raise CheckpointError(f"{part.label} holds no tensors under 'model'. Is it a model's checkpoint?")
    return chunks


def flatten(tree: Any) -> dict[str, LazyTensor]:
    """Give the tensors of nested dictionaries dotted names, without the `module.` that wrappers add.

    What is no tensor (None or bytes under `_extra_state`) has no weight and is left out.
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


# Retrievers hold two encoders, or one for both sides.
_TOWERS = ("query_model.", "question_model.", "shared_model.", "retriever.ict_model.", "ict_model.")


def _plain_names(weights: Mapping[str, LazyTensor]) -> tuple[dict[str, LazyTensor], tuple[str, ...]]:
    """Bring the names of wrapped, flat and partial files to those of a whole network; returns them and notes."""
    for tower in _TOWERS:
        own = {name.removeprefix(tower): item for name, item in weights.items() if name.startswith(tower)}
        if own:
            inner, notes = _plain_names(own)
            return inner, (f"of the encoders in the file the one under {tower.rstrip('.')} was taken", *notes)
    if any(".linear_qkv." in name for name in weights):
        return dict(weights), ()
    if any(name.startswith("language_model.") for name in weights):
        return dict(weights), ()
    # GPT-2 of 2019 has no nesting; an encoder saved by itself begins with its embedding.
    flat = {_FLAT_EMBEDDING.sub(r"embedding.\1", name): item for name, item in weights.items()}
    return {name if name.startswith(_TOP) else f"language_model.{name}": item for name, item in flat.items()}, ()


_FLAT_EMBEDDING = re.compile(r"^((word|position|tokentype)_embeddings\.)")
_TOP = (
    "language_model.",
    "lm_head.",
    "binary_head.",
    "word_embeddings_for_head.",
    *(rule.sources[0].partition(".")[0] + "." for rule in FINE_TUNED),
)
_LAYER = re.compile(r"\.layers\.(\d+)\.")


def join_stages(stages: Sequence[Mapping[str, Any]], path: Path) -> dict[str, Any]:
    """Number the layers of all pipeline stages through: each counts its own from 0.

    Interleaved stages come as chunk 0 of every stage, then chunk 1 of every stage: chunk v of stage p holds layers
    v * L/V + p * L/(P * V) and on. Source: Megatron-LM v2.6, megatron/model/transformer.py.
    """
    joined: dict[str, Any] = {}
    offset = 0
    for stage in stages:
        numbers = {int(found[1]) for name in stage if (found := _LAYER.search(name))}
        if numbers != set(range(len(numbers))):
            raise CheckpointError(f"{path}: a pipeline stage holds layers {sorted(numbers)}; expected 0, 1, 2, ...")
        for name, tensor in stage.items():
            joined[_LAYER.sub(lambda found: f".layers.{int(found[1]) + offset}.", name)] = tensor  # noqa: B023
        offset += len(numbers)
    return joined


def find_era(weights: Mapping[str, Any], source: str) -> Era:
    """Tell whose names these are. Raises CheckpointError if nobody's that is known here."""
    for era in ERAS:
        if any(era.evidence.match(name) for name in weights):
            return era
    if any("bert.embeddings.LayerNorm" in name for name in weights):
        raise CheckpointError(
            f"{source} was written before 29 October 2019, when Megatron-LM's BERT was the original, post-norm BERT "
            "under other names. Nothing was published of it, and it is not read."
        )
    raise CheckpointError(
        f"{source}: its tensor names are of no Megatron-LM version known here, for example "
        f"{', '.join(sorted(weights)[:3])}."
    )


def find_shape(file: MegatronFile) -> tuple[dict[str, Any], list[str]]:
    """Read the network's shape from arguments and tensors; returns it (without what is unknown) and the assumptions.

    The tensors decide what they show; the arguments decide the rest.
    """
    arguments, notes = file.arguments, []
    for name, allowed in REQUIRED_ARGUMENTS.items():
        if arguments.get(name, allowed[0]) not in allowed:
            raise CheckpointError(
                f"{file.source}: its argument {name} is {arguments[name]!r}; this package's encoder has "
                f"{name}={allowed[0]!r} only."
            )
    num_layers = len({int(found[1]) for name in file.shards[0] if (found := _LAYER.search(name))})
    if arguments.get("num_layers", num_layers) != num_layers:
        raise CheckpointError(
            f"{file.source}: its arguments say {arguments['num_layers']} layers, {num_layers} found. Is a file missing?"
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
    notes.append("residual: " + ("from behind the layer norm" if normed else "from before the layer norm"))
    return shape, notes
