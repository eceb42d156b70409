"""CPU benchmark against transformers' MegatronBert in the same run: training, inference, SQuAD features, start-up.

    python -m benchmarks.cpu --out FOLDER [--squad TRAIN_JSON --vocab VOCAB_TXT] [--run RUN_FOLDER]

Writes cpu.json and cpu.md. Random weights and tokens, SQuAD's lengths, dropout, 16 sequences, in float32 and where the
processor has it in bfloat16 (--precisions). Measurements of both alternate, so that other load on the machine affects
both; compare the ratios. transformers pads to the longest sequence of each batch; of one it pads nothing. Features are
compared with datasets.map and the fast tokenizer, start-up with the time to import torch.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from megabert.config.schema import OptimizerSettings
from megabert.data.packing import Features
from megabert.data.sampler import BatchSampler
from megabert.model.config import EncoderConfig
from megabert.model.precision import DTYPES, cast_model, has_native_bfloat16
from megabert.torch_session import TorchSession
from megabert.training.step import Stepper

from .common import BASE_CPU, MAX_LENGTH, SMALL_CPU, question_answering_model, random_features, squad_like_lengths
from .gpu import span_loss

NUM_SEQUENCES = 16
ROUNDS = 3
# Of transformers; a step of training has all sequences.
BATCH_SIZES = {"training": (NUM_SEQUENCES,), "inference": (NUM_SEQUENCES, 4, 1)}


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


def networks(name: str, config: EncoderConfig, precisions: Sequence[str], kinds: Sequence[str]) -> Iterator[Ratio]:
    """Benchmark training steps and inference: each precision against float32 and against its own."""
    lengths = squad_like_lengths(NUM_SEQUENCES)
    items, tokens = random_features(lengths), int(lengths.sum())

    def timed(function: Callable[[], object]) -> Callable[[], float]:
        def run() -> float:
            begin = time.perf_counter()
            function()
            return tokens / (time.perf_counter() - begin)

        return run

    for kind in kinds:
        functions: dict[str, Callable[[], float]] = {}
        for precision in precisions:
            own, theirs = OURS[kind](config, precision, items), _transformers(config, precision, kind == "training")
            functions[f"megabert {precision}"] = timed(own)
            for size in BATCH_SIZES[kind]:
                batches = list(padded(items, size))
                functions[f"batches of {size} {precision}"] = timed(partial(_run_all, theirs, batches))
        rates = interleaved_medians(functions)
        for label, rate in rates.items():
            yield Ratio(f"{kind}, {name}, {label}", "tokens/s", rate, rates["megabert 32"], rate / rates["megabert 32"])
        best = {
            precision: max(rate for label, rate in rates.items() if "batches" in label and label.endswith(precision))
            for precision in precisions
        }
        for precision, other in dict.fromkeys([(item, "32") for item in precisions] + [(p, p) for p in precisions]):
            rate = rates[f"megabert {precision}"]
            what = f"{kind}, {name}, {precision}, against the best batches in {other}"
            yield Ratio(what, "tokens/s", rate, best[other], rate / best[other])


def padded(items: Sequence[Features], size: int) -> Iterator[dict[str, Tensor]]:
    """Yield batches of so many sequences, padded to the length of the longest of each."""
    for start in range(0, len(items), size):
        own = items[start : start + size]
        lengths = torch.tensor([len(item) for item in own])
        mask = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
        ids = torch.zeros_like(mask)
        for row, item in zip(ids, own, strict=True):
            row[: len(item)] = torch.from_numpy(item.token_ids)
        span = torch.tensor(np.stack([item.targets["span"] for item in own]))
        yield {"input_ids": ids, "attention_mask": mask, "start_positions": span[:, 0], "end_positions": span[:, 1]}


def _our_training(config: EncoderConfig, precision: str, items: Sequence[Features]) -> Callable[[], object]:
    loader = BatchSampler(items, NUM_SEQUENCES, MAX_LENGTH, 0, seed=0)
    model = question_answering_model(config).train()
    stepper = Stepper(model, span_loss, OptimizerSettings(), precision=precision, clip=1.0, seed=0)
    return lambda: stepper.step(loader.step(0), 1e-5, 0)


def _our_inference(config: EncoderConfig, precision: str, items: Sequence[Features]) -> Callable[[], object]:
    model = question_answering_model(config).eval()
    cast_model(model, precision)
    session = TorchSession(model, span_loss, torch.device("cpu"), precision)
    return lambda: session.run(items, batch_size=NUM_SEQUENCES, max_length=MAX_LENGTH, pad_id=0)


OURS = {"training": _our_training, "inference": _our_inference}


def _transformers(config: EncoderConfig, precision: str, is_training: bool) -> Callable[[dict[str, Tensor]], object]:
    """Return what transformers does with a batch."""
    from transformers import MegatronBertConfig, MegatronBertForQuestionAnswering

    shape = MegatronBertConfig(
        vocab_size=config.vocabulary_size,
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        intermediate_size=config.ffn_size,
    )
    model = MegatronBertForQuestionAnswering(shape).train(is_training)
    if not is_training:
        model.to(DTYPES[precision])
        return torch.inference_mode()(lambda batch: model(**batch))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)

    def step(batch: dict[str, Tensor]) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def _run_all(function: Callable[[dict[str, Tensor]], object], batches: Sequence[dict[str, Tensor]]) -> None:
    for batch in batches:
        function(batch)


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
    parser.add_argument("--precisions", nargs="+", choices=("32", "bf16"), help="default: what the processor has")
    parser.add_argument("--networks", nargs="+", default=["6 x 384", "12 x 768"])
    parser.add_argument("--kinds", nargs="+", choices=OURS, default=list(OURS))
    parser.add_argument("--only", default="networks,features,start_up", help="sections, separated by commas")
    arguments = parser.parse_args()
    sections = arguments.only.split(",")
    results: list[Ratio] = []

    def run(section: Iterator[Ratio]) -> None:
        for item in section:
            print(line(item), flush=True)
            results.append(item)

    if "networks" in sections:
        precisions = arguments.precisions or (["32", "bf16"] if has_native_bfloat16() else ["32"])
        for name, config in {"6 x 384": SMALL_CPU, "12 x 768": BASE_CPU}.items():
            if name in arguments.networks:
                run(networks(name, config, precisions, arguments.kinds))
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
