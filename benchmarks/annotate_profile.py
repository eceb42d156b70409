"""CPU time a document of each stage of `megabert annotate`, with a network that costs nothing.

    python -m benchmarks.annotate_profile RUN CORPUS.pubtator [--workers 2] [--format pubtator] [--repeats 3]

The network is a table: logits are looked up by token id, in the session that runs real networks, so batches are packed,
copied and split as ever. `stages` are exclusive, in one process; `processes` are measured with workers: the one that
has the network (on a machine with a GPU all that must keep up with it), and all together.
"""

import argparse
import json
import pickle
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

import megabert
from megabert.annotate import pipeline
from megabert.annotate.annotator import EntityAnnotator
from megabert.annotate.job import AnnotateChunks, Inputs, ReadDocuments, run_job
from megabert.annotate.shard_formats import shard_format
from megabert.annotate.shards import Ledger, ShardWriter, claim
from megabert.formats.documents.training_examples import PairOptions
from megabert.inference import Predictor
from megabert.tasks import token_classification
from megabert.torch_session import TorchSession

ENTITY_SHARE = 0.08
"""Share of tokens that the table makes part of an entity: some 15 entities in an abstract."""


class FreeModel(torch.nn.Module):
    """A network that looks its logits up by token id: most tokens are outside of entities."""

    def __init__(self, num_tokens: int, labels: Sequence[str], max_positions: int) -> None:
        super().__init__()
        random = np.random.default_rng(0)
        table_VC = random.normal(size=(num_tokens, len(labels)))
        table_VC[random.random(num_tokens) > ENTITY_SHARE, list(labels).index("O")] += 10
        self.table_VC = torch.tensor(table_VC, dtype=torch.float32)
        self.head = SimpleNamespace(takes_targets=False, is_per_sequence=False)
        self.encoder = SimpleNamespace(config=SimpleNamespace(max_positions=max_positions))

    def forward(self, token_ids_T: Tensor, *_: Any) -> Tensor:
        """Return the logits of each token."""
        return self.table_VC[token_ids_T]


def free_predictor(run: Path) -> Predictor:
    """Load a run without its network."""
    predictor = megabert.load(run, accelerator="cpu")
    positions = predictor.session.max_positions
    predictor.task.settings.model.dataset.max_seq_length = positions
    model: Any = FreeModel(len(predictor.tokenizer), predictor.labels["tag"], positions)
    session = TorchSession(model, predictor.session.loss, torch.device("cpu"))
    return replace(predictor, session=session)


class Stages:
    """Exclusive CPU time of functions that call each other."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self._open: list[str] = ["other"]
        self._last = time.process_time()

    def _switch(self) -> None:
        now = time.process_time()
        self.seconds[self._open[-1]] += now - self._last
        self._last = now

    def timed(self, owner: Any, name: str, stage: str) -> None:
        """Replace a function or method by one that is timed."""
        function: Callable[..., Any] = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            self._switch()
            self._open.append(stage)
            try:
                return function(*args, **kwargs)
            finally:
                self._switch()
                self._open.pop()

        setattr(owner, name, call)

    def iterated(self, items: Iterator[Any], stage: str) -> Iterator[Any]:
        """Time what an iterator takes to yield."""
        while True:
            self._switch()
            self._open.append(stage)
            item = next(items, None)
            self._switch()
            self._open.pop()
            if item is None:
                return
            yield item


def pickled(stages: Stages, work: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Pass what a worker takes and returns through pickle, as between processes."""

    def passed(item: Any) -> Any:
        return pickle.loads(pickle.dumps(item))

    crossing = SimpleNamespace(passed=passed)
    stages.timed(crossing, "passed", "between processes")
    return lambda chunk: crossing.passed(work(crossing.passed(chunk)))


