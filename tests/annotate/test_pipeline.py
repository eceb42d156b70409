"""The process that has the networks: runs that wait for a GPU are interleaved; one that fails is raised in its turn."""

from functools import partial

import numpy as np
import pytest

from megabert.annotate.pipeline import process_chunks
from megabert.data.packing import Features
from megabert.inference import SessionOutput

LENGTHS = (3, 1, 2)


class Event:
    """An event of a GPU that is over when it was queried three times, or waited for."""

    def __init__(self):
        self.num_queries = 0

    def query(self):
        self.num_queries += 1
        return self.num_queries > 3

    def synchronize(self):
        self.num_queries = 3


class Session:
    """A network whose logits are the sum of a sequence's token ids; the chunk 17 has none."""

    def __init__(self):
        self.running, self.most = 0, 0

    def steps(self, features, **options):
        assert options == {"batch_size": 4, "max_length": 8, "pad_id": 0}
        self.running += 1
        self.most = max(self.most, self.running)
        for _ in range(2):
            event = Event()
            yield event
            assert event.num_queries > 3, "continued before the event was over"
        self.running -= 1
        if features[0].token_ids[0] == 17:
            raise ValueError("no logits")
        return SessionOutput([np.full((len(item), 2), item.token_ids.sum(), np.float32) for item in features], None)


def read():
    return iter(range(20))


def make_work(sessions):
    return partial(work, sessions)


def work(sessions, chunk):
    features = [Features(np.full(length, chunk), np.zeros(length, np.int64)) for length in LENGTHS]
    output = sessions[0].run(features, batch_size=4, max_length=8, pad_id=0)
    return chunk, [item.tolist() for item in output.logits]


def test_runs_that_wait_are_interleaved_and_results_are_in_order():
    session = Session()
    results = process_chunks(read, make_work, [session], 2)
    for chunk in range(17):
        assert next(results) == (chunk, [[[chunk * length] * 2] * length for length in LENGTHS])
    with pytest.raises(ValueError, match="no logits"):
        next(results)
    assert 1 <= session.most <= 2
