"""Whether a run may be taken up: where it stands, what may have changed since, how many texts its steps have."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from ..checkpoints.native import run_checkpoints as run
from ..config.schema import ExperimentSettings, Settings
from ..data.packing import Features, ResampledFeatures
from ..errors import CheckpointError, ConfigError
from ..parallel.process_group import World

# Settings that may differ when a run is taken up again: where files lie, how to compute and how long to go on.
FREE_ON_RESUME = (
    "exp_manager.",
    "trainer.",
    "parallel.",
    "pretrained_model",
    "do_training",
    "model.language_model.",
    "model.tokenizer.",
    "model.train_ds.file",
    "model.train_ds.batch_size",  # what may not differ is the number of texts of a step: see keep_sequences_per_step
    "model.validation_ds.",
    "model.test_ds.",
)


def find_resume_checkpoint(settings: ExperimentSettings, folder: Path) -> run.Entry | None:
    """Find the checkpoint to go on from; None starts a run.

    Raises ConfigError where the folder's run is not to be taken up, CheckpointError where there should be one.
    """
    last = run.find_last(folder)
    if not settings.resume_if_exists:
        if last is not None:
            raise ConfigError(
                f"{folder} holds a run already. Take it up with exp_manager.resume_if_exists=true, "
                "or choose another folder."
            )
        return None
    if last is None and not settings.resume_ignore_no_checkpoint:
        raise CheckpointError(
            f"{folder} holds no checkpoint to go on from (exp_manager.resume_ignore_no_checkpoint=false)."
        )
    if last is not None and last.is_end and not settings.resume_past_end:
        raise ConfigError(
            f"The run in {folder} came to its end at step {last.step}. To train further raise trainer.max_epochs "
            "and set exp_manager.resume_past_end=true."
        )
    return last


def check_unchanged(settings: Settings, stored: dict[str, Any]) -> None:
    """Compare the settings with those of a run. Raises ConfigError that lists what may not have changed."""
    now = OmegaConf.to_container(OmegaConf.structured(settings))
    before, after = dict(_leaves(stored)), dict(_leaves(now))
    changed = [
        f"{key}: {before[key]} -> {after[key]}"
        for key in before.keys() & after.keys()
        if before[key] != after[key] and not key.startswith(FREE_ON_RESUME)
    ]
    if changed:
        raise ConfigError(
            f"The run was started with other settings ({'; '.join(sorted(changed))}). "
            "Give the same ones, or start a run in another folder."
        )


def keep_sequences_per_step(
    settings: Settings, documents: Mapping[str, Any], world: World, say: Callable[[str], None]
) -> None:
    """Let a step have the texts that it had: with another number of processes they are cut into other micro-batches.

    Raises ConfigError where that cannot be, or was not what other processes ask for.
    """
    trainer, batch_size = settings.trainer, settings.model.train_ds.batch_size
    before = documents["settings"]
    accumulated = before["trainer"]["accumulate_grad_batches"]
    texts = documents["progress"].get("texts_per_step") or before["model"]["train_ds"]["batch_size"] * accumulated
    together = batch_size * world.data_size
    if together * trainer.accumulate_grad_batches == texts:
        return
    if texts % together or trainer.accumulate_grad_batches != accumulated:
        shares = [size for size in range(1, texts + 1) if texts % (size * world.data_size) == 0]
        raise ConfigError(
            f"The run was started with {texts} texts a step, but model.train_ds.batch_size={batch_size} x "
            f"trainer.accumulate_grad_batches={trainer.accumulate_grad_batches} x {world.data_size} processes with "
            "texts of their own make other steps. "
            + (
                f"Give model.train_ds.batch_size={' or '.join(map(str, shares[-6:]))}, and leave the other to follow."
                if shares
                else f"Train with a number of processes that divides {texts} (trainer.devices, parallel.tensor)."
            )
        )
    trainer.accumulate_grad_batches = texts // together
    say(f"note: trainer.accumulate_grad_batches={texts // together}, so that a step has the {texts} texts that it had.")
    counted = trainer.val_check_interval * trainer.accumulate_grad_batches
    if isinstance(trainer.val_check_interval, int) and counted % accumulated == 0:
        # It counts micro-batches: this many are as many steps as before.
        trainer.val_check_interval = int(counted // accumulated)


def _leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def fingerprint(features: Sequence[Features]) -> str:
    """Digest the training data as the network sees it, to notice on resuming that it has changed."""
    if isinstance(features, ResampledFeatures):
        return features.fingerprint()
    digest = hashlib.sha256()
    for item in features:
        digest.update(item.token_ids.tobytes())
        for targets in (item.targets, item.token_targets):
            for name in sorted(targets):
                digest.update(np.asarray(targets[name]).tobytes())
    return digest.hexdigest()
