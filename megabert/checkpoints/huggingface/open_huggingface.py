"""Open Hugging Face's folders of `megatron-bert`, `bert` and `gpt2` architecture: names, configuration keys, weights.

Source: transformers' modeling_megatron_bert.py, modeling_bert.py and modeling_gpt2.py, and their configuration classes.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import CheckpointError, ConfigError
from ..files.containers import LazyTensor, looks_like_weights, open_file, open_files
from ..files.lazy_tensor import Readable
from ..mapping import CONV1D_QKV, QKV_LAYOUTS, SEPARATE_QKV, TRANSPOSED, Rule
from ..tensor_names import VOCABULARY_BIAS, WORD

_OURS = "encoder.layers.*"
_QKV = ("query", "key", "value")

# What both architectures share. The `bert.` in front is taken off before; headless files have none.
SHARED_RULES = [
    Rule("embeddings.word_embeddings.weight", "encoder.embeddings.word.weight"),
    Rule("embeddings.position_embeddings.weight", "encoder.embeddings.position.weight"),
    Rule("embeddings.token_type_embeddings.weight", "encoder.embeddings.segment.weight"),
    Rule("embeddings.position_ids", None),  # a buffer 0, 1, 2, ... of older versions
    Rule("embeddings.token_type_ids", None),
    *(
        Rule(
            tuple(f"encoder.layer.*.attention.self.{name}.{kind}" for name in _QKV),
            f"{_OURS}.attention.qkv.{kind}",
            SEPARATE_QKV,
        )
        for kind in ("weight", "bias")
    ),
    Rule("encoder.layer.*.attention.output.dense.weight", f"{_OURS}.attention.out.weight"),
    Rule("encoder.layer.*.attention.output.dense.bias", f"{_OURS}.attention.out.bias"),
    Rule("encoder.layer.*.intermediate.dense.weight", f"{_OURS}.mlp.up.weight"),
    Rule("encoder.layer.*.intermediate.dense.bias", f"{_OURS}.mlp.up.bias"),
    Rule("encoder.layer.*.output.dense.weight", f"{_OURS}.mlp.down.weight"),
    Rule("encoder.layer.*.output.dense.bias", f"{_OURS}.mlp.down.bias"),
    Rule("pooler.dense.weight", "sentence_order.pooler.weight"),
    Rule("pooler.dense.bias", "sentence_order.pooler.bias"),
    Rule("cls.predictions.transform.dense.weight", "language_model.dense.weight"),
    Rule("cls.predictions.transform.dense.bias", "language_model.dense.bias"),
    Rule("cls.predictions.transform.LayerNorm.weight", "language_model.norm.weight"),
    Rule("cls.predictions.transform.LayerNorm.bias", "language_model.norm.bias"),
    Rule("cls.predictions.transform.LayerNorm.gamma", "language_model.norm.weight", read_only=True),
    Rule("cls.predictions.transform.LayerNorm.beta", "language_model.norm.bias", read_only=True),
    Rule("cls.predictions.bias", "language_model.vocabulary.bias"),
    Rule("cls.predictions.decoder.weight", None, copy_of=WORD),
    Rule("cls.predictions.decoder.bias", None, copy_of=VOCABULARY_BIAS),
    Rule("cls.seq_relationship.weight", "sentence_order.out.weight"),
    Rule("cls.seq_relationship.bias", "sentence_order.out.bias"),
    # Heads of fine-tuned models: an encoder is read from them, its head is not.
    Rule("qa_outputs.*", None),
    Rule("classifier.*", None),
]

NORM_RULES = {
    "megatron-bert": [
        Rule("encoder.layer.*.attention.ln.*", f"{_OURS}.attention_norm.*"),
        Rule("encoder.layer.*.ln.*", f"{_OURS}.mlp_norm.*"),
        Rule("encoder.ln.*", "encoder.final_norm.*"),
    ],
    "bert": [
        rule
        for place, ours in (
            ("embeddings.LayerNorm", "encoder.embeddings.norm"),
            ("encoder.layer.*.attention.output.LayerNorm", f"{_OURS}.attention_norm"),
            ("encoder.layer.*.output.LayerNorm", f"{_OURS}.mlp_norm"),
        )
        for rule in (
            Rule(f"{place}.weight", f"{ours}.weight"),
            Rule(f"{place}.bias", f"{ours}.bias"),
            # The spelling of files converted from TensorFlow.
            Rule(f"{place}.gamma", f"{ours}.weight", read_only=True),
            Rule(f"{place}.beta", f"{ours}.bias", read_only=True),
        )
    ],
}

GPT2_RULES = [
    Rule("wte.weight", WORD),
    Rule("wpe.weight", "encoder.embeddings.position.weight"),
    Rule("h.*.ln_1.*", f"{_OURS}.attention_norm.*"),
    Rule("h.*.attn.c_attn.weight", f"{_OURS}.attention.qkv.weight", CONV1D_QKV),
    Rule("h.*.attn.c_attn.bias", f"{_OURS}.attention.qkv.bias", QKV_LAYOUTS["3_heads_dim"]),
    Rule("h.*.attn.c_proj.weight", f"{_OURS}.attention.out.weight", TRANSPOSED),
    Rule("h.*.attn.c_proj.bias", f"{_OURS}.attention.out.bias"),
    Rule("h.*.ln_2.*", f"{_OURS}.mlp_norm.*"),
    Rule("h.*.mlp.c_fc.weight", f"{_OURS}.mlp.up.weight", TRANSPOSED),
    Rule("h.*.mlp.c_fc.bias", f"{_OURS}.mlp.up.bias"),
    Rule("h.*.mlp.c_proj.weight", f"{_OURS}.mlp.down.weight", TRANSPOSED),
    Rule("h.*.mlp.c_proj.bias", f"{_OURS}.mlp.down.bias"),
    Rule("ln_f.*", "encoder.final_norm.*"),
    Rule("h.*.attn.bias", None),  # the causal mask, a buffer of older versions
    Rule("h.*.attn.masked_bias", None),
    Rule("lm_head.weight", None, copy_of=WORD),
]

BERT_KEYS = {
    "vocab_size": "vocabulary_size",
    "num_hidden_layers": "num_layers",
    "hidden_size": "hidden_size",
    "num_attention_heads": "num_heads",
    "intermediate_size": "ffn_size",
    "max_position_embeddings": "max_positions",
    "type_vocab_size": "num_segments",
    "layer_norm_eps": "norm_epsilon",
    "hidden_dropout_prob": "hidden_dropout",
    "attention_probs_dropout_prob": "attention_dropout",
}
GPT2_KEYS = {
    "vocab_size": "vocabulary_size",
    "n_layer": "num_layers",
    "n_embd": "hidden_size",
    "n_head": "num_heads",
    "n_inner": "ffn_size",
    "n_positions": "max_positions",
    "layer_norm_epsilon": "norm_epsilon",
    "resid_pdrop": "hidden_dropout",
    "attn_pdrop": "attention_dropout",
}
# Names of activations, by variant; the first of each is written. hidden_act "gelu" is the exact one.
GELUS = {
    "erf": ("gelu", "gelu_python"),
    "tanh": ("gelu_new", "gelu_fast", "gelu_pytorch_tanh", "gelu_python_tanh"),
}
# A key of ours in config.json: Megatron-LM's fused kernel is tanh's in the MLPs, and the head keeps erf.
HEAD_ACTIVATION = "head_hidden_act"
# Another: a network without segments, whose zeros stand there because transformers wants them.
NUM_SEGMENTS = "num_tokentypes"


@dataclass(frozen=True)
class HuggingFaceArchitecture:
    """One model_type: its table of names, its configuration's keys, and what they are where config.json is silent."""

    name: str
    rules: Sequence[Rule]
    prefix: str
    """In front of the names of the encoder in a model with heads."""
    config_keys: Mapping[str, str]
    activation_key: str
    defaults: Mapping[str, Any]
    norm_place: str
    is_causal: bool = False


