"""Shared by the benchmarks: random sequences with SQuAD's lengths, models, FLOP counts, timing."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from megabert.data.packing import Batch, Features
from megabert.model.attention import PackedSequences
from megabert.model.config import EncoderConfig
from megabert.model.encoder import Encoder, initialize
from megabert.model.heads import TaskModel, TokenHead

MAX_LENGTH = 384
VOCABULARY = 30_592  # BERT's 30,522 rounded up to a multiple of 128, as Megatron-LM pads it

MEGATRON_345M = EncoderConfig(
    VOCABULARY, num_layers=24, hidden_size=1024, num_heads=16, ffn_size=4096, max_positions=512
)
SMALL_CPU = EncoderConfig(VOCABULARY, num_layers=6, hidden_size=384, num_heads=12, ffn_size=1536, max_positions=512)
BASE_CPU = EncoderConfig(VOCABULARY, num_layers=12, hidden_size=768, num_heads=12, ffn_size=3072, max_positions=512)


@dataclass(frozen=True)
class Result:
    """One row of the table; `tokens_per_second` counts tokens without padding."""

    what: str
    tokens_per_second: float
    milliseconds: float
    tflops: float | None = None
    memory_gb: float | None = None
    note: str = ""


def squad_like_lengths(count: int, seed: int = 0) -> np.ndarray:
    """Sample lengths like those of SQuAD's windows: lognormal, mean about 165 tokens, at most 384."""
    lengths = np.random.default_rng(seed).lognormal(5.0, 0.45, count)
    return np.clip(lengths, 16, MAX_LENGTH).astype(int)


def random_features(lengths: np.ndarray, seed: int = 0) -> list[Features]:
    """Generate sequences of random tokens with an answer span each."""
    random = np.random.default_rng(seed)
    return [
        Features(
            random.integers(1000, 30_000, length),
            (np.arange(length) > 12).astype(np.int64),
            {"span": random.integers(0, length, 2)},
        )
        for length in lengths
    ]


def question_answering_model(config: EncoderConfig) -> TaskModel:
    """Build a randomly initialized model with a question-answering head."""
    generator = torch.Generator().manual_seed(0)
    encoder = Encoder(config)
    initialize(encoder, generator, num_layers=config.num_layers)
    head = TokenHead(config.hidden_size, 2, num_layers=1, dropout=0.0, activation="relu")
    initialize(head, generator)
    return TaskModel(encoder, head)


def span_loss(logits_TC: Tensor, batch: Batch) -> Tensor:
    """Loss of question answering."""
    lowest = torch.finfo(torch.float32).min
    logits_NLC = batch.by_sequence(logits_TC, fill=lowest, max_seqlen=batch.max_seqlen)
    return F.cross_entropy(logits_NLC, batch.targets["span"], reduction="sum") / 2


def forward_flops(config: EncoderConfig, lengths: np.ndarray, num_predictions: int = 0) -> float:
    """Count FLOP of a forward pass over tokens without padding: matmuls with weights and attention.

    A step is three times as much. Embeddings, norms and heads other than the language model's are not counted.
    """
    weights = config.num_layers * (4 * config.hidden_size**2 + 2 * config.hidden_size * config.ffn_size)
    attention = 4 * config.num_layers * config.hidden_size * float((lengths.astype(float) ** 2).sum())
    head = num_predictions * 2 * (config.hidden_size**2 + config.hidden_size * config.vocabulary_size)
    return 2 * weights * float(lengths.sum()) + attention + head


def seconds_per_call(function: Callable[[], object], *, calls: int, rounds: int = 5, device: str = "cuda") -> float:
    """Time a warmed-up function: the median over rounds of the mean over calls, by CUDA events on a GPU."""
    seconds = []
    for _ in range(rounds):
        if device == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            start.record()
            for _ in range(calls):
                function()
            end.record()
            torch.cuda.synchronize()
            seconds.append(start.elapsed_time(end) / 1000 / calls)
        else:
            begin = time.perf_counter()
            for _ in range(calls):
                function()
            seconds.append((time.perf_counter() - begin) / calls)
    return statistics.median(seconds)


def pack_documents(lengths: np.ndarray, device: str) -> PackedSequences:
    """Build the cu_seqlens of packed documents."""
    cu_seqlens = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return PackedSequences(torch.from_numpy(cu_seqlens).to(device), int(lengths.max()))
