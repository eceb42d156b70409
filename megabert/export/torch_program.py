"""Export a run as a program of torch.export: model.pt2, which PyTorch loads and runs without megabert.

Inputs and outputs are those of the ONNX network: rows [B, L] with a mask, any batch and length.
"""

import copy
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..build import load_run, model_documents
from ..checkpoints.native.manifest import write_file, write_manifest
from ..errors import InputError
from ..exported_folder import DOCUMENTS
from ..json_documents import json_bytes
from ..model.heads import TaskModel
from ..model.layers import Attention
from ..onnx_session import INPUTS, OnnxSession
from ..storage import atomic_folder
from ..torch_session import TorchSession
from .proof import check_float, compare

PROGRAM, KIND = "model.pt2", "torch-export"


class RowModel(nn.Module):
    """A network on padded rows: the encoder's own layers, with masked attention, and the head on what is no padding."""

    def __init__(self, model: TaskModel) -> None:
        super().__init__()
        self.encoder = copy.deepcopy(model.encoder)
        self.head = copy.deepcopy(model.head)
        for layer in self.encoder.layers:
            layer.attention = RowAttention(layer.attention)  # type: ignore[arg-type]

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        """Compute logits [B, C] or [B, L, C] of token ids [B, L]; those at padding mean nothing."""
        encoder, mask_BL = self.encoder, attention_mask.bool()
        positions_BL = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
        hidden_BLD = encoder.embeddings(input_ids, positions_BL, token_type_ids)
        for layer in encoder.layers:
            hidden_BLD = layer(hidden_BLD, mask_BL)
        if encoder.final_norm is not None:
            hidden_BLD = encoder.final_norm(hidden_BLD)
        lengths_B = attention_mask.sum(1)
        starts_B = lengths_B.cumsum(0) - lengths_B
        packed_TD = hidden_BLD[mask_BL].float()
        logits = self.head(packed_TD, starts_B, {}) if self.head.takes_targets else self.head(packed_TD, starts_B)
        if self.head.is_per_sequence:
            return logits
        # The number of the token at each place, of tokens without padding: in its row, and in the rows before
        numbers_BL = (attention_mask.cumsum(1) - 1).clamp(min=0) + starts_B[:, None]
        return logits[numbers_BL]


class RowAttention(nn.Module):
    """Self-attention over padded rows, with the weights of an `Attention`."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.qkv, self.out = attention.qkv, attention.out
        self.head_dim, self.is_causal = attention.head_dim, attention.is_causal

    def forward(self, hidden_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        """Attend to the tokens of the same row that are no padding: [B, L, D]."""
        qkv_BLH3K = self.qkv(hidden_BLD).unflatten(-1, (-1, 3, self.head_dim))
        query_BHLK, key_BHLK, value_BHLK = (item.transpose(1, 2) for item in qkv_BLH3K.unbind(3))
        allowed = mask_BL[:, None, None, :]
        if self.is_causal:
            places_L = torch.arange(mask_BL.shape[1], device=mask_BL.device)
            allowed = allowed & (places_L <= places_L[:, None])
        context_BHLK = F.scaled_dot_product_attention(query_BHLK, key_BHLK, value_BHLK, attn_mask=allowed)
        return self.out(context_BHLK.transpose(1, 2).flatten(2))


class _Program:
    """A loaded program with the interface of onnxruntime's InferenceSession."""

    def __init__(self, file: Path) -> None:
        self._module = torch.export.load(file).module()

    def run(self, _: list[str], inputs: dict[str, object]) -> list[object]:
        """Return the logits."""
        with torch.inference_mode():
            return [self._module(*(torch.as_tensor(inputs[name]) for name in INPUTS)).numpy()]


def export_program(run: Path, folder: Path, *, file: Path | None, task: str | None) -> Iterator[str]:
    """Write a run's best checkpoint as a folder with model.pt2; yields lines for the user.

    Raises InputError, and writes nothing, where logits differ.
    """
    predictor = load_run(run, accelerator="cpu", precision="32", task_name=task)
    assert isinstance(predictor.session, TorchSession)
    model = predictor.session.model
    data = None if file is None else predictor.task.read(file)
    documents = {
        "run": {"task": task or predictor.task.name(), "digest": predictor.digest},
        "labels": predictor.labels,
        **model_documents(predictor.task, model, predictor.tokenizer),
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(folder) as partial:
        torch.export.save(_program(model), partial / PROGRAM)
        files = {PROGRAM: write_file(partial / "program", [(partial / PROGRAM).read_bytes()])}
        (partial / "program").replace(partial / PROGRAM)
        files[DOCUMENTS] = write_file(partial / DOCUMENTS, [json_bytes(documents)])
        for name, text in predictor.tokenizer.files().items():
            files[name] = write_file(partial / name, [text.encode()])
        head, config = model.head, model.encoder.config
        session = OnnxSession(
            _Program(partial / PROGRAM), head.is_per_sequence, config.max_positions, head.takes_targets
        )
        comparison = compare(predictor, session, data, num_segments=config.num_segments)
        yield from comparison.lines()
        check_float(comparison)
        facts = {"export": KIND, "task": predictor.task.name(), "run": predictor.digest, "inputs": list(INPUTS)}
        write_manifest(partial, files, facts | {"torch": torch.__version__, "proof": comparison.to_document()})


def _program(model: TaskModel) -> torch.export.ExportedProgram:
    module = RowModel(model).float().eval()
    ids = torch.arange(21).reshape(3, 7) % model.encoder.config.vocabulary_size
    mask = (torch.arange(7) < torch.tensor([[7], [4], [2]])).long()
    batch = torch.export.Dim("batch", min=1, max=2**20)
    length = torch.export.Dim("length", min=1, max=model.encoder.config.max_positions)
    dims = ({0: batch, 1: length},) * 3
    try:
        return torch.export.export(module, (ids, mask, torch.zeros_like(ids)), dynamic_shapes=dims)
    except (RuntimeError, torch._dynamo.exc.UserError) as error:
        reason = str(error).strip().splitlines()[0][:300]
        raise InputError(f"torch.export cannot trace {type(model.head).__name__}: {reason}") from error