_BERT_DEFAULTS = {"type_vocab_size": 2, "layer_norm_eps": 1e-12, "hidden_act": "gelu"}
ARCHITECTURES = {
    row.name: row
    for row in (
        HuggingFaceArchitecture(
            "megatron-bert",
            SHARED_RULES + NORM_RULES["megatron-bert"],
            "bert.",
            BERT_KEYS,
            "hidden_act",
            _BERT_DEFAULTS,
            "pre",
        ),
        # Not of transformers, so that no class of it loads such a folder and computes something else in silence.
        HuggingFaceArchitecture(
            "megatron-bert-residual-post-layernorm",
            SHARED_RULES + NORM_RULES["megatron-bert"],
            "bert.",
            BERT_KEYS,
            "hidden_act",
            _BERT_DEFAULTS,
            "pre_residual_normed",
        ),
        HuggingFaceArchitecture(
            "bert", SHARED_RULES + NORM_RULES["bert"], "bert.", BERT_KEYS, "hidden_act", _BERT_DEFAULTS, "post"
        ),
        HuggingFaceArchitecture(
            "gpt2",
            GPT2_RULES,
            "transformer.",
            GPT2_KEYS,
            "activation_function",
            {"layer_norm_epsilon": 1e-5, "activation_function": "gelu_new", "n_inner": None},
            "pre",
            is_causal=True,
        ),
    )
}
# Keys whose other values mean another network.
_REQUIRED = {
    "position_embedding_type": ("absolute", None),
    "is_decoder": (False, None),
    "add_cross_attention": (False, None),
    "tie_word_embeddings": (True, None),
    "scale_attn_weights": (True, None),
    "scale_attn_by_inverse_layer_idx": (False, None),
}
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class HuggingFaceFile:
    """Weights without their prefix, the shape of their network, and what was assumed."""

    source: str
    architecture: HuggingFaceArchitecture
    shape: dict[str, Any]
    weights: Mapping[str, Readable]
    container: str
    notes: Sequence[str]
    unknown_globals: frozenset[str] = field(default=frozenset())


