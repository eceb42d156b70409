"""Export a run as a Hugging Face folder, and prove it with transformers where that is installed."""

import importlib.util
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..build import load_run
from ..checkpoints.convert import Target, convert
from ..checkpoints.huggingface.task_heads import TASK_HEADS
from ..checkpoints.open import open_checkpoint
from ..data.packing import Features
from ..errors import CheckpointError
from ..inference import Predictor

MAX_DIFFERENCE = 1e-4
"""Of logits in float32, which reach 10 and more."""


def export_huggingface(run: Path, output: Path, data: Path | None) -> Iterator[str]:
    """Write a run as a Hugging Face folder; yields lines for the user. After an error nothing is left at `output`.

    `data` is a file with labels: its score before and after. Raises ConfigError for a head that transformers lacks.
    """
    source = open_checkpoint(run)
    if "run" not in source.documents:
        raise CheckpointError(f"{run} is no run with a head. `megabert convert` writes an encoder.")
    yield from convert(source, output, Target("huggingface"), num_tokens=None, progress=None)
    try:
        before, after = (load_run(path, accelerator="cpu", precision="32") for path in (run, output))
        if before.task.name() in TASK_HEADS or before.task.is_embedding:
            yield _compare_with_transformers(before, output)
        if data is not None:
            yield from _compare_scores(before, after, data)
    except BaseException:
        shutil.rmtree(output)
        raise


def _compare_scores(before: Predictor, after: Predictor, data: Path) -> Iterator[str]:
    examples = before.task.read(data)
    results = [item.evaluate(examples) for item in (before, after)]
    name = before.task.main_score
    scores = [result.scores[name] for result in results]
    yield f"{name}: {scores[0]:.2f} before, {scores[1]:.2f} after."
    if scores[0] != scores[1]:
        raise CheckpointError(f"the score changed from {scores[0]} to {scores[1]}. This is a bug of megabert.")


def _compare_with_transformers(predictor: Predictor, folder: Path) -> str:
    if importlib.util.find_spec("transformers") is None:
        return "transformers is not installed: the logits are not compared with its own."
    import transformers

    transformers.utils.logging.disable_progress_bar()
    name = json.loads((folder / "config.json").read_text(encoding="utf-8"))["architectures"][0]
    more = {"add_pooling_layer": False} if predictor.task.is_embedding else {}
    model = getattr(transformers, name).from_pretrained(folder, dtype=torch.float32, **more).eval()
    length = predictor.session.model.encoder.config.max_positions  # type: ignore[attr-defined]
    shapes = [(1,), (length,), (7 % length + 1, 2, length)]
    largest = max(_difference(predictor, model, lengths) for lengths in shapes)
    if not largest <= MAX_DIFFERENCE:
        raise CheckpointError(f"{name} computes logits that differ by {largest:.2g}. This is a bug of megabert.")
    return f"transformers' {name} computes the run's logits within {largest:.2g}, alone and in a padded batch."


def _difference(predictor: Predictor, model: Any, lengths: Sequence[int]) -> float:
    """Compare logits of random tokens, in one padded batch there and without padding here."""
    generator = np.random.default_rng(0)
    ids_BL = np.full((len(lengths), max(lengths)), predictor.tokenizer.pad_id)
    features = []
    for row, length in enumerate(lengths):
        token_ids = generator.integers(0, len(predictor.tokenizer), length)
        ids_BL[row, :length] = token_ids
        features.append(Features(token_ids, np.zeros_like(token_ids)))
    mask_BL = np.arange(max(lengths)) < np.array(lengths)[:, None]
    with torch.inference_mode():
        output = model(torch.from_numpy(ids_BL), attention_mask=torch.from_numpy(mask_BL).long())
    if predictor.task.is_embedding:
        theirs = _pooled(predictor, output.last_hidden_state, torch.from_numpy(mask_BL))
    else:
        theirs = output.logits if "logits" in output else torch.stack([output.start_logits, output.end_logits], dim=-1)
    pad_id = predictor.tokenizer.pad_id
    ours = predictor.session.run(features, batch_size=len(lengths), max_length=max(lengths), pad_id=pad_id).logits
    if "cases" in predictor.task.state():
        ours = [_pair_logits(item, len(predictor.task.state()["marks"])) for item in ours]
    is_per_token = ours[0].ndim == 2
    pairs = zip(ours, theirs.numpy(), lengths, strict=True)
    return max(float(np.abs(own - (other[:length] if is_per_token else other)).max()) for own, other, length in pairs)


def _pooled(predictor: Predictor, hidden_BLD: Tensor, mask_BL: Tensor) -> Tensor:
    """Pool as the modules do that sentence-transformers puts behind transformers' network."""
    head = predictor.session.model.head  # type: ignore[attr-defined]
    lengths_B = mask_BL.sum(1)
    rows, places = torch.arange(len(hidden_BLD)), {"cls": lengths_B * 0, "last": lengths_B - 1}
    if head.pooling == "mean":
        pooled_BD = (hidden_BLD * mask_BL[:, :, None]).sum(1) / lengths_B[:, None]
    else:
        pooled_BD = hidden_BLD[rows, places[head.pooling]]
    return torch.nn.functional.normalize(pooled_BD, dim=-1) if head.normalize else pooled_BD


def _pair_logits(logits_TC: NDArray[np.float32], num_marks: int) -> NDArray[np.float32]:
    """Add the logits of marks and cases: those of the merged head."""
    marks, cases = logits_TC[:, :num_marks], logits_TC[:, num_marks:]
    return (marks[:, :, None] + cases[:, None]).reshape(len(logits_TC), -1)
