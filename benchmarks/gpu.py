"""Benchmark on one GPU: attention kernels, fine-tuning, pre-training and inference against transformers.

    python -m benchmarks.gpu --out FOLDER [--only finetune,pretrain,...] [--profile]

Writes gpu.json and gpu.md. Random weights and tokens, SQuAD's lengths. Times are medians by CUDA events after warm-up.
Reading data, tokenization and evaluation are not included (see benchmarks.job).
"""

import argparse
import gc
import json
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from megabert.config.schema import OptimizerSettings
from megabert.data.packing import Batch, pack
from megabert.data.sampler import BatchSampler
from megabert.kernels.cuda_graph import CapturedGraph
from megabert.model.attention import PackedSequences, attend
from megabert.model.encoder import Encoder, initialize
from megabert.model.precision import cast_model, freeze
from megabert.model.pretraining_heads import LanguageModelHead
from megabert.parallel.sharding import compile_layers
from megabert.training.step import Stepper, SyncFreeStepper

from .common import (
    MAX_LENGTH,
    MEGATRON_345M,
    VOCABULARY,
    Result,
    forward_flops,
    pack_documents,
    question_answering_model,
    random_features,
    seconds_per_call,
    span_loss,
    squad_like_lengths,
)

DEVICE = torch.device("cuda")
CONFIG = MEGATRON_345M


def attention() -> Iterator[Result]:
    """Time attention, forward and backward: ours with and without dropout, PyTorch's varlen_attn without."""
    from torch.nn.attention.varlen import varlen_attn

    for name, lengths in (("32 sequences", squad_like_lengths(32)), ("64 x 512", np.full(64, 512))):
        tokens = int(lengths.sum())
        qkv = torch.randn(tokens, 16, 3, 64, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
        documents = pack_documents(lengths, "cuda")
        grad = torch.randn(tokens, 16, 64, device=DEVICE, dtype=torch.bfloat16)

        def ours(dropout: float, qkv: Tensor = qkv, documents=documents, grad=grad) -> None:
            torch.autograd.grad(attend(qkv, documents, dropout=dropout, is_causal=False), qkv, grad)

        def varlen(qkv: Tensor = qkv, documents=documents, grad=grad) -> None:
            query, key, value = (item.contiguous() for item in qkv.unbind(2))
            cu_seqlens, max_seqlen = documents
            context = varlen_attn(query, key, value, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen)
            torch.autograd.grad(context, qkv, grad)

        for what, function in (
            ("megabert, dropout 0.1", partial(ours, 0.1)),
            ("megabert, no dropout", partial(ours, 0.0)),
            ("varlen_attn (FlashAttention-2), no dropout", varlen),
        ):
            for _ in range(3):
                function()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                function()
            yield measured(f"attention, {name}: {what}", graph.replay, tokens, None, calls=20)
        with torch.no_grad():
            for what, function in (
                ("megabert", lambda qkv=qkv, documents=documents: attend(qkv, documents, dropout=0.0, is_causal=False)),
                (
                    "varlen_attn",
                    lambda qkv=qkv, documents=documents: varlen_attn(
                        *qkv.unbind(2), documents[0], documents[0], documents[1], documents[1]
                    ),
                ),
            ):
                for _ in range(3):
                    function()
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph):
                    function()
                yield measured(f"attention forward, {name}: {what}", graph.replay, tokens, None, calls=20)


def finetune(num_sequences: int, precision: str = "bf16") -> Iterator[Result]:
    """Time the fine-tuning step."""
    lengths = squad_like_lengths(num_sequences * 12)
    loader = BatchSampler(random_features(lengths), num_sequences, MAX_LENGTH, 0, seed=0, static_epochs=1)
    model = question_answering_model(CONFIG).to(DEVICE).train()
    compile_layers(model, fuse=precision != "fp8")
    settings = OptimizerSettings()
    stepper = SyncFreeStepper(model, span_loss, settings, precision=precision, clip=1.0, seed=0, accumulate=1)
    steps = [[batch.map(Tensor.pin_memory) for batch in loader.step(number)] for number in range(len(loader))]
    torch.cuda.reset_peak_memory_stats()
    yield from _steps(f"fine-tuning step, {num_sequences} sequences, {precision}", stepper, steps, lengths)


