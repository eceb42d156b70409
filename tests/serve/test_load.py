"""Many clients: each gets its own answer, whoever else asks; refusals, deadlines, cancellation, shutdown, failures."""

import http.client
import json
import random
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from megabert.serve.admission import Admission, ServerLimits
from megabert.serve.hosted_models import ModelCatalog
from megabert.serve.refusals import Refusal
from megabert.serve.server_metrics import NUM_VALUES, ServerMetrics
from tests.serve.running_server import load_runs, running
from tests.serve.test_routes import same


class GatedSession:
    """A session that waits for an event before it computes, and raises an error on demand."""

    gate = threading.Event()
    is_waiting = False
    failure: Exception | None = None

    def __init__(self, session):
        self.session, self.device = session, "cpu"

    def without_head(self):
        return self.session.without_head()

    def run(self, features, **options):
        GatedSession.is_waiting = True
        assert GatedSession.gate.wait(120)
        GatedSession.is_waiting = False
        if GatedSession.failure is not None:
            raise GatedSession.failure
        return self.session.run(features, **options)


@pytest.fixture(scope="module")
def gated():
    limits = ServerLimits(max_concurrent_requests=8, deadline_seconds=120)
    with running(load_runs("ner"), GatedSession, limits=limits) as found:
        yield found
        GatedSession.gate.set()


@pytest.fixture(autouse=True)
def open_gate():
    GatedSession.gate.set()
    GatedSession.failure = None


def test_answers_do_not_depend_on_who_else_asks(server):
    words = ["Peter", "lives", "in", "Paris", "Anna", "left", "Rome", "\U0001f600", "river", "1999"]
    draw = random.Random(0)
    texts = [" ".join(draw.choices(words, k=draw.randint(1, 60))) for _ in range(60)]
    predictor = server.runs["ner"]
    wanted = [json.loads(json.dumps(predictor.task.to_json(predictor.predict(text=text)))) for text in texts]

    def ask(number):
        if number % 5 == 4:  # neighbours of other models
            return server.post("/models/ner/embed", inputs=texts[number])
        return server.post("/v1/entities", model="ner", text=texts[number])["results"][0]

    with ThreadPoolExecutor(12) as threads:
        answers = list(threads.map(ask, range(len(texts))))
    for number, answer in enumerate(answers):
        if number % 5 != 4:
            assert answer["windows"] == wanted[number]["windows"]
            assert same({**wanted[number], "id": "1"}, answer)


def wait_until(condition):
    for _ in range(20_000):
        if condition():
            return
        time.sleep(0.005)
    raise AssertionError("it did not happen")


def active(server):
    return server.server.application.admission.num_active


def test_every_client_gets_one_answer_and_the_counts_agree(gated):
    keys = ("te_request_count", "te_request_success", "te_request_failure", "megabert_requests_cancelled_total")
    before = [gated.metric(key) for key in keys]
    GatedSession.gate.clear()
    with ThreadPoolExecutor(40) as threads:
        shapes = ({"text": "Peter"}, {"inputs": ["Peter", "Anna"]})
        futures = [threads.submit(gated.call, "POST", "/v1/entities", shapes[number % 2]) for number in range(40)]
        wait_until(lambda: sum(future.done() for future in futures) == 32)
        GatedSession.gate.set()
        answers = [future.result(120) for future in futures]
    assert sorted(status for status, _, _ in answers) == [200] * 8 + [429] * 32
    for status, headers, answer in answers:
        if status == 429:
            assert headers["retry-after"] == "1"
            assert answer["error_type"] == "Overloaded"
    admitted, success, failure, cancelled = (gated.metric(key) - old for key, old in zip(keys, before, strict=True))
    assert (admitted, success, failure, cancelled) == (8, 8, 0, 0)


def test_a_deadline_ends_a_request_and_its_place_is_free(gated):
    GatedSession.gate.clear()
    blocker = threading.Thread(target=gated.call, args=("POST", "/v1/entities", {"text": "first"}))
    blocker.start()
    wait_until(lambda: GatedSession.is_waiting)  # not in one batch with those that come next
    status, headers, _ = gated.call("POST", "/v1/entities", {"text": "Peter"}, x_request_timeout="0.05")
    assert (status, "retry-after" in headers) == (503, True)
    wait_until(lambda: active(gated) == 1)
    GatedSession.gate.set()
    blocker.join(120)


