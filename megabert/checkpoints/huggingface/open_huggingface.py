"""Open Hugging Face's folders and lone weight files of `megatron-bert`, `bert` and `gpt2` architecture.

Returns lazy tensors under transformers' names without their prefix, the shape of the network, and the assumptions.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import CheckpointError, ConfigError
from ...json_documents import read_json_object
from ..files.lazy_tensor import Readable
from ..files.weight_files import LazyTensor, looks_like_weights, open_file, open_files
from ..network_arguments import check_arguments, unread_keys
from ..other_formats import name_other_folder, refuse_other_content
from ..tensor_names import rename, without_wrappers
from .huggingface_names import ARCHITECTURES, HEAD_ACTIVATION, NUM_SEGMENTS, HuggingFaceArchitecture, find_gelu

_WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
_WEIGHT_FILE = re.compile(r"(model|pytorch_model)(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?")
_FIRST_TENSOR = re.compile(r"((?:.*\.)?)(?:embeddings\.word_embeddings|wte)\.weight")
SUFFIXES = (".safetensors", ".bin", ".ckpt", ".pt", ".pth")
# Files that trainers write beside the weights
NO_WEIGHTS = re.compile(r"(training_args|optimizer|scheduler|scaler|rng_state|random_states|openvino_model)")
_STATES = ("state_dict", "model_state_dict", "model")


@dataclass(frozen=True)
class HuggingFaceFile:
    """An open checkpoint: weights without their prefix, the shape of the network, and the assumptions."""

    source: str
    architecture: HuggingFaceArchitecture
    shape: dict[str, Any]
    weights: Mapping[str, Readable]
    container: str
    notes: Sequence[str]
    unknown_globals: frozenset[str] = field(default=frozenset())
    config: Mapping[str, Any] = field(default_factory=dict)
    """config.json; empty without one."""


@dataclass(frozen=True)
class _NamedWeights:
    """The tensors of one weight file or several."""

    tensors: dict[str, LazyTensor]
    kind: str
    unknown_globals: frozenset[str]


def find_folder(path: Path) -> Path | None:
    """Return the Hugging Face folder that a path refers to: itself, or the folder of a weight file; else None."""
    folder = path.parent if path.is_file() and _WEIGHT_FILE.fullmatch(path.name) else path
    if not (folder / "config.json").is_file():
        return None
    has_weights = any((folder / f"{name}{end}").is_file() for name in _WEIGHT_FILES for end in ("", ".index.json"))
    return folder if has_weights or "model_type" in read_json_object(folder / "config.json") else None


def open_huggingface(folder: Path, ignored: Collection[str] = ()) -> HuggingFaceFile:
    """Open a folder. Raises CheckpointError if its architecture is not supported, or if it is damaged or incomplete.

    `ignored` are keys of config.json that the user declares to have no effect.
    """
    file = folder / "config.json"
    config = read_json_object(file)
    name = config.get("model_type")
    if "model_type" in config and (not isinstance(name, str) or name not in ARCHITECTURES):
        raise _no_architecture(file, name)
    if config.get("quantization_config"):
        raise CheckpointError(
            f"{file} has a quantization_config: the weights are no floating-point numbers. Save them as such (in "
            "transformers: model.dequantize().save_pretrained(FOLDER)), and give that folder."
        )
    weights = _open_weights(folder)
    architecture = ARCHITECTURES[name] if name is not None else _architecture_of(weights.tensors)
    if architecture is None:
        raise _no_architecture(file, name)
    tensors = _without_prefix(weights.tensors, folder)
    # An output of its own is compared with the embedding; without a language-model head there is none.
    has_head = any(item.startswith("cls.predictions.") for item in tensors) or architecture.is_causal
    needs_tie = has_head and not {"cls.predictions.decoder.weight", "lm_head.weight"} & tensors.keys()
    stated = {key: value for key, value in config.items() if needs_tie or key != "tie_word_embeddings"}
    shape, notes = _shape_of(stated, architecture, file, ignored)
    if name is None:
        notes.append(f"model_type is not stated: {architecture.name}, by the names of the tensors")
    return HuggingFaceFile(
        str(folder), architecture, shape, tensors, weights.kind, notes, weights.unknown_globals, config
    )


def _no_architecture(file: Path, name: object) -> CheckpointError:
    known = ", ".join(ARCHITECTURES)
    return CheckpointError(f"{file}: model_type is {name!r:.60}; folders of {known} architecture can be read.")


def open_lone_file(file: Path, user_config: Mapping[str, Any]) -> HuggingFaceFile | None:
    """Open a weight file with transformers' tensor names but no config.json; None if it has other names.

    The shape of the network comes from the tensors and from the user's configuration.
    Raises ConfigError if that lacks the number of attention heads, which the weights do not show.
    """
    if not looks_like_weights(file) or len(opened := open_files(file)) > 1:
        return None
    content = _state_of(opened.popitem()[1].content, file)
    architecture = _architecture_of(content) if isinstance(content, dict) else None
    if architecture is None:
        return None
    if "num_heads" not in user_config:
        raise ConfigError(
            f"{file} comes without a config.json and does not hold its number of attention heads. Give it: "
            "--bert_config FILE with num_attention_heads, or put the config.json beside it."
        )
    weights = _tensors_of(file)
    tensors = _without_prefix(weights.tensors, file)
    is_post_norm = architecture.norm_place == "post"
    gelu = user_config.get("gelu", "tanh" if architecture.is_causal else "erf")
    shape = {
        **_sizes_of(tensors, architecture, file),
        "num_heads": user_config["num_heads"],
        "gelu": gelu,
        "head_gelu": user_config.get("head_gelu", gelu),
        "norm_epsilon": user_config.get("norm_epsilon", 1e-12 if is_post_norm else 1e-5),
        "norm_place": user_config.get("norm_place", architecture.norm_place),
        "is_causal": architecture.is_causal,
    }
    notes = [f"assumed without a config.json: gelu {shape['gelu']}, layer norm epsilon {shape['norm_epsilon']}"]
    return HuggingFaceFile(str(file), architecture, shape, tensors, weights.kind, notes, weights.unknown_globals)


def _architecture_of(names: Iterable[str]) -> HuggingFaceArchitecture | None:
    """Detect an architecture by a name that only it has."""
    plain = set(_plain_names([str(name) for name in names]).values())
    for architecture, evidence in (
        ("megatron-bert", "encoder.layer.0.attention.ln.weight"),
        ("bert", "encoder.layer.0.attention.output.LayerNorm.weight"),
        ("bert", "encoder.layer.0.attention.output.LayerNorm.gamma"),
        ("gpt2", "h.0.attn.c_attn.weight"),
    ):
        if evidence in plain:
            return ARCHITECTURES[architecture]
    return None


def _sizes_of(tensors: Mapping[str, LazyTensor], architecture: HuggingFaceArchitecture, file: Path) -> dict[str, int]:
    words, positions, up = (
        ("wte", "wpe", "h.0.mlp.c_fc")
        if architecture.is_causal
        else ("embeddings.word_embeddings", "embeddings.position_embeddings", "encoder.layer.0.intermediate.dense")
    )
    segments = tensors.get("embeddings.token_type_embeddings.weight")
    layers = {match[1] for name in tensors if (match := re.match(r"(?:encoder\.layer|h)\.(\d+)\.", name))}
    try:
        return {
            "vocabulary_size": tensors[f"{words}.weight"].shape[0],
            "hidden_size": tensors[f"{words}.weight"].shape[1],
            "max_positions": tensors[f"{positions}.weight"].shape[0],
            "ffn_size": tensors[f"{up}.bias"].shape[0],
            "num_segments": 0 if segments is None else segments.shape[0],
            "num_layers": len(layers),
        }
    except (KeyError, IndexError) as error:
        raise CheckpointError(f"{file} is not a complete encoder: {error}.") from None


def _shape_of(
    config: dict[str, Any], architecture: HuggingFaceArchitecture, file: Path, ignored: Collection[str]
) -> tuple[dict[str, Any], list[str]]:
    """Read the shape of the network from config.json; returns it and the assumptions."""
    config = {**architecture.defaults, **config}
    keys = architecture.config_keys
    missing = [key for key, name in keys.items() if key not in config and not name.endswith("_dropout")]
    if missing:
        raise CheckpointError(f"{file} lacks {', '.join(missing)}.")
    read = {*keys, architecture.activation_key, HEAD_ACTIVATION, NUM_SEGMENTS}
    unread = unread_keys(config, {*read, *ignored})
    stated = {key: value for key, value in config.items() if key not in unread}
    notes = check_arguments(stated, str(file), read=read, ignored=ignored)
    notes += [f"not read, as by transformers: {', '.join(unread)} of config.json"] if unread else []
    gelu = find_gelu(config[architecture.activation_key], architecture.activation_key, str(file))
    shape = {name: config[key] for key, name in keys.items() if key in config}
    if shape["ffn_size"] is None:  # GPT-2's default
        shape["ffn_size"] = 4 * shape["hidden_size"]
    shape["num_segments"] = config.get(NUM_SEGMENTS, shape.get("num_segments", 0))
    shape["gelu"] = gelu
    has_own = HEAD_ACTIVATION in config
    shape["head_gelu"] = find_gelu(config[HEAD_ACTIVATION], HEAD_ACTIVATION, str(file)) if has_own else gelu
    shape |= {"norm_place": architecture.norm_place, "is_causal": architecture.is_causal}
    notes += [f"gelu: {gelu}", f"layer norm epsilon: {shape['norm_epsilon']}"]
    if architecture.name == "megatron-bert" and shape["norm_epsilon"] == architecture.defaults["layer_norm_eps"]:
        notes.append("(Megatron-LM trains with 1e-5; transformers' converter left its own default in config.json)")
    return shape, notes


def _open_weights(folder: Path) -> _NamedWeights:
    """Open a folder's weights: one safetensors or bin file, or the shards of an index."""
    for name in _WEIGHT_FILES:
        if (folder / name).is_file():
            return _tensors_of(folder / name)
        index = folder / f"{name}.index.json"
        if index.is_file():
            return _open_shards(index)
    files = [
        file for file in sorted(folder.iterdir()) if file.suffix in SUFFIXES and NO_WEIGHTS.match(file.name) is None
    ]
    if len(files) == 1:  # of another name, such as model.fp16.safetensors or last.ckpt
        return _tensors_of(files[0])
    several = f" Of {', '.join(file.name for file in files[:6])} give one that name." if files else ""
    raise CheckpointError(
        name_other_folder(folder)
        or f"{folder} has a config.json, but neither model.safetensors nor pytorch_model.bin beside it.{several}"
    )


