"""Host memory of reading training data: the peak while a file becomes features, an epoch's order and packed steps.

    python -m benchmarks.reading token_classification --megabytes 300 --folder EMPTY_FOLDER

Generates a file of that size (columns, tab-separated texts, or SQuAD's JSON; texts and columns come again after the
first 100 MB), reads it in a process of its own from an empty cache and again from the full one, and prints a JSON
object for each. `resident` counts mapped pages of the cache, which the system takes back when it needs memory;
`anonymous` leaves them out. Both without those of imports, of all processes. With `--limit_mb` each process may
have so much memory of its own in all (RLIMIT_DATA), imports included, and fails where it needs more.
"""

import argparse
import hashlib
import json
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path

import numpy as np

import megabert

SEED, WORDS, BLOCK = 1, 200_000, 5_000
STEPS = 300
DISTINCT = 100 * 10**6
PSS = ("Pss", "Pss_Anon")


def sentences(random: np.random.Generator, tokens: Sequence[str]) -> Iterator[list[str]]:
    """Generate sentences of 5 to 45 words with Zipf's frequencies, without end: an encoder's words, others numbered."""
    known = [token for token in tokens if token.isalpha() and len(token) > 1]
    vocabulary = [known[n % len(known)] + (str(n) if n >= len(known) else "") for n in range(WORDS)]
    while True:
        lengths = random.integers(5, 46, BLOCK)
        numbers = (random.zipf(1.2, int(lengths.sum())) - 1) % WORDS
        words = [vocabulary[number] for number in numbers.tolist()]
        start = 0
        for length in lengths.tolist():
            yield words[start : start + length]
            start += length


def records(task: str, tokens: Sequence[str]) -> Iterator[str]:
    """Generate the records of a task's file, without end."""
    random = np.random.default_rng(SEED)
    stream = sentences(random, tokens)
    number = 0
    while True:
        number += 1
        words = next(stream)
        if task == "token_classification":
            tagged = [f"{word}\t{'B-Disease' if place == number % 9 else 'O'}\n" for place, word in enumerate(words)]
            yield "".join(tagged) + "\n"
        elif task == "text_classification":
            label = ("positive", "negative", "neutral")[number % 3]
            yield f"{' '.join([*words, *(word for _ in range(4) for word in next(stream))])}\t{label}\n"
        else:
            context = " ".join(word for _ in range(5) for word in next(stream))
            questions = []
            for place in range(4):
                start = context.index(" ", 20 * place) + 1
                answer = context[start:].partition(" ")[0]
                question = f"What is {' '.join(words[:8])} {place}?"
                answers = [{"text": answer, "answer_start": start}]
                questions.append({"id": f"{number:020d}{place}", "question": question, "answers": answers})
            yield ("" if number == 1 else ", ") + json.dumps({"context": context, "qas": questions})


def generate(task: str, path: Path, size: int, encoder: str) -> None:
    """Write a file of so many bytes, in the words of an encoder."""
    tokens = megabert.load_encoder(encoder)[1].tokens
    before, after = "", ""
    if task == "question_answering":
        before, after = '{"version": "1.1", "data": [{"title": "All", "paragraphs": [', "]}]}"
    with path.open("w", encoding="utf-8") as file:
        written = file.write(before)
        for record in records(task, tokens):
            written += file.write(record)
            if written >= (size if before else min(size, DISTINCT)):
                break
        file.write(after)
    start = b"" if before else path.read_bytes()
    with path.open("ab") as file:
        while start and file.tell() < size:
            file.write(start)


