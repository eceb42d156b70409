"""Loss curves of masked language modelling in bf16 and fp8, beside the difference that another dropout seed makes.

    python -m benchmarks.curves --text FILE --vocabulary VOCAB.txt --out FOLDER [--steps 500] [--texts 16]

Megatron-BERT 345M from random weights on windows of 512 tokens of a plain text, 15 % of them asked for. All runs see
the same windows in the same order and start from the same weights. Writes curves.json, prints means over 50 steps.
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
from megabert.model.encoder import Encoder, initialize
from megabert.model.heads import LOSS, PretrainingHead, TaskModel
from megabert.model.vocabulary_loss import NO_TARGET
from megabert.parallel.sharding import compile_layers
from megabert.pretraining.masking import Masking, apply_mask, choose_masked_positions
from megabert.tokenizers.wordpiece import Tokenizer
from megabert.training.step import SyncFreeStepper

from .common import MEGATRON_345M

LENGTH = 512
WARM_UP, RATE = 100, 1e-4
RUNS = {"bf16": ("bf16", 0), "bf16, other dropout": ("bf16", 1), "fp8": ("fp8", 0)}


def windows(text: Path, tokenizer: Tokenizer, count: int) -> list[Features]:
    """Cut a text into windows and mask them; a short text is gone through again, with other masks."""
    lines = [line for line in text.read_text(encoding="utf-8").splitlines() if line.strip()]
    ids = np.concatenate(tokenizer.encode_ids(lines))
    starts = np.arange(0, len(ids) - LENGTH, LENGTH)
    is_piece = np.array([token.startswith("##") for token in tokenizer.tokens])
    random = np.random.default_rng(0)
    order = np.concatenate([random.permutation(starts) for _ in range(-(-count // len(starts)))])[:count]
    mask_id = tokenizer.tokens.index("[MASK]")
    made = []
    for start in order:
        token_ids = ids[start : start + LENGTH]
        places = choose_masked_positions(is_piece[token_ids], np.ones(LENGTH, dtype=bool), Masking(), random)
        seen = apply_mask(token_ids, places, Masking(), random, mask_id=mask_id, vocabulary_size=len(tokenizer))
        targets = np.full(LENGTH, NO_TARGET, dtype=np.int64)
        targets[places] = token_ids[places]
        token_targets = {"token": targets}
        made.append(Features(seen, np.zeros(LENGTH, np.int64), token_targets=token_targets, weight=float(len(places))))
    return made


def loss(columns_T6: Tensor, batch: Batch) -> Tensor:
    """Sum the losses of the tokens that are asked for."""
    return columns_T6[:, LOSS].sum()


def curve(batches: list[Batch], vocabulary_size: int, precision: str, seed: int) -> list[float]:
    """Train, a step a batch; gives the losses."""
    config = replace(MEGATRON_345M, vocabulary_size=vocabulary_size)
    model = TaskModel(Encoder(config), PretrainingHead(config, target_share=0.15, sentence_order=False))
    initialize(model, torch.Generator().manual_seed(0), num_layers=config.num_layers)
    model.cuda().train()
    compile_layers(model)
    settings = OptimizerSettings()
    stepper = SyncFreeStepper(model, loss, settings, precision=precision, clip=1.0, seed=seed, accumulate=1)
    figures = [
        stepper.step([batch], RATE * min(1.0, (number + 1) / WARM_UP), number) for number, batch in enumerate(batches)
    ]
    return torch.stack(figures)[:, 0].tolist()


def main() -> None:
    """Train three times and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("text", "vocabulary", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--texts", type=int, default=16, help="windows a step")
    arguments = parser.parse_args()
    tokenizer = Tokenizer.from_file(arguments.vocabulary)
    made = windows(arguments.text, tokenizer, arguments.steps * arguments.texts)
    batches = [
        pack(made[at : at + arguments.texts], LENGTH, tokenizer.pad_id).map(Tensor.pin_memory)
        for at in range(0, len(made), arguments.texts)
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
        apart = np.array(curves[name]) - base
        print(f"{name}: mean distance from bf16 a step {np.abs(apart).mean():.4f}, mean difference {apart.mean():+.4f}")


if __name__ == "__main__":
    main()
