"""Look into a checkpoint: what it is, what is in it, what was assumed, and what its network computes.

An open `Checkpoint` goes in; `describe` gives plain values for JSON (docs/checkpoints.md lists the keys), `to_text`
the same for people. `write_logits` runs the network on given token ids, so that anyone can compare it with the
original.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from ..build import load_weights
from ..checkpoints.cache_files import file_sha256
from ..checkpoints.files.lazy_tensor import LazyTensor, Readable
from ..checkpoints.files.weight_files import open_file
from ..checkpoints.open import Checkpoint
from ..checkpoints.tensor_names import PER_TOKEN, WORD
from ..errors import CheckpointError, InputError
from ..model.attention import PackedSequences
from ..model.heads import PretrainingModel

Progress = Callable[[int, int], None] | None

# A weight of a layer norm is trained from 1, the rows of a matrix from noise of 0.02.
_NORM_RANGE = (-20.0, 20.0)


def describe(
    checkpoint: Checkpoint, *, num_tokens: int | None, values: bool, progress: Progress = None
) -> dict[str, Any]:
    """Say all that is known of a checkpoint; `values` reads every number to find what should not be there.

    `num_tokens` is the true size of the vocabulary, None where it is not known.
    """
    config, facts = checkpoint.config, checkpoint.facts
    tensors = {**checkpoint.tensors, **checkpoint.head}
    surprises = list(_surprises(tensors, num_tokens, progress)) if values else []
    unknown = list(facts.get("unknown_globals", []))
    return {
        "source": checkpoint.source,
        "format": checkpoint.format,
        "container": facts.get("container"),
        "era": facts.get("era"),
        "iteration": facts.get("iteration"),
        "checkpoint_version": facts.get("checkpoint_version"),
        "parallel": {key: facts.get(key, 1) for key in ("tensor_parallel", "pipeline_parallel", "interleaved")},
        "qkv_layout": facts.get("qkv_layout"),
        "qkv_claimed": facts.get("qkv_claimed"),
        "qkv_evidence": facts.get("qkv_evidence"),
        "architecture": config.to_dict() | {"kind": _kind(checkpoint)},
        "vocabulary": {
            "rows": config.vocabulary_size,
            "tokens": num_tokens,
            "source": checkpoint.tokenizer_source or None,
            "lower_case": checkpoint.lower_case,
        },
        "heads": checkpoint.heads + ([f"task head ({_task(checkpoint)})"] if checkpoint.head else []),
        "num_parameters": _count(tensors),
        "num_encoder_parameters": _count({name: item for name, item in tensors.items() if name.startswith("encoder.")}),
        "num_bytes": sum(_num_items(item) * item.dtype.itemsize for item in tensors.values()),
        "dtypes": dict(Counter(str(item.dtype).removeprefix("torch.") for item in tensors.values())),
        "assumptions": list(checkpoint.notes),
        "not_read": list(facts.get("not_kept", [])),
        "unknown_globals": unknown,
        "values_checked": values,
        "surprises": surprises,
    }


def _kind(checkpoint: Checkpoint) -> str:
    config = checkpoint.config
    if config.is_causal:
        return "GPT-2"
    return {"pre": "Megatron-BERT", "pre_residual_normed": "Megatron-BERT, residual behind the norm", "post": "BERT"}[
        config.norm_place
    ]


def _task(checkpoint: Checkpoint) -> str:
    return str(checkpoint.documents.get("run", {}).get("task", "unknown"))


def _num_items(tensor: Readable) -> int:
    return torch.Size(tensor.shape).numel()


def _count(tensors: Mapping[str, Readable]) -> int:
    return sum(map(_num_items, tensors.values()))


def _surprises(tensors: Mapping[str, Readable], num_tokens: int | None, progress: Progress) -> Iterator[str]:
    """Read every tensor and say what a trained network would not have."""
    total, done = sum(_num_items(item) * item.dtype.itemsize for item in tensors.values()), 0
    dtypes = {item.dtype for item in tensors.values()}
    if len(dtypes) > 1:
        yield f"tensors of several dtypes: {', '.join(sorted(str(dtype) for dtype in dtypes))}"
    for name, item in tensors.items():
        try:
            tensor = item.read()
        except CheckpointError as error:  # what is wrong with one tensor is one line of the report
            yield str(error)
            continue
        finally:
            done += _num_items(item) * item.dtype.itemsize
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
    if name in PER_TOKEN and num_tokens is not None and len(numbers) > num_tokens:
        rows, padding = numbers[:num_tokens], numbers[num_tokens:]
        if name == WORD and float(padding.norm(dim=1).mean()) > 3 * float(rows.norm(dim=1).mean()):
            yield f"{name}: the {len(padding)} rows behind the vocabulary are larger than words. Is it the right one?"


def to_text(report: Mapping[str, Any]) -> str:
    """Lay a report out for people."""
    shape, words, parallel = report["architecture"], report["vocabulary"], report["parallel"]
    lines = [
        ("checkpoint", report["source"]),
        ("format", f"{report['format']}" + (f" ({report['container']})" if report["container"] else "")),
        ("iteration", report["iteration"]),
        ("version", report["checkpoint_version"]),
        (
            "parts",
            f"{parallel['tensor_parallel']} tensor-parallel x {parallel['pipeline_parallel']} pipeline stages"
            + (f" x {parallel['interleaved']} interleaved" if parallel["interleaved"] > 1 else ""),
        ),
        (
            "network",
            f"{shape['kind']}: {shape['num_layers']} layers x {shape['hidden_size']} x {shape['num_heads']} heads, "
            f"MLP {shape['ffn_size']}, {shape['max_positions']} positions, {shape['num_segments']} segments",
        ),
        ("parameters", f"{report['num_parameters']:,} ({report['num_encoder_parameters']:,} in the encoder)"),
        ("numbers", f"{', '.join(f'{count} x {dtype}' for dtype, count in report['dtypes'].items())}; "
                    f"{report['num_bytes'] / 1e6:,.1f} MB"),
        ("vocabulary", _vocabulary_line(words)),
        ("heads", ", ".join(report["heads"]) or "none: the encoder alone"),
    ]  # fmt: skip
    text = [f"{name:<12}{value}" for name, value in lines if value is not None]
    for title, key in (("assumed", "assumptions"), ("inert", "unknown_globals")):
        text += _block(title, report[key])
    if report["values_checked"]:
        text += _block("surprises", report["surprises"]) or ["surprises   none: every number is finite"]
    for key, show in (("language_model_check", _show_check), ("files", _show_files)):
        if key in report:
            text += show(report[key])
    return "\n".join(text)


def _vocabulary_line(words: Mapping[str, Any]) -> str:
    if words["tokens"] is None:
        return f"{words['rows']:,} rows; the true size is not known (--vocab-file FILE)"
    padding = words["rows"] - words["tokens"]
    case = {True: ", lower-cased", False: ", cased", None: ""}[words["lower_case"]]
    return f"{words['tokens']:,} tokens + {padding:,} rows of padding{case}; {words['source']}"


def _block(title: str, lines: list[str]) -> list[str]:
    return [f"{title if number == 0 else '':<12}{line}" for number, line in enumerate(lines)]


def _show_check(check: Mapping[str, Any]) -> list[str]:
    lines = [check["verdict"], *check["evidence"]]
    return _block("layout", lines)


def _show_files(files: Mapping[str, str]) -> list[str]:
    return _block("sha256", [f"{sha256}  {name}" for name, sha256 in files.items()])


def sums(path: Path) -> dict[str, str]:
    """Compute the SHA-256 of a file, or of every file below a folder, by name."""
    if path.is_file():
        return {path.name: file_sha256(path)}
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return {str(file.relative_to(path)): file_sha256(file) for file in files}


# --- What the network computes ---


@dataclass(frozen=True)
class Inputs:
    """Token ids and what belongs to them, all [B, L]."""

    token_ids_BL: Tensor
    segment_ids_BL: Tensor
    document_ids_BL: Tensor


def build(checkpoint: Checkpoint) -> PretrainingModel:
    """Make the network of a checkpoint in float32, with the heads that it has whole."""
    heads = checkpoint.heads
    model = PretrainingModel(
        checkpoint.config,
        language_model="language-model head" in heads,
        sentence_order={"pooler", "sentence-order head"} <= set(heads),
    )
    wanted = {name for name, _ in model.named_parameters()}
    # A pooler by itself computes nothing.
    load_weights(model, {name: item for name, item in checkpoint.tensors.items() if name in wanted}, checkpoint.source)
    return model.eval()


def read_inputs(file: Path, checkpoint: Checkpoint) -> Inputs:
    """Read `input_ids` and, where they are there, `tokentype_ids` and `attention_mask` from a safetensors file.

    Raises InputError if they are missing, of another shape or type, or outside of what the network knows.
    """
    try:
        content = open_file(file).content
    except CheckpointError as error:
        raise InputError(str(error)) from None
    if not isinstance(content, dict) or not isinstance(content.get("input_ids"), LazyTensor):
        raise InputError(f"{file} holds no tensor input_ids. Write it with safetensors: input_ids, tokentype_ids, "
                         "attention_mask, each [rows, tokens].")  # fmt: skip
    config = checkpoint.config
    ids = _ids(content, "input_ids", file, config.vocabulary_size, content["input_ids"].shape)
    if ids.ndim != 2 or not ids.numel() or ids.shape[1] > config.max_positions:
        raise InputError(
            f"{file}: input_ids is {tuple(ids.shape)}; expected [rows, tokens] with 1 to {config.max_positions} tokens."
        )
    segments, mask = torch.zeros_like(ids), torch.ones_like(ids)
    if "tokentype_ids" in content and config.num_segments:
        segments = _ids(content, "tokentype_ids", file, config.num_segments, tuple(ids.shape))
    if "attention_mask" in content:
        mask = _ids(content, "attention_mask", file, 2, tuple(ids.shape))
    return Inputs(ids, segments, mask)


def _ids(content: Mapping[str, Any], name: str, file: Path, bound: int, shape: tuple[int, ...]) -> Tensor:
    tensor = content[name].read()
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


def compute(checkpoint: Checkpoint, inputs: Inputs) -> dict[str, Tensor]:
    """Run the network in float32 on the CPU: lm_logits [B, L, V] and binary_logits [B, 2], by the heads it has.

    V counts the rows of padding in the vocabulary, where the file has them. A network without a language-model head
    gives its last hidden vectors, hidden [B, L, D], instead.
    """
    model = build(checkpoint)
    results: dict[str, Tensor] = {}
    with torch.inference_mode():
        documents = PackedSequences.of_rows(inputs.document_ids_BL)
        lm_logits, order_logits = model(inputs.token_ids_BL, inputs.segment_ids_BL, documents)
        if lm_logits is None:
            results["hidden"] = model.encoder(
                inputs.token_ids_BL, segment_ids=inputs.segment_ids_BL, documents=documents
            )
        else:
            results["lm_logits"] = lm_logits
        if order_logits is not None:
            results["binary_logits"] = order_logits
    return results


def write_logits(checkpoint: Checkpoint, inputs: Path, out: Path) -> dict[str, tuple[int, ...]]:
    """Compute on the token ids of a file and write the results as safetensors; returns their shapes."""
    results = compute(checkpoint, read_inputs(inputs, checkpoint))
    partial = out.with_name(f".{out.name}.tmp")
    try:
        safetensors.torch.save_file({name: item.contiguous() for name, item in results.items()}, partial)
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
    return {name: tuple(item.shape) for name, item in results.items()}