class MemoryPeak(threading.Thread):
    """The most resident and anonymous bytes of this process and its children beyond those at the start, sampled.

    Pages that processes share count once.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.start_values = self.values()
        self.most = self.start_values
        self.start()

    @staticmethod
    def values() -> tuple[int, int]:
        """Read both from /proc."""
        threads = Path("/proc/self/task").iterdir()
        children = [pid for thread in threads for pid in (thread / "children").read_text().split()]
        sums = [0, 0]
        for pid in ("self", *children):
            with suppress(OSError):  # it has ended
                text = Path(f"/proc/{pid}/smaps_rollup").read_text()
                lines = dict(line.split(":", 1) for line in text.splitlines()[1:])
                sums = [total + 1024 * int(lines[name].split()[0]) for total, name in zip(sums, PSS, strict=True)]
        return sums[0], sums[1]

    def run(self) -> None:
        """Sample, and print the peaks each minute."""
        for number in count(1):
            if number % 240 == 0:
                print(json.dumps({"minutes": number // 240, **self.megabytes()}), flush=True)
            values = self.values()
            self.most = max(self.most[0], values[0]), max(self.most[1], values[1])
            time.sleep(0.25)

    def megabytes(self) -> dict[str, int]:
        """Return both peaks."""
        sizes = [(most - first) // 10**6 for most, first in zip(self.most, self.start_values, strict=True)]
        return dict(zip(("resident_mb", "anonymous_mb"), sizes, strict=True))


def read(task_name: str, path: Path, encoder: str) -> None:
    """Read a file as a training does, pack steps, and print the peaks."""
    from megabert.config.parser import compose
    from megabert.data.fingerprint import fingerprint
    from megabert.data.sampler import BatchSampler
    from megabert.tasks import registry
    from megabert.tasks.task_data import load_training_data

    tokenizer = megabert.load_encoder(encoder)[1]
    kind = registry.find(task_name)
    task = kind(compose(kind.settings_type, [f"model.train_ds.file={path}"], owner=task_name)[0])
    peak, began = MemoryPeak(), time.perf_counter()
    data = load_training_data(task, tokenizer, task.settings.model, path.parent / "cache", learn_labels=True)
    seconds = {"seconds_reading": round(time.perf_counter() - began, 1)}
    print(json.dumps({"after": "features", **peak.megabytes(), **seconds, "sequences": len(data.features)}), flush=True)
    sampler = BatchSampler(data.features, 32, task.row_length, tokenizer.pad_id, seed=1)
    digest = hashlib.sha256(fingerprint(data.features).encode())
    for step in range(min(STEPS, len(sampler))):
        for batch in sampler.step(step):
            for tensor in batch.tensors():
                digest.update(tensor.numpy().tobytes())
    print(json.dumps({"after": f"{STEPS} steps", **peak.megabytes(), "digest": digest.hexdigest()[:16]}), flush=True)


def main() -> None:
    """Generate, and read twice."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=("token_classification", "text_classification", "question_answering"))
    parser.add_argument("--megabytes", type=int, default=300)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--limit_mb", type=int)
    parser.add_argument("--encoder", default="megabert-mini-uncased")
    parser.add_argument("--read", type=Path)
    arguments = parser.parse_args()
    if arguments.read:
        if arguments.limit_mb:
            resource.setrlimit(resource.RLIMIT_DATA, (arguments.limit_mb * 10**6,) * 2)
        read(arguments.task, arguments.read, arguments.encoder)
        return
    arguments.folder.mkdir(parents=True, exist_ok=True)
    suffix = {"token_classification": ".conll", "text_classification": ".tsv", "question_answering": ".json"}
    path = arguments.folder / f"{arguments.task}{suffix[arguments.task]}"
    generate(arguments.task, path, arguments.megabytes * 10**6, arguments.encoder)
    words = [sys.executable, "-m", "benchmarks.reading", arguments.task, "--folder", str(arguments.folder)]
    words += ["--encoder", arguments.encoder]
    words += [] if arguments.limit_mb is None else ["--limit_mb", str(arguments.limit_mb)]
    for cache in ("empty", "full"):
        about = {"task": arguments.task, "megabytes": path.stat().st_size // 10**6, "cache": cache}
        print(json.dumps(about), flush=True)
        subprocess.run([*words, "--read", str(path)], check=True)


if __name__ == "__main__":
    main()