def test_a_client_that_goes_away_is_not_computed(gated):
    GatedSession.gate.clear()
    blocker = threading.Thread(target=gated.call, args=("POST", "/v1/entities", {"text": "first"}))
    blocker.start()
    wait_until(lambda: GatedSession.is_waiting)  # not in one batch with those that come next
    batches = gated.metric("megabert_batches_total")
    body = json.dumps({"text": "Peter"})
    clients = []
    for _ in range(5):
        client = socket.create_connection(("127.0.0.1", gated.port))
        client.sendall(f"POST /v1/entities HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())  # fmt: skip  # noqa: E501
        clients.append(client)
    wait_until(lambda: active(gated) == 6)
    for client in clients:
        client.close()
    wait_until(lambda: active(gated) == 1)
    GatedSession.gate.set()
    blocker.join(120)
    assert gated.metric("megabert_batches_total") == batches + 1
    assert gated.metric("megabert_requests_cancelled_total") == 5


def test_a_failure_of_the_network_is_500_with_an_id_and_the_server_lives(gated, capfd):
    GatedSession.failure = MemoryError("CUDA out of memory (injected): secret text")
    status, headers, answer = gated.call("POST", "/v1/entities", {"text": "Peter"})
    assert (status, answer["error_type"]) == (500, "Backend")
    assert answer["request_id"] == headers["x-request-id"]
    assert "secret" not in json.dumps(answer)
    gated.server.application.error_log.close()  # waits for its lines
    assert headers["x-request-id"] in capfd.readouterr().err
    GatedSession.failure = None
    assert gated.call("POST", "/v1/entities", {"text": "Peter"})[0] == 200


def test_stopping_answers_what_was_admitted_and_refuses_what_is_new():
    with running(load_runs("ner"), GatedSession) as server:
        kept = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
        kept.request("GET", "/ready")
        assert kept.getresponse().read()
        GatedSession.gate.clear()
        with ThreadPoolExecutor(5) as threads:
            futures = [threads.submit(server.call, "POST", "/v1/entities", {"text": "Peter"}) for _ in range(5)]
            wait_until(lambda: active(server) == 5)
            server.server.stop()
            time.sleep(0.3)
            refused = []
            for _ in range(3):
                try:
                    refused.append(server.call("POST", "/v1/entities", {"text": "late"})[0])
                except OSError:
                    refused.append(None)
            assert all(status in (None, 503) for status in refused)
            GatedSession.gate.set()
            assert [future.result(120)[0] for future in futures] == [200] * 5


def test_the_bound_of_requests_is_that_of_all_front_ends_together():
    memory = np.zeros(2 * NUM_VALUES)
    own, other = ServerMetrics(memory, 0), ServerMetrics(memory, 1)
    admission = Admission(ServerLimits(max_concurrent_requests=8), ModelCatalog([], host_threads=1), own)
    other.add("te_queue_size", 7)
    admission.check()
    own.add("te_queue_size")
    with pytest.raises(Refusal, match="8 requests"):
        admission.check()
    ServerMetrics(memory, 1).clear_gauges()  # a front end that took the place of one that died
    admission.check()


def test_what_is_not_answered_in_the_time_to_stop_is_503_in_the_protocol():
    limits = ServerLimits(shutdown_seconds=1)
    with running(load_runs("ner"), GatedSession, limits=limits) as server:
        GatedSession.gate.clear()
        with ThreadPoolExecutor(1) as threads:
            future = threads.submit(server.call, "POST", "/v1/entities", {"text": "Peter"})
            wait_until(lambda: active(server) == 1)
            server.server.stop()
            status, headers, answer = future.result(120)
            GatedSession.gate.set()
    assert (status, headers["retry-after"], answer["error_type"]) == (503, "1", "Unhealthy")
