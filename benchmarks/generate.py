"""Benchmark of text generation: new tokens a second beside transformers' GPT-2 with the same random weights.

    python -m benchmarks.generate --out FOLDER [--network 345m|small] [--batches 1 64] [--new 128]

Greedy; prompts of 64 to 128 random tokens, padded for transformers, packed here. Both run once before they are timed by
turns, and the best of three counts;
transformers runs as `generate` does by default (dynamic cache, scaled_dot_product_attention). The texts are compared.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from megabert.errors import ConfigError
from megabert.generation.generator import GenerationLimits, Generator
from megabert.model.config import EncoderConfig
from megabert.model.encoder import Encoder

NETWORKS = {"345m": (24, 1024, 16), "small": (6, 384, 6)}
VOCABULARY, POSITIONS = 50_257, 1024
TURNS = 3


class Numbers:
    """A tokenizer whose texts are token ids with blanks between them; no token ends a text."""

    tokens = range(VOCABULARY)

    def encode_ids(self, texts: list[str]) -> list[Any]:
        """Read ids."""
        return [np.array(text.split(), dtype=np.int64) for text in texts]

    def decode(self, token_ids: list[int]) -> str:
        """Write ids."""
        return "".join(f" {token_id}" for token_id in token_ids)

    @property
    def end_id(self) -> int:
        """Raise ConfigError."""
        raise ConfigError("no end")


def networks(name: str, device: torch.device, dtype: torch.dtype) -> tuple[Encoder, Any]:
    """Make the same network twice."""
    from transformers import GPT2Config, GPT2LMHeadModel

    layers, hidden, heads = NETWORKS[name]
    torch.manual_seed(0)
    theirs = GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCABULARY, n_positions=POSITIONS, n_embd=hidden, n_layer=layers, n_head=heads)
    )
    config = EncoderConfig(
        vocabulary_size=VOCABULARY, num_layers=layers, hidden_size=hidden, num_heads=heads, ffn_size=4 * hidden,
        max_positions=POSITIONS, num_segments=0, is_causal=True, gelu="tanh",
    )  # fmt: skip
    ours, body = Encoder(config), theirs.transformer
    order = np.arange(3 * hidden).reshape(3, heads, hidden // heads).transpose(1, 0, 2).ravel()
    with torch.no_grad():
        ours.embeddings.word.weight.copy_(body.wte.weight)
        ours.embeddings.position.weight.copy_(body.wpe.weight)
        for own, other in zip(ours.layers, body.h, strict=True):
            own.attention.qkv.weight.copy_(other.attn.c_attn.weight.T[order])
            own.attention.qkv.bias.copy_(other.attn.c_attn.bias[order])
            pairs = (
                (own.attention.out, other.attn.c_proj),
                (own.mlp.up, other.mlp.c_fc),
                (own.mlp.down, other.mlp.c_proj),
            )
            for linear, conv in pairs:
                linear.weight.copy_(conv.weight.T)
                linear.bias.copy_(conv.bias)
    return ours.to(device, dtype).eval(), theirs.to(device, dtype).eval()


def timed(runs: Sequence[Callable[[], Any]], device: torch.device) -> list[tuple[float, Any]]:
    """Run each once, then by turns; returns the time of its best turn and its result.

    What else the machine does hits all alike.
    """
    results = [run() for run in runs]
    seconds = [float("inf")] * len(runs)
    for _ in range(TURNS):
        for number, run in enumerate(runs):
            if device.type == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds[number] = min(seconds[number], time.perf_counter() - start)
    return list(zip(seconds, results, strict=True))


def main() -> None:
    """Print a row a batch size, as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--network", choices=NETWORKS, default="345m")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--new", type=int, default=128)
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    ours, theirs = networks(arguments.network, device, dtype)
    generator, rows, random = Generator(ours, Numbers()), [], np.random.default_rng(0)  # type: ignore[arg-type]
    for batch in arguments.batches:
        prompts = [random.integers(0, VOCABULARY, random.integers(64, 129)) for _ in range(batch)]
        texts = [" ".join(map(str, ids)) for ids in prompts]
        limits = GenerationLimits(max_new_tokens=arguments.new, batch_size=batch)
        longest = max(map(len, prompts))
        padded = torch.tensor([[0] * (longest - len(ids)) + ids.tolist() for ids in prompts], device=device)
        mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts], device=device)
        words = {"max_new_tokens": arguments.new, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        (seconds, found), (their_seconds, output) = timed(
            (
                partial(generator.generate, texts, limits=limits),
                partial(theirs.generate, padded, attention_mask=mask, **words),
            ),
            device,
        )
        new = output[:, longest:].tolist()
        equal = np.mean(
            [[int(word) for word in item.text.split()] == ids for item, ids in zip(found, new, strict=True)]
        )
        total = batch * arguments.new
        rows.append({
            "batch": batch, "megabert": round(total / seconds), "transformers": round(total / their_seconds),
            "ratio": round(their_seconds / seconds, 2), "equal_texts": float(equal), "device": str(device),
            "network": arguments.network,
        })  # fmt: skip
        print(json.dumps(rows[-1]), flush=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "generate.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