def find_folder(path: Path) -> Path | None:
    """Find the folder of Hugging Face's layout that a path means: itself, or that of one of its weight files."""
    folder = path.parent if path.is_file() and _is_weight_file(path.name) else path
    if not (folder / "config.json").is_file():
        return None
    has_weights = any((folder / f"{kind}{end}").is_file() for kind in WEIGHT_FILES for end in ("", ".index.json"))
    return folder if has_weights or "model_type" in _read_json(folder / "config.json") else None


def _is_weight_file(name: str) -> bool:
    return re.fullmatch(r"(model|pytorch_model)(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?", name) is not None


def open_folder(folder: Path) -> HuggingFaceFile:
    """Open a folder. Raises CheckpointError if it is of another architecture, damaged or incomplete."""
    file = folder / "config.json"
    config = _read_json(file)
    name = config.get("model_type")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise CheckpointError(
            f"{file}: model_type is {name!r}; folders of {', '.join(ARCHITECTURES)} architecture can be read."
        )
    architecture = ARCHITECTURES[name]
    shape, notes = _shape_of(config, architecture, file)
    opened = _open_weights(folder)
    return HuggingFaceFile(
        source=str(folder),
        architecture=architecture,
        shape=shape,
        weights=_without_prefix(opened.weights),
        container=opened.kind,
        notes=notes,
        unknown_globals=opened.unknown_globals,
    )


def open_lone_file(file: Path) -> "_Weights | None":
    """Open a weight file that has Hugging Face's names, without a config.json; None if it has other names."""
    if not looks_like_weights(file) or len(opened := open_files(file)) > 1:
        return None
    content = opened.popitem()[1].content
    if not isinstance(content, dict) or _architecture_of(content) is None:
        return None
    return _tensors_in(file)


