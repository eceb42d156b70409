"""Recognize checkpoints of formats that megabert does not read, to name them: DeepSpeed folders, adapters (LoRA)."""

from collections.abc import Iterable
from pathlib import Path

from ..errors import CheckpointError

DEEPSPEED_REMEDY = (
    "Its weights are spread over the files of ZeRO's ranks or of pipeline layers. Merge them with the zero_to_fp32.py "
    "that DeepSpeed writes into the folder (or Megatron-DeepSpeed's deepspeed_to_megatron.py) and give the result."
)
_DEEPSPEED_FILES = ("*_model_states.pt", "*_optim_states.pt")
_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
_ADAPTER_PARTS = ("lora_", "adapter_layer.", ".adapter", "ia3_")


def refuse_other_format(path: Path) -> None:
    """Raise CheckpointError that names the format of a path, if it is a known one that is not read."""
    folder = path if path.is_dir() else path.parent
    named = (lambda name: path.match(name)) if path.is_file() else (lambda name: any(folder.glob(name)))
    if any(named(name) for name in _ADAPTER_FILES):
        raise CheckpointError(
            f"{path} is an adapter (LoRA or another of PEFT), which changes a model and is none by itself. Merge it "
            "into its base model (in peft: model.merge_and_unload().save_pretrained(FOLDER)) and give that folder."
        )
    is_deepspeed = any(named(name) for name in _DEEPSPEED_FILES)
    if path.is_dir() and not is_deepspeed:
        steps = [step for step in path.glob("global_step*") if step.is_dir()]
        is_deepspeed = any(True for step in steps for name in _DEEPSPEED_FILES for _ in step.glob(name))
    if is_deepspeed:
        raise CheckpointError(f"{path} is a checkpoint of DeepSpeed. {DEEPSPEED_REMEDY}")


def adapter_tensors(names: Iterable[str]) -> list[str]:
    """Return the names that belong to adapters."""
    return [name for name in names if any(part in name for part in _ADAPTER_PARTS)]
