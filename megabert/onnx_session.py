"""Run an exported network over features by onnxruntime: rows of similar length, without torch.

Each batch holds sequences of nearly one length, so that little is padded; padding never changes a logit. On a CPU each
thread computes batches of its own where there are enough: within one, threads wait for each other at every operator.
"""

import os
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from .config.schema import check_accelerator
from .data.packing import Features
from .errors import CheckpointError, ConfigError, InputError
from .inference import EvaluationStopped, RunOptions, SessionOutput, by_feature

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
LOGITS, HIDDEN = "logits", "last_hidden_state"
CPU_TOKENS, GPU_TOKENS = 256, 16384
"""Tokens of a batch, on a CPU for each thread: activations then stay in its cache; 4,096 take twice as long."""
LARGEST_TWICE = 128 * 10**6
"""Bytes of a network that is opened twice, for one batch at a time and for a batch in each thread."""
EXTRA = "pip install 'megabert[onnx]'"


@dataclass(frozen=True)
class Lanes:
    """A network with one thread, and the threads that compute a batch each with it."""

    network: Any
    threads: ThreadPoolExecutor
    count: int
    process: int = field(default_factory=os.getpid)
    """That has the threads; one that is forked from it has none, and computes by itself."""


@dataclass(frozen=True)
class OnnxSession:
    """An exported network in onnxruntime."""

    network: Any
    """An onnxruntime.InferenceSession; several threads may use it."""
    is_per_sequence: bool
    """Whether logits are of sequences, [B, C], or of tokens, [B, L, C]."""
    max_positions: int
    needs_targets: bool = False
    """Whether the run's network computes losses instead of logits: an exported one does not."""
    max_batch_tokens: int = CPU_TOKENS
    output: str = LOGITS
    lanes: Lanes | None = None

    def without_head(self) -> "OnnxSession":
        """Return the network without its head, as `Session.without_head` describes."""
        return replace(self, output=HIDDEN, needs_targets=False)

    def run(self, features: Sequence[Features], **options: Unpack[RunOptions]) -> SessionOutput:
        """Compute logits of all features, as `Session.run` describes. Raises ConfigError for losses."""
        progress, should_stop = options.get("progress"), options.get("should_stop")
        if options.get("with_loss") or (self.needs_targets and len(features) and features[0].token_targets):
            raise ConfigError("an exported model predicts and computes no loss. Evaluate the run that it is made from.")
        # Features may hold several sequences, such as the choices of a question.
        parts = [item.parts or (len(item),) for item in features]
        lengths = np.array([length for own in parts for length in own], dtype=np.int64)
        limit = min(options["max_length"], self.max_positions)
        if len(lengths) and lengths.max() > limit:
            raise InputError(f"a sequence of {lengths.max()} tokens is longer than {limit}.")
        ends = np.cumsum(lengths)
        token_ids = np.concatenate([item.token_ids for item in features]) if len(features) else ends
        segment_ids = np.concatenate([item.segment_ids for item in features]) if len(features) else ends
        rows: list[NDArray[np.float32]] = [np.zeros((0, 0), dtype=np.float32)] * len(lengths)
        budget = options["batch_size"] * options["max_length"]
        batches = list(_batches(lengths, min(budget, self.max_batch_tokens)))
        network, threads = self.network, None
        if self.lanes is not None:
            for_each = list(_batches(lengths, min(budget, CPU_TOKENS)))
            is_forked = self.lanes.process != os.getpid()
            if is_forked or len(for_each) >= self.lanes.count:
                batches, network, threads = for_each, self.lanes.network, None if is_forked else self.lanes.threads

        def compute(indices: NDArray[np.int64]) -> list[NDArray[np.float32]]:
            # The tokens of each row; behind its end those of others, which are replaced by padding
            places = (ends - lengths)[indices, None] + np.arange(lengths[indices[0]])
            mask = np.arange(lengths[indices[0]]) < lengths[indices, None]
            places = np.minimum(places, len(token_ids) - 1)
            padded_ids = np.where(mask, token_ids[places], options["pad_id"])
            values = padded_ids, mask.astype(np.int64), segment_ids[places] * mask
            (logits,) = network.run([self.output], dict(zip(INPUTS, values, strict=True)))
            return [self._own(row, int(length)) for row, length in zip(logits, lengths[indices], strict=True)]

        def computed() -> Generator[list[NDArray[np.float32]], None, None]:
            yield from map(compute, batches) if threads is None else threads.map(compute, batches)

        with closing(computed()) as outputs:  # closed, it cancels the batches that nobody waits for
            for number, (indices, own_rows) in enumerate(zip(batches, outputs, strict=True), start=1):
                for row, index in zip(own_rows, indices.tolist(), strict=True):
                    rows[index] = row
                if progress is not None:
                    progress(number, len(batches))
                if should_stop is not None and should_stop():
                    raise EvaluationStopped
        if len(rows) > len(features):
            rows = by_feature(np.stack(rows), [len(own) for own in parts])
        return SessionOutput(rows, None)

    def _own(self, row: NDArray[np.float32], length: int) -> NDArray[np.float32]:
        """Return the part of a row without padding, as an array of its own: a view would keep its batch in memory."""
        if self.output == HIDDEN:
            mean: NDArray[np.float32] = row[:length].mean(axis=0, dtype=np.float64).astype(np.float32)
            return mean
        return row.copy() if self.is_per_sequence else row[:length].copy()


def _batches(lengths: NDArray[np.int64], max_tokens: int) -> Iterator[NDArray[np.int64]]:
    """Yield the indices of each batch: sequences of similar length, the longest first, padded at most `max_tokens`."""
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        count = max(max_tokens // max(int(lengths[order[start]]), 1), 1)
        yield order[start : start + count]
        start += count


def num_threads(threads: int | None) -> int:
    """Return the number of threads; None: as many as this process may use cores."""
    return threads or len(os.sched_getaffinity(0))


def open_lanes(file: Path, count: int) -> Lanes | None:
    """Open a network for a batch in each of `count` threads; None for one thread, and where it is large."""
    if count == 1 or sum(part.stat().st_size for part in file.parent.glob(f"{file.name}*")) > LARGEST_TWICE:
        return None
    return Lanes(open_network(file, threads=1), ThreadPoolExecutor(count, thread_name_prefix="onnx"), count)


def open_network(file: Path, *, accelerator: str = "auto", threads: int | None = None) -> Any:
    """Open an ONNX file in onnxruntime; `threads` None: as many as this process may use cores.

    Raises ConfigError where onnxruntime is missing, or has no GPU that is requested.
    """
    try:
        import onnxruntime
    except ModuleNotFoundError:
        raise ConfigError(f"{file} needs onnxruntime, which is not installed: {EXTRA}.") from None
    check_accelerator(accelerator)
    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"][accelerator != "gpu" :]
    missing = set(providers) - set(onnxruntime.get_available_providers())
    if missing:
        raise ConfigError(f"this onnxruntime has no {', '.join(missing)}. Install onnxruntime-gpu, or use the CPU.")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads(threads)
    # The arena would keep the peak of memory for ever, and memory patterns are kept for each shape.
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False
    options.log_severity_level = 3
    try:
        # Fused with its bias, onnxruntime's GELU is slower than the two of them (twice in 1.32).
        return onnxruntime.InferenceSession(
            str(file), options, providers=providers, disabled_optimizers=["BiasGeluFusion"]
        )
    except Exception as error:  # onnxruntime's own exceptions have no common base
        reason = str(error).splitlines()[0][:300]
        raise CheckpointError(f"{file} cannot be opened by onnxruntime: {reason}. Export the run again.") from None