def without_config(opened: "_Weights", told: Mapping[str, Any], file: Path) -> HuggingFaceFile:
    """Take the network's shape from the tensors and from what the user says, `told`.

    Raises ConfigError where the number of attention heads is not said: nothing in the weights shows it.
    """
    weights = _without_prefix(opened.weights)
    architecture = _architecture_of(weights)
    assert architecture is not None, "open_lone_file has looked"
    if "num_heads" not in told:
        raise ConfigError(
            f"{file} comes without a config.json and does not say its number of attention heads. Give it: "
            "--bert_config FILE with num_attention_heads, or put the config.json beside it."
        )
    is_gpt2 = architecture.is_causal
    words, positions = ("wte", "wpe") if is_gpt2 else ("embeddings.word_embeddings", "embeddings.position_embeddings")
    up = "h.0.mlp.c_fc.bias" if is_gpt2 else "encoder.layer.0.intermediate.dense.bias"
    segments = weights.get("embeddings.token_type_embeddings.weight")
    try:
        sizes = {
            "vocabulary_size": weights[f"{words}.weight"].shape[0],
            "hidden_size": weights[f"{words}.weight"].shape[1],
            "max_positions": weights[f"{positions}.weight"].shape[0],
            "ffn_size": weights[up].shape[0],
            "num_segments": 0 if segments is None else segments.shape[0],
            "num_layers": len(
                {found[1] for name in weights if (found := re.match(r"(?:encoder\.layer|h)\.(\d+)\.", name))}
            ),
        }
    except (KeyError, IndexError) as error:
        raise CheckpointError(f"{file} is not a whole encoder: {error}.") from None
    gelu, epsilon = ("tanh", 1e-5) if is_gpt2 else ("erf", 1e-5 if architecture.norm_place == "pre" else 1e-12)
    shape = {
        **sizes,
        "num_heads": told["num_heads"],
        "gelu": told.get("gelu", gelu),
        "head_gelu": told.get("head_gelu", told.get("gelu", gelu)),
        "norm_epsilon": told.get("norm_epsilon", epsilon),
        "norm_place": told.get("norm_place", architecture.norm_place),
        "is_causal": architecture.is_causal,
    }
    assumed = [f"assumed without a config.json: gelu {shape['gelu']}, layer norm epsilon {shape['norm_epsilon']}"]
    return HuggingFaceFile(str(file), architecture, shape, weights, opened.kind, assumed, opened.unknown_globals)


def _architecture_of(names: Iterable[str]) -> HuggingFaceArchitecture | None:
    """Tell an architecture by names that only it has."""
    plain = {str(name).removeprefix("bert.").removeprefix("transformer.") for name in names}
    for name, evidence in (
        ("megatron-bert", "encoder.layer.0.attention.ln.weight"),
        ("bert", "encoder.layer.0.attention.output.LayerNorm.weight"),
        ("bert", "encoder.layer.0.attention.output.LayerNorm.gamma"),
        ("gpt2", "h.0.attn.c_attn.weight"),
    ):
        if evidence in plain:
            return ARCHITECTURES[name]
    return None


def _shape_of(
    config: dict[str, Any], architecture: HuggingFaceArchitecture, file: Path
) -> tuple[dict[str, Any], list[str]]:
    """Read what shapes the network from config.json; returns it and what was assumed."""
    config = {**architecture.defaults, **config}
    keys = architecture.config_keys
    missing = [key for key, ours in keys.items() if key not in config and not ours.endswith("_dropout")]
    if missing:
        raise CheckpointError(f"{file} lacks {', '.join(missing)}.")
    for key, allowed in _REQUIRED.items():
        if config.get(key, allowed[0]) not in allowed:
            raise CheckpointError(f"{file}: {key} is {config[key]!r}; only {allowed[0]!r} can be read.")
    gelu = _gelu(config, architecture.activation_key, file)
    shape = {ours: config[theirs] for theirs, ours in keys.items() if theirs in config}
    if shape["ffn_size"] is None:  # GPT-2 says so
        shape["ffn_size"] = 4 * shape["hidden_size"]
    shape["num_segments"] = config.get(NUM_SEGMENTS, shape.get("num_segments", 0))
    shape["gelu"] = gelu
    shape["head_gelu"] = _gelu(config, HEAD_ACTIVATION, file) if HEAD_ACTIVATION in config else gelu
    shape |= {"norm_place": architecture.norm_place, "is_causal": architecture.is_causal}
    notes = [f"gelu: {gelu}", f"layer norm epsilon: {shape['norm_epsilon']}"]
    if architecture.name == "megatron-bert" and shape["norm_epsilon"] == _BERT_DEFAULTS["layer_norm_eps"]:
        notes.append("(Megatron-LM trains with 1e-5; transformers' converter left its own default in config.json)")
    return shape, notes


