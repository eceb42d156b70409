"""The initial model of a training: that of the resumed checkpoint, of another run, or an encoder with a new head."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .adapters import ADAPTER, Placement, adapt
from .build import LanguageModel, load_language_model, new_task_model, restore
from .checkpoints.native import run_checkpoints
from .checkpoints.native.fewer_layers import with_fewer_layers
from .checkpoints.native.run_checkpoints import encoder_of_run
from .checkpoints.trained_model import read_trained
from .config.schema import Settings
from .errors import ConfigError
from .model.config import EncoderConfig
from .model.heads import TaskModel
from .tasks import registry
from .tasks.task import Task
from .tokenizers.load import stored_tokenizer
from .weights import load_weights, new_encoder


@dataclass(frozen=True)
class InitialModel:
    """The initial model of a training. A new head needs the number of labels, so it is built after reading the data."""

    task: Task[Any, Any]
    language_model: LanguageModel
    model: TaskModel | None = None
    """The whole model of a run; None where a new head is needed."""
    notes: tuple[str, ...] = ()
    """Lines for the log: where the weights come from."""

    def build(self, seed: int) -> TaskModel:
        """Return the run's model, or add a new head to the encoder; and adapters where the settings have them."""
        model = new_task_model(self.task, self.language_model, seed) if self.model is None else self.model
        adapt(model, self.task.settings.model.peft, seed, task=self.task.name())
        return model


def load_initial_model(
    task_name: str,
    settings: Settings,
    place: Placement,
    *,
    home: Path,
    resumed: run_checkpoints.Contents | None,
    folder: Path,
) -> InitialModel:
    """Load the initial model of a training: the resumed checkpoint, another run (pretrained_model), or an encoder.

    `place` is that of the base of adapters; all else is on the CPU.
    """
    from .checkpoints.model_source import check_network_of_run, dropout_of

    if resumed is not None:
        check_network_of_run(settings.model, resumed.documents, resumed.texts, str(folder))
        return _initial_model_of_run(resumed, folder, task_name, settings, (), place)
    if settings.model.distillation.student_layers is not None:
        return _student_of(settings, task_name, place)
    if settings.pretrained_model is not None:
        source, contents = run_checkpoints.read_best(Path(settings.pretrained_model), groups=("model",))
        encoder = encoder_of_run(contents.documents, str(source)) | dropout_of(settings.model.language_model)
        contents = replace(contents, documents={**contents.documents, "encoder": encoder})
        check_network_of_run(settings.model, contents.documents, contents.texts, str(source))
        if not settings.model.head.reset:
            note = f"Starting from {source}, its head included."
            return _initial_model_of_run(contents, source, task_name, settings, (note,), place)
        note, loaded = (
            f"Starting from the encoder of {source}, with a new head.",
            _encoder_of_run(contents, source, place),
        )
        return InitialModel(registry.find(task_name)(settings), loaded, notes=(note,))
    task = registry.find(task_name)(settings)
    loaded = load_language_model(
        settings.model, home=home, seed=settings.seed, default_shape=task.default_shape, place=place
    )
    config = loaded.encoder.config
    size = f"{config.num_layers} layers x {config.hidden_size} x {config.num_heads} heads"
    first = f"Encoder: {size}, {config.vocabulary_size} tokens, from {loaded.source}."
    return InitialModel(task, loaded, notes=(first, *(f"  {note}" for note in loaded.notes)))


def _student_of(settings: Settings, task_name: str, place: Placement) -> InitialModel:
    """Take the teacher's network with fewer layers."""
    wanted = settings.model.distillation
    trained = read_trained(Path(wanted.teacher or ""))
    from .checkpoints.model_source import dropout_of

    shape = encoder_of_run(trained.contents.documents, str(trained.folder))
    shape |= dropout_of(settings.model.language_model)
    contents, note = with_fewer_layers(trained.contents, shape, wanted.student_layers or 0, str(trained.folder))
    return _initial_model_of_run(contents, trained.folder, task_name, settings, (note,), place)


def _initial_model_of_run(
    contents: run_checkpoints.Contents,
    folder: Path,
    task_name: str,
    settings: Settings,
    notes: tuple[str, ...],
    place: Placement,
) -> InitialModel:
    task, model, tokenizer = restore(contents, folder, task_name, settings, place=place)
    return InitialModel(task, LanguageModel(model.encoder, tokenizer, str(folder)), model, notes)


def _encoder_of_run(contents: run_checkpoints.Contents, folder: Path, place: Placement) -> LanguageModel:
    """Take the encoder and the tokenizer of a run, whatever its task and its head are."""
    if ADAPTER in contents.documents:
        raise ConfigError(
            f"{folder} has adapters. Merge them into its encoder first: megabert merge {folder} -o FOLDER."
        )
    config = EncoderConfig.from_dict(encoder_of_run(contents.documents, str(folder)))
    encoder = new_encoder(config, dtype=place.dtype, device=place.device)
    prefix, tensors = "encoder.", contents.tensors["model"]
    own = {name.removeprefix(prefix): item for name, item in tensors.items() if name.startswith(prefix)}
    load_weights(encoder, own, str(folder))
    return LanguageModel(encoder, stored_tokenizer(contents.documents, contents.texts, str(folder)), str(folder))
