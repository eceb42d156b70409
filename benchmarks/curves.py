"""Loss curves of masked language modelling in bf16 and fp8, compared with the effect of another dropout seed.

    python -m benchmarks.curves --text FILE --vocabulary VOCAB.txt --out FOLDER [--steps 500] [--sequences 16]

Megatron-BERT 345M from random weights on windows of 512 tokens of a text file, 15 % of them masked. All runs have the
same initial weights and the same windows in the same order. Writes curves.json, prints means over 50 steps.
"""

import argparse
import gc
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from megabert.config.schema import OptimizerSettings
from megabert.data.packing import Batch, Features, pack
from megabert.model.config import LOSS
from megabert.model.encoder import Encoder, initialize
from megabert.model.heads import TaskModel
from megabert.model.pretraining_heads import PretrainingHead
from megabert.model.vocabulary_loss import NO_TARGET
from megabert.parallel.sharding import compile_layers
from megabert.pretraining.masking import Masking, apply_mask, choose_masked_positions
from megabert.tokenizers.wordpiece import Tokenizer
from megabert.training.step import SyncFreeStepper

from .common import MEGATRON_345M

LENGTH = 512
WARM_UP, LEARNING_RATE = 100, 1e-4
RUNS = {"bf16": ("bf16", 0), "bf16, other dropout": ("bf16", 1), "fp8": ("fp8", 0)}


def windows(text: Path, tokenizer: Tokenizer, count: int) -> list[Features]:
    """Split a text into windows and mask them; a short text is repeated with other masks."""
    lines = [line for line in text.read_text(encoding="utf-8").splitlines() if line.strip()]
    ids = np.concatenate(tokenizer.encode_ids(lines))
    starts = np.arange(0, len(ids) - LENGTH, LENGTH)
    is_piece = np.array([token.startswith("##") for token in tokenizer.tokens])
    random = np.random.default_rng(0)
    order = np.concatenate([random.permutation(starts) for _ in range(-(-count // len(starts)))])[:count]
    mask_id = tokenizer.tokens.index("[MASK]")
    features = []
    for start in order:
        token_ids = ids[start : start + LENGTH]
        positions = choose_masked_positions(is_piece[token_ids], np.ones(LENGTH, dtype=bool), Masking(), random)
        options = {"mask_id": mask_id, "vocabulary_size": len(tokenizer)}
        masked_ids = apply_mask(token_ids, positions, Masking(), random, **options)
        targets = np.full(LENGTH, NO_TARGET, dtype=np.int64)
        targets[positions] = token_ids[positions]
        segment_ids = np.zeros(LENGTH, np.int64)
        features.append(
            Features(masked_ids, segment_ids, token_targets={"token": targets}, weight=float(len(positions)))
        )
    return features


def loss(columns_T6: Tensor, batch: Batch) -> Tensor:
    """Sum the losses of the masked tokens."""
    return columns_T6[:, LOSS].sum()


def curve(batches: list[Batch], vocabulary_size: int, precision: str, seed: int) -> list[float]:
    """Train with one step for each batch; returns the losses."""
    config = replace(MEGATRON_345M, vocabulary_size=vocabulary_size)
    model = TaskModel(Encoder(config), PretrainingHead(config, target_share=0.15, sentence_order=False))
    initialize(model, torch.Generator().manual_seed(0), num_layers=config.num_layers)
    model.cuda().train()
    compile_layers(model, fuse=precision != "fp8")
    settings = OptimizerSettings()
    stepper = SyncFreeStepper(model, loss, settings, precision=precision, clip=1.0, seed=seed, accumulate=1)
    metrics = [
        stepper.step([batch], LEARNING_RATE * min(1.0, (number + 1) / WARM_UP), number)
        for number, batch in enumerate(batches)
    ]
    return torch.stack(metrics)[:, 0].tolist()


def main() -> None:
    """Train three times and compare the losses."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("text", "vocabulary", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--sequences", type=int, default=16, help="windows of a step")
    arguments = parser.parse_args()
    tokenizer = Tokenizer.from_file(arguments.vocabulary)
    features = windows(arguments.text, tokenizer, arguments.steps * arguments.sequences)
    batches = [
        pack(features[at : at + arguments.sequences], LENGTH, tokenizer.pad_id).map(Tensor.pin_memory)
        for at in range(0, len(features), arguments.sequences)
    ]
    curves = {}
    for name, (precision, seed) in RUNS.items():
        with torch.cuda.stream(torch.cuda.Stream()):
            curves[name] = curve(batches, len(tokenizer), precision, seed)
        print(f"{name}: loss of the last 50 steps {np.mean(curves[name][-50:]):.4f}", flush=True)
        torch._dynamo.reset()
        gc.collect()
        torch.cuda.empty_cache()
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "curves.json").write_text(json.dumps(curves) + "\n")
    print(f"| steps | {' | '.join(curves)} |\n|---|{'---|' * len(curves)}")
    for first in range(0, arguments.steps, 50):
        cells = [f"{np.mean(losses[first : first + 50]):.4f}" for losses in curves.values()]
        print(f"| {first + 1} to {first + 50} | {' | '.join(cells)} |")
    base = np.array(curves["bf16"])
    for name in list(curves)[1:]:
        differences = np.array(curves[name]) - base
        print(
            f"{name}: difference from bf16: mean {differences.mean():+.4f}, absolute {np.abs(differences).mean():.4f}"
        )


if __name__ == "__main__":
    main()
