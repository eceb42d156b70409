"""Load models from files: a pre-trained language model, a task's model with a new head, a trained run.

`weights` fills the modules, `adapters` adds those of a run to the base that its settings name.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .adapters import ADAPTER, Placement, adapter_document, add_stored, load_base
from .checkpoints.files.lazy_tensor import Readable
from .checkpoints.native import run_checkpoints
from .checkpoints.native.fewer_layers import first_layers
from .checkpoints.native.run_checkpoints import encoder_of_run
from .checkpoints.tensor_names import check_tensors
from .checkpoints.trained_model import DIGEST_DIGITS, read_trained
from .config.parser import compose
from .config.schema import LanguageModelSettings, ModelSettings, Settings
from .errors import ConfigError
from .inference import LoadOptions, Predictor
from .measured_precision import with_measured_precision
from .model.config import EncoderConfig
from .model.encoder import Encoder
from .model.heads import Head, TaskModel
from .model.lora import frozen_base
from .model.precision import DTYPES, cast_model, freeze, resolve_precision, resolve_static_batches
from .parallel.process_group import resolve_device
from .tasks import registry
from .tasks.restore_task import restore_task
from .tasks.task import Task
from .tokenizers.load import read_tokenizer, stored_tokenizer
from .tokenizers.wordpiece import Tokenizer
from .torch_session import TorchSession, compute_alone_after_forks
from .weights import (
    ENCODER_STREAM,
    HEAD_STREAM,
    initialize_weights,
    load_weights,
    materialize,
    new_encoder,
)

# Formats of other libraries are imported where a checkpoint is opened: a run needs none of them, and a command starts
# sooner.
if TYPE_CHECKING:
    from .checkpoints.model_source import ModelSource

MAX_EMBEDDED_TOKENS = 256
"""Of a text that a plain encoder embeds."""


@dataclass(frozen=True)
class LanguageModel:
    """A pre-trained (or randomly initialized) encoder with its tokenizer."""

    encoder: Encoder
    tokenizer: Tokenizer
    source: str
    notes: tuple[str, ...] = ()
    """The assumptions made while reading the checkpoint."""
    heads: Mapping[str, Readable] = field(default_factory=dict)
    """Tensors of its pre-training heads, where the checkpoint has them: a task's head may start from them."""


def load_language_model(
    model: ModelSettings,
    *,
    home: Path,
    seed: int,
    default_shape: Mapping[str, Any] | None = None,
    place: Placement = Placement(),  # noqa: B008 (frozen)
) -> LanguageModel:
    """Load the encoder and tokenizer that `model.language_model` and `model.tokenizer` name.

    `default_shape` completes the shape of a network with random weights where the settings leave it open.
    Downloads published checkpoints into `home`. Raises ConfigError where the settings name nothing loadable,
    CheckpointError where the files do not fit.
    """
    from .checkpoints.model_source import find_source, open_source
    from .checkpoints.vocabulary_rows import fit_vocabulary

    settings = model.language_model
    source = find_source(model, home=home)
    if source.weights is None:
        loaded = _random_language_model(source, settings, seed, default_shape or {})
        loaded.encoder.to(place.device, place.dtype)
        return loaded
    opened = open_source(source, home=home, qkv_layout=settings.qkv_layout, ignored=settings.ignored_arguments)
    checkpoint, tokenizer = opened.checkpoint, opened.tokenizer
    if tokenizer is None:
        raise ConfigError(
            f"{source.weights} comes without a vocabulary. Put the vocab.txt (of GPT-2: vocab.json, merges.txt) beside "
            "it that it was trained with; in training model.tokenizer.vocab_file=FILE gives it, too."
        )
    warning = _case_warning(tokenizer)
    tensors = fit_vocabulary(checkpoint, len(tokenizer), tokenizer.source)
    shape = {**checkpoint.shape, "vocabulary_size": len(tokenizer), **source.dropout}
    if settings.first_layers is not None:
        tensors = first_layers(tensors, shape["num_layers"], settings.first_layers, checkpoint.source)
        shape["num_layers"] = settings.first_layers
    encoder = new_encoder(EncoderConfig.from_dict(shape), dtype=place.dtype, device=place.device)
    prefix = "encoder."
    encoder_tensors = {name.removeprefix(prefix): item for name, item in tensors.items() if name.startswith(prefix)}
    load_weights(encoder, encoder_tensors, checkpoint.source)
    notes = (
        f"format: {checkpoint.format}",
        *checkpoint.notes,
        f"vocabulary: {len(tokenizer)} tokens of {checkpoint.shape['vocabulary_size']} rows, {tokenizer.source}",
        f"text is {'lower-cased' if tokenizer.lower_case else 'cased'}",
        *warning,
        *(["not used: the head of the fine-tuned model"] if checkpoint.head else []),
    )
    heads = {name: item for name, item in tensors.items() if not name.startswith(prefix)}
    return LanguageModel(encoder, tokenizer, checkpoint.source, notes, heads)


