"""Embeddings a second of a Hugging Face encoder, beside sentence-transformers (or transformers alone), in one run.

    python -m benchmarks.embeddings MINILM [--device cuda|cpu] [--count 20000] [--output FILE.json]

Texts are of 20 to 200 words, lognormal; both truncate to 256 tokens and average the hidden states.
sentence-transformers runs with its defaults (float32, batch 32) and with each precision and batch size; both its
defaults and its best are the comparison. Where it is not installed, transformers does the same: texts sorted by length,
mean pooling. Of megabert, what limits it follows: texts a second of tokenization alone, of all but the network, and of
the network with tokens that are ready.
"""

import argparse
import dataclasses
import importlib.util
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

BATCH_SIZES = {"cuda": (32, 128, 512), "cpu": (32, 128)}
PRECISIONS = ("32", "bf16")
TEXT = """patients with chronic heart failure were treated for twelve weeks and the primary outcome was change in blood
pressure measured at baseline after randomization of the trial groups receiving placebo or angiotensin converting enzyme
inhibitors there was no significant difference between expression of genes in tumor tissue"""


def make_texts(count: int) -> list[str]:
    """Generate texts of random words."""
    random, words = np.random.default_rng(0), TEXT.split()
    lengths = np.clip(random.lognormal(4.4, 0.5, count), 20, 200).astype(int)
    return [" ".join(random.choice(words, length)) for length in lengths]


def speed(embed: Callable[[Sequence[str]], object], texts: Sequence[str]) -> float:
    """Return texts a second, the best of several runs behind a warm-up."""
    embed(texts[: max(len(texts) // 5, 1)])
    seconds: list[float] = []
    while len(seconds) < 2 or (len(seconds) < 5 and sum(seconds) < 3):
        start = time.perf_counter()
        embed(texts)
        seconds.append(time.perf_counter() - start)
    return len(texts) / min(seconds)


def ours(folder: str, device: str, precision: str, batch_size: int, texts: Sequence[str]) -> tuple[float, np.ndarray]:
    """Measure megabert."""
    predictor = _load(folder, device, precision, batch_size)
    return speed(predictor.embed, texts), predictor.embed(texts[:8])


def _load(folder: str, device: str, precision: str, batch_size: int) -> Any:
    import megabert

    accelerator = "gpu" if device == "cuda" else "cpu"
    return megabert.load_embedder(folder, accelerator=accelerator, precision=precision, batch_size=batch_size)


def parts(folder: str, device: str, precision: str, batch_size: int, texts: Sequence[str]) -> dict[str, float]:
    """Measure the parts of megabert's embedding, in texts a second."""
    import torch

    predictor = _load(folder, device, precision, batch_size)
    session, task = predictor.session, predictor.task

    class NoNetwork(torch.nn.Module):
        head, encoder = session.model.head, session.model.encoder

        def forward(self, token_ids_T: torch.Tensor, *inputs: Any) -> torch.Tensor:
            return token_ids_T.new_zeros((len(inputs[2]) - 1, self.encoder.config.hidden_size), dtype=torch.float32)

    def tokenize(items: Sequence[str]) -> Any:
        return task.text_features(items, predictor.tokenizer, "passage")

    stub = dataclasses.replace(predictor, session=dataclasses.replace(session, model=NoNetwork()))
    features = tokenize(texts)
    return {
        "tokenization": speed(tokenize, texts),
        "all_but_the_network": speed(stub.embed, texts),
        "network": speed(lambda items: predictor.run(features.take(np.arange(len(items)))), texts),
        "tokens_per_text": len(features.token_ids) / len(texts),
    }


def theirs(folder: str, device: str, precision: str, batch_size: int, texts: Sequence[str]) -> tuple[float, np.ndarray]:
    """Measure sentence-transformers."""
    import torch
    from sentence_transformers import SentenceTransformer, models

    transformer = models.Transformer(folder, max_seq_length=256)
    pooling = models.Pooling(transformer.get_word_embedding_dimension())
    network = SentenceTransformer(modules=[transformer, pooling, models.Normalize()], device=device)
    network = network.to(torch.bfloat16 if precision == "bf16" else torch.float32)  # not what the files have

    def embed(items: Sequence[str]) -> np.ndarray:
        return network.encode(list(items), batch_size=batch_size, convert_to_numpy=True, show_progress_bar=False)

    return speed(embed, texts), embed(texts[:8])


def plain(folder: str, device: str, precision: str, batch_size: int, texts: Sequence[str]) -> tuple[float, np.ndarray]:
    """Measure transformers, with sentence-transformers' order of texts and pooling."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    network = AutoModel.from_pretrained(folder, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    network = network.to(device).eval()

    @torch.inference_mode()
    def embed(items: Sequence[str]) -> np.ndarray:
        order = sorted(range(len(items)), key=lambda number: -len(items[number]))
        vectors = np.empty((len(items), network.config.hidden_size), np.float32)
        for start in range(0, len(items), batch_size):
            rows = order[start : start + batch_size]
            batch = tokenizer([items[row] for row in rows], padding=True, truncation=True, max_length=256)
            batch = batch.convert_to_tensors("pt").to(device)
            mask = batch["attention_mask"][..., None]
            means = (network(**batch).last_hidden_state * mask).sum(1) / mask.sum(1)
            vectors[rows] = torch.nn.functional.normalize(means.float(), dim=1).cpu().numpy()
        return vectors

    return speed(embed, texts), embed(texts[:8])


def main() -> None:
    """Measure, print each row as it comes, and write all as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    texts = make_texts(arguments.count)
    rows: list[dict[str, Any]] = []
    vectors = {}
    summary: dict[str, Any] = {"rows": rows}

    def report(row: dict[str, Any]) -> None:
        print(json.dumps(row), flush=True)
        if arguments.output:
            arguments.output.write_text(json.dumps(summary, indent=1), encoding="utf-8")

    has_library = importlib.util.find_spec("sentence_transformers") is not None
    other = "sentence-transformers" if has_library else "transformers"
    for name, measure in ((other, theirs if has_library else plain), ("megabert", ours)):
        # On a CPU megabert bounds its batches by the caches, whatever their size.
        sizes = BATCH_SIZES[arguments.device][: 1 if (name, arguments.device) == ("megabert", "cpu") else None]
        for precision in PRECISIONS:
            for batch_size in sizes:
                rate, vectors[name, precision] = measure(
                    arguments.folder, arguments.device, precision, batch_size, texts
                )
                rows.append({"what": name, "precision": precision, "batch_size": batch_size, "texts_per_second": rate})
                report(rows[-1])
    best = {name: max(rows, key=lambda row: row["texts_per_second"] * (row["what"] == name)) for name, _ in vectors}
    for precision in PRECISIONS:
        found = parts(arguments.folder, arguments.device, precision, best["megabert"]["batch_size"], texts)
        summary[f"parts_{precision}"] = found
        report({"parts_of": f"megabert {precision}", **found})
    rates = {name: row["texts_per_second"] for name, row in best.items()}
    summary |= {
        "best": rates,
        "times_the_defaults": rates["megabert"] / rows[0]["texts_per_second"],
        "times_the_best": rates["megabert"] / rates[other],
    }
    for precision in PRECISIONS:
        cosines = (vectors["megabert", precision] * vectors[other, "32"]).sum(1)
        summary[f"smallest_cosine_{precision}"] = float(cosines.min())
    report({name: value for name, value in summary.items() if name != "rows"})


if __name__ == "__main__":
    main()
