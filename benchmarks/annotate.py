"""Benchmark of `megabert annotate`: documents a second from PubTator to PubTator, and beside a transformers pipeline.

    python -m benchmarks.annotate --out FOLDER --corpus CORPUS.pubtator [--run RUN] [--documents 20000]
        [--network 345m|mini] [--vocabulary VOCAB.txt] [--train COLUMNS.tsv] [--workers 0 8] [--pipeline]
        [--precisions 32 bf16] [--link TYPE=DICT[,RUN]]

The corpus is repeated to the number of documents. Without a run a network of random weights is trained for 100 steps:
its speed is that of a good one. `processing` leaves out the start of Python and loading the network, `whole` has
both. --pipeline runs transformers' token-classification pipeline (aggregation, stride) with the same weights on the
same texts in the same run, in float32, unless --precisions is 32 also in bfloat16, and at several batch sizes; `equal`
is the share of entities (characters and type) that are the same as megabert's in each of its --precisions, of all
documents and of those whose passages fit into one window (windows of both overlap otherwise). The row `same windows` is
the pipeline with windows of megabert, and with its rule for tokens of several: that of the window with the most context
counts. `f1` is that of entities beside those of the corpus. --link measures each setting without and with identifiers,
alternating, the best of two; let --documents be the number of the corpus' documents: those that are repeated find their
mentions linked already.
"""

import argparse
import itertools
import json
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megabert.cli import main as megabert_main
from megabert.formats.documents.convert_documents import read_documents

NETWORKS = {
    "345m": "{hidden_size: 1024, num_layers: 24, num_attention_heads: 16, max_position_embeddings: 512}",
    "mini": "{hidden_size: 320, num_layers: 6, num_attention_heads: 5, max_position_embeddings: 512}",
}
BATCH_SIZES = (1, 8)
COMMAND = [sys.executable, "-m", "megabert"]


def repeated(corpus: Path, count: int, output: Path) -> None:
    """Write a corpus of so many documents, copies of the given ones under identifiers of their own."""
    records = re.split(r"\n\n+", corpus.read_text(encoding="utf-8").strip())
    with output.open("w", encoding="utf-8") as file:
        for number in range(count):
            name, rest = records[number % len(records)].split("|", 1)
            lines = f"{name}|{rest}".splitlines()
            texts = [line.replace(name, str(number + 1), 1) for line in lines if "|t|" in line or "|a|" in line]
            file.write("\n".join([*texts, "", ""]))


def make_run(folder: Path, network: str, vocabulary: Path, data: Path) -> Path:
    """Train a network of random weights for a few steps."""
    run = folder / f"run-{network}"
    code = megabert_main(
        [
            "train",
            "token_classification",
            f"model.train_ds.file={data}",
            f"model.validation_ds.file={data}",
            f"model.tokenizer.vocab_file={vocabulary}",
            "model.language_model.pretrained_model_name=null",
            f"model.language_model.config={NETWORKS[network]}",
            "trainer.max_steps=100",
            "trainer.compile=false",
            "model.validation_ds.num_samples=100",
            "trainer.enable_progress_bar=false",
            f"exp_manager.explicit_log_dir={run}",
        ]
    )
    assert code == 0
    return run


