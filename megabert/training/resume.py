"""Resume a run from a checkpoint: its progress, the settings that may change, constant sequences per step."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..config.schema import Settings
from ..errors import CheckpointError, ConfigError
from ..parallel.process_group import World

# Settings that may differ when a run is resumed: where files are, how to compute and how long to train.
FREE_ON_RESUME = (
    "exp_manager.",
    "trainer.",
    "parallel.",
    "pretrained_model",
    "do_training",
    "model.language_model.",
    "model.tokenizer.",
    "model.train_ds.file",
    "model.distillation.teacher",  # whose digest is part of the data's fingerprint
    "model.train_ds.batch_size",  # the sequences of a step may not differ: see keep_sequences_per_step
    "model.validation_ds.",
    "model.test_ds.",
)


@dataclass(frozen=True)
class Progress:
    """The progress of a run, as progress.json of a checkpoint stores it."""

    step: int = 0
    validated_step: int = 0
    figure: float | None = None
    """The monitored metric of the validation at this step."""
    loss: float | None = None
    """The loss of that validation."""
    best: float | None = None
    """The best value so far of the metric that early stopping monitors."""
    num_without_improvement: int = 0
    """Validations since then."""
    data_fingerprint: str = ""
    """That of the training data's features, with the digest of the teacher."""
    texts_per_step: int = 0
    """Sequences per step over all ranks: constant for a run. 0 in checkpoints from before several processes."""


def resumed_progress(initial: Progress, document: Mapping[str, Any]) -> Progress:
    """Read progress.json. Raises CheckpointError if the training data changed since the run started."""
    stored = {name: value for name, value in document.items() if name != "scaler"}
    progress = replace(Progress(**stored), texts_per_step=initial.texts_per_step)
    if progress.data_fingerprint != initial.data_fingerprint:
        raise CheckpointError(
            "The training data is not what this run was started with, or the teacher is another: it cannot be resumed. "
            "Give the same file and settings, or start a run in another folder."
        )
    return progress


def check_unchanged(settings: Settings, stored: dict[str, Any]) -> None:
    """Compare settings with those of the run. Raises ConfigError that lists the ones that must not change."""
    current = dataclasses.asdict(settings)
    before, after = dict(_leaves(stored)), dict(_leaves(current))
    changed = [
        f"{key}: {before[key]} -> {after[key]}"
        for key in before.keys() & after.keys()
        if before[key] != after[key] and not key.startswith(FREE_ON_RESUME)
    ]
    if changed:
        raise ConfigError(
            f"settings differ from those of the run: {'; '.join(sorted(changed))}. "
            "Give the same ones, or start a run in another folder."
        )


def _leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def keep_sequences_per_step(
    settings: Settings, documents: Mapping[str, Any], world: World, log: Callable[[str], None]
) -> None:
    """Keep the global batch size of a resumed run: on another number of ranks gradient accumulation changes instead.

    Changes `settings`. Raises ConfigError where no accumulation gives the same number, or another one was requested.
    """
    trainer, batch_size = settings.trainer, settings.model.train_ds.batch_size
    before = documents["settings"]
    accumulated = before["trainer"]["accumulate_grad_batches"]
    count = documents["progress"].get("texts_per_step") or before["model"]["train_ds"]["batch_size"] * accumulated
    per_micro_batch = batch_size * world.data_size
    if per_micro_batch * trainer.accumulate_grad_batches == count:
        return
    if count % per_micro_batch or trainer.accumulate_grad_batches != accumulated:
        sizes = [size for size in range(1, count + 1) if count % (size * world.data_size) == 0]
        raise ConfigError(
            f"The run was started with {count} sequences a step, but model.train_ds.batch_size={batch_size} x "
            f"trainer.accumulate_grad_batches={trainer.accumulate_grad_batches} x {world.data_size} data-parallel "
            "ranks make other steps. "
            + (
                f"Give model.train_ds.batch_size={' or '.join(map(str, sizes[-6:]))}; accumulation follows."
                if sizes
                else f"Train with a number of processes that divides {count} (trainer.devices, parallel.tensor)."
            )
        )
    trainer.accumulate_grad_batches = count // per_micro_batch
    log(f"note: trainer.accumulate_grad_batches={count // per_micro_batch} keeps the run's {count} sequences a step.")
    in_new = trainer.val_check_interval * trainer.accumulate_grad_batches
    if isinstance(trainer.val_check_interval, int) and in_new % accumulated == 0:
        # It counts micro-batches: the same number of steps as before.
        trainer.val_check_interval = int(in_new // accumulated)
