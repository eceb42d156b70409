"""Adapters of a task's model: add them by the settings, record them in a run, find their frozen base again.

A run with adapters holds the adapters, the head and a digest of the base; the base is loaded from where the settings
name it.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .checkpoints.files.lazy_tensor import Readable
from .checkpoints.native import run_checkpoints
from .checkpoints.tensor_names import check_tensors
from .config.parser import compose
from .config.schema import PeftSettings, Settings, TrainerSettings
from .errors import CheckpointError, ConfigError
from .model.config import EncoderConfig
from .model.encoder import Encoder
from .model.heads import TaskModel
from .model.lora import LoraConfig, add_lora, base_digest, find_targets, frozen_base, initialize_lora, lora_config
from .model.precision import DTYPES, resolve_precision
from .weights import ENCODER_STREAM, initialize_weights, load_weights, new_encoder

if TYPE_CHECKING:
    from .checkpoints.huggingface.peft_adapter import PeftAdapter

ADAPTER_STREAM = 3
ADAPTER = "adapter"  # the document of a checkpoint


@dataclass(frozen=True)
class Placement:
    """Where an encoder's weights are allocated, and their dtype."""

    dtype: torch.dtype = torch.float32
    device: str = "cpu"


def base_placement(
    peft: PeftSettings, trainer: TrainerSettings, device: torch.device, *, is_whole: bool = True
) -> Placement:
    """Resolve where the encoder of a training is loaded: a frozen base at once at the precision of the training.

    A process that has the whole base, be it until FSDP shards it, needs no copy of it in host memory.
    """
    if peft.peft_scheme is None:
        return Placement()
    precision = resolve_precision(trainer.precision, device)
    return Placement(DTYPES[precision], str(device) if is_whole else "cpu")


def adapt(model: TaskModel, peft: PeftSettings, seed: int, *, task: str) -> None:
    """Add the adapters that the settings describe; a model that has some, of a run, keeps them.

    Raises ConfigError where the two differ.
    """
    lora = peft.lora_tuning
    config = LoraConfig(lora.adapter_dim, lora.alpha, lora.adapter_dropout, lora.rank_stabilized)
    present = lora_config(model)
    if peft.peft_scheme is None:
        if present is not None:
            raise ConfigError(
                "The run to start from has adapters. Train them on with model.peft.peft_scheme=lora, or merge them "
                "into its weights first: megabert merge RUN -o FOLDER."
            )
        return
    if present is not None:
        if peft.restore_from_path is None and present != config:
            raise ConfigError(f"The run's adapters are {present}, the settings' {config}. They do not change.")
        return
    if peft.restore_from_path is not None:
        from .checkpoints.huggingface.peft_adapter import open_peft

        load_peft(model, open_peft(Path(peft.restore_from_path), model.encoder.config, task=task))
        return
    add_lora(model.encoder, dict.fromkeys(find_targets(model.encoder, lora.target_modules), lora.adapter_dim), config)
    initialize_lora(model.encoder, torch.Generator().manual_seed(seed * 8 + ADAPTER_STREAM))


def load_peft(model: TaskModel, adapter: "PeftAdapter") -> None:
    """Add the adapters of a folder in PEFT's format, and its head where it has one."""
    ranks = {name: len(a) for name, (a, _) in adapter.matrices.items()}
    add_lora(model.encoder, ranks, LoraConfig(**adapter.config))
    tensors = {
        f"encoder.{name}.{part}": item
        for name, pair in adapter.matrices.items()
        for part, item in zip(("lora_a", "lora_b"), pair, strict=True)
    }
    head = {name for name, _ in model.named_parameters() if name.startswith("head.")}
    load_weights(
        model, {**tensors, **adapter.head}, adapter.source, frozen_base(model) | (set() if adapter.head else head)
    )


def adapter_document(model: TaskModel) -> dict[str, Any]:
    """Return the document of a checkpoint with adapters; without them nothing."""
    config = lora_config(model)
    if config is None:
        return {}
    return {ADAPTER: config.to_document() | {"scheme": "lora", "base_sha256": base_digest(model.encoder)}}


def _check_base(model: TaskModel, expected: Any, settings: Settings, folder: Path) -> None:
    digest = base_digest(model.encoder)
    if digest != expected:
        raise CheckpointError(
            f"{folder}: its adapters were trained on a base with the digest {str(expected)[:16]}; that of the settings "
            f"({_describe(settings)}) has {digest[:16]}. Give the base that it was trained on: "
            "model.language_model.pretrained_model_name=NAME_OR_PATH."
        )


def add_stored(model: TaskModel, contents: run_checkpoints.Contents, settings: Settings, folder: Path) -> None:
    """Check the base under the adapters of a run, and add the adapters, whose weights are loaded later."""
    config = LoraConfig.from_document(contents.documents[ADAPTER], str(folder))
    _check_base(model, contents.documents[ADAPTER].get("base_sha256"), settings, folder)
    ends = "encoder.", ".lora_a"
    stored = contents.tensors["model"]
    ranks = {
        name.removeprefix(ends[0]).removesuffix(ends[1]): item.shape[0]
        for name, item in stored.items()
        if name.startswith(ends[0]) and name.endswith(ends[1])
    }
    linear = find_targets(model.encoder, ["all"])
    if unknown := sorted(ranks.keys() - set(linear)):
        raise CheckpointError(f"{folder}: adapters of {', '.join(unknown[:6])}, which the network lacks.")
    add_lora(model.encoder, ranks, config)


def _describe(settings: Settings) -> str:
    model = settings.model.language_model
    return str(settings.pretrained_model or model.lm_checkpoint or model.pretrained_model_name or "random weights")


def load_base(settings: Settings, config: EncoderConfig, num_tokens: int, place: Placement) -> Encoder:
    """Load the base of a run with adapters from where the settings name it, tensor by tensor."""
    if settings.pretrained_model is not None:
        folder, opened = run_checkpoints.open_best(Path(settings.pretrained_model), groups=("model",))
        if ADAPTER in opened.documents:  # its adapters were trained on
            before = compose(type(settings), (), owner="train", base=opened.documents["settings"])[0]
            return load_base(before, config, num_tokens, place)
        tensors: Mapping[str, Readable] = opened.tensors["model"]
        source = str(folder)
    else:
        from .checkpoints.catalog import cache_home
        from .checkpoints.model_source import find_source
        from .checkpoints.open import open_checkpoint
        from .checkpoints.vocabulary_rows import fit_vocabulary

        language_model = settings.model.language_model
        found = find_source(settings.model, home=cache_home(os.environ))
        if found.weights is None:
            encoder = new_encoder(config)
            initialize_weights(encoder, settings.seed, ENCODER_STREAM)
            return encoder.to(place.device, place.dtype)
        checkpoint = open_checkpoint(
            found.weights,
            config=found.config,
            config_source=found.config_source,
            qkv_layout=language_model.qkv_layout,
            ignored=language_model.ignored_arguments,
        )
        tensors, source = fit_vocabulary(checkpoint, num_tokens, checkpoint.source), checkpoint.source
    own = {name: item for name, item in tensors.items() if name.startswith("encoder.")}
    check_tensors(own, config, source)
    encoder = new_encoder(config, dtype=place.dtype, device=place.device)
    load_weights(encoder, {name.removeprefix("encoder."): item for name, item in own.items()}, source)
    return encoder
