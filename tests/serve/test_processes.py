"""The command with front-end processes: their answers, a killed one, SIGTERM, and no process that stays."""

import http.client
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import megabert
from megabert.cli import main
from megabert.cli.serving import _parse
from megabert.data.packing import Features
from megabert.serve.front_ends import RemoteQueue
from megabert.serve.model_queue import ModelFailure
from tests.serve.running_server import RUNS
from tests.serve.test_routes import same

RUN = next((RUNS / "token_classification" / "run" / "checkpoints").iterdir())


def is_front_end(pid):
    try:
        return b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # it has ended
        return False


def children(process):
    """List the processes that a process started."""
    found = []
    for folder in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = folder.read_text().rpartition(") ")[2].split()
        except OSError:
            continue
        if int(fields[1]) == process:
            found.append(int(folder.parent.name))
    return found


def ask(port, path, body=None):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    method = "GET" if body is None else "POST"
    connection.request(method, path, None if body is None else json.dumps(body), {"content-type": "application/json"})
    response = connection.getresponse()
    return response.status, response.read().decode()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_front_ends_answer_survive_a_kill_and_end(tmp_path):
    command = [sys.executable, "-m", "megabert", "serve", f"ner={RUN}", "--port", "0", "--processes", "2",
               "--accelerator", "cpu", "--access-log", str(tmp_path / "access.log")]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
    try:
        port = int(re.search(r":(\d+);", process.stderr.readline())[1])
        predictor = megabert.load(RUN, accelerator="cpu")
        texts = [f"Peter lives in Paris {'Anna left ' * number}" for number in range(12)]
        with ThreadPoolExecutor(4) as threads:
            answers = list(threads.map(lambda text: ask(port, "/v1/entities", {"text": text}), texts))
        for text, (status, answer) in zip(texts, answers, strict=True):
            assert status == 200, answer
            row = json.loads(answer)["results"][0]
            assert same(json.loads(json.dumps(predictor.task.to_json(predictor.predict(text=text)))) | {"id": "1"}, row)
        assert "\nte_request_count 12\n" in ask(port, "/metrics")[1]
        front_ends = list(filter(is_front_end, children(process.pid)))
        assert len(front_ends) == 2
        os.kill(front_ends[0], signal.SIGKILL)
        assert "exit code -9" in process.stderr.readline()
        for _ in range(6):
            assert ask(port, "/v1/entities", {"text": texts[0]})[0] == 200
        everybody = children(process.pid)
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0
        while any(map(is_front_end, everybody)):  # a moment later
            time.sleep(0.01)
        lines = [json.loads(line) for line in (tmp_path / "access.log").read_text().splitlines()]
        assert len([line for line in lines if line["path"] == "/v1/entities"]) >= 18
        assert "Peter" not in (tmp_path / "access.log").read_text()
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no model is given"),
        (["RUN"], "is not NAME=RUN"),
        (["a=x", "a=y"], "name of two models"),
        (["a=x", "--host", "0.0.0.0"], "MEGABERT_API_KEY"),
        (["a=nowhere"], "nowhere"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_served(words, message, capsys, monkeypatch):
    monkeypatch.delenv("MEGABERT_API_KEY", raising=False)
    assert main(["serve", *words]) in (64, 66)
    assert message in capsys.readouterr().err


def test_a_file_has_the_options_and_words_override_it(tmp_path, capsys):
    file = tmp_path / "serve.toml"
    file.write_text('port = 9000\nmax_inputs = 8\n[models]\nner = "RUN"\n')
    arguments = _parse(["qa=RUN2", "--config", str(file), "--max-inputs", "9"])
    assert (arguments.port, arguments.max_inputs, arguments.models) == (9000, 9, ["ner=RUN", "qa=RUN2"])
    file.write_text("prot = 9000\n")
    assert main(["serve", "--config", str(file)]) == 64
    assert "prot is no option" in capsys.readouterr().err


def test_an_address_in_use_is_one_message(capsys):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["serve", f"ner={RUN}", "--accelerator", "cpu", "--port", port]) == 64
    assert "already in use" in capsys.readouterr().err


def test_what_a_front_end_waits_for_fails_when_the_networks_end():
    here, there = multiprocessing.Pipe()
    ended = threading.Event()
    queue = RemoteQueue(there, lambda: None, ended.set)
    sequence = Features(np.arange(4), np.zeros(4, dtype=np.int64), token_targets={"role": np.ones(4, dtype=np.int64)})
    future = queue.submit("lane", [sequence, sequence])
    (features, _) = here.recv().features(), here.close()
    assert [item.token_targets["role"].tolist() for item in features] == [[1] * 4] * 2
    for waiting in (future, queue.submit("lane", [sequence]) if ended.wait(120) else None):
        with pytest.raises(ModelFailure, match="has ended"):
            waiting.result(10)
