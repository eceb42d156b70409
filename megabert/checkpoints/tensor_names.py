"""megabert's tensor names and shapes for an `EncoderConfig`, and a check that a checkpoint has exactly these.

A checkpoint must hold the complete encoder, and each head either completely or not at all.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

from torch import Tensor

from ..errors import CheckpointError
from ..model.config import EncoderConfig
from .files.lazy_tensor import Readable

WORD = "encoder.embeddings.word.weight"
POSITION = "encoder.embeddings.position.weight"
SEGMENT = "encoder.embeddings.segment.weight"
VOCABULARY_BIAS = "language_model.vocabulary.bias"
PER_TOKEN = (WORD, VOCABULARY_BIAS)

Shape = tuple[int, ...]
Item = TypeVar("Item")

# What torch.compile, FSDP and activation checkpointing insert into names
_INSERTED = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")


def without_wrappers(name: str) -> str:
    """Remove what wrappers of modules add to a tensor's name: leading `module.`, `_orig_mod.` and the like."""
    return re.sub(r"^(module\.)+", "", _INSERTED.sub("", name))


def rename(tensors: Mapping[str, Item], new_name: Callable[[str], str], source: str) -> dict[str, Item]:
    """Rename tensors. Raises CheckpointError if two get the same name."""
    renamed: dict[str, Item] = {}
    for name, item in tensors.items():
        if new_name(name) in renamed:
            raise CheckpointError(f"{source} holds {new_name(name)} twice, once as {name}. Remove the wrong one.")
        renamed[new_name(name)] = item
    return renamed


def encoder_shapes(config: EncoderConfig) -> dict[str, Shape]:
    """Return the names and shapes of an encoder's tensors."""
    hidden, ffn = config.hidden_size, config.ffn_size
    shapes: dict[str, Shape] = {WORD: (config.vocabulary_size, hidden), POSITION: (config.max_positions, hidden)}
    if config.num_segments:
        shapes[SEGMENT] = (config.num_segments, hidden)
    if config.is_post_norm:
        shapes |= _norm("encoder.embeddings.norm", hidden)
    for number in range(config.num_layers):
        layer = f"encoder.layers.{number}"
        shapes |= _norm(f"{layer}.attention_norm", hidden)
        shapes |= _linear(f"{layer}.attention.qkv", hidden, 3 * hidden)
        shapes |= _linear(f"{layer}.attention.out", hidden, hidden)
        shapes |= _norm(f"{layer}.mlp_norm", hidden)
        shapes |= _linear(f"{layer}.mlp.up", hidden, ffn)
        shapes |= _linear(f"{layer}.mlp.down", ffn, hidden)
    if not config.is_post_norm:
        shapes |= _norm("encoder.final_norm", hidden)
    return shapes


def head_shapes(config: EncoderConfig) -> dict[str, dict[str, Shape]]:
    """Return the names and shapes of the pre-training heads' tensors, by head."""
    hidden = config.hidden_size
    heads = {
        "pooler": _linear("sentence_order.pooler", hidden, hidden),
        "sentence-order head": _linear("sentence_order.out", hidden, 2),
    }
    if not config.is_causal:
        heads["language-model head"] = {
            **_linear("language_model.dense", hidden, hidden),
            **_norm("language_model.norm", hidden),
            VOCABULARY_BIAS: (config.vocabulary_size,),
        }
    return heads


def find_heads(tensors: Mapping[str, object], config: EncoderConfig) -> list[str]:
    """Return the heads in a checkpoint. The language-model head of a causal network is its embedding, always there."""
    heads = [name for name, head in head_shapes(config).items() if any(tensor in tensors for tensor in head)]
    return ["language-model head", *heads] if config.is_causal else heads


def check_tensors(tensors: Mapping[str, Readable | Tensor], config: EncoderConfig, source: str) -> None:
    """Raise CheckpointError that lists missing tensors, unexpected ones, and those of another shape."""
    for name, (count, shown) in _counts(tensors).items():
        if getattr(config, name) != count:
            raise CheckpointError(
                f"{source}: its configuration has {name} {getattr(config, name)}, its tensors {count}{shown}."
            )
    expected = encoder_shapes(config)
    for head in head_shapes(config).values():
        if any(name in tensors for name in head):
            expected |= head
    problems = list(_problems(tensors, expected))
    if problems:
        shown = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
        raise CheckpointError(f"{source} is not a complete network of {config.num_layers} layers: {shown}.")


def _counts(tensors: Mapping[str, Readable | Tensor]) -> dict[str, tuple[int, str]]:
    """Read the sizes from the tensors, so that a wrong one is reported as one number instead of 300 names."""
    up = "encoder.layers.0.mlp.up.weight"
    counts = {
        "hidden_size": (WORD, 1),
        "ffn_size": (up, 0),
        "max_positions": (POSITION, 0),
        "vocabulary_size": (WORD, 0),
    }
    sizes = {
        key: (tensors[name].shape[dim], f" ({name} is {_dims(tensors, name)})")
        for key, (name, dim) in counts.items()
        if len(_dims(tensors, name)) == 2
    }
    num_layers = len({name.split(".")[2] for name in tensors if name.startswith("encoder.layers.")})
    return sizes | {"num_layers": (num_layers, "")}


def _dims(tensors: Mapping[str, Readable | Tensor], name: str) -> Shape:
    return tuple(tensors[name].shape) if name in tensors else ()


def _problems(tensors: Mapping[str, Readable | Tensor], expected: Mapping[str, Shape]) -> Iterator[str]:
    for name, shape in expected.items():
        if name not in tensors:
            yield f"{name} is missing"
        elif tuple(tensors[name].shape) != shape:
            yield f"{name} is {tuple(tensors[name].shape)}, expected {shape}"
    for name in tensors:
        if name not in expected:
            yield f"{name} is unexpected"


def _linear(name: str, num_inputs: int, num_outputs: int) -> dict[str, Shape]:
    return {f"{name}.weight": (num_outputs, num_inputs), f"{name}.bias": (num_outputs,)}


def _norm(name: str, size: int) -> dict[str, Shape]:
    return {f"{name}.weight": (size,), f"{name}.bias": (size,)}