def _steps(
    what: str, stepper: Stepper, steps: list[list[Batch]], lengths: np.ndarray, predictions: int = 0
) -> Iterator[Result]:
    count = iter(range(10**9))

    def epoch() -> None:
        for batches in steps:
            stepper.step(batches, 1e-5, next(count))

    for _ in range(2):
        epoch()
    flops = 3 * forward_flops(CONFIG, lengths, predictions)
    tokens = int(lengths.sum())
    result = measured(what, epoch, tokens, flops, calls=1, per=len(steps))
    fill = tokens / sum(batch.size.num_tokens for batches in steps for batch in batches)
    yield replace(result, note=f"{tokens / len(steps):,.0f} tokens a step, {fill:.1%} of the static size")
    if PROFILE:
        profile(what, epoch, len(steps))


class PretrainingNetwork(nn.Module):
    """An encoder with a language-model head that is applied to the masked positions only."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder(CONFIG)
        self.language_model = LanguageModelHead(CONFIG, self.encoder.embeddings.word)
        initialize(self, torch.Generator().manual_seed(0), num_layers=CONFIG.num_layers)

    def forward(self, ids: Tensor, positions: Tensor, segments: Tensor, *documents: object) -> Tensor:
        """Compute the last hidden states."""
        return self.encoder(ids, positions, segments, PackedSequences(*documents[:2]))


def pretrain(precision: str = "bf16") -> Iterator[Result]:
    """Time the pre-training step: 64 sequences of 512 tokens, 15 % masked."""
    lengths = np.full(64, 512)
    model = PretrainingNetwork().to(DEVICE).train()
    compile_layers(model, fuse=precision != "fp8")
    num_predictions = int(0.15 * lengths.sum())
    random = np.random.default_rng(0)

    def loss(hidden_TD: Tensor, batch: Batch) -> Tensor:
        positions, targets = batch.targets["positions"].flatten(), batch.targets["token_ids"].flatten()
        hidden_MD = model.language_model.transform(hidden_TD[positions])
        return model.language_model.vocabulary.losses(hidden_MD, targets)[0].sum()

    items = random_features(lengths)
    per_sequence = num_predictions // 64
    for number, item in enumerate(items):
        item.targets["positions"] = np.sort(random.permutation(512)[:per_sequence]) + 512 * number
        item.targets["token_ids"] = random.integers(1000, 30_000, per_sequence)
    settings = OptimizerSettings()
    stepper = SyncFreeStepper(model, loss, settings, precision=precision, clip=1.0, seed=0, accumulate=1)
    batch = pack(items, 512, 0)
    what = f"pre-training step, 64 x 512, {precision}"
    yield from _steps(what, stepper, [[batch]] * 5, np.tile(lengths, 5), 5 * per_sequence * 64)


def inference(precision: str = "bf16") -> Iterator[Result]:
    """Time the model's forward pass for batches of about 16 thousand tokens."""
    lengths = squad_like_lengths(96)
    model = question_answering_model(CONFIG).to(DEVICE).eval()
    cast_model(model, precision)
    freeze(model)
    compile_layers(model, fuse=precision != "fp8")
    batch = pack(random_features(lengths), MAX_LENGTH, 0).to(DEVICE)
    with torch.inference_mode(), torch.cuda.stream(torch.cuda.Stream()):
        for graphs in (False, True):
            run: Callable[[], object] = lambda: model(*batch.inputs())  # noqa: E731
            if graphs:
                run = CapturedGraph(run, torch.cuda.graph_pool_handle())
            for _ in range(4):
                run()
            how = "compiled, CUDA graph" if graphs else "compiled"
            yield measured(
                f"inference, {precision}, {how}", run, int(lengths.sum()), forward_flops(CONFIG, lengths), calls=10
            )
            if PROFILE and graphs:
                profile(f"inference, {precision}", run, 1)


