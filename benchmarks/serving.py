"""Benchmark of `megabert serve`: tokens a second and latencies of many clients, beside offline inference and a rival.

    python -m benchmarks.serving --out FILE.json --encoder FOLDER [--rival]    # a Hugging Face folder, embeddings
    python -m benchmarks.serving --out FILE.json --vocabulary VOCAB.txt --processes 8 --clients 256

The load comes from processes of its own with keep-alive connections, each client sends its next request when it has its
answer. Offline inference is the same Predictor on the same texts. --rival is a plain server, transformers with FastAPI
and uvicorn, one forward pass a request, with the same weights: both servers are up, and by turns each answers the same
requests in the same order, --slices times. --mixed draws how many texts a request has (up to --texts) and their words
(8 to --tokens), small numbers as often as large ones. Then one client with one short text. Both servers choose their
own threads. What happens in a crowd and to faults is measured by `python -m tests.fuzz.serving`.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

NETWORKS = {
    "345m": "{hidden_size: 1024, num_layers: 24, num_attention_heads: 16, max_position_embeddings: 512}",
    "tiny": "{hidden_size: 32, num_layers: 2, num_attention_heads: 2, max_position_embeddings: 512}",
}
LABELS = ["O", "B-Disease", "I-Disease", "B-Chemical", "I-Chemical"]
PATIENCE = 60
"""Seconds after which a request counts as lost, status 0."""


def make_predictor(arguments: argparse.Namespace) -> Any:
    """Load the encoder of a folder as `megabert serve` does, or build a tagger of random weights."""
    import torch

    from megabert.build import load_embedder, load_language_model, new_task_model
    from megabert.config.parser import compose
    from megabert.inference import Predictor
    from megabert.model.precision import cast_model, freeze, resolve_precision
    from megabert.tasks.token_classification import TokenClassification
    from megabert.torch_session import TorchSession

    if arguments.encoder:
        predictor = load_embedder(arguments.encoder, home=Path("none"), precision=arguments.precision)
        print(*predictor.notes, f"precision {predictor.session.precision}", sep="\n", file=sys.stderr, flush=True)
        return predictor
    words = ["model.language_model.pretrained_model_name=null", f"model.tokenizer.vocab_file={arguments.vocabulary}",
             f"model.language_model.config={NETWORKS[arguments.network]}"]  # fmt: skip
    settings = compose(TokenClassification.settings_type, words, owner="token_classification")[0]
    settings.model.dataset.max_seq_length = 512
    task = TokenClassification(settings)
    task.restore_state({**task.state(), "labels": LABELS} if "labels" in task.state() else task.state())
    language_model = load_language_model(settings.model, home=Path("none"), seed=1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = resolve_precision(arguments.precision, device)
    model = new_task_model(task, language_model, seed=1).to(device).eval()
    cast_model(model, precision)
    freeze(model)
    session = TorchSession(model, task.loss, device, precision)
    return Predictor(task, language_model.tokenizer, session, digest="random")


def serve_child(arguments: argparse.Namespace) -> None:
    """Serve in this process until SIGTERM; entities are first measured without a server."""
    from megabert.serve.server import serve
    from megabert.serve.server_parts import LoadedRun, ServeSettings

    predictor = make_predictor(arguments)
    if arguments.packed:
        type(predictor.session).with_small_batches = lambda session, *_: session
    if not arguments.encoder:
        print(json.dumps({"offline": offline(arguments, predictor)}), file=sys.stderr, flush=True)
    settings = ServeSettings(
        port=0,
        processes=arguments.processes,
        batch_tokens=arguments.batch_tokens,
        model_threads=arguments.model_threads,
        access_log="none",
    )
    serve(
        [LoadedRun("m", predictor)],
        settings,
        lambda where: print(f"at {where};", file=sys.stderr, flush=True),
    )


def serve_rival(arguments: argparse.Namespace) -> None:
    """Serve the encoder by transformers and FastAPI, one forward pass a request."""
    import torch
    import uvicorn
    from fastapi import Body, FastAPI
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = (
        AutoTokenizer.from_pretrained(arguments.encoder),
        AutoModel.from_pretrained(arguments.encoder, dtype=torch.float32).eval(),
    )
    application = FastAPI()

    @application.post("/embed")
    def embed(body: dict = Body()) -> list[list[float]]:  # noqa: B008
        with torch.inference_mode():
            batch = tokenizer(body["inputs"], padding=True, truncation=True, max_length=512, return_tensors="pt")
            hidden, mask = model(**batch).last_hidden_state, batch["attention_mask"][..., None]
            return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1).tolist()

    from megabert.serve.server import listen
    from megabert.serve.server_parts import ServeSettings

    listener = listen(ServeSettings(port=0))
    print(f"at http://127.0.0.1:{listener.getsockname()[1]};", file=sys.stderr, flush=True)
    uvicorn.Server(uvicorn.Config(application, http="h11", log_level="error")).run([listener])


def start(
    role: str, arguments: argparse.Namespace, keep: Callable[[str, Any], None], words: Sequence[str] = ()
) -> tuple[subprocess.Popen[str], int]:
    """Start a server, with other arguments; returns its process and port. What it has measured before is kept."""
    pinned = ["taskset", "--cpu-list", arguments.cores] if arguments.cores else []
    command = [*pinned, sys.executable, "-m", "benchmarks.serving", *sys.argv[1:], *words, "--role", role]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    if role == "rival" and arguments.rival_threads:
        environment["OMP_NUM_THREADS"] = str(arguments.rival_threads)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stderr is not None
    for line in process.stderr:
        if found := re.search(r"at http://127.0.0.1:(\d+);", line):
            # A full pipe would stop the server at its next message.
            threading.Thread(target=sys.stderr.writelines, args=(process.stderr,), daemon=True).start()
            return process, int(found[1])
        if line.startswith("{"):
            keep("offline", json.loads(line)["offline"])
        else:
            print(line, end="", file=sys.stderr)
    raise SystemExit(f"the {role} server did not start")


def words_of(arguments: argparse.Namespace) -> list[str]:
    """List whole words of the vocabulary."""
    file = arguments.vocabulary or Path(arguments.encoder) / "vocab.txt"
    words = Path(file).read_text(encoding="utf-8").split()
    return [word for word in words if word.isascii() and word.isalpha() and len(word) > 3]


def groups_of(arguments: argparse.Namespace) -> list[list[str]]:
    """Make the texts of 64 requests."""
    words, draw = words_of(arguments), random.Random(1)

    def number(least: int, most: int) -> int:
        return round(least * (most / least) ** draw.random()) if arguments.mixed else most

    return [
        [" ".join(draw.choices(words, k=number(8, arguments.tokens))) for _ in range(number(1, arguments.texts))]
        for _ in range(64)
    ]


async def client(port: int, requests: Iterator[bytes], end: float, rows: list[tuple[float, float, int, int]]) -> None:
    """Send requests one after the other on one connection until `end`, or until there are no more."""
    reader = writer = None
    while time.monotonic() < end and (data := next(requests, None)) is not None:
        began = time.monotonic()
        status = tokens = 0
        try:
            if writer is None:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(data)
            async with asyncio.timeout(PATIENCE):
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                await reader.readexactly(int(re.search(r"(?i)content-length: (\d+)", head)[1]))
            status = int(head.split(" ", 2)[1])
            found = re.search(r"(?i)x-compute-tokens: (\d+)", head)
            tokens = int(found[1]) if found else 0
            if "connection: close" in head.lower():
                writer.close()
                writer = None
        except (OSError, asyncio.IncompleteReadError):  # also a timeout
            writer = None
        rows.append((began, time.monotonic() - began, status, tokens))
        if status != 200:
            await asyncio.sleep(0.02)
    if writer is not None:
        writer.close()


async def crowd(port: int, requests: Iterator[bytes], clients: int, end: float) -> list[tuple[float, float, int, int]]:
    """Share requests among clients; returns the start, seconds, status and tokens of each."""
    rows: list[tuple[float, float, int, int]] = []
    await asyncio.gather(*(client(port, requests, end, rows) for _ in range(clients)))
    return rows


def load(port: int, requests: list[bytes], clients: int, end: float, first: int, results: Any) -> None:
    """Run clients in this process, beginning with the request of number `first`."""
    endless = cycle([*requests[first:], *requests[:first]])
    results.put(asyncio.run(crowd(port, endless, clients, end)))


def request(path: str, body: Any) -> bytes:
    """Encode a request."""
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"  # noqa: E501
    return head.encode() + data


def measure(port: int, requests: list[bytes], clients: int, seconds: float, generators: int = 1) -> dict[str, Any]:
    """Load a server; the first fifth of the time is warm-up."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    end = time.monotonic() + seconds + 2 * (generators > 1)
    share = -(-clients // generators)
    processes = [
        context.Process(target=load, args=(port, requests, share, end, number * len(requests) // generators, results))
        for number in range(generators)
    ]
    for process in processes:
        process.start()
    rows = [row for _ in processes for row in results.get()]
    for process in processes:
        process.join()
    kept = [row for row in rows if end - 0.8 * seconds <= row[0] + row[1] <= end]
    done = [row for row in kept if row[2] == 200]
    refused = [row[1] for row in kept if row[2] in (429, 503)]
    span = 0.8 * seconds
    times = np.array([row[1] for row in done] or [np.nan]) * 1000
    return {
        "clients": share * generators,
        "requests_per_second": round(len(done) / span, 2),
        "tokens_per_second": round(sum(row[3] for row in done) / span),
        "p50_ms": round(float(np.percentile(times, 50)), 2) if done else None,
        "p99_ms": round(float(np.percentile(times, 99)), 2) if done else None,
        "statuses": {str(status): sum(row[2] == status for row in rows) for status in sorted({row[2] for row in rows})},
        **({"refusal_p99_ms": round(float(np.percentile(refused, 99)) * 1000, 1)} if refused else {}),
    }


def processor_seconds(process: subprocess.Popen[str]) -> float:
    """Return the seconds of processor that a process has used."""
    fields = Path(f"/proc/{process.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def by_turns(
    servers: Mapping[str, tuple[subprocess.Popen[str], int]], groups: list[list[str]], arguments: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """Let servers answer the same requests by turns; yields after each turn of all the rates of each so far."""
    requests = [request("/embed", {"inputs": group}) for group in groups]
    sent = [index % len(requests) for index in range(arguments.slice_requests)]
    counts = {"requests": len(sent), "texts": sum(len(groups[index]) for index in sent), "tokens": 0}
    seconds: dict[str, list[float]] = {name: [] for name in servers}
    waits: dict[str, list[float]] = {name: [] for name in servers}
    used = dict.fromkeys(servers, 0.0)
    for number in range(-1, arguments.slices):  # the first, a short one, is warm-up
        for name, (process, port) in list(servers.items())[:: -1 if number % 2 else 1]:
            own = iter([requests[index] for index in (sent if number >= 0 else sent[:32])])
            began, before = time.monotonic(), processor_seconds(process)
            rows = asyncio.run(crowd(port, own, arguments.clients, began + 600))
            if any(row[2] != 200 for row in rows):
                raise SystemExit(f"{name} answered with {sorted({row[2] for row in rows})}")
            if number >= 0:
                seconds[name].append(time.monotonic() - began)
                used[name] += processor_seconds(process) - before
                waits[name] += [1000 * row[1] for row in rows]
                counts["tokens"] = max(counts["tokens"], sum(row[3] for row in rows))  # the rival does not count them
        if number >= 0:
            yield {**counts, "slices": number + 1, **compared(counts, seconds, waits, used)}


def compared(
    counts: Mapping[str, int],
    seconds: Mapping[str, list[float]],
    waits: Mapping[str, list[float]],
    used: Mapping[str, float],
) -> dict[str, Any]:
    """Compute rates over all slices, with the lowest and the highest of one, and how often they are the rival's."""
    found: dict[str, Any] = {}
    for name, times in seconds.items():
        found[name] = {
            f"{kind}_per_second": [
                round(count * factor, 2) for factor in (len(times) / sum(times), 1 / max(times), 1 / min(times))
            ]
            for kind, count in counts.items()
        }
        for percent in (50, 99):
            found[name][f"p{percent}_ms"] = round(float(np.percentile(waits[name], percent)), 1)
        found[name]["processor_ms_per_request"] = round(1000 * used[name] / len(times) / counts["requests"], 1)
        pairs = [theirs / ours for ours, theirs in zip(times, seconds["rival"], strict=True)]
        ratios = (sum(seconds["rival"]) / sum(times), min(pairs), max(pairs))
        found[name]["times_the_rival"] = [round(value, 2) for value in ratios]
    return found


def offline(arguments: argparse.Namespace, predictor: Any) -> dict[str, Any]:
    """Measure the same Predictor on the same texts without a server: whole, its network alone, and one short text."""
    texts = [text for group in groups_of(arguments) for text in group] * arguments.repeat
    examples = [predictor.task.example(text=text) for text in texts]
    predictor.predict_examples(examples[:64])
    found = {}
    began = time.monotonic()
    features = predictor.task.features(examples, predictor.tokenizer, with_targets=False)
    tokens = sum(map(len, features))
    predictor.predict_examples(examples, features=features)
    found["predictor_tokens_per_second"] = round(tokens / (time.monotonic() - began))
    began = time.monotonic()
    predictor.session.run(features, batch_size=32, max_length=512, pad_id=0)
    found["network_tokens_per_second"] = round(tokens / (time.monotonic() - began))
    words = " ".join(words_of(arguments)[:12])
    short = predictor.task.features([predictor.task.example(text=words)], predictor.tokenizer, with_targets=False)
    logits = []
    for name, session in (("packed", predictor.session), ("small", predictor.session.with_small_batches(512, 0))):
        times = []
        for _ in range(50):
            began = time.monotonic()
            output = session.run(short, batch_size=32, max_length=512, pad_id=0)
            times.append(time.monotonic() - began)
        found[f"network_short_text_{name}_ms"] = round(1000 * float(np.median(times)), 2)
        logits.append(output.logits[0])
    found["difference_of_logits"] = float(np.abs(logits[0] - logits[1]).max())
    return found


def run(arguments: argparse.Namespace) -> None:
    """Run all parts; the results are written after each."""
    results: dict[str, Any] = {"arguments": {key: str(value) for key, value in vars(arguments).items()}}

    def keep(name: str, value: Any) -> None:
        results[name] = value
        print(name, json.dumps(value), flush=True)
        arguments.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")

    groups = groups_of(arguments)
    path, key = ("/embed", "inputs") if arguments.encoder else ("/v1/entities", "inputs")
    requests = [request(path, {key: group}) for group in groups]
    short = [request(path, {key: [" ".join(words_of(arguments)[:12])]})]
    servers = {}
    try:
        servers["server"] = start("server", arguments, keep)
        for words in arguments.variant:
            servers[f"server {words}"] = start("server", arguments, keep, words.split())
        if arguments.rival:
            servers["rival"] = start("rival", arguments, keep)
        if arguments.rival:
            for rates in by_turns(servers, groups, arguments):
                keep("by turns", rates)
        else:
            port = servers["server"][1]
            keep("throughput", measure(port, requests, arguments.clients, arguments.seconds, arguments.generators))
        for name, (_, port) in servers.items():
            keep(f"{name}, one short text", measure(port, short, 1, 3))
    finally:
        for process, _ in servers.values():
            process.kill()


def main() -> None:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--out", type=Path, required=True)
    add("--encoder", help="Hugging Face folder: embeddings of its encoder")
    add("--vocabulary", help="vocabulary of a network of random weights: entities")
    add("--network", choices=tuple(NETWORKS), default="345m")
    add("--processes", type=int, default=0)
    add("--clients", type=int, default=16)
    add("--generators", type=int, default=1, help="processes that send requests")
    add("--texts", type=int, default=8, help="texts of a request")
    add("--tokens", type=int, default=300, help="words, about as many tokens, of a text")
    add("--seconds", type=float, default=20)
    add("--repeat", type=int, default=1, help="how often the offline inference reads the texts")
    add("--mixed", action="store_true", help="requests and texts of many sizes")
    add("--packed", action="store_true", help="without CUDA graphs of small batches")
    add("--rival", action="store_true")
    add(
        "--variant",
        action="append",
        default=[],
        metavar="WORDS",
        help="other arguments of one more server, with --rival",
    )
    add("--rival-threads", type=int, help="OMP_NUM_THREADS of the rival")
    add("--slices", type=int, default=4, help="with --rival: how often each server answers --slice-requests")
    add("--slice-requests", type=int, default=128)
    add("--precision", choices=("auto", "32", "bf16"), default="auto", help="of the server; the rival has 32")
    add("--batch-tokens", type=int, default=16384)
    add("--model-threads", type=int, help="batches computed at once; default: as `megabert serve` decides")
    add("--cores", help="the server's cores, such as 0,1; the load comes from the others")
    add("--role", choices=("bench", "server", "rival"), default="bench")
    arguments = parser.parse_args()
    if arguments.role == "bench":  # a timeout ends the servers, too
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
        if arguments.cores:
            os.sched_setaffinity(0, os.sched_getaffinity(0) - set(map(int, arguments.cores.split(","))))
    {"bench": run, "server": serve_child, "rival": serve_rival}[arguments.role](arguments)


if __name__ == "__main__":
    main()
