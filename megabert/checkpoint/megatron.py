"""Megatron-LM's checkpoints: the table of names of each era, the arguments that shape a network, the QKV layouts.

What this module knows was read in Megatron-LM's history (github.com/NVIDIA/Megatron-LM, tags v1.0 to core_v0.9) and
holds for files that its code of those tags wrote.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from .containers import LazyTensor, Opened, open_file
from .rules import QKV_LAYOUTS, Op, Rule
from .symbolic_pickle import Record

Weights = Mapping[str, LazyTensor]


def legacy_rules(qkv: Op, *, trunk: str, attention: str, norm: str) -> list[Rule]:
    """List the names of megatron.model, which differ by era in three words."""
    embedding, encoder = "language_model.embedding", f"language_model.{trunk}"
    layer, ours = f"{encoder}.layers.*", "encoder.layers.*"
    return [
        Rule(f"{embedding}.word_embeddings.weight", "encoder.embeddings.word.weight", cut=0),
        Rule(f"{embedding}.position_embeddings.weight", "encoder.embeddings.position.weight"),
        Rule(f"{embedding}.tokentype_embeddings.weight", "encoder.embeddings.segment.weight"),
        Rule(f"{layer}.input_{norm}.weight", f"{ours}.attention_norm.weight"),
        Rule(f"{layer}.input_{norm}.bias", f"{ours}.attention_norm.bias"),
        Rule(f"{layer}.{attention}.query_key_value.weight", f"{ours}.attention.qkv.weight", qkv, cut=0),
        Rule(f"{layer}.{attention}.query_key_value.bias", f"{ours}.attention.qkv.bias", qkv, cut=0),
        Rule(f"{layer}.{attention}.dense.weight", f"{ours}.attention.out.weight", cut=1),
        Rule(f"{layer}.{attention}.dense.bias", f"{ours}.attention.out.bias"),
        Rule(f"{layer}.post_attention_{norm}.weight", f"{ours}.mlp_norm.weight"),
        Rule(f"{layer}.post_attention_{norm}.bias", f"{ours}.mlp_norm.bias"),
        Rule(f"{layer}.mlp.dense_h_to_4h.weight", f"{ours}.mlp.up.weight", cut=0),
        Rule(f"{layer}.mlp.dense_h_to_4h.bias", f"{ours}.mlp.up.bias", cut=0),
        Rule(f"{layer}.mlp.dense_4h_to_h.weight", f"{ours}.mlp.down.weight", cut=1),
        Rule(f"{layer}.mlp.dense_4h_to_h.bias", f"{ours}.mlp.down.bias"),
        Rule(f"{encoder}.final_{norm}.weight", "encoder.final_norm.weight"),
        Rule(f"{encoder}.final_{norm}.bias", "encoder.final_norm.bias"),
        Rule("language_model.pooler.dense.weight", "sentence_order.pooler.weight"),
        Rule("language_model.pooler.dense.bias", "sentence_order.pooler.bias"),
        Rule("lm_head.dense.weight", "language_model.dense.weight"),
        Rule("lm_head.dense.bias", "language_model.dense.bias"),
        Rule(f"lm_head.{norm}.weight", "language_model.norm.weight"),
        Rule(f"lm_head.{norm}.bias", "language_model.norm.bias"),
        Rule("lm_head.bias", "language_model.vocabulary.bias", cut=0),
        Rule("binary_head.weight", "sentence_order.out.weight"),
        Rule("binary_head.bias", "sentence_order.out.bias"),
        Rule("word_embeddings_for_head.weight", None),  # the last pipeline stage's copy of the word embedding
        Rule("word_embeddings.weight", None),  # the same, in a stage that has no language_model embedding
    ]


def core_rules(qkv: Op, *, trunk: str) -> list[Rule]:
    """List the names of megatron.core; where Transformer Engine fuses a norm into a linear, the norm's name moves."""
    layer, ours = f"{trunk}.layers.*", "encoder.layers.*"
    return [
        Rule("embedding.word_embeddings.weight", "encoder.embeddings.word.weight", cut=0),
        Rule("embedding.position_embeddings.weight", "encoder.embeddings.position.weight"),
        Rule("embedding.tokentype_embeddings.weight", "encoder.embeddings.segment.weight"),
        Rule(f"{layer}.input_layernorm.weight", f"{ours}.attention_norm.weight"),
        Rule(f"{layer}.input_layernorm.bias", f"{ours}.attention_norm.bias"),
        Rule(f"{layer}.self_attention.linear_qkv.layer_norm_weight", f"{ours}.attention_norm.weight", read_only=True),
        Rule(f"{layer}.self_attention.linear_qkv.layer_norm_bias", f"{ours}.attention_norm.bias", read_only=True),
        Rule(f"{layer}.self_attention.linear_qkv.weight", f"{ours}.attention.qkv.weight", qkv, cut=0),
        Rule(f"{layer}.self_attention.linear_qkv.bias", f"{ours}.attention.qkv.bias", qkv, cut=0),
        Rule(f"{layer}.self_attention.linear_proj.weight", f"{ours}.attention.out.weight", cut=1),
        Rule(f"{layer}.self_attention.linear_proj.bias", f"{ours}.attention.out.bias"),
        Rule(f"{layer}.pre_mlp_layernorm.weight", f"{ours}.mlp_norm.weight"),
        Rule(f"{layer}.pre_mlp_layernorm.bias", f"{ours}.mlp_norm.bias"),
        Rule(f"{layer}.mlp.linear_fc1.layer_norm_weight", f"{ours}.mlp_norm.weight", read_only=True),
        Rule(f"{layer}.mlp.linear_fc1.layer_norm_bias", f"{ours}.mlp_norm.bias", read_only=True),
        Rule(f"{layer}.mlp.linear_fc1.weight", f"{ours}.mlp.up.weight", cut=0),
        Rule(f"{layer}.mlp.linear_fc1.bias", f"{ours}.mlp.up.bias", cut=0),
        Rule(f"{layer}.mlp.linear_fc2.weight", f"{ours}.mlp.down.weight", cut=1),
        Rule(f"{layer}.mlp.linear_fc2.bias", f"{ours}.mlp.down.bias"),
        Rule(f"{trunk}.final_layernorm.weight", "encoder.final_norm.weight"),
        Rule(f"{trunk}.final_layernorm.bias", "encoder.final_norm.bias"),
        Rule("pooler.dense.weight", "sentence_order.pooler.weight"),
        Rule("pooler.dense.bias", "sentence_order.pooler.bias"),
        Rule("lm_head.dense.weight", "language_model.dense.weight"),
        Rule("lm_head.dense.bias", "language_model.dense.bias"),
        Rule("lm_head.layer_norm.weight", "language_model.norm.weight"),
        Rule("lm_head.layer_norm.bias", "language_model.norm.bias"),
        Rule("output_layer.bias", "language_model.vocabulary.bias", cut=0),
        Rule("output_layer.weight", None),  # a copy of the word embedding
        Rule("binary_head.weight", "sentence_order.out.weight"),
        Rule("binary_head.bias", "sentence_order.out.bias"),
    ]