def _case_warning(tokenizer: Tokenizer) -> tuple[str, ...]:
    if tokenizer.lower_case == tokenizer.is_uncased:
        return ()
    has = "no capital letters" if tokenizer.is_uncased else "capital letters"
    return (f"WARNING: the vocabulary has {has}. If that is not meant, set model.tokenizer.do_lower_case.",)


def _random_language_model(
    source: "ModelSource", settings: LanguageModelSettings, seed: int, default_shape: Mapping[str, Any]
) -> LanguageModel:
    from .checkpoints.user_config import parse_user_config

    if settings.first_layers is not None:
        raise ConfigError("model.language_model.first_layers is for a checkpoint. Random weights: config.num_layers.")
    if source.vocabulary is None:
        raise ConfigError("An encoder with random weights needs a vocabulary: model.tokenizer.vocab_file=FILE.")
    user = parse_user_config(source.config, source.config_source, ignored=settings.ignored_arguments)
    shape, without_effect = user.full_shape, [*user.others, *user.arguments]
    if without_effect:
        raise ConfigError(f"{source.config_source}: {', '.join(without_effect)} does not shape a network.")
    if any(name not in shape for name in ("hidden_size", "num_layers", "num_heads")):
        raise ConfigError(
            "model.language_model.pretrained_model_name=null starts from random weights and needs their shape: "
            "model.language_model.config={hidden_size: 256, num_layers: 4, num_attention_heads: 4}."
        )
    tokenizer = read_tokenizer(source.vocabulary, source.merges, lower_case=source.lower_case)
    defaults = {"ffn_size": 4 * shape["hidden_size"], "max_positions": 512, **default_shape}
    shape = {**defaults, **shape, **source.dropout}
    encoder = new_encoder(EncoderConfig.from_dict(shape | {"vocabulary_size": len(tokenizer)}))
    initialize_weights(encoder, seed, ENCODER_STREAM)
    return LanguageModel(encoder, tokenizer, "random weights", ("It is not pre-trained: training starts from noise.",))


def new_task_model(task: Task[Any, Any], language_model: LanguageModel, seed: int) -> TaskModel:
    """Add a task's new head to an encoder."""
    config = language_model.encoder.config
    if task.row_length > config.max_positions:
        raise ConfigError(
            f"model.dataset.max_seq_length={task.row_length} is more than the {config.max_positions} positions of "
            f"{language_model.source}. Set it to {config.max_positions} or less."
        )
    head = _materialized_head(task, config)
    initialize_weights(head, seed, HEAD_STREAM)
    head.start_from(language_model.encoder)
    heads = language_model.heads
    head.load_pretrained(lambda name: heads[name].read() if name in heads else None)
    return TaskModel(language_model.encoder, head)


def _materialized_head(task: Task[Any, Any], config: EncoderConfig) -> Head:
    with torch.device("meta"):
        head = task.head(config)
    materialize(head)
    return head


