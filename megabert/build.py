"""Files to networks: the language model that settings name, a run that was trained, an encoder by itself."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from .checkpoints import catalog
from .checkpoints import open as foreign
from .checkpoints.files.lazy_tensor import Readable
from .checkpoints.native import run_checkpoints as run
from .config.parser import compose
from .config.schema import LanguageModelSettings, ModelSettings, Settings
from .errors import CheckpointError, ConfigError
from .inference import Predictor
from .model.config import EncoderConfig
from .model.encoder import Encoder, initialize
from .model.heads import TaskModel
from .model.precision import cast_model, freeze, resolve_precision, resolve_static_batches
from .parallel.process_group import resolve_device
from .parallel.sharding import compile_layers
from .tasks import registry
from .tasks.task import Task
from .tokenizers.load import load_tokenizer, read_tokenizer
from .tokenizers.wordpiece import Tokenizer

# What keeps random initial weights of encoder and head apart although they come from one seed.
HEAD_STREAM, ENCODER_STREAM = 1, 2


@dataclass(frozen=True)
class LanguageModel:
    """An encoder to start from, its tokenizer, and what was assumed in reading it."""

    encoder: Encoder
    tokenizer: Tokenizer
    source: str
    notes: tuple[str, ...]
    is_random: bool = False
    heads: Mapping[str, Readable] = field(default_factory=dict)
    """Tensors of the heads that it was pre-trained with, where they are there: a task's head may start from them."""


@dataclass(frozen=True)
class _Source:
    """Where the weights and the vocabulary of a language model are, as far as the settings say it."""

    weights: Path | None
    vocabulary: Path | None = None
    merges: Path | None = None
    lower_case: bool | None = None
    published: str | None = None
    """The published name whose vocabulary serves where nothing else gives one."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """What is known of a published network: NVIDIA's BioMegatron files do not hold their sizes."""


def load_language_model(
    model: ModelSettings, *, home: Path, seed: int, default_shape: Mapping[str, Any] | None = None
) -> LanguageModel:
    """Load the encoder and tokenizer that `model.language_model` and `model.tokenizer` name.

    `default_shape` is what a network with random weights is where the settings do not say it.
    Downloads published checkpoints into `home` where they are not there yet. Raises ConfigError where the settings
    name nothing loadable, CheckpointError where the files do not fit.
    """
    settings = model.language_model
    source = _find_source(settings, home)
    if model.tokenizer.vocab_file is not None:
        merges = model.tokenizer.merges_file
        source = replace(
            source, vocabulary=Path(model.tokenizer.vocab_file), merges=None if merges is None else Path(merges)
        )
    if model.tokenizer.do_lower_case is not None:
        source = replace(source, lower_case=model.tokenizer.do_lower_case)
    config, config_source = _given_config(settings, source)
    if source.weights is None:
        return _random_language_model(source, config, config_source, settings, seed, default_shape or {})
    checkpoint = foreign.open_checkpoint(
        source.weights, config=config, config_source=config_source, qkv_layout=settings.qkv_layout
    )
    if source.vocabulary is None and not checkpoint.tokenizer_files and source.published is not None:
        source = replace(source, vocabulary=catalog.resolve(source.published, home=home, weights=False).vocabulary)
    tokenizer = _tokenizer_of(checkpoint, source)
    tensors = foreign.fit_vocabulary(checkpoint, len(tokenizer), tokenizer.source)
    shape = {**checkpoint.shape, "vocabulary_size": len(tokenizer), **_dropout(settings)}
    encoder = _new_encoder(EncoderConfig.from_dict(shape))
    own = {name.removeprefix("encoder."): item for name, item in tensors.items() if name.startswith("encoder.")}
    load_weights(encoder, own, checkpoint.source)
    notes = (
        f"format: {checkpoint.format}",
        *checkpoint.notes,
        f"vocabulary: {len(tokenizer)} tokens of {checkpoint.shape['vocabulary_size']} rows, {tokenizer.source}",
        f"text is {'lower-cased' if tokenizer.lower_case else 'kept in its case'}",
        *_case_warning(tokenizer),
    )
    heads = {name: item for name, item in tensors.items() if not name.startswith("encoder.")}
    return LanguageModel(encoder, tokenizer, checkpoint.source, notes, heads=heads)


