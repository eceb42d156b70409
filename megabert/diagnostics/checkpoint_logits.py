"""Run a checkpoint's network on given token ids, so that its logits can be compared with the original's."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from ..checkpoints.files.weight_files import LazyTensor, open_file
from ..checkpoints.open import Checkpoint
from ..errors import CheckpointError, InputError
from ..model.attention import PackedSequences
from ..model.encoder import Encoder
from ..model.pretraining_heads import PretrainingModel
from ..storage import atomic_write
from ..weights import load_weights


def load_pretraining_model(checkpoint: Checkpoint) -> PretrainingModel:
    """Load the network of a checkpoint in float32, with the heads that the checkpoint has completely."""
    heads = checkpoint.heads
    model = PretrainingModel(
        checkpoint.config,
        language_model="language-model head" in heads,
        sentence_order={"pooler", "sentence-order head"} <= set(heads),
    )
    names = {name for name, _ in model.named_parameters()}
    # A pooler without the sentence-order head is dropped.
    load_weights(model, {name: item for name, item in checkpoint.tensors.items() if name in names}, checkpoint.source)
    return model.eval()


def write_logits(checkpoint: Checkpoint, inputs: Path, out: Path) -> dict[str, tuple[int, ...]]:
    """Run the network in float32 on the CPU and write the results as safetensors; returns their shapes.

    The results are lm_logits [B, L, V] and binary_logits [B, 2], as far as the network has these heads; V counts the
    padding rows of the vocabulary. A network without a language-model head gives hidden [B, L, D].
    """
    token_ids_BL, segment_ids_BL, mask_BL = _read_inputs(inputs, checkpoint)
    model = load_pretraining_model(checkpoint)
    with torch.inference_mode():
        hidden_BLD = _encode(model.encoder, token_ids_BL, segment_ids_BL, mask_BL)
        if model.language_model is None:
            results = {"hidden": hidden_BLD}
        else:
            results = {"lm_logits": model.language_model(hidden_BLD)}
        if model.sentence_order is not None:
            results["binary_logits"] = model.sentence_order(hidden_BLD[:, 0])
    atomic_write(out, safetensors.torch.save({name: item.contiguous() for name, item in results.items()}))
    return {name: tuple(item.shape) for name, item in results.items()}


def _encode(encoder: Encoder, token_ids_BL: Tensor, segment_ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
    """Encode rows of which only tokens with a mask of 1 attend to each other, wherever they stand.

    A document is a run of tokens, so those of mask 1 are moved to the front, with their positions, and back.
    """
    order_BL = torch.argsort(1 - mask_BL, dim=1, stable=True)
    ids_BL, segments_BL, sorted_BL = (item.gather(1, order_BL) for item in (token_ids_BL, segment_ids_BL, mask_BL))
    hidden_BLD = encoder(ids_BL, order_BL, segments_BL, PackedSequences.of_rows(sorted_BL))
    back_BL1 = torch.argsort(order_BL, dim=1).unsqueeze(-1)
    return hidden_BLD.gather(1, back_BL1.expand_as(hidden_BLD))


def _read_inputs(file: Path, checkpoint: Checkpoint) -> tuple[Tensor, Tensor, Tensor]:
    """Read `input_ids` and, if there are any, `tokentype_ids` and `attention_mask`, all [B, L], from safetensors.

    Raises InputError if one is missing, has another shape or type, or exceeds what the network supports.
    """
    try:
        content = open_file(file).content
    except CheckpointError as error:
        raise InputError(str(error)) from None
    if not isinstance(content, dict) or not isinstance(content.get("input_ids"), LazyTensor):
        raise InputError(f"{file} holds no tensor input_ids. Write it with safetensors: input_ids, tokentype_ids, "
                         "attention_mask, each [rows, tokens].")  # fmt: skip
    config = checkpoint.config
    ids = _read_ids(content, "input_ids", file, config.vocabulary_size, content["input_ids"].shape)
    if ids.ndim != 2 or not ids.numel() or ids.shape[1] > config.max_positions:
        raise InputError(
            f"{file}: input_ids is {tuple(ids.shape)}; expected [rows, tokens] with 1 to {config.max_positions} tokens."
        )
    segments, mask = torch.zeros_like(ids), torch.ones_like(ids)
    if "tokentype_ids" in content and config.num_segments:
        segments = _read_ids(content, "tokentype_ids", file, config.num_segments, tuple(ids.shape))
    if "attention_mask" in content:
        mask = _read_ids(content, "attention_mask", file, 2, tuple(ids.shape))
    return ids, segments, mask


def _read_ids(content: Mapping[str, Any], name: str, file: Path, bound: int, shape: tuple[int, ...]) -> Tensor:
    tensor: Tensor = content[name].read()
    if tensor.is_floating_point() or tuple(tensor.shape) != tuple(shape):
        raise InputError(
            f"{file}: {name} is {tensor.dtype} {tuple(tensor.shape)}; expected integers of {tuple(shape)}."
        )
    tensor = tensor.long()
    if tensor.numel() and not 0 <= int(tensor.min()) <= int(tensor.max()) < bound:
        raise InputError(
            f"{file}: {name} reaches from {int(tensor.min())} to {int(tensor.max())}; expected 0 to {bound - 1}."
        )
    return tensor