def stage_times(predictor: Predictor, inputs: Inputs, work: AnnotateChunks, folder: Path) -> dict[str, float]:
    """Annotate twice in one process and return the CPU milliseconds a document of each stage the second time."""
    stages = Stages()
    for owner, name, stage in (
        (type(predictor.task), "examples_of_texts", "words, tokens, windows"),
        (TorchSession, "run", "packing and splitting (GPU process)"),
        (token_classification.TokenClassification, "decode", "decoding"),
        (EntityAnnotator, "__call__", "entities"),
        (AnnotateChunks, "_records", "ledger"),
        (type(work.output), "render", "rendering"),
        (ShardWriter, "write", "shards (GPU process)"),
    ):
        stages.timed(owner, name, stage)
    call, read = AnnotateChunks.__call__, ReadDocuments.__call__
    AnnotateChunks.__call__ = lambda self, sessions: pickled(stages, call(self, sessions))  # type: ignore[method-assign]
    ReadDocuments.__call__ = lambda self: stages.iterated(read(self), "reading")  # type: ignore[method-assign]
    for name in ("warm", "timed"):
        stages.seconds.clear()
        num_documents = annotate(predictor, inputs, work, folder / name, 0)
    return {
        name: round(1000 * seconds / num_documents, 4)
        for name, seconds in sorted(stages.seconds.items(), key=lambda item: -item[1])
    }


def annotate(predictor: Predictor, inputs: Inputs, work: AnnotateChunks, folder: Path, workers: int) -> int:
    """Run a job; returns the number of documents."""
    writer = ShardWriter(folder, work.output, 1000, claim(folder, {}, work.output, resume=False))
    run_job(inputs, work, [predictor.session], writer, workers)
    return writer.ledger.documents


def process_times(
    predictor: Predictor, inputs: Inputs, work: AnnotateChunks, folder: Path, workers: int
) -> dict[str, float]:
    """Return CPU milliseconds a document of the process that has the network, and of all; without their start."""
    times = []
    for name, part in (("small", (0, 4)), ("whole", (0, 1))):
        start = [time.process_time(), children_time(), time.monotonic()]
        documents = annotate(predictor, replace(inputs, part=part), work, folder / f"{name}-{workers}", workers)
        end = [time.process_time(), children_time(), time.monotonic()]
        times.append([documents, *(after - before for after, before in zip(end, start, strict=True))])
    documents, own, children, wall = (whole - small for small, whole in zip(*times, strict=True))
    own, children, wall = (round(1000 * seconds / documents, 4) for seconds in (own, children, wall))
    return {"workers": workers, "network process": own, "others": children, "total": own + children, "wall": wall}


def memory(predictor: Predictor, inputs: Inputs, work: AnnotateChunks, folder: Path) -> None:
    """Print the largest memory of one process that annotates all documents, from time to time and at the end."""
    writer = ShardWriter(folder, work.output, 1000, claim(folder, {}, work.output, resume=False))
    shown = [0]

    def show(ledger: Ledger, _: int) -> None:
        if ledger.documents >= 2 * shown[0]:
            shown[0] = max(ledger.documents, 1)
            size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            print(json.dumps({"documents": ledger.documents, "gigabytes": round(size, 3)}), flush=True)

    run_job(inputs, work, [predictor.session], writer, 0, show)
    shown[0] = 0
    show(writer.ledger, 0)


def children_time() -> float:
    """Return the CPU seconds of processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Print the stages and the processes, as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("corpus")
    parser.add_argument("--workers", type=int, nargs="*", default=[2])
    parser.add_argument("--memory", action="store_true", help="only print the largest memory")
    parser.add_argument("--format", default="pubtator")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pipeline.prepare_memory()
    predictor = free_predictor(arguments.run)
    output = shard_format(arguments.format)
    inputs = Inputs((arguments.corpus,))
    work = AnnotateChunks([predictor], [], PairOptions(), "keep", False, False, output)
    with tempfile.TemporaryDirectory() as folder:
        if arguments.memory:
            memory(predictor, inputs, work, Path(folder))
            return
        for workers in arguments.workers:
            print(json.dumps(process_times(predictor, inputs, work, Path(folder), workers)), flush=True)
        times = stage_times(predictor, inputs, work, Path(folder))
        print(json.dumps({"stages": times, "total": round(sum(times.values()), 4)}))


if __name__ == "__main__":
    main()
