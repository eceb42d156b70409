"""CPU benchmark against transformers' MegatronBert in the same run: training, inference, SQuAD features, start-up.

    python -m benchmarks.cpu --out FOLDER [--squad TRAIN_JSON --vocab VOCAB_TXT] [--run RUN_FOLDER]

Writes cpu.json and cpu.md. Random weights and tokens, SQuAD's lengths, float32, dropout, batches of 16 sequences.
Measurements of both alternate, so that other load on the machine affects both; compare the ratios. transformers pads
to 384 tokens, or with dynamic padding to the longest sequence of the batch. Features are compared with datasets.map and
the fast tokenizer, start-up with the time to import torch.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from megabert.config.schema import OptimizerSettings
from megabert.data.packing import pack
from megabert.data.sampler import BatchSampler
from megabert.model.config import EncoderConfig
from megabert.training.step import Stepper

from .common import BASE_CPU, MAX_LENGTH, SMALL_CPU, question_answering_model, random_features, squad_like_lengths
from .gpu import span_loss

NUM_SEQUENCES = 16
ROUNDS = 3


@dataclass(frozen=True)
class Ratio:
    """One row of the table: megabert and the alternative, in the given unit."""

    what: str
    unit: str
    ours: float
    theirs: float
    ratio: float


def interleaved_medians(functions: dict[str, Callable[[], float]]) -> dict[str, float]:
    """Call each function once a round; returns the median of its values, by name."""
    values: dict[str, list[float]] = {name: [] for name in functions}
    for number in range(ROUNDS + 1):
        for name, function in functions.items():
            value = function()
            if number:  # the first round is the warm-up
                values[name].append(value)
    return {name: statistics.median(items) for name, items in values.items()}


def networks(name: str, config: EncoderConfig) -> Iterator[Ratio]:
    """Benchmark training steps and inference."""
    from transformers import MegatronBertConfig, MegatronBertForQuestionAnswering

    lengths = squad_like_lengths(NUM_SEQUENCES)
    tokens = int(lengths.sum())
    items = random_features(lengths)
    loader = BatchSampler(items, NUM_SEQUENCES, MAX_LENGTH, 0, seed=0)
    model = question_answering_model(config).train()
    stepper = Stepper(model, span_loss, OptimizerSettings(), precision="32", clip=1.0, seed=0)
    theirs = MegatronBertForQuestionAnswering(
        MegatronBertConfig(
            vocab_size=config.vocabulary_size,
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            intermediate_size=config.ffn_size,
        )
    ).train()
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=1e-5)

    def padded(length: int) -> dict[str, Tensor]:
        mask = (torch.arange(length) < torch.tensor(lengths)[:, None]).long()
        ids = torch.zeros_like(mask)
        for row, item in zip(ids, items, strict=True):
            row[: len(item)] = torch.from_numpy(item.token_ids)
        span = torch.tensor(np.stack([item.targets["span"] for item in items]))
        return {"input_ids": ids, "attention_mask": mask, "start_positions": span[:, 0], "end_positions": span[:, 1]}

    def timed(function: Callable[[], object]) -> Callable[[], float]:
        def run() -> float:
            begin = time.perf_counter()
            function()
            return tokens / (time.perf_counter() - begin)

        return run

    def train_theirs(batch: dict[str, Tensor]) -> None:
        theirs(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    full, dynamic = padded(MAX_LENGTH), padded(int(lengths.max()))
    rates = interleaved_medians(
        {
            "ours": timed(lambda: stepper.step(loader.step(0), 1e-5, 0)),
            "padded to 384": timed(lambda: train_theirs(full)),
            "dynamic padding": timed(lambda: train_theirs(dynamic)),
        }
    )
    for kind in ("padded to 384", "dynamic padding"):
        yield Ratio(f"training, {name}, {kind}", "tokens/s", rates["ours"], rates[kind], rates["ours"] / rates[kind])
    model.eval()
    theirs.eval()
    packed = pack(items, MAX_LENGTH, 0)
    with torch.inference_mode():
        rates = interleaved_medians(
            {
                "ours": timed(lambda: model(*packed.inputs())),
                "padded to 384": timed(lambda: theirs(**full)),
                "dynamic padding": timed(lambda: theirs(**dynamic)),
            }
        )
    for kind in ("padded to 384", "dynamic padding"):
        yield Ratio(f"inference, {name}, {kind}", "tokens/s", rates["ours"], rates[kind], rates["ours"] / rates[kind])


def features(train: Path, vocabulary: Path) -> Iterator[Ratio]:
    """Benchmark SQuAD's training features against datasets.map as in transformers' example script."""
    import datasets
    from transformers import BertTokenizerFast

    from megabert.tasks.question_answering import QuestionAnswering, QuestionAnsweringSettings
    from megabert.tokenizers.wordpiece import Tokenizer

    task = QuestionAnswering(QuestionAnsweringSettings())
    tokenizer = Tokenizer.from_file(vocabulary)
    fast = BertTokenizerFast(str(vocabulary))
    examples = task.read(train)
    rows = datasets.Dataset.from_list(
        [
            {
                "question": item.question,
                "context": item.context,
                "start": item.answers[0].start,
                "text": item.answers[0].text,
            }
            for item in examples
            if item.answers
        ]
    )
    datasets.disable_caching()
    datasets.disable_progress_bars()

    def prepare(batch: dict[str, list]) -> dict[str, list]:
        encoded = fast(
            batch["question"],
            batch["context"],
            truncation="only_second",
            max_length=384,
            stride=128,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        owners = encoded.pop("overflow_to_sample_mapping")
        starts, ends = [], []
        for number, offsets in enumerate(encoded.pop("offset_mapping")):
            owner, sequence = owners[number], encoded.sequence_ids(number)
            start = batch["start"][owner]
            end = start + len(batch["text"][owner])
            first = sequence.index(1)
            last = len(sequence) - 1 - sequence[::-1].index(1)
            if offsets[first][0] > start or offsets[last][1] < end:
                starts.append(0)
                ends.append(0)
                continue
            while first < len(offsets) and offsets[first][0] <= start:
                first += 1
            while offsets[last][1] >= end:
                last -= 1
            starts.append(first - 1)
            ends.append(last + 1)
        encoded["start_positions"], encoded["end_positions"] = starts, ends
        return dict(encoded)

    def timed(function: Callable[[], object]) -> Callable[[], float]:
        def run() -> float:
            begin = time.perf_counter()
            function()
            return len(examples) / (time.perf_counter() - begin)

        return run

    rates = interleaved_medians(
        {
            "ours": timed(lambda: task.features(examples, tokenizer, with_targets=True)),
            "theirs": timed(lambda: rows.map(prepare, batched=True, remove_columns=rows.column_names)),
        }
    )
    yield Ratio("SQuAD features", "questions/s", rates["ours"], rates["theirs"], rates["ours"] / rates["theirs"])


def start_up(run: Path | None) -> Iterator[Ratio]:
    """Time --help and a single prediction in new processes."""

    def timed(*command: str) -> Callable[[], float]:
        def call() -> float:
            begin = time.perf_counter()
            subprocess.run([sys.executable, *command], check=True, capture_output=True)
            return time.perf_counter() - begin

        return call

    commands = {"help": timed("-m", "megabert", "--help"), "torch": timed("-c", "import torch")}
    if run is not None:
        question = ("question=Who wrote it?", "context=Ada Lovelace wrote the first program.")
        commands["predict"] = timed("-m", "megabert", "predict", str(run), *question)
    rates = interleaved_medians(commands)
    yield Ratio(
        "megabert --help, against importing torch", "s", rates["help"], rates["torch"], rates["help"] / rates["torch"]
    )
    if run is not None:
        yield Ratio(
            "megabert predict, one question, against importing torch",
            "s",
            rates["predict"],
            rates["torch"],
            rates["predict"] / rates["torch"],
        )


def main() -> None:
    """Run the benchmarks and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for cpu.json and cpu.md")
    parser.add_argument("--squad", type=Path, help="SQuAD training file, for the features")
    parser.add_argument("--vocab", type=Path, help="vocabulary, for the features")
    parser.add_argument("--run", type=Path, help="run folder, for the start-up of predict")
    parser.add_argument("--only", default="networks,features,start_up", help="sections, separated by commas")
    arguments = parser.parse_args()
    sections = arguments.only.split(",")
    results: list[Ratio] = []

    def run(section: Iterator[Ratio]) -> None:
        for item in section:
            print(line(item), flush=True)
            results.append(item)

    if "networks" in sections:
        run(networks("6 x 384", SMALL_CPU))
        run(networks("12 x 768", BASE_CPU))
    if "features" in sections and arguments.squad and arguments.vocab:
        run(features(arguments.squad, arguments.vocab))
    if "start_up" in sections:
        run(start_up(arguments.run))
    device = f"{torch.get_num_threads()} threads, torch {torch.__version__}"
    arguments.out.mkdir(parents=True, exist_ok=True)
    table = {"device": device, "results": [asdict(item) for item in results]}
    (arguments.out / "cpu.json").write_text(json.dumps(table, indent=1) + "\n")
    head = "| what | unit | megabert | alternative | ratio |\n|---|---|---|---|---|\n"
    (arguments.out / "cpu.md").write_text(f"{device}\n\n{head}" + "\n".join(map(line, results)) + "\n")


def line(item: Ratio) -> str:
    """Format a result as a row of the Markdown table."""
    digits = 2 if item.unit == "s" else 0
    return f"| {item.what} | {item.unit} | {item.ours:,.{digits}f} | {item.theirs:,.{digits}f} | {item.ratio:.2f} |"


if __name__ == "__main__":
    main()
