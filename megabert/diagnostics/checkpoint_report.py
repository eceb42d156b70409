"""Report what a checkpoint is, what it contains, what was assumed, and which of its values are suspicious.

`describe` returns plain values for JSON (docs/checkpoints.md lists the keys), `to_text` formats them for people.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoints.files.lazy_tensor import Readable, num_bytes
from ..checkpoints.open import Checkpoint
from ..checkpoints.tensor_names import WORD
from ..errors import CheckpointError
from ..storage import file_sha256

Progress = Callable[[int, int], None] | None

# Weights of layer norms are initialized to 1 and stay far within this range.
_NORM_RANGE = (-20.0, 20.0)
_KINDS = {"pre": "Megatron-BERT", "pre_residual_normed": "Megatron-BERT, residual behind the norm", "post": "BERT"}


def describe(
    checkpoint: Checkpoint, *, num_tokens: int | None, values: bool, progress: Progress = None
) -> dict[str, Any]:
    """Describe a checkpoint; `values` reads every tensor to find suspicious values.

    `num_tokens` is the true size of the vocabulary, None where it is unknown.
    """
    config, facts = checkpoint.config, checkpoint.facts
    tensors = {**checkpoint.tensors, **checkpoint.head}
    encoder = {name: item for name, item in tensors.items() if name.startswith("encoder.")}
    task = checkpoint.documents.get("run", {}).get("task", "unknown")
    return {
        "source": checkpoint.source,
        "format": checkpoint.format,
        **{key: facts.get(key) for key in ("container", "era", "iteration", "checkpoint_version")},
        "parallel": {key: facts.get(key, 1) for key in ("tensor_parallel", "pipeline_parallel", "interleaved")},
        **{key: facts.get(key) for key in ("qkv_layout", "qkv_claimed", "qkv_evidence")},
        "architecture": config.to_dict() | {"kind": "GPT-2" if config.is_causal else _KINDS[config.norm_place]},
        "vocabulary": {
            "rows": config.vocabulary_size,
            "tokens": num_tokens,
            "source": checkpoint.tokenizer_source or None,
            "lower_case": checkpoint.lower_case,
        },
        "heads": checkpoint.heads + ([f"task head ({task})"] if checkpoint.head else []),
        "num_parameters": _num_parameters(tensors),
        "num_encoder_parameters": _num_parameters(encoder),
        "num_bytes": sum(map(num_bytes, tensors.values())),
        "dtypes": dict(Counter(str(item.dtype).removeprefix("torch.") for item in tensors.values())),
        "assumptions": list(checkpoint.notes),
        "not_read": list(facts.get("not_kept", [])),
        "unknown_globals": list(facts.get("unknown_globals", [])),
        "values_checked": values,
        "surprises": list(_find_surprises(tensors, num_tokens, progress)) if values else [],
    }


def _num_parameters(tensors: Mapping[str, Readable]) -> int:
    return sum(torch.Size(item.shape).numel() for item in tensors.values())


def _find_surprises(tensors: Mapping[str, Readable], num_tokens: int | None, progress: Progress) -> Iterator[str]:
    """Read every tensor and report values that a trained network does not have."""
    total, done = sum(map(num_bytes, tensors.values())), 0
    dtypes = {item.dtype for item in tensors.values()}
    if len(dtypes) > 1:
        yield f"tensors of several dtypes: {', '.join(sorted(str(dtype) for dtype in dtypes))}"
    for name, item in tensors.items():
        try:
            tensor = item.read()
        except CheckpointError as error:  # a damaged tensor is one line of the report
            yield str(error)
            continue
        finally:
            done += num_bytes(item)
            if progress is not None:
                progress(done, total)
        yield from _surprises_of(name, tensor, num_tokens)


def _surprises_of(name: str, tensor: Tensor, num_tokens: int | None) -> Iterator[str]:
    numbers = tensor.float()
    if not torch.isfinite(numbers).all():
        yield f"{name} holds {int((~torch.isfinite(numbers)).sum())} values that are NaN or infinite"
        return
    if tensor.ndim > 1 and bool((numbers == numbers.flatten()[0]).all()):
        yield f"{name} holds one number only, {float(numbers.flatten()[0]):g}: was it trained?"
    if "norm" in name and name.endswith("weight"):
        least, most = float(numbers.min()), float(numbers.max())
        if least < _NORM_RANGE[0] or most > _NORM_RANGE[1]:
            yield f"{name} reaches from {least:.3g} to {most:.3g}; weights of layer norms stay near 1"
    if name == WORD and num_tokens is not None and len(numbers) > num_tokens:
        rows, padding = numbers[:num_tokens], numbers[num_tokens:]
        if float(padding.norm(dim=1).mean()) > 3 * float(rows.norm(dim=1).mean()):
            yield f"{name}: the {len(padding)} rows after the vocabulary are larger than words. Is it the right one?"


def to_text(report: Mapping[str, Any]) -> str:
    """Format a report for people."""
    shape, parallel = report["architecture"], report["parallel"]
    container = f" ({report['container']})" if report["container"] else ""
    interleaved = f" x {parallel['interleaved']} interleaved" if parallel["interleaved"] > 1 else ""
    dtypes = ", ".join(f"{count} x {dtype}" for dtype, count in report["dtypes"].items())
    lines = {
        "checkpoint": report["source"],
        "format": f"{report['format']}{container}",
        "iteration": report["iteration"],
        "version": report["checkpoint_version"],
        "parts": f"{parallel['tensor_parallel']} tensor-parallel x {parallel['pipeline_parallel']} pipeline stages"
        f"{interleaved}",
        "network": f"{shape['kind']}: {shape['num_layers']} layers x {shape['hidden_size']} x {shape['num_heads']} "
        f"heads, MLP {shape['ffn_size']}, {shape['max_positions']} positions, {shape['num_segments']} segments",
        "parameters": f"{report['num_parameters']:,} ({report['num_encoder_parameters']:,} in the encoder)",
        "numbers": f"{dtypes}; {report['num_bytes'] / 1e6:,.1f} MB",
        "vocabulary": _vocabulary_line(report["vocabulary"]),
        "heads": ", ".join(report["heads"]) or "none: the encoder alone",
    }
    text = [f"{name:<12}{value}" for name, value in lines.items() if value is not None]
    text += _block("assumed", report["assumptions"]) + _block("inert", report["unknown_globals"])
    if report["values_checked"]:
        text += _block("surprises", report["surprises"] or ["none: every number is finite"])
    if "language_model_check" in report:
        check = report["language_model_check"]
        text += _block("layout", [check["verdict"], *check["evidence"]])
    if "files" in report:
        text += _block("sha256", [f"{sha256}  {name}" for name, sha256 in report["files"].items()])
    return "\n".join(text)


def _vocabulary_line(vocabulary: Mapping[str, Any]) -> str:
    if vocabulary["tokens"] is None:
        return f"{vocabulary['rows']:,} rows; the true size is not known (--vocab-file FILE)"
    padding = vocabulary["rows"] - vocabulary["tokens"]
    case = {True: ", lower-cased", False: ", cased", None: ""}[vocabulary["lower_case"]]
    return f"{vocabulary['tokens']:,} tokens + {padding:,} rows of padding{case}; {vocabulary['source']}"


def _block(title: str, lines: list[str]) -> list[str]:
    return [f"{title if number == 0 else '':<12}{line}" for number, line in enumerate(lines)]


def hash_files(path: Path) -> dict[str, str]:
    """Compute the SHA-256 of a file, or of every file below a folder, by name."""
    if path.is_file():
        return {path.name: file_sha256(path)}
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return {str(file.relative_to(path)): file_sha256(file) for file in files}