def _gelu(config: Mapping[str, Any], key: str, file: Path) -> str:
    for variant, names in GELUS.items():
        if config[key] in names:
            return variant
    known = ", ".join(name for names in GELUS.values() for name in names)
    raise CheckpointError(f"{file}: {key} is {config[key]!r}; known are {known}.")


@dataclass(frozen=True)
class _Weights:
    """Named tensors of one file or several."""

    weights: dict[str, LazyTensor]
    kind: str
    unknown_globals: frozenset[str]


def _open_weights(path: Path) -> _Weights:
    """Open a folder's weights: one safetensors or bin file, or the shards that an index names."""
    for kind in WEIGHT_FILES:
        if (path / kind).is_file():
            return _tensors_in(path / kind)
        index = path / f"{kind}.index.json"
        if index.is_file():
            return _indexed(index)
    raise CheckpointError(f"{path} has a config.json, but neither model.safetensors nor pytorch_model.bin beside it.")


def _indexed(index: Path) -> _Weights:
    try:
        shards = {str(name): str(file) for name, file in _read_json(index)["weight_map"].items()}
    except (KeyError, AttributeError) as error:
        raise CheckpointError(f"{index} cannot be read as an index of shards: {error!r}") from None
    # A file name in an index chooses a file in this folder and nothing else.
    outside = [file for file in shards.values() if Path(file).name != file]
    if outside:
        raise CheckpointError(f"{index} names {outside[0][:80]!r}, which is not a file beside it.")
    opened = {file: _tensors_in(index.parent / file) for file in sorted(set(shards.values()))}
    lost = [name for name, file in shards.items() if name not in opened[file].weights]
    if lost:
        raise CheckpointError(f"{index} names {lost[0]}, which is not in {shards[lost[0]]}.")
    unnamed = [name for part in opened.values() for name in part.weights if name not in shards]
    if unnamed:
        raise CheckpointError(f"{index} does not name {unnamed[0]}, which is in one of its files.")
    return _Weights(
        {name: opened[file].weights[name] for name, file in shards.items()},
        f"{len(opened)} x {next(iter(opened.values())).kind}",
        frozenset().union(*(part.unknown_globals for part in opened.values())),
    )


def _tensors_in(file: Path) -> _Weights:
    opened = open_file(file)
    content = opened.content
    if not isinstance(content, dict) or not all(isinstance(item, LazyTensor) for item in content.values()):
        raise CheckpointError(f"{file} is not a flat dictionary of tensors, as Hugging Face's weights are.")
    return _Weights(content, opened.kind, opened.unknown_globals)


def _without_prefix(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    return {name.removeprefix("bert.").removeprefix("transformer."): tensor for name, tensor in tensors.items()}


def _read_json(file: Path) -> dict[str, Any]:
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} cannot be read as JSON: {error}") from None
    if not isinstance(document, dict):
        raise CheckpointError(f"{file} holds no JSON object.")
    return document


def read_lower_case(path: Path) -> bool | None:
    """Read do_lower_case from tokenizer_config.json; None where it is not said."""
    file = path / "tokenizer_config.json"
    value = _read_json(file).get("do_lower_case") if file.is_file() else None
    return value if isinstance(value, bool) else None
