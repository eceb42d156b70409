"""A network with fewer layers: a student of a run, or the first layers of a checkpoint."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ...errors import ConfigError
from ..files.lazy_tensor import Readable
from .run_checkpoints import Contents


def kept_layers(num_layers: int, count: int) -> list[int]:
    """Choose layers evenly, the first and the last included: six of 12 are 0, 2, 4, 7, 9, 11.

    Source: DistilBERT, arXiv:1910.01108.
    """
    return [round(number * (num_layers - 1) / max(count - 1, 1)) for number in range(count)]


def first_layers(tensors: Mapping[str, Readable], num_layers: int, count: int, source: str) -> dict[str, Readable]:
    """Keep a checkpoint's first layers, the others being dropped. Raises ConfigError where it has not so many.

    Source: Sajjad et al., On the effect of dropping layers of pre-trained transformer models, arXiv:2004.03844.
    """
    if not 0 < count <= num_layers:
        raise ConfigError(
            f"model.language_model.first_layers={count}: {source} has {num_layers}. Give fewer, at least 1."
        )
    dropped = tuple(f"encoder.layers.{number}." for number in range(count, num_layers))
    return {name: item for name, item in tensors.items() if not name.startswith(dropped)}


def with_fewer_layers(contents: Contents, shape: Mapping[str, Any], count: int, source: str) -> tuple[Contents, str]:
    """Keep so many layers of a run's network; also returns a note. Raises ConfigError where it has not so many."""
    if not 0 < count <= shape["num_layers"]:
        raise ConfigError(
            f"model.distillation.student_layers={count}: the teacher has {shape['num_layers']}. Give fewer, at least 1."
        )
    if "adapter" in contents.documents:
        raise ConfigError(f"{source} has adapters. Merge them first: megabert merge {source} -o FOLDER.")
    numbers, tensors = kept_layers(shape["num_layers"], count), contents.tensors["model"]
    kept = {name: item for name, item in tensors.items() if not name.startswith("encoder.layers.")}
    for new, old in enumerate(numbers):
        prefix = f"encoder.layers.{old}."
        own = {name.removeprefix(prefix): item for name, item in tensors.items() if name.startswith(prefix)}
        kept |= {f"encoder.layers.{new}.{name}": item for name, item in own.items()}
    documents = {**contents.documents, "encoder": {**shape, "num_layers": count}}
    note = f"Starting from layers {', '.join(str(number + 1) for number in numbers)} of {source}."
    return replace(contents, tensors={"model": kept}, documents=documents), note
