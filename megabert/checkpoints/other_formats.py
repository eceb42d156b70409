"""Recognize checkpoints of formats that megabert does not read, to name them with a remedy."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import CheckpointError

DEEPSPEED_REMEDY = (
    "Its weights are spread over the files of ZeRO's ranks or of pipeline layers. Merge them with the zero_to_fp32.py "
    "that DeepSpeed writes into the folder (or Megatron-DeepSpeed's deepspeed_to_megatron.py) and give the result."
)
_DEEPSPEED_FILES = ("*_model_states.pt", "*_optim_states.pt", "zero/*/fp32.pt")
_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
_ADAPTER_PARTS = ("lora_", "adapter_layer.", ".adapter", "ia3_")
_AGAIN = "Give a folder with model.safetensors or pytorch_model.bin"
_LOAD = "In transformers before version 5: AutoModel.from_pretrained(FOLDER, {}=True).save_pretrained(NEW)"
# What a folder without weights that are read may hold: what it is, what helps, by its files
_FOREIGN = (
    ("a model of sentence-transformers before version 2", "Save it again: SentenceTransformer(FOLDER).save(NEW)",
     ("0_*/config.json",)),
    ("a pipeline of spaCy", "Its network is in spaCy's own format; fine-tune the encoder that it began with",
     ("config.cfg", "transformer/model")),
    ("weights for ONNX", f"{_AGAIN}: the export's source", ("*.onnx", "onnx/*.onnx")),
    ("weights for OpenVINO", f"{_AGAIN}: the export's source", ("openvino_model*", "openvino/*")),
    ("weights for llama.cpp", f"{_AGAIN}: the conversion's source", ("*.gguf",)),
    ("weights of TensorFlow", _LOAD.format("from_tf"), ("tf_model*.h5", "*.ckpt.index", "saved_model*")),
    ("weights of Flax", _LOAD.format("from_flax"), ("flax_model*.msgpack",)),
    ("shards of FSDP by accelerate", "Merge them: accelerate merge-weights FOLDER NEW", ("pytorch_model_fsdp_*",)),
)  # fmt: skip


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


def name_other_folder(folder: Path) -> str | None:
    """Return what a folder without weights that can be read is, with a remedy; None where it is unknown."""
    steps = sorted(step for step in folder.glob("checkpoint-*") if (step / "config.json").is_file())
    if steps:
        return f"{folder} holds the checkpoints of a training by transformers. Give one: {steps[-1]}."
    for what, remedy, names in _FOREIGN:
        file = next((file for name in names for file in folder.glob(name)), None)
        if file is not None:
            return f"{folder} holds {what} ({file.relative_to(folder)}), which are not read. {remedy}."
    return None


def refuse_other_content(content: Mapping[str, Any], source: str) -> None:
    """Raise CheckpointError for the dictionary of a program whose files hold more than a network."""
    if "ds_config" in content or "ds_version" in content:
        raise CheckpointError(f"{source} is a rank's file of DeepSpeed. {DEEPSPEED_REMEDY}")
    if "state_dict" in content and {"__cls__", "tag_dictionary", "label_dictionary"} & content.keys():
        raise CheckpointError(
            f"{source} is a model of flair, whose embeddings and head are objects of its own, not read. In flair "
            "save the encoder: tagger.embeddings.model.save_pretrained(FOLDER), and train the head here."
        )


def adapter_tensors(names: Iterable[str]) -> list[str]:
    """Return the names that belong to adapters."""
    return [name for name in names if any(part in name for part in _ADAPTER_PARTS)]