def transformers() -> Iterator[Result]:
    """Time transformers' MegatronBert in its usual form: padded to 384, autocast, fused AdamW."""
    from transformers import MegatronBertConfig, MegatronBertForQuestionAnswering

    lengths = squad_like_lengths(32)
    theirs = MegatronBertConfig(
        vocab_size=VOCABULARY, hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096
    )
    for compiled in (False, True):
        model = MegatronBertForQuestionAnswering(theirs).to(DEVICE).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
        forward = torch.compile(model) if compiled else model
        mask = (torch.arange(MAX_LENGTH) < torch.tensor(lengths)[:, None]).long().to(DEVICE)
        ids = torch.randint(1000, 30_000, mask.shape, device=DEVICE)
        span = torch.zeros(32, dtype=torch.long, device=DEVICE)

        def step(forward=forward, model=model, optimizer=optimizer, ids=ids, mask=mask, span=span) -> None:
            with torch.autocast("cuda", dtype=torch.bfloat16):
                loss = forward(input_ids=ids, attention_mask=mask, start_positions=span, end_positions=span).loss
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

        for _ in range(3):
            step()
        torch.cuda.reset_peak_memory_stats()
        flops = 3 * forward_flops(CONFIG, lengths)
        what = f"transformers, 32 sequences padded to 384{', compiled' if compiled else ''}"
        yield measured(what, step, int(lengths.sum()), flops, calls=3, rounds=3)
    model.eval()
    with torch.inference_mode(), torch.autocast("cuda", dtype=torch.bfloat16):
        run = lambda: model(input_ids=ids, attention_mask=mask)  # noqa: E731
        run()
        yield measured(
            "transformers, inference, 32 sequences padded to 384", run, int(lengths.sum()), None, calls=5, rounds=3
        )


def measured(
    what: str,
    function: Callable[[], object],
    tokens: int,
    flops: float | None,
    *,
    calls: int,
    per: int = 1,
    rounds: int = 5,
) -> Result:
    """Time a warmed-up function; one call is `per` steps."""
    seconds = seconds_per_call(function, calls=calls, rounds=rounds)
    memory = torch.cuda.max_memory_allocated() / 1e9
    result = Result(what, tokens / seconds, 1000 * seconds / per, flops / seconds / 1e12 if flops else None, memory)
    print(line(result), flush=True)
    return result


def profile(what: str, function: Callable[[], object], per: int) -> None:
    """Print the GPU time of a step by kernel."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        function()
        torch.cuda.synchronize()
    by_name: dict[str, list[float]] = defaultdict(lambda: [0.0, 0])
    for event in profiler.events():
        by_name[event.name[:110]][0] += event.device_time_total / 1000 / per
        by_name[event.name[:110]][1] += 1 / per
    total = sum(item[0] for item in by_name.values())
    print(f"profile of {what}: {total:.2f} ms of kernels a step")
    for name, (milliseconds, count) in sorted(by_name.items(), key=lambda item: -item[1][0])[:28]:
        print(f"  {milliseconds:7.3f} ms {milliseconds / total:6.1%} x{count:6.1f}  {name}", flush=True)


def line(result: Result) -> str:
    """Format a result as a row of the Markdown table."""
    flops = f"{result.tflops:.0f}" if result.tflops else ""
    memory = f"{result.memory_gb:.1f}" if result.memory_gb else ""
    cells = [result.what, f"{result.tokens_per_second / 1000:,.0f}", f"{result.milliseconds:.2f}", flops, memory]
    return f"| {' | '.join([*cells, result.note])} |"


SECTIONS: dict[str, Callable[[], Iterator[Result]]] = {
    "attention": attention,
    "finetune": partial(finetune, 32),
    "finetune_16k": partial(finetune, 96),
    "pretrain": pretrain,
    "inference": inference,
    "finetune_fp8": partial(finetune, 32, "fp8"),
    "finetune_16k_fp8": partial(finetune, 96, "fp8"),
    "pretrain_fp8": partial(pretrain, "fp8"),
    "inference_fp8": partial(inference, "fp8"),
    "transformers": transformers,
}
PROFILE = False


@contextmanager
def _clean() -> Iterator[None]:
    try:
        yield
    finally:
        torch._dynamo.reset()
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def main() -> None:
    """Run the benchmarks and write the tables."""
    global PROFILE
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for gpu.json and gpu.md")
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, separated by commas")
    parser.add_argument("--profile", action="store_true", help="also print the time of each kernel")
    arguments = parser.parse_args()
    PROFILE = arguments.profile
    results = []
    with torch.cuda.stream(torch.cuda.Stream()):
        for name in arguments.only.split(","):
            with _clean():
                try:
                    results += list(SECTIONS[name]())
                except Exception:  # the other sections still run
                    traceback.print_exc()
    head = "| what | ktok/s | ms | model TFLOP/s | GB | |\n|---|---|---|---|---|---|\n"
    device = f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    arguments.out.mkdir(parents=True, exist_ok=True)
    table = {"device": device, "results": [asdict(result) for result in results]}
    (arguments.out / "gpu.json").write_text(json.dumps(table, indent=1) + "\n")
    (arguments.out / "gpu.md").write_text(f"{device}\n\n{head}" + "\n".join(map(line, results)) + "\n")


if __name__ == "__main__":
    main()
