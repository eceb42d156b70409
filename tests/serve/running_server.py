"""A server in a thread of the test's process, with small runs, and a client of plain http.client."""

import http.client
import json
import threading
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import megabert
from megabert.serve.model_queue import ModelQueue
from megabert.serve.server import HttpServer, listen
from megabert.serve.server_metrics import ServerMetrics
from megabert.serve.server_parts import LoadedRun, ServeSettings, compute_type, make_application, make_queue, warm_up

RUNS = Path(__file__).parent.parent / "runs_v1"
NAMES = {
    "ner": "token_classification", "qa": "question_answering", "classes": "text_classification",
    "pairs": "text_classification_pairs", "value": "text_classification_regression", "relations": "relation_extraction",
    "zero": "zero_shot", "intents": "intent_slot", "marks": "punctuation_capitalization",
}  # fmt: skip


def load_runs(*names: str) -> list[LoadedRun]:
    """Load small runs by the names above."""
    folders = {name: next((RUNS / NAMES[name] / "run" / "checkpoints").iterdir()) for name in names}
    return [LoadedRun(name, megabert.load(folder, accelerator="cpu")) for name, folder in folders.items()]


@dataclass
class Running:
    """A server that runs."""

    port: int
    server: HttpServer
    queue: ModelQueue
    runs: dict[str, Any]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, dict[str, str], Any]:
        """Send a request; returns status, headers and the parsed JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        given = {"content-type": "application/json", **{key.replace("_", "-"): value for key, value in headers.items()}}
        connection.request(method, path, data, given)
        response = connection.getresponse()
        content = response.read()
        connection.close()
        found = {key.lower(): value for key, value in response.getheaders()}
        is_json = found.get("content-type", "").startswith("application/json") and content
        return response.status, found, json.loads(content) if is_json else content.decode()

    def post(self, path: str, **body: Any) -> Any:
        """Send JSON and return the answer, which must be a success."""
        status, _, answer = self.call("POST", path, body)
        assert status == 200, answer
        return answer

    def metric(self, key: str) -> float:
        return self.server.application.admission.metrics.value(key)


@contextmanager
def running(runs: list[LoadedRun], wrap=lambda session: session, **options: Any):
    """Run a server; `wrap` may replace the networks' sessions."""
    options = {"port": 0, "access_log": "none", **options}
    settings = ServeSettings(**options)
    listener = listen(settings)
    metrics = ServerMetrics()
    wrapped = [replace(run, predictor=replace(run.predictor, session=wrap(run.predictor.session))) for run in runs]
    queue = make_queue(wrapped, settings, metrics)
    application = make_application(runs, settings, queue, metrics, compute_type(runs[0].predictor))
    warm_up(application)
    server = HttpServer(application, settings)
    started = threading.Event()
    thread = threading.Thread(target=server.serve_socket, args=(listener, started.set))
    thread.start()
    started.wait(120)
    try:
        yield Running(listener.getsockname()[1], server, queue, {run.name: run.predictor for run in runs})
    finally:
        server.stop()
        thread.join(120)
        queue.close()
        listener.close()
