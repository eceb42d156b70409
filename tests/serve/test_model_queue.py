"""The queue: batches of a token budget, answers that no neighbour changes, failures that harm no neighbour."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from megabert.data.packing import Features
from megabert.inference import SessionOutput
from megabert.serve.model_queue import Lane, ModelFailure, ModelQueue, Work, WorkCancelled
from megabert.serve.queued_session import QueuedSession, lane_name

POISON, NOT_FINITE = 66, 67


class SumSession:
    """The sum of each sequence's tokens; some tokens make a batch fail."""

    def __init__(self, gate=None):
        self.batches, self.gate = [], gate

    def run(self, features, **_):
        if self.gate:
            assert self.gate.wait(120)
        self.batches.append([len(item) for item in features])
        if any(POISON in item.token_ids for item in features):
            raise MemoryError("CUDA out of memory (injected)")
        return SessionOutput(
            [np.array([np.nan if NOT_FINITE in item.token_ids else item.token_ids.sum()]) for item in features], None
        )


def sequence(*token_ids):
    return Features(np.array(token_ids), np.zeros(len(token_ids), dtype=np.int64))


@pytest.fixture
def held():
    """A queue of 10 tokens a batch that computes once an event is set, with one batch on its way."""
    gate = threading.Event()
    session = SumSession(gate)
    queue = ModelQueue({lane_name("a", "head"): Lane(session, 5, 0)}, batch_tokens=10)
    first = queue.submit("a/head", [sequence(1)])
    while not first.running():
        time.sleep(0.001)
    yield queue, session, gate
    gate.set()
    queue.close()


def test_what_waits_shares_batches_up_to_the_token_budget(held):
    queue, session, gate = held
    futures = [queue.submit("a/head", [sequence(*[number] * 4)]) for number in range(5)]
    gate.set()
    assert [float(future.result(5).logits[0][0]) for future in futures] == [0, 4, 8, 12, 16]
    assert session.batches == [[1], [4, 4], [4, 4], [4]]


def test_batches_that_are_computed_at_once_divide_the_processor():
    gate, shares = threading.Event(), []
    lanes = {lane_name("a", "head"): Lane(SumSession(gate), 5, 0)}
    queue = ModelQueue(lanes, batch_tokens=2, threads=2, divide=shares.append)
    futures = []
    for number in range(3):
        futures.append(queue.submit("a/head", [sequence(number, number)]))
        while number < 2 and not futures[-1].running():
            time.sleep(0.001)
    gate.set()
    assert [float(future.result(5).logits[0][0]) for future in futures] == [0, 2, 4]
    assert shares[:2] == [1, 2] and len(shares) == 3
    queue.close()


def test_one_bad_request_fails_alone(held):
    queue, _, gate = held
    futures = [queue.submit("a/head", [sequence(value)]) for value in (2, POISON, 3, NOT_FINITE, 4)]
    gate.set()
    assert [float(futures[index].result(5).logits[0][0]) for index in (0, 2, 4)] == [2, 3, 4]
    with pytest.raises(ModelFailure, match="out of memory"):
        futures[1].result(5)
    with pytest.raises(ModelFailure, match="not finite"):
        futures[3].result(5)
    assert float(queue.submit("a/head", [sequence(9)]).result(5).logits[0][0]) == 9


def test_cancelled_requests_are_not_computed_and_their_threads_end(held):
    queue, session, gate = held
    host = threading.Semaphore(8)
    works = [Work(host) for _ in range(4)]
    sessions = [QueuedSession(queue, "a", work, 100, 64) for work in works]

    def run(number):
        with host:
            options = {"batch_size": 1, "max_length": 5, "pad_id": 0}
            return sessions[number].run([sequence(number, 7)], **options).logits[0][0]

    with ThreadPoolExecutor(4) as threads:
        futures = [threads.submit(run, number) for number in range(4)]
        while sum(map(len, queue._waiting.values())) < 4:
            time.sleep(0.001)
        for number in (1, 2):
            works[number].cancel()
            with pytest.raises(WorkCancelled):
                futures[number].result(5)
        assert sum(map(len, queue._waiting.values())) == 2
        gate.set()
        assert [futures[number].result(5) for number in (0, 3)] == [7, 10]
    assert session.batches == [[1], [2, 2]]
    assert works[0].tokens == 2


def test_a_long_request_is_queued_in_parts(held):
    queue, session, gate = held
    host = threading.Semaphore(1)
    gate.set()
    with host:
        output = QueuedSession(queue, "a", Work(host), 10, 64).run(
            [sequence(*[number] * 4) for number in range(7)], batch_size=1, max_length=5, pad_id=0
        )
    assert [float(item[0]) for item in output.logits] == [4 * number for number in range(7)]
    assert all(sum(batch) <= 10 for batch in session.batches)


def test_closing_fails_what_waits():
    queue = ModelQueue({"a/head": Lane(SumSession(), 5, 0)})
    queue.close()
    with pytest.raises(ModelFailure, match="stopped"):
        queue.submit("a/head", [sequence(1)]).result(5)