@dataclass(frozen=True)
class Era:
    """One generation of names, told by a pattern that only its files have."""

    name: str
    evidence: re.Pattern[str]
    words: dict[str, str]
    is_core: bool = False

    def rules(self, qkv_layout: str) -> list[Rule]:
        """List the era's rules for a QKV layout."""
        op = QKV_LAYOUTS[qkv_layout]
        return core_rules(op, **self.words) if self.is_core else legacy_rules(op, **self.words)


ERAS = [
    Era(
        "v1.0 to v2.0",
        re.compile(r"language_model\.transformer\.layers\.\d+\.attention\."),
        {"trunk": "transformer", "attention": "attention", "norm": "layernorm"},
    ),
    Era(
        "v2.1 to v2.6",
        re.compile(r"language_model\.encoder\.layers\.\d+\.input_layernorm\."),
        {"trunk": "encoder", "attention": "self_attention", "norm": "layernorm"},
    ),
    Era(
        "core_v0.4, megatron.model",
        re.compile(r"language_model\.encoder\.layers\.\d+\.input_norm\."),
        {"trunk": "encoder", "attention": "self_attention", "norm": "norm"},
    ),
    Era("megatron.core BERT", re.compile(r"encoder\.layers\.\d+\."), {"trunk": "encoder"}, is_core=True),
    Era("megatron.core GPT", re.compile(r"decoder\.layers\.\d+\."), {"trunk": "decoder"}, is_core=True),
]

