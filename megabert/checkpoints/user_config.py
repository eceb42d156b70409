"""Read a user's configuration of a network (--bert_config), under the rules of a checkpoint's own config.json."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import CheckpointError, ConfigError
from .huggingface.huggingface_names import HEAD_ACTIVATION, find_gelu
from .megatron.megatron_arguments import INTERPRETED
from .network_arguments import check_arguments

# The keys by property of an EncoderConfig: names of NeMo, Megatron-LM and Hugging Face
_KEYS = {
    "num_layers": ("num_layers", "num_hidden_layers", "n_layer"),
    "hidden_size": ("hidden_size", "n_embd"),
    "num_heads": ("num_attention_heads", "n_head"),
    "ffn_size": ("ffn_hidden_size", "intermediate_size", "n_inner"),
    "max_positions": ("max_position_embeddings", "max_seq_length", "seq_length", "n_positions"),
    "num_segments": ("num_tokentypes", "type_vocab_size"),
    "norm_epsilon": ("layernorm_epsilon", "norm_epsilon", "layer_norm_eps", "layer_norm_epsilon"),
    "hidden_dropout": ("hidden_dropout", "hidden_dropout_prob"),
    "attention_dropout": ("attention_dropout", "attention_probs_dropout_prob"),
    **{name: (name,) for name in ("gelu", "head_gelu", "norm_place", "is_causal")},
}
_NAMES = {key: name for name, keys in _KEYS.items() for key in keys}
_ACTIVATIONS = ("hidden_act", "activation_function")


@dataclass(frozen=True)
class UserConfig:
    """What a user's configuration gives: properties of an EncoderConfig, and arguments of Megatron-LM.

    `activation` is Hugging Face's name of the GELU in MLPs and head, where there is one; `others` are keys without
    effect on the network.
    """

    source: str = ""
    shape: Mapping[str, Any] = field(default_factory=dict)
    activation: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    others: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def full_shape(self) -> dict[str, Any]:
        """The shape, with the GELU that `activation` names."""
        if self.activation is None:
            return dict(self.shape)
        gelu = find_gelu(self.activation, "hidden_act", self.source)
        return {"gelu": gelu, "head_gelu": gelu, **self.shape}


def _shape_of(plain: Mapping[str, Any], source: str) -> dict[str, Any]:
    shape: dict[str, Any] = {}
    for key, value in plain.items():
        name = _NAMES.get(key)
        if name is None or value is None:
            continue
        if name in shape and shape[name] != value:
            raise ConfigError(f"{source} gives {name} twice: {shape[name]} and {value}. Leave one out.")
        shape[name] = value
    return shape


def parse_user_config(config: Mapping[str, Any], source: str, *, ignored: Collection[str] = ()) -> UserConfig:
    """Check and sort the keys of a configuration.

    Raises CheckpointError for values that mean another network, ConfigError if two keys give one property twice.
    """
    if not config:
        return UserConfig(source)
    plain = {key.replace("-", "_"): value for key, value in config.items()}  # NeMo's files write max-seq-length
    shape = _shape_of(plain, source)
    activations = {key: plain[key] for key in (*_ACTIVATIONS, HEAD_ACTIVATION) if plain.get(key) is not None}
    for key, value in activations.items():
        find_gelu(value, key, source)
    if HEAD_ACTIVATION in activations:
        shape.setdefault("head_gelu", find_gelu(activations.pop(HEAD_ACTIVATION), HEAD_ACTIVATION, source))
    read = {*_NAMES, *_ACTIVATIONS, HEAD_ACTIVATION, *INTERPRETED}
    notes = check_arguments(plain, source, read=read, ignored=ignored)
    arguments = {key: plain[key] for key in INTERPRETED if key in plain and key not in _NAMES}
    others = tuple(key for key in config if key.replace("-", "_") not in read)
    return UserConfig(source, shape, next(iter(activations.values()), None), arguments, others, tuple(notes))


def merge_arguments(user: UserConfig, arguments: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Add the user's arguments of Megatron-LM to a file's. Raises CheckpointError where they differ."""
    for name, value in user.arguments.items():
        if name in arguments and arguments[name] != value:
            raise CheckpointError(
                f"{source} has {name}={arguments[name]!r}, but {user.source} has {value!r}. Leave it out of the latter."
            )
    return {**user.arguments, **arguments}