def _open_shards(index: Path) -> _NamedWeights:
    file_of = read_json_object(index).get("weight_map")
    if not isinstance(file_of, dict) or not file_of or not all(isinstance(file, str) for file in file_of.values()):
        raise CheckpointError(f"{index} has no weight_map from names to files, so it is no index of shards.")
    # A file name in an index may only select a file of this folder.
    outside = [file for file in file_of.values() if Path(file).name != file]
    if outside:
        raise CheckpointError(f"{index} names {outside[0][:80]!r}, which is not a file beside it.")
    shards = {file: _tensors_of(index.parent / file) for file in sorted(set(file_of.values()))}
    missing = [name for name, file in file_of.items() if name not in shards[file].tensors]
    if missing:
        raise CheckpointError(f"{index} names {missing[0]}, which is not in {file_of[missing[0]]}.")
    unlisted = [name for shard in shards.values() for name in shard.tensors if name not in file_of]
    if unlisted:
        raise CheckpointError(f"{index} does not name {unlisted[0]}, which is in one of its files.")
    return _NamedWeights(
        {name: shards[file].tensors[name] for name, file in file_of.items()},
        f"{len(shards)} x {next(iter(shards.values())).kind}",
        frozenset().union(*(shard.unknown_globals for shard in shards.values())),
    )