# Arguments whose other values mean a network that this package does not have.
REQUIRED_ARGUMENTS = {
    "swiglu": (False, None),
    "normalization": ("LayerNorm", None),
    "position_embedding_type": ("learned_absolute", None),
    "add_bias_linear": (True, None),
    "num_experts": (None, 0),
    "group_query_attention": (False, None),
    "squared_relu": (False, None),
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
    num_stages: int
    unknown_globals: frozenset[str] = field(default=frozenset())

    def has(self, part: str) -> bool:
        """Whether any tensor's name holds `part`."""
        return any(part in name for name in self.shards[0])


def find_ranks(path: Path) -> list[Path]:
    """List a checkpoint's files in rank order: a file alone, an iteration's folder, or a folder with a tracker."""
    if path.is_file():
        return [path]
    tracker = path / "latest_checkpointed_iteration.txt"
    if tracker.is_file():
        content = tracker.read_text(encoding="utf-8", errors="replace").strip()
        folder = path / (content if content == "release" else f"iter_{content:0>7}")
        if not (content == "release" or content.isdigit()) or not folder.is_dir():
            raise CheckpointError(
                f"{tracker} says {content[:40]!r}, but there is no folder {folder.name[:40]} beside it. "
                "Give the iteration's folder itself."
            )
        return find_ranks(folder)
    if re.fullmatch(r"mp_rank_\d{2}(_\d{3})?", path.name):
        return _weights_in(path)
    ranks = sorted(folder for folder in path.glob("mp_rank_*") if folder.is_dir())
    if ranks:
        return [file for folder in ranks for file in _weights_in(folder)]
    if (path / "release").is_dir():
        return find_ranks(path / "release")
    return _weights_in(path)


def _weights_in(folder: Path) -> list[Path]:
    for name in ("model_optim_rng.pt", "model_rng.pt", "MegatronBERT.pt", "model_weights.ckpt"):
        if (folder / name).is_file():
            return [folder / name]
    files = sorted(folder.glob("*.pt"))
    if len(files) == 1:
        return files
    raise CheckpointError(
        f"{folder} holds no checkpoint: expected model_optim_rng.pt, MegatronBERT.pt, mp_rank_* folders or "
        "latest_checkpointed_iteration.txt."
    )


def open_megatron(path: Path) -> MegatronFile:
    """Open a Megatron-LM checkpoint: all its shards, none of its tensors yet.

    Raises CheckpointError if a file cannot be read, a rank is missing, or the names are of no era known here.
    """
    files = find_ranks(path)
    opened = {_rank_of(file): open_file(file) for file in files}
    tensor_sizes = {tensor for tensor, _ in opened}
    stages = {stage for _, stage in opened}
    missing = [
        f"mp_rank_{tensor:02d}" + (f"_{stage:03d}" if max(stages) else "")
        for tensor in range(max(tensor_sizes) + 1)
        for stage in range(max(stages) + 1)
        if (tensor, stage) not in opened
    ]
    if missing:
        raise CheckpointError(f"{path} lacks {', '.join(missing)}: a checkpoint needs the files of all its ranks.")
    first = _top_level(opened[0, 0], files[0])
    arguments = _arguments(first.get("args"))
    _check_rank_count(path, arguments, len(tensor_sizes), len(stages))
    shards = [
        _join_stages([_model_of(opened[tensor, stage], path) for stage in sorted(stages)], path)
        for tensor in sorted(tensor_sizes)
    ]
    return MegatronFile(
        source=str(path),
        era=_find_era(shards[0], path),
        shards=shards,
        arguments=arguments,
        version=first.get("checkpoint_version"),
        iteration=first.get("iteration", first.get("total_iters")),
        num_stages=len(stages),
        unknown_globals=frozenset().union(*(file.unknown_globals for file in opened.values())),
    )


def _rank_of(file: Path) -> tuple[int, int]:
    found = re.fullmatch(r"mp_rank_(\d{2})(?:_(\d{3}))?", file.parent.name)
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


def _top_level(opened: Opened, file: Path) -> dict[str, Any]:
    if not isinstance(opened.content, dict):
        raise CheckpointError(f"{file} holds a {type(opened.content).__name__}, not a checkpoint's dictionary.")
    return opened.content


def _arguments(stored: Any) -> dict[str, Any]:
    state = stored.state if isinstance(stored, Record) else stored
    return {str(name): value for name, value in state.items()} if isinstance(state, dict) else {}


def _model_of(opened: Opened, path: Path) -> dict[str, LazyTensor]:
    content = _top_level(opened, path)
    if "model0" in content:
        raise CheckpointError(
            f"{path} was written with interleaved pipeline stages (model0, model1, ...), which this version does not "
            "join. Rewrite it with Megatron-LM without --num-layers-per-virtual-pipeline-stage."
        )
    flat = flatten(content.get("model", content.get("state_dict", content)))
    if not flat:
        raise CheckpointError(f"{path} holds no tensors under 'model'. Is it a model's checkpoint?")
    if not any(name.startswith(_PREFIXES) for name in flat):  # a file of the encoder alone
        flat = {f"language_model.{name}": tensor for name, tensor in flat.items()}
    return flat


_PREFIXES = ("language_model.", "embedding.word", "encoder.layers", "decoder.layers", "lm_head.")


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
        elif isinstance(value, LazyTensor):
            flat[re.sub(r"^(module\.)+", "", prefix)] = value
    return flat


def _join_stages(stages: Sequence[Mapping[str, LazyTensor]], path: Path) -> dict[str, LazyTensor]:
    """Number the layers of all pipeline stages through: each stage counts its own from 0."""
    joined: dict[str, LazyTensor] = {}
    offset = 0
    for stage in stages:
        numbers = {int(found[1]) for name in stage if (found := _LAYER.search(name))}
        if numbers != set(range(len(numbers))):
            raise CheckpointError(f"{path}: a pipeline stage holds layers {sorted(numbers)}; expected 0, 1, 2, ...")
        for name, tensor in stage.items():
            joined[_LAYER.sub(lambda found: f".layers.{int(found[1]) + offset}.", name)] = tensor  # noqa: B023
        offset += len(numbers)
    return joined


_LAYER = re.compile(r"\.layers\.(\d+)\.")


def _find_era(weights: Weights, path: Path) -> Era:
    for era in ERAS:
        if any(era.evidence.match(name) for name in weights):
            return era
    raise CheckpointError(
        f"{path}: its tensor names are of no Megatron-LM version known here, for example "
        f"{', '.join(sorted(weights)[:3])}."
    )


def find_qkv_layout(file: MegatronFile) -> tuple[str, str]:
    """Decide the order of the fused query-key-value rows; returns (layout, the evidence in words).

    Source: Megatron-LM commits 51a2e6b0ff (2020-09-11, [heads, 3, dim]), 7d4ad51e6e (2020-09-29, [heads, dim, 3]),
    a8d4781283 (version 1.0), 9b0083ea03 (version 2.0). Files written between the first and the third carry no
    version although their layout is not version 0's; their arguments date them.
    """
    if file.version is not None:
        layout = "3_heads_dim" if file.version < 1 else "heads_dim_3" if file.version < 2 else "heads_3_dim"
        return layout, f"checkpoint_version {file.version}"
    if "bias_gelu_fusion" not in file.arguments:
        return "3_heads_dim", "no checkpoint_version: version 0"
    if "old_checkpoint_format" in file.arguments:
        return "heads_dim_3", "no checkpoint_version, but arguments of late September 2020"
    return "heads_3_dim", "no checkpoint_version, but arguments of mid September 2020"


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
    weights = file.shards[0]
    layers = {int(found[1]) for name in weights if (found := _LAYER.search(name))}
    shape: dict[str, Any] = {"num_layers": len(layers)}
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