def _tokenizer_of(checkpoint: foreign.Checkpoint, source: _Source) -> Tokenizer:
    """Make the tokenizer of the vocabulary that is given, or of the one that lies beside the weights."""
    lower_case = checkpoint.lower_case if source.lower_case is None else source.lower_case
    if source.vocabulary is not None:
        return read_tokenizer(source.vocabulary, source.merges, lower_case=lower_case)
    tokenizer = load_tokenizer(checkpoint.tokenizer_files, lower_case=lower_case, source=checkpoint.tokenizer_source)
    if tokenizer is None:
        raise ConfigError(
            f"{source.weights} comes without a vocabulary. Give the vocab.txt (of GPT-2: vocab.json, merges.txt beside "
            "it) that it was trained with: model.tokenizer.vocab_file=FILE."
        )
    return tokenizer


@dataclass(frozen=True)
class OpenedSource:
    """A checkpoint that a user named, and the true size of its vocabulary where that is known."""

    checkpoint: foreign.Checkpoint
    num_tokens: int | None


def open_source(
    name_or_path: str,
    *,
    home: Path,
    config_file: Path | None = None,
    vocab_file: Path | None = None,
    qkv_layout: str | None = None,
) -> OpenedSource:
    """Open a published name or a path, with the configuration and the vocabulary that a user gives beside it."""
    settings = LanguageModelSettings(
        pretrained_model_name=name_or_path,
        config_file=None if config_file is None else str(config_file),
        qkv_layout=qkv_layout,
    )
    source = _find_source(settings, home)
    assert source.weights is not None, "a name or a path was given"
    config, config_source = _given_config(settings, source)
    checkpoint = foreign.open_checkpoint(
        source.weights, config=config, config_source=config_source, qkv_layout=qkv_layout
    )
    vocabulary = vocab_file or source.vocabulary
    if vocabulary is not None:
        given = read_tokenizer(vocabulary, None, lower_case=None).files()
        files = {name: content.encode() for name, content in given.items()}
        checkpoint = replace(checkpoint, tokenizer_files=files, tokenizer_source=str(vocabulary))
    lower_case = checkpoint.lower_case if source.lower_case is None else source.lower_case
    tokenizer = load_tokenizer(checkpoint.tokenizer_files, lower_case=lower_case, source=checkpoint.tokenizer_source)
    if tokenizer is None:
        return OpenedSource(checkpoint, None)
    if "vocab.txt" in checkpoint.tokenizer_files:
        checkpoint = replace(checkpoint, lower_case=tokenizer.lower_case)
    return OpenedSource(checkpoint, len(tokenizer))


def _case_warning(tokenizer: Tokenizer) -> tuple[str, ...]:
    if tokenizer.lower_case == tokenizer.is_uncased:
        return ()
    has = "no capital letters" if tokenizer.is_uncased else "capital letters"
    return (f"WARNING: the vocabulary has {has}. Is that meant? Else set model.tokenizer.do_lower_case.",)


def _find_source(settings: LanguageModelSettings, home: Path) -> _Source:
    name = settings.pretrained_model_name
    given = Path(settings.lm_checkpoint) if settings.lm_checkpoint is not None else None
    if name is None or (given is None and Path(name).exists()):
        return _Source(given or (Path(name) if name else None))
    lower_case = not catalog.find(name).vocabulary.is_cased
    if given is not None:
        return _Source(given, lower_case=lower_case, published=name)
    files = catalog.resolve(name, home=home)
    if files.weights is None and files.published.architecture is not None:
        raise ConfigError(f"{name}: {files.published.note} {files.published.page}")
    if files.weights is None:
        raise ConfigError(
            f"{name} stands for any checkpoint of that case and has no weights of its own. Give yours: "
            "--bert_checkpoint FILE_OR_FOLDER (and --bert_config FILE where it does not hold its sizes)."
        )
    known = asdict(files.published.architecture) if files.published.architecture is not None else {}
    return _Source(files.weights, files.vocabulary, lower_case=lower_case, config=known)