def _tensors_of(file: Path) -> _NamedWeights:
    opened = open_file(file)
    content = _state_of(opened.content, file)
    if not isinstance(content, dict) or not all(isinstance(item, LazyTensor) for item in content.values()):
        raise CheckpointError(f"{file} is not a flat dictionary of tensors, as Hugging Face's weights are.")
    return _NamedWeights(content, opened.kind, opened.unknown_globals)


def _state_of(content: object, file: Path) -> object:
    """Return the tensors that a trainer (such as Lightning) saved beside its own state; else the content itself."""
    if not isinstance(content, dict):
        return content
    refuse_other_content(content, str(file))
    return next((content[key] for key in _STATES if isinstance(content.get(key), dict)), content)


def _plain_names(names: Sequence[str]) -> dict[str, str]:
    """Map names to those without what comes before the network's own, where one network is among them."""
    inside = {name: without_wrappers(name) for name in names}
    starts = {match[1] for name in inside.values() if (match := _FIRST_TENSOR.fullmatch(name)) is not None}
    start = starts.pop() if len(starts) == 1 else ""
    outer = re.sub(r"(bert|transformer)\.$", "", start)  # heads stand beside the encoder, in `outer`
    return {
        name: plain.removeprefix(outer).removeprefix("bert.").removeprefix("transformer.")
        for name, plain in inside.items()
    }


def _without_prefix(tensors: Mapping[str, LazyTensor], source: Path) -> dict[str, LazyTensor]:
    plain = _plain_names(list(tensors))
    return rename(tensors, plain.__getitem__, str(source))