def model_documents(task: Task[Any, Any], model: TaskModel, tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the JSON documents of a checkpoint from which `restore` builds the network again."""
    return {
        "settings": dataclasses.asdict(task.settings),
        "encoder": model.encoder.config.to_dict(),
        "task": task.state(),
        "tokenizer": tokenizer.to_document(),
        **adapter_document(model),
    }


def restore(
    contents: run_checkpoints.Contents,
    folder: Path,
    task_name: str | None = None,
    settings: Settings | None = None,
    overrides: Sequence[str] = (),
    place: Placement = Placement(),  # noqa: B008 (frozen)
) -> tuple[Task[Any, Any], TaskModel, Tokenizer]:
    """Build a checkpoint's task, network and tokenizer; training data are not needed.

    Nor are base weights, except for adapters: their base is loaded from where the settings name it, to `place`.
    `task_name` is required where the run's task is a user's own file. `settings` replaces the run's own, `overrides`
    changes some of them.
    """
    task = restore_task(contents.documents, folder, task_name, settings, overrides)
    config = EncoderConfig.from_dict(encoder_of_run(contents.documents, str(folder)))
    tokenizer = stored_tokenizer(contents.documents, contents.texts, str(folder))
    model = _network_of_run(contents, folder, task, config, tokenizer, place)
    load_weights(model, contents.tensors["model"], str(folder), frozen_base(model))
    return task, model, tokenizer


def _network_of_run(
    contents: run_checkpoints.Contents,
    folder: Path,
    task: Task[Any, Any],
    config: EncoderConfig,
    tokenizer: Tokenizer,
    place: Placement,
) -> TaskModel:
    """Build the network of a run, whose own weights are loaded later."""
    if ADAPTER in contents.documents:
        base = load_base(task.settings, config, len(tokenizer), place)
        model = TaskModel(base, _materialized_head(task, config))
        add_stored(model, contents, task.settings, folder)
        return model
    stored = contents.tensors["model"]
    # Before anything of the declared size is built
    check_tensors({name: item for name, item in stored.items() if name.startswith("encoder.")}, config, str(folder))
    with torch.device("meta"):
        model = TaskModel(Encoder(config), task.head(config))
    materialize(model)
    return model


def load_run(
    path: Path,
    *,
    accelerator: str = "auto",
    precision: str = "auto",
    compiled: bool = False,
    batch_size: int = 32,
    task_name: str | None = None,
    overrides: Sequence[str] = (),
    settings: Settings | None = None,
    for_many: bool = True,
) -> Predictor:
    """Load a run folder (its best checkpoint), a checkpoint folder, or a Hugging Face folder with its head.

    `settings` replaces the run's own, `overrides` changes some of them. Precision auto is bf16 on a GPU that supports
    it, and on a CPU where `measured_precision` finds the same answers, else 32; not `for_many` texts it is
    32 on a CPU, since the comparison takes longer than an answer.
    `compiled` compiles the layers and on a GPU captures batches in a CUDA graph: worth it for large files.
    """
    trained = read_trained(path)
    device = resolve_device(accelerator, device_ids=None if settings is None else settings.trainer.device_ids)
    is_auto, precision = precision == "auto", resolve_precision(precision, device)
    place = Placement(DTYPES[precision], str(device)) if ADAPTER in trained.contents.documents else Placement()
    task, model, tokenizer = restore(trained.contents, trained.folder, task_name, settings, overrides, place)
    session = _session(model.to(device).eval(), task, device, precision, compiled=compiled)
    predictor = Predictor(task, tokenizer, session, batch_size, trained.digest, trained.notes)
    return with_measured_precision(predictor, trained.folder) if is_auto and for_many and not compiled else predictor


def _session(
    model: TaskModel, task: Task[Any, Any], device: torch.device, precision: str, *, compiled: bool = False
) -> TorchSession:
    """Prepare a model on its device for inference."""
    compute_alone_after_forks()
    cast_model(model, precision)
    freeze(model)
    if compiled:
        from .parallel.sharding import compile_layers

        compile_layers(model)
    elif device.type == "cuda":
        from .model.fused_layers import fuse_layers

        fuse_layers(model.encoder)
    is_static = resolve_static_batches(compiled, device, model.encoder.config, precision)
    return TorchSession(model, task.loss, device, precision, is_static=is_static)


def load_embedder(
    name_or_path: str,
    *,
    home: Path,
    accelerator: str = "auto",
    precision: str = "auto",
    batch_size: int = 128,
    for_many: bool = True,
) -> Predictor:
    """Load what embeds texts: a run, a model of sentence-transformers, or any other name's encoder, by the mean.

    Precision auto is that of `load_run`.
    """
    from .checkpoints.huggingface.sentence_modules import MODULES
    from .checkpoints.model_source import find_source

    folder = Path(name_or_path)
    options = LoadOptions(accelerator=accelerator, precision=precision, batch_size=batch_size, for_many=for_many)
    if (folder / run_checkpoints.MANIFEST).exists() or run_checkpoints.checkpoint_folders(folder):
        return load_run(folder, **options)
    settings = ModelSettings(language_model=LanguageModelSettings(pretrained_model_name=name_or_path))
    weights = find_source(settings, home=home).weights
    if weights is not None and (weights / MODULES).is_file():  # of sentence-transformers
        return load_run(weights, **options)
    loaded = load_language_model(settings, home=home, seed=0)
    length = min(MAX_EMBEDDED_TOKENS, loaded.encoder.config.max_positions)
    task_type = registry.find("text_embedding")
    words = [f"model.dataset.max_seq_length={length}"]
    task = task_type(compose(task_type.settings_type, words, owner=task_type.name())[0])
    hashed = hashlib.sha256(json.dumps(loaded.encoder.config.to_dict(), sort_keys=True).encode())
    for tensor in loaded.encoder.state_dict().values():
        hashed.update(tensor.contiguous().view(torch.uint8).numpy().data)
    device = resolve_device(accelerator)
    is_auto, precision = precision == "auto", resolve_precision(precision, device)
    session = _session(new_task_model(task, loaded, seed=0).to(device).eval(), task, device, precision)
    predictor = Predictor(task, loaded.tokenizer, session, batch_size, hashed.hexdigest()[:DIGEST_DIGITS])
    return with_measured_precision(predictor, None) if is_auto and for_many else predictor


def load_encoder(name_or_path: str, *, home: Path) -> tuple[Encoder, Tokenizer]:
    """Load the plain encoder of a published name, a foreign checkpoint or a run, with its tokenizer."""
    compute_alone_after_forks()
    settings = ModelSettings(language_model=LanguageModelSettings(pretrained_model_name=name_or_path))
    loaded = load_language_model(settings, home=home, seed=0)
    return loaded.encoder.eval(), loaded.tokenizer