def annotate(run: Path, corpus: Path, output: Path, workers: int, options: list[str]) -> dict[str, Any]:
    """Run the command; returns documents a second and its largest memory."""
    shutil.rmtree(output, ignore_errors=True)
    words = ["annotate", str(corpus), "--entities", str(run), "-o", str(output), "--format", "pubtator"]
    start = time.monotonic()
    done = subprocess.run(
        [*COMMAND, *words, "--workers", str(workers), *options],
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.monotonic() - start
    if done.returncode:
        raise SystemExit(done.stderr)
    found = re.search(r"([\d,]+) documents in ([\d.]+) s", done.stderr)
    assert found
    documents = int(found[1].replace(",", ""))
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    return {
        "workers": workers,
        "documents": documents,
        "whole": round(documents / seconds, 1),
        "processing": round(documents / float(found[2]), 1),
        "gigabytes": round(memory, 2),
        "options": options,
    }


def same_windows_pipeline() -> type[Any]:
    """Return a pipeline in which each token counts as in the window with the most context around it, as in megabert."""
    import torch
    from transformers import TokenClassificationPipeline

    class SameWindows(TokenClassificationPipeline):
        """Joins windows by tokens, not by entities."""

        def postprocess(self, all_outputs: Any, aggregation_strategy: Any = None, ignore_labels: Any = None) -> Any:
            """Take each token from one window, then group words and entities as ever."""
            best: dict[int, tuple[float, Any]] = {}
            for output in all_outputs:
                tokens = self.gather_pre_entities(
                    all_outputs[0]["sentence"],
                    output["input_ids"][0],
                    torch.softmax(output["logits"][0].float(), dim=-1).numpy(),
                    output["offset_mapping"][0],
                    output["special_tokens_mask"][0].numpy(),
                    aggregation_strategy,
                )
                for place, token in enumerate(tokens):
                    context = min(place, len(tokens) - 1 - place) + 0.01 * len(tokens)
                    if token["start"] not in best or context > best[token["start"]][0]:
                        best[token["start"]] = context, token
            entities = self.aggregate([best[start][1] for start in sorted(best)], aggregation_strategy)
            return [entity for entity in entities if entity["entity_group"] != "O"]

    return SameWindows


def pipeline_speeds(
    run: Path, corpus: Path, folder: Path, gold: set[tuple[Any, ...]], *, with_bf16: bool
) -> Iterator[dict[str, Any]]:
    """Time transformers' pipeline with the weights of a run, or of a Hugging Face folder."""
    import torch
    from transformers import AutoModelForTokenClassification, AutoTokenizer, pipeline

    exported = run
    if not (run / "config.json").exists():
        exported = folder / "huggingface"
        shutil.rmtree(exported, ignore_errors=True)
        assert megabert_main(["export", str(run), "-o", str(exported), "--to", "huggingface"]) == 0
    model = AutoModelForTokenClassification.from_pretrained(exported, dtype=torch.float32)
    passages = [(item.id, passage) for item in read_documents([corpus]) for passage in item.passages]
    num_documents = len({name for name, _ in passages})
    outputs = {name: _entities(folder / f"annotated-{name}") for name in ("auto", "bf16", "32")}
    tokenizer = AutoTokenizer.from_pretrained(exported, model_max_length=512)
    windowed = {name for name, passage in passages if len(tokenizer(passage.text).input_ids) > 512}
    same = {"pipeline_class": same_windows_pipeline(), "stride": (512 - 2) // 2}
    dtypes = (("32", torch.float32), ("bf16", torch.bfloat16))[: 2 if with_bf16 else 1]
    settings = [
        (str(size), name, dtype, size, {"stride": 128})
        for (name, dtype), size in itertools.product(dtypes, BATCH_SIZES)
    ]
    for kind, name, dtype, size, options in [*settings, ("same windows", "32", torch.float32, 1, same)]:
        model.to(dtype)
        tagger = pipeline("token-classification", model, tokenizer=tokenizer, aggregation_strategy="first", **options)
        start = time.monotonic()
        found = list(tagger((passage.text for _, passage in passages), batch_size=size))
        speed = round(num_documents / (time.monotonic() - start), 2)
        spans = {
            (name, passage.offset + item["start"], passage.offset + item["end"], item["entity_group"])
            for (name, passage), items in zip(passages, found, strict=True)
            for item in items
        }
        row = {"pipeline": kind, "precision": name, "documents": num_documents, "processing": speed}
        row["f1"] = _share_of_equal(spans, gold, set())
        for other, own in outputs.items():
            if own:
                row[f"equal to {other}"] = _share_of_equal(spans, own, set())
                row[f"equal to {other}, in one window"] = _share_of_equal(spans, own, windowed)
        yield row | {"entities": len(spans)}


def _share_of_equal(first: set[tuple[Any, ...]], second: set[tuple[Any, ...]], without: set[str]) -> float:
    """Return the per cent of entities that both have, of those of documents that take part."""
    first, second = ({item for item in items if item[0] not in without} for items in (first, second))
    return round(200 * len(first & second) / max(len(first) + len(second), 1), 2)


def _entities(folder: Path) -> set[tuple[Any, ...]]:
    """Return the entities of annotated documents."""
    return {
        (item.id, entity.start, entity.end, entity.type)
        for file in sorted(folder.glob("shard-*"))
        for item in read_documents([file])
        for entity in item.entities
    }


def main() -> None:
    """Run the benchmark and print a row a setting, as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--documents", type=int, default=20_000)
    parser.add_argument("--network", choices=NETWORKS, default="mini")
    parser.add_argument("--vocabulary", type=Path)
    parser.add_argument("--train", type=Path, help="columns to train a run of random weights on")
    parser.add_argument("--workers", type=int, nargs="+", default=[0])
    parser.add_argument("--precisions", nargs="+", default=["auto"])
    parser.add_argument("--pipeline", action="store_true")
    parser.add_argument("--link", help="TYPE=DICT[,RUN]: measure what identifiers add")
    parser.add_argument("options", nargs="*", help="further options of megabert annotate, behind --")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    corpus = arguments.out / "corpus.pubtator"
    repeated(arguments.corpus, arguments.documents, corpus)
    records = itertools.islice(itertools.cycle(read_documents([arguments.corpus])), arguments.documents)
    gold = {
        (str(number), entity.start, entity.end, entity.type)
        for number, item in enumerate(records, 1)
        for entity in item.entities
    }
    run = arguments.run or make_run(arguments.out, arguments.network, arguments.vocabulary, arguments.train)
    rows: list[dict[str, Any]] = []
    for workers, precision in itertools.product(arguments.workers, arguments.precisions):
        own = []
        given = ["--precision", precision, *arguments.options]
        settings = [given, [*given, "--link", arguments.link]] * 2
        for options in settings if arguments.link else settings[:1]:
            output = arguments.out / f"annotated-{precision}"
            own.append(annotate(run, corpus, output, workers, options))
            own[-1]["f1"] = _share_of_equal(_entities(output), gold, set())
            print(json.dumps(own[-1]), flush=True)
        if arguments.link:
            without, with_links = (max(row["processing"] for row in own[place::2]) for place in (0, 1))
            own.append({"workers": workers, "linking_adds": round(without / with_links - 1, 3)})
            print(json.dumps(own[-1]), flush=True)
        rows += own
    if arguments.pipeline:
        with_bf16 = arguments.precisions != ["32"]
        for row in pipeline_speeds(run, corpus, arguments.out, gold, with_bf16=with_bf16):
            rows.append(row)
            print(json.dumps(row), flush=True)
    (arguments.out / "annotate.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
