"""Merge the adapters of a run into its weights, or write them in PEFT's format."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .build import model_documents, restore
from .checkpoints.huggingface.peft_adapter import PeftAdapter, write_peft
from .checkpoints.native import run_checkpoints
from .checkpoints.native.run_checkpoints import Contents, open_best
from .errors import ConfigError
from .model.heads import TaskModel
from .model.lora import LoraLinear, lora_config, merge_lora
from .storage import atomic_folder
from .tasks.task import Task


def merge_run(
    run: Path, dest: Path, *, as_peft: bool = False, task_name: str | None = None, overrides: Sequence[str] = ()
) -> None:
    """Write a run folder of plain weights, in float32; or with `as_peft` the adapters and head as PEFT reads them.

    Raises ConfigError if the run has no adapters or `dest` exists.
    """
    if dest.exists():
        raise ConfigError(f"{dest} exists. Give a new name, or remove it; nothing is overwritten.")
    folder, opened = open_best(run, groups=("model",))
    contents = Contents(opened.tensors, opened.documents, opened.texts)
    if "adapter" not in contents.documents:
        raise ConfigError(f"{folder} has no adapters: its weights are whole.")
    task, model, tokenizer = restore(contents, folder, task_name, overrides=overrides)
    if as_peft:
        _write_peft(dest, task, model)
        return
    merge_lora(model.encoder)
    task.settings.model.peft.peft_scheme = None
    documents = {name: item for name, item in contents.documents.items() if name not in ("adapter", "progress")}
    documents |= model_documents(task, model, tokenizer)
    tensors = {name: item.detach() for name, item in model.named_parameters()}
    entry = run_checkpoints.read_entry(folder)
    facts = {name: value for name, value in asdict(entry).items() if name not in ("path", "step")}
    merged = Contents({"model": tensors}, documents, contents.texts)
    with atomic_folder(dest) as partial:
        run_checkpoints.write(partial, entry.step, merged, **facts)


def _write_peft(dest: Path, task: Task[Any, Any], model: TaskModel) -> None:
    config = lora_config(model)
    assert config is not None, "a run with adapters has their configuration"
    matrices = {
        name: (module.lora_a.detach(), module.lora_b.detach())
        for name, module in model.encoder.named_modules()
        if isinstance(module, LoraLinear)
    }
    head = {f"head.{name}": item.detach() for name, item in model.head.named_parameters()}
    language_model = task.settings.model.language_model
    base = language_model.lm_checkpoint or language_model.pretrained_model_name or ""
    adapter = PeftAdapter(config.to_document(), matrices, head)
    with atomic_folder(dest) as folder:
        write_peft(folder, adapter, model.encoder.config, task=task.name(), base=base)
