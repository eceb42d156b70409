"""Add the parts that the loaders of Megatron-LM and NeMo expect and a network lacks, and drop them again on reading.

BERT's loaders need a language-model head, and segments exactly where there is a sentence-order head: `num_tokentypes`
is 2 if `bert_binary_head` and 0 otherwise. Zeros (ones for the norm) compute constant logits; the arguments list them
under a key of megabert's own. Source: Megatron-LM v2.6, pretrain_bert.py and megatron/model/bert_model.py;
core_v0.9.0, pretrain_bert.py; NeMo r1.23.0, megatron_bert_model.py.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch

from ...errors import ConfigError
from ...model.config import EncoderConfig
from ..files.lazy_tensor import Readable, in_memory
from ..tensor_names import SEGMENT, WORD, head_shapes

KEY = "megabert_untrained"
_NUM_SEGMENTS = 2


def add_untrained_parts(
    tensors: Mapping[str, Readable], config: EncoderConfig
) -> tuple[dict[str, Readable], EncoderConfig, list[str]]:
    """Return the tensors and the configuration with the missing parts, and the names of the tensors added.

    Raises ConfigError for a network that Megatron-LM's code cannot build.
    """
    if config.is_causal:
        if config.num_segments:
            raise ConfigError("Megatron-LM's GPT has no segments; this causal network has. Convert it to megabert.")
        return dict(tensors), config, []
    if config.num_segments not in (0, _NUM_SEGMENTS):
        raise ConfigError(
            f"Megatron-LM's and NeMo's BERT have {_NUM_SEGMENTS} segments or none; this network has "
            f"{config.num_segments}. Convert it to huggingface or megabert."
        )
    shapes = head_shapes(config)
    expected = dict(shapes["language-model head"])
    order = shapes["pooler"] | shapes["sentence-order head"]
    if config.num_segments or any(name in tensors for name in order):
        expected |= order
        expected[SEGMENT] = (_NUM_SEGMENTS, config.hidden_size)
        config = replace(config, num_segments=_NUM_SEGMENTS)
    added = {name: shape for name, shape in expected.items() if name not in tensors}
    if "language_model.dense.weight" in added:
        config = replace(config, head_gelu="erf")
    dtype = tensors[WORD].dtype
    filled = {name: in_memory(torch.full(shape, _initial(name), dtype=dtype)) for name, shape in added.items()}
    return {**tensors, **filled}, config, sorted(added)


def _initial(name: str) -> float:
    return 1.0 if name.endswith("norm.weight") else 0.0


def drop_untrained_parts(tensors: Mapping[str, Readable], arguments: Mapping[str, Any]) -> dict[str, Readable]:
    """Return the tensors without those that megabert added and no training has changed since."""
    listed = arguments.get(KEY)
    names = {str(name) for name in listed if name in tensors} if isinstance(listed, list) else set()
    optional = {name for name in names if not name.startswith("encoder.") or name == SEGMENT}
    untrained = {name for name in optional if bool((tensors[name].read() == _initial(name)).all())}
    return {name: item for name, item in tensors.items() if name not in untrained}


def note_untrained_parts(added: Iterable[str], reader: str) -> list[str]:
    """Describe the added parts for the user."""
    parts = {"language_model": "language-model head", "sentence_order": "sentence-order head", "encoder": "segments"}
    shown = [what for part, what in parts.items() if any(name.startswith(f"{part}.") for name in added)]
    if not shown:
        return []
    return [
        f"the source has no {' and no '.join(shown)}, which {reader} expects: written as zeros, untrained. Its vectors "
        "are the source's."
    ]
