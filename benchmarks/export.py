"""Speed of exported networks on a CPU beside PyTorch, in one process: float32 and 8 bits, bfloat16 where there is one.

usage: python benchmarks/export.py [--threads 2] [--sizes small,minilm,base] [--seconds 20] [--output FILE]

Sequences have the lengths of PubMed's abstracts; weights are random, since speed does not depend on them. Each network
takes its turn with the others, and its best turn counts, so that what else the machine does hits all alike.
"""

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from megabert.data.packing import Features
from megabert.export.int8_linear import FloatLinears, Int8Linears
from megabert.export.onnx_graph import onnx_model
from megabert.model.config import EncoderConfig
from megabert.model.encoder import Encoder, initialize
from megabert.model.heads import TaskModel, TokenHead
from megabert.model.precision import cast_model
from megabert.onnx_session import CPU_TOKENS, OnnxSession, open_lanes, open_network
from megabert.torch_session import TorchSession

SIZES = {
    "tiny": EncoderConfig(1000, 2, 32, 2, 64, 512),
    "small": EncoderConfig(8000, 6, 320, 5, 1280, 512),
    "minilm": EncoderConfig(30522, 6, 384, 12, 1536, 512, norm_place="post"),
    "base": EncoderConfig(30522, 12, 768, 12, 3072, 512),
}


def main() -> None:
    """Measure each size; print and write JSON after each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sizes", default="small,minilm,base")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    results = {"processor": processor(), "threads": arguments.threads}
    for name in arguments.sizes.split(","):
        results[name] = measure(SIZES[name], arguments.threads, arguments.seconds)
        print(name, json.dumps(results[name]), flush=True)
        if arguments.output:
            arguments.output.write_text(json.dumps(results, indent=1) + "\n")


def processor() -> str:
    """Return the processor's name and what of it matters here."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "?")
    flags = next((line for line in lines if line.startswith("flags")), "").split()
    return f"{name}: {' '.join(flag for flag in flags if 'vnni' in flag or 'amx' in flag or 'bf16' in flag) or 'avx2'}"


def measure(config: EncoderConfig, threads: int, seconds: float) -> dict[str, object]:
    """Measure milliseconds a sequence of each kind of session, and the size of files in MB."""
    encoder, head = Encoder(config), TokenHead(config.hidden_size, 5, num_layers=1, dropout=0.1, activation="relu")
    for module in (encoder, head):
        initialize(module, torch.Generator().manual_seed(0), num_layers=config.num_layers)
    model = TaskModel(encoder, head).eval()
    torch_session = TorchSession(model, lambda logits, batch: logits.sum(), torch.device("cpu"))
    sessions, sizes = {"torch float32": torch_session}, {}
    with tempfile.TemporaryDirectory() as name:
        for kind, linears in (("onnx float32", FloatLinears()), ("onnx int8", Int8Linears())):
            file = Path(name) / f"{kind}.onnx"
            file.write_bytes(onnx_model(model, linears).SerializeToString())
            sizes[kind] = round(file.stat().st_size / 1e6, 1)
            sessions[kind] = OnnxSession(
                open_network(file, threads=threads),
                False,
                config.max_positions,
                max_batch_tokens=CPU_TOKENS * threads,
                lanes=open_lanes(file, threads),
            )
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        fast = TaskModel(Encoder(config), head).eval()
        fast.encoder.load_state_dict(encoder.state_dict())
        cast_model(fast, "bf16")
        sessions["torch bfloat16"] = replace(torch_session, model=fast, precision="bf16")
    random = np.random.default_rng(0)
    lengths = np.clip(random.lognormal(5.4, 0.5, 32).astype(int), 8, 512)
    features = [Features(random.integers(0, 1000, length), np.zeros(length, dtype=np.int64)) for length in lengths]
    best = {kind: float("inf") for kind in sessions}
    end = time.monotonic() + seconds
    while time.monotonic() < end or float("inf") in best.values():
        for kind, session in sessions.items():
            start = time.perf_counter()
            session.run(features, batch_size=32, max_length=512, pad_id=0)
            best[kind] = min(best[kind], time.perf_counter() - start)
    milliseconds = {kind: round(1000 * value / len(features), 2) for kind, value in best.items()}
    ratios = {kind: round(best["torch float32"] / value, 2) for kind, value in best.items()}
    return {"milliseconds": milliseconds, "times torch float32": ratios, "MB": sizes, "tokens": int(lengths.sum())}


if __name__ == "__main__":
    main()