def _given_config(settings: LanguageModelSettings, source: _Source) -> tuple[Mapping[str, Any], str]:
    if settings.config_file is not None:
        return foreign.read_config(Path(settings.config_file)), settings.config_file
    if settings.config:
        return settings.config, "model.language_model.config"
    return source.config, f"the catalog for {settings.pretrained_model_name}"


def _dropout(settings: LanguageModelSettings) -> dict[str, float]:
    given = {"hidden_dropout": settings.hidden_dropout, "attention_dropout": settings.attention_dropout}
    return {name: value for name, value in given.items() if value is not None}


def _random_language_model(
    source: _Source,
    config: Mapping[str, Any],
    config_source: str,
    settings: LanguageModelSettings,
    seed: int,
    default_shape: Mapping[str, Any],
) -> LanguageModel:
    if source.vocabulary is None:
        raise ConfigError("An encoder with random weights needs a vocabulary: model.tokenizer.vocab_file=FILE.")
    shape, others = foreign.shape_of_config(config, config_source)
    if others:
        raise ConfigError(f"{config_source}: {', '.join(others)} does not shape a network.")
    needed = [name for name in ("hidden_size", "num_layers", "num_heads") if name not in shape]
    if needed:
        raise ConfigError(
            "model.language_model.pretrained_model_name=null starts from random weights and needs their shape: "
            "model.language_model.config={hidden_size: 256, num_layers: 4, num_attention_heads: 4}."
        )
    tokenizer = read_tokenizer(source.vocabulary, source.merges, lower_case=source.lower_case)
    defaults = {"ffn_size": 4 * shape["hidden_size"], "max_positions": 512, **default_shape}
    shape = defaults | shape | _dropout(settings)
    encoder = _new_encoder(EncoderConfig.from_dict(shape | {"vocabulary_size": len(tokenizer)}))
    initialize_weights(encoder, seed, ENCODER_STREAM)
    return LanguageModel(encoder, tokenizer, "random weights", (), is_random=True)


def new_task_model(task: Task[Any, Any], language_model: LanguageModel, seed: int) -> TaskModel:
    """Put a new head of the task on an encoder."""
    config = language_model.encoder.config
    if task.row_length > config.max_positions:
        raise ConfigError(
            f"model.dataset.max_seq_length={task.row_length} is more than the {config.max_positions} positions of "
            f"{language_model.source}. Set it to {config.max_positions} or less."
        )
    with torch.device("meta"):
        head = task.head(config)
    materialize(head)
    initialize_weights(head, seed, HEAD_STREAM)
    heads = language_model.heads
    head.load_pretrained(lambda name: heads[name].read() if name in heads else None)
    return TaskModel(language_model.encoder, head)


def initialize_weights(module: nn.Module, seed: int, stream: int) -> None:
    """Draw initial weights as a function of the seed alone."""
    generator = torch.Generator().manual_seed(seed * 8 + stream)
    num_layers = module.config.num_layers if isinstance(module, Encoder) else 0
    initialize(module, generator, num_layers=num_layers)


def _new_encoder(config: EncoderConfig) -> Encoder:
    # On the meta device no memory is filled twice.
    with torch.device("meta"):
        encoder = Encoder(config)
    materialize(encoder)
    return encoder


def materialize(module: nn.Module) -> None:
    """Give parameters that were made on the meta device memory on the CPU, not filled; shared ones stay shared.

    As module.to_empty does, which imports sympy, half a second.
    """
    made: dict[nn.Parameter, nn.Parameter] = {}
    for owner in module.modules():
        for name, parameter in list(owner.named_parameters(recurse=False, remove_duplicate=False)):
            if parameter not in made:
                empty = torch.empty(parameter.shape, dtype=parameter.dtype, device="cpu")
                made[parameter] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
            owner.register_parameter(name, made[parameter])


