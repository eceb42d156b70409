"""Single-bit flips of all that megabert writes with a checksum: runs, the feature cache, units of a corpus build.

Each must be detected. A damaged cache entry or unit counts as refused: it is made again.
"""

import shutil
import warnings
from pathlib import Path

import numpy as np
import torch

from megabert.checkpoints.native import run_checkpoints
from megabert.data import feature_cache
from megabert.data.packing import Features
from megabert.errors import CheckpointError
from megabert.pretraining import corpus_builder
from tests.checkpoints.networks import VOCABULARY, write
from tests.fuzz.bytes import flip
from tests.fuzz.mutations import change_and_read, files_of, read_all

NUM, NUM_IN_TESTS = 20_000, 400
RUN = Path(__file__).parents[1] / "runs_v1" / "text_classification" / "run"


def prepare(folder):
    """Write one of each; returns (files, function that reads them and raises if they are damaged)."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    write(folder / "model", "one layer", vocabulary=VOCABULARY)
    shutil.copytree(RUN, folder / "run")
    (step,) = (folder / "run" / "checkpoints").iterdir()
    features = [Features(np.arange(9), np.zeros(9, dtype=np.int64), {"label": np.array(1)}) for _ in range(20)]
    feature_cache.save(folder, "entry", feature_cache.feature_blocks(features), lambda: {"num_examples": 20})
    corpus_builder._write_unit(folder / "0.unit", {"tokens": np.arange(300), "lengths": np.array([100, 200])})
    readers = {
        "model": (files_of(folder / "model"), lambda: read_all(folder / "model")),
        "run": (files_of(step), lambda: read_run(step)),
        "cache": (files_of(folder / "entry"), lambda: required(feature_cache.load(folder, "entry"))),
        "unit": ([folder / "0.unit"], lambda: required(corpus_builder._read_unit(folder / "0.unit"))),
    }
    for _, read in readers.values():
        read()
    return readers


def read_run(step):
    run_checkpoints.read(step, groups=("model", "optimizer"))


def required(value):
    if value is None:
        raise CheckpointError("damaged, and made again")


def run(state, random):
    files, read = state[random.choice(sorted(state))]
    outcome = change_and_read(random.choice(files), read, flip, random)
    assert outcome == "refused", "a flipped bit is not detected"
    return outcome
