"""Open NeMo 2's checkpoint folders: `weights/`, a distributed checkpoint, and `context/model.yaml`, its configuration.

The configuration holds the fields of megatron.core's TransformerConfig and of NeMo's BertConfig or GPTConfig; nothing
in it is imported or called. Source: https://github.com/NVIDIA/NeMo, v2.1.0, nemo/lightning/io/mixin.py and
nemo/collections/llm/{bert,gpt}/model/base.py.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...errors import CheckpointError
from ..files.lazy_tensor import open_regular
from ..files.torch_dist import is_torch_dist
from ..megatron.open_megatron import MegatronFile, open_distributed
from .open_nemo import read_yaml

_WEIGHTS, _CONTEXT, _CONFIG = "weights", "context", "model.yaml"


def find_nemo2(path: Path) -> Path | None:
    """Return the folder of a NeMo 2 checkpoint that a path refers to, itself or above `weights/`; else None."""
    folder = path.parent if path.name == _WEIGHTS else path
    return folder if path.is_dir() and (folder / _CONTEXT).is_dir() and _has_parts(folder) else None


def _has_parts(folder: Path) -> bool:
    return (folder / _WEIGHTS).is_dir() or any((folder / _CONTEXT / name).is_file() for name in ("io.json", _CONFIG))


def open_nemo2(folder: Path) -> MegatronFile:
    """Open a folder without reading its tensors. Raises CheckpointError that names the missing or unreadable part."""
    weights, config = folder / _WEIGHTS, folder / _CONTEXT / _CONFIG
    if not (weights.is_dir() and is_torch_dist(weights)):
        raise CheckpointError(f"{folder} is a checkpoint of NeMo 2, but {weights} holds no distributed checkpoint.")
    if not config.is_file():
        raise CheckpointError(
            f"{folder} is a checkpoint of NeMo 2, but its configuration {config} is missing (NeMo 2.0 wrote "
            "context/io.json alone, a program that is not read). Copy the fields of the model's config class into a "
            f"JSON file and give it with the weights: {weights}, moved elsewhere, and --bert_config FILE."
        )
    document = read_yaml(open_regular(config))
    values = document.get("config")
    if not isinstance(values, dict):
        raise CheckpointError(f"{config} has no mapping named config, the fields of the model's config class.")
    return replace(open_distributed(weights), arguments=_arguments(values), source=str(folder))


def _arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the fields to the arguments of Megatron-LM."""
    arguments = {str(name): value for name, value in config.items()}
    if "bias_activation_fusion" in arguments:
        arguments["bias_gelu_fusion"] = arguments.pop("bias_activation_fusion")
    # The sizes of the weights' own parts are in their metadata; these are of the training that is to come.
    for name in ("tensor_model_parallel_size", "pipeline_model_parallel_size"):
        arguments.pop(name, None)
    return arguments
