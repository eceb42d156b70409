"""Export a run to an ONNX folder, in float32 or 8 bits, and prove it before the folder appears."""

import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from .. import __version__
from ..build import load_run, model_documents
from ..checkpoints.native.manifest import write_file, write_manifest
from ..errors import ConfigError
from ..exported_folder import DOCUMENTS, KIND, NETWORK, PROOF, load_exported, open_session
from ..inference import Predictor
from ..json_documents import json_bytes
from ..model.heads import TaskModel
from ..onnx_session import HIDDEN, INPUTS, LOGITS
from ..storage import atomic_folder
from ..torch_session import TorchSession
from .int8_linear import FloatLinears, Int8Linears, Linears
from .onnx_graph import OPSET, onnx_model, used_operators
from .proof import check_float, check_score, compare

WEIGHTS = "model.onnx.data"
LARGEST_MESSAGE = 2**31 - 2**24
"""A protobuf message has less than 2 GiB; the weights of a larger network are in a file of their own."""
CALIBRATION_QUANTILE = 0.999
"""Of the tokens' smallest and largest values: rare outliers are clipped, so that the others keep their digits."""


@dataclass(frozen=True)
class OnnxOptions:
    """How a run is exported."""

    is_int8: bool = False
    calibration: Path | None = None
    """Data file in the task's format: static scales of activations, instead of one for each token."""
    file: Path | None = None
    """Data file with labels, of which the score is compared."""
    force: bool = False
    """Write a network in 8 bits, too, that loses more of its score."""
    task: str | None = None


def export_onnx(run: Path, folder: Path, options: OnnxOptions) -> Iterator[str]:
    """Write a run's best checkpoint as an ONNX folder; yields lines for the user.

    Raises InputError, and writes nothing, where logits differ, or the score in 8 bits falls.
    """
    if options.calibration is not None and not options.is_int8:
        raise ConfigError("--calibration FILE is for --int8.")
    predictor = load_run(run, accelerator="cpu", precision="32", task_name=options.task)
    assert isinstance(predictor.session, TorchSession)
    model = predictor.session.model
    data = None if options.file is None else predictor.task.read(options.file)
    proto = onnx_model(model, _linears(predictor, options))
    documents = _documents(predictor, options)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(folder) as partial:
        files = _write_network(partial, proto)
        texts = {name: text.encode() for name, text in predictor.tokenizer.files().items()}
        for name, content in {DOCUMENTS: json_bytes(documents), **texts}.items():
            files[name] = write_file(partial / name, [content])
        num_segments = model.encoder.config.num_segments
        comparison = compare(predictor, open_session(partial, documents), data, num_segments=num_segments)
        yield from comparison.lines()
        if not options.is_int8:
            check_float(comparison)
        elif not options.force:
            check_score(comparison)
        size = sum(entry["size"] for name, entry in files.items() if name in (NETWORK, WEIGHTS))
        before = sum(parameter.numel() * 4 for parameter in model.parameters())
        yield f"{size / 1e6:.1f} MB; in float32 its parameters have {before / 1e6:.1f} MB."
        if options.is_int8 and comparison.score is None:
            yield "WARNING: what 8 bits cost is not measured: give a data file with labels, --file DEV."
        proof = {**comparison.to_document(), "bytes": size, "file": str(options.file) if options.file else None}
        files[PROOF] = write_file(partial / PROOF, [json_bytes(proof)])
        write_manifest(partial, files, _facts(predictor, proto, options))
    load_exported(folder, task_name=options.task)


def _linears(predictor: Predictor, options: OnnxOptions) -> Linears:
    if not options.is_int8:
        return FloatLinears()
    return Int8Linears(None if options.calibration is None else _calibrate(predictor, options.calibration))


def _documents(predictor: Predictor, options: OnnxOptions) -> dict[str, Any]:
    """Return what reading, decoding and the session need, as a run's documents have it."""
    assert isinstance(predictor.session, TorchSession)
    model, task = predictor.session.model, predictor.task
    return {
        "run": {"task": options.task or task.name(), "digest": predictor.digest},
        "labels": predictor.labels,
        **model_documents(task, model, predictor.tokenizer),
        "head": {"is_per_sequence": model.head.is_per_sequence, "takes_targets": model.head.takes_targets},
    }


def _facts(predictor: Predictor, proto: onnx.ModelProto, options: OnnxOptions) -> dict[str, Any]:
    return {
        "export": KIND,
        "task": predictor.task.name(),
        "precision": "32" if not options.is_int8 else "int8 static" if options.calibration else "int8 dynamic",
        "run": predictor.digest,
        "opset": OPSET,
        "inputs": list(INPUTS),
        "outputs": [LOGITS, HIDDEN],
        "operators": list(used_operators(proto)),
        "versions": {
            "megabert": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "onnx": onnx.__version__,
        },
    }


def _write_network(folder: Path, proto: onnx.ModelProto, largest: int = LARGEST_MESSAGE) -> dict[str, Any]:
    """Write the graph with its weights, large ones in a file of their own; returns the manifest's entries."""
    size = sum(len(tensor.raw_data) for tensor in proto.graph.initializer)
    if size < largest:
        return {NETWORK: write_file(folder / NETWORK, [proto.SerializeToString(deterministic=True)])}
    pieces, offset = [], 0
    for tensor in proto.graph.initializer:
        data = tensor.raw_data
        if len(data) < 2**10:
            continue
        onnx.external_data_helper.set_external_data(tensor, WEIGHTS, offset=offset, length=len(data))
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        pieces.append(data)
        offset += len(data)
    entries = {WEIGHTS: write_file(folder / WEIGHTS, pieces)}
    return entries | {NETWORK: write_file(folder / NETWORK, [proto.SerializeToString(deterministic=True)])}


def _calibrate(predictor: Predictor, file: Path) -> Mapping[str, tuple[float, float]]:
    """Measure the static range of each linear layer's input, on a data file."""
    assert isinstance(predictor.session, TorchSession)
    model = predictor.session.model
    features = predictor.task.features(predictor.task.read(file), predictor.tokenizer, with_targets=False)
    extremes: dict[str, list[Tensor]] = {}
    hooks = [
        module.register_forward_pre_hook(_recorder(extremes.setdefault(name, [])))
        for name, module in _linear_layers(model)
    ]
    try:
        predictor.session.run(
            features,
            batch_size=predictor.batch_size,
            max_length=predictor.task.row_length,
            pad_id=predictor.tokenizer.pad_id,
        )
    finally:
        for hook in hooks:
            hook.remove()
    ranges = {}
    for name, parts in extremes.items():
        lows, highs = torch.cat(parts, dim=1).numpy()
        low, high = -np.quantile(-lows, CALIBRATION_QUANTILE), np.quantile(highs, CALIBRATION_QUANTILE)
        # Zero is in the range, so that it is exact
        ranges[name] = min(float(low), -1e-6), max(float(high), 1e-6)
    return ranges


def _linear_layers(model: TaskModel) -> Sequence[tuple[str, nn.Linear]]:
    return [
        (f"encoder.{name}", module) for name, module in model.encoder.named_modules() if isinstance(module, nn.Linear)
    ]


def _recorder(parts: list[Tensor]) -> Any:
    def record(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        parts.append(torch.stack(torch.aminmax(inputs[0], dim=-1)).flatten(1))

    return record
