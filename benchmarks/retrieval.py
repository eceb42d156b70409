"""Exact search of 1,024 queries, top 100, in random vectors, and a training step of 65,536 pairs by gradient caching.

python -m benchmarks.retrieval [--rows 10000000] [--pairs 65536] [--device cuda] [--output FILE.json]
"""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import SMALL_CPU
from megabert.config.parser import compose
from megabert.config.schema import OptimizerSettings
from megabert.data.packing import Features, pack
from megabert.model.encoder import Encoder, initialize
from megabert.model.heads import TaskModel
from megabert.retrieval.embedding_store import StoreBlock
from megabert.retrieval.exact_search import GPU_BLOCK_ROWS, DeviceSearch
from megabert.tasks import registry
from megabert.training.contrastive_step import ContrastiveStepper

DIMENSIONS, NUM_QUERIES, K, MICRO_BATCH = 256, 1024, 100, 1024


def blocks(rows: int, size: int) -> Iterator[StoreBlock]:
    """Generate random float16 vectors; a block is a rotation of the first, which is cheap."""
    base = np.random.default_rng(0).normal(size=(min(size, rows), DIMENSIONS)).astype(np.float16)
    for number, start in enumerate(range(0, rows, size)):
        yield StoreBlock(start, np.roll(base, number, axis=1)[: min(size, rows - start)], None)


def measure_search(rows: int, device: torch.device) -> dict[str, Any]:
    """Measure seconds of a search with the vectors on the device, and compare a part with float64."""
    size = min(GPU_BLOCK_ROWS, rows)
    searcher = DeviceSearch(blocks(rows, size), device)
    queries = np.random.default_rng(1).normal(size=(NUM_QUERIES, DIMENSIONS)).astype(np.float32)
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        scores, _ = searcher.search(queries, K)
        seconds.append(time.perf_counter() - start)
    best = np.zeros((0,))
    for block in blocks(rows, size):
        products = queries[:2].astype(np.float64) @ block.values.astype(np.float64).T
        best = products if not best.size else np.concatenate([best, products], axis=1)
        best = -np.sort(-best, axis=1)[:, :K]
    error = float(np.abs(best - scores[:2]).max())
    return {"rows": rows, "first": seconds[0], "seconds": min(seconds[1:]), "largest_error_of_2_queries": error}


def measure_step(pairs: int, device: torch.device) -> dict[str, Any]:
    """Measure a step of pairs of a query of 16 and a passage of 48 tokens, in micro-batches."""
    kind = registry.find("text_embedding")
    task = kind(compose(kind.settings_type, [], owner="text_embedding")[0])
    encoder = Encoder(replace(SMALL_CPU, hidden_dropout=0.1, attention_dropout=0.1))
    model = TaskModel(encoder, task.head(encoder.config))
    initialize(model, torch.Generator().manual_seed(0), num_layers=SMALL_CPU.num_layers)
    precision = "bf16" if device.type == "cuda" else "32"
    model.to(device).train()
    stepper = ContrastiveStepper(model, task.loss, OptimizerSettings(), precision=precision, clip=1.0, seed=0)
    random = np.random.default_rng(0)
    features = []
    for number in range(pairs):
        ids = random.integers(1000, 30_000, 64)
        targets = {"query": np.full(2, number), "passage": np.array([-1, number]), "score": np.zeros(2, np.float32)}
        features.append(Features(ids, ids * 0, targets, parts=(16, 48)))
    size = min(MICRO_BATCH, pairs)
    batches = [pack(features[start : start + size], 64, 0) for start in range(0, pairs, size)]
    rows = []
    for number in range(2):
        start = time.perf_counter()
        loss, norm = stepper.step(batches, 1e-5, number * len(batches)).tolist()
        rows.append({"seconds": time.perf_counter() - start, "loss": loss, "norm": norm})
    memory = torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else None
    return {"pairs": pairs, "micro_batch": size, "steps": rows, "gigabytes": memory}


def main() -> None:
    """Measure both, and write each as it comes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--pairs", type=int, default=65_536)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    device, result = torch.device(arguments.device), {}
    for name, measure, size in (
        ("search", measure_search, arguments.rows),
        ("gradient_caching", measure_step, arguments.pairs),
    ):
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        result[name] = measure(size, device)
        print(json.dumps({name: result[name]}), flush=True)
        if arguments.output:
            arguments.output.write_text(json.dumps(result, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
