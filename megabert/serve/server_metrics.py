"""Metrics in Prometheus' text format, summed over the server's processes through memory that they share.

Each process writes a row of its own; whichever answers /metrics adds the rows. Names and labels are fixed: no text of a
request becomes one. The names that begin with te_ are TEI's.
"""

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
LOST_LINES = "megabert_log_lines_lost_total"
FILL_BUCKETS = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
ROUTES = ("tasks", "documents", "embed", "rank", "predict", "tokenize", "infer", "other")
STATUSES = (
    "200",
    "400",
    "401",
    "403",
    "404",
    "405",
    "408",
    "413",
    "415",
    "421",
    "422",
    "424",
    "429",
    "431",
    "500",
    "503",
)
# Name, labels, help
COUNTERS: tuple[tuple[str, str, str], ...] = (
    ("te_request_count", "", "Requests that were admitted."),
    ("te_request_success", "", "Admitted requests that were answered with 200."),
    ("te_request_failure", "", "Admitted requests that were answered with an error."),
    ("megabert_requests_cancelled_total", "", "Admitted requests whose client closed the connection."),
    *(("megabert_requests_total", f'route="{name}"', "Requests by route.") for name in ROUTES),
    *(("megabert_responses_total", f'status="{name}"', "Responses by status.") for name in (*STATUSES, "other")),
    ("megabert_tokens_total", "", "Tokens of answered requests."),
    ("megabert_windows_total", "", "Sequences of answered requests."),
    ("megabert_batches_total", "", "Batches that were computed."),
    ("megabert_batch_tokens_total", "", "Tokens of the batches."),
    ("megabert_batch_sequences_total", "", "Sequences of the batches."),
    ("megabert_connections_closed_total", "", "Connections closed for being slow, silent or too many."),
    ("megabert_front_end_restarts_total", "", "Front ends that were started again."),
    (LOST_LINES, "", "Lines that could not be logged: a full disk, or a pipe that nobody reads."),
)
GAUGES: tuple[tuple[str, str], ...] = (
    ("te_queue_size", "Requests that are admitted and not yet answered."),
    ("megabert_queue_tokens", "Tokens that wait for the networks."),
    ("megabert_connections", "Open connections."),
)
HISTOGRAMS: tuple[tuple[str, str, Sequence[float]], ...] = (
    ("te_request_duration", "Seconds from a request's head to its answer.", BUCKETS),
    ("te_request_queue_duration", "Seconds that a request's sequences waited.", BUCKETS),
    ("te_request_inference_duration", "Seconds that its batches were computed.", BUCKETS),
    ("megabert_batch_seconds", "Seconds of a batch.", BUCKETS),
    ("megabert_batch_fill_ratio", "Tokens of a batch as a part of the token budget.", FILL_BUCKETS),
)
_SIZES = [1] * (len(COUNTERS) + len(GAUGES)) + [len(buckets) + 2 for _, _, buckets in HISTOGRAMS]
_STARTS = np.cumsum([0, *_SIZES])
NUM_VALUES = int(_STARTS[-1])
_KEYS = [name + (f"{{{labels}}}" if labels else "") for name, labels, _ in COUNTERS]
_NAMES = [*_KEYS, *(name for name, _ in GAUGES), *(name for name, *_ in HISTOGRAMS)]
_PLACES = {key: int(start) for key, start in zip(_NAMES, _STARTS, strict=False)}
_BUCKETS = {name: buckets for name, _, buckets in HISTOGRAMS}


class ServerMetrics:
    """The metrics of one process; `memory` has a row of NUM_VALUES float64 for each process."""

    def __init__(self, memory: Any = None, row: int = 0) -> None:
        values = np.zeros(NUM_VALUES) if memory is None else np.frombuffer(memory, dtype=np.float64)
        self._rows = values.reshape(-1, NUM_VALUES)
        self._own = self._rows[row]
        self._lock = threading.Lock()

    def add(self, key: str, value: float = 1.0) -> None:
        """Add to a counter, or to a gauge."""
        with self._lock:
            self._own[_PLACES[key]] += value

    def count_response(self, status: int) -> None:
        """Count a response."""
        self.add(f'megabert_responses_total{{status="{status if str(status) in STATUSES else "other"}"}}')

    def set(self, key: str, value: float) -> None:
        """Set a gauge."""
        self._own[_PLACES[key]] = value

    def clear_gauges(self) -> None:
        """Set the process's gauges to 0."""
        for name, _ in GAUGES:
            self.set(name, 0)

    def observe(self, key: str, value: float) -> None:
        """Add a value to a histogram."""
        place, buckets = _PLACES[key], _BUCKETS[key]
        with self._lock:
            self._own[place + int(np.searchsorted(buckets, value))] += 1
            self._own[place + len(buckets) + 1] += value

    def observe_batch(self, name: str, value: float) -> None:
        """Take a measurement of the queue."""
        if name == "queue_tokens":
            self.set("megabert_queue_tokens", value)
        elif name == "batch_fill":
            self.observe("megabert_batch_fill_ratio", value)
        elif name == "batch_seconds":
            self.observe("megabert_batch_seconds", value)
        else:
            self.add(f"megabert_{name}_total", value)

    def value(self, key: str) -> float:
        """Return a counter or gauge, of all processes."""
        return float(self._rows[:, _PLACES[key]].sum())

    def text(self) -> str:
        """Format all metrics."""
        total = self._rows.sum(axis=0)
        lines: list[str] = []
        seen: set[str] = set()
        for key, (name, _, description) in zip(_KEYS, COUNTERS, strict=True):
            if name not in seen:
                lines += [f"# HELP {name} {description}", f"# TYPE {name} counter"]
                seen.add(name)
            lines.append(f"{key} {total[_PLACES[key]]:.15g}")
        for name, description in GAUGES:
            lines += [f"# HELP {name} {description}", f"# TYPE {name} gauge", f"{name} {total[_PLACES[name]]:.15g}"]
        for name, description, buckets in HISTOGRAMS:
            lines += [f"# HELP {name} {description}", f"# TYPE {name} histogram"]
            values = total[_PLACES[name] : _PLACES[name] + len(buckets) + 2]
            counts = np.cumsum(values[:-1])
            lines += [
                f'{name}_bucket{{le="{edge}"}} {count:.15g}' for edge, count in zip(buckets, counts, strict=False)
            ]
            lines += [f'{name}_bucket{{le="+Inf"}} {counts[-1]:.15g}']
            lines += [f"{name}_sum {values[-1]:.15g}", f"{name}_count {counts[-1]:.15g}"]
        return "\n".join([*lines, ""])