def load_weights(module: nn.Module, tensors: Mapping[str, Tensor | Readable], source: str) -> None:
    """Put tensors into a module, one at a time.

    Raises CheckpointError that lists what is missing, left over or of another shape.
    """
    wanted = dict(module.named_parameters())
    missing = sorted(wanted.keys() - tensors.keys())
    left_over = sorted(tensors.keys() - wanted.keys())
    misshapen = [
        f"{name} is {tuple(tensors[name].shape)}, expected {tuple(parameter.shape)}"
        for name, parameter in wanted.items()
        if name in tensors and tensors[name].shape != parameter.shape
    ]
    problems = [
        f"{what}: {', '.join(names[:6])}{' ...' if len(names) > 6 else ''}"
        for what, names in (("missing", missing), ("left over", left_over), ("of another shape", misshapen))
        if names
    ]
    if problems:
        raise CheckpointError(f"{source} does not fit the network. {'; '.join(problems)}.")
    with torch.no_grad():
        for name, parameter in wanted.items():
            tensor = tensors[name]
            parameter.copy_(tensor if isinstance(tensor, Tensor) else tensor.read())


def model_documents(task: Task[Any, Any], model: TaskModel, tokenizer: Tokenizer) -> dict[str, Any]:
    """Give the documents with which `load_run` makes the network again."""
    return {
        "settings": OmegaConf.to_container(OmegaConf.structured(task.settings)),
        "encoder": model.encoder.config.to_dict(),
        "task": task.state(),
        "tokenizer": {"lower_case": tokenizer.lower_case},
    }


def restore(
    contents: run.Contents,
    folder: Path,
    task_name: str | None = None,
    settings: Settings | None = None,
    overrides: Sequence[str] = (),
) -> tuple[Task[Any, Any], TaskModel, Tokenizer]:
    """Make the network of a checkpoint; no base weights, no network and no training data are needed.

    `task_name` stands for a user's own file where the run's task is one. `settings` replaces the run's own,
    `overrides` changes some of them.
    """
    try:
        name = task_name or contents.documents["run"]["task"]
        if name.endswith(".py") and task_name is None:
            raise ConfigError(f"{folder} was trained with a task of its own, {name}. Give its file: --task {name}.")
        task_type = registry.find(name)
        if settings is None:
            settings, _ = compose(
                task_type.settings_type, overrides, owner=task_type.name(), base=contents.documents["settings"]
            )
        config = EncoderConfig.from_dict(contents.documents["encoder"])
        lower_case = contents.documents["tokenizer"]["lower_case"]
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{folder} lacks {error}. Is it a checkpoint of a training run?") from None
    task = task_type(settings)
    task.restore_state(contents.documents.get("task", {}))
    files = {name: content.encode() for name, content in contents.texts.items()}
    tokenizer = load_tokenizer(files, lower_case=lower_case, source=str(folder))
    if tokenizer is None:
        raise CheckpointError(f"{folder} lacks a vocabulary. Is it a checkpoint of a training run?")
    with torch.device("meta"):
        model = TaskModel(Encoder(config), task.head(config))
    materialize(model)
    load_weights(model, contents.tensors["model"], str(folder))
    return task, model, tokenizer


def load_run(
    path: Path,
    *,
    accelerator: str = "auto",
    precision: str = "auto",
    compiled: bool = False,
    task_name: str | None = None,
    overrides: Sequence[str] = (),
) -> Predictor:
    """Load a run folder (its best checkpoint), or one checkpoint folder, for predicting.

    `compiled` compiles its layers and on a GPU records batches in a CUDA graph: worth it for large files.
    """
    folder = run.find_checkpoint(path)
    contents = run.read(folder, groups=("model",))
    task, model, tokenizer = restore(contents, folder, task_name, overrides=overrides)
    device = resolve_device(accelerator)
    precision = resolve_precision(precision, device)
    model.to(device).eval()
    cast_model(model, precision)
    freeze(model)
    if compiled:
        compile_layers(model)
    has_size = resolve_static_batches(compiled, device, model.encoder.config, precision)
    return Predictor(task, model, tokenizer, device, precision, is_static=has_size)


def load_encoder(name_or_path: str, *, home: Path) -> tuple[Encoder, Tokenizer]:
    """Load the plain encoder of a published name, a foreign checkpoint or a run, with its tokenizer."""
    settings = ModelSettings(language_model=LanguageModelSettings(pretrained_model_name=name_or_path))
    loaded = load_language_model(settings, home=home, seed=0)
    return loaded.encoder.eval(), loaded.tokenizer
