"""Generator: continuations of prompts of unequal lengths, in batches, with a key-value cache.

The prompts of a batch are packed without padding; then every step computes one token of each sequence. On a GPU steps
are captured in CUDA graphs, one for each multiple of `BUCKET` cached positions.

Shape legend: B sequences, V vocabulary, N new tokens.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..errors import ConfigError, InputError
from ..inference import list_of_texts
from ..kernels.cuda_graph import CapturedGraph, side_stream
from ..model.attention import PackedSequences
from ..model.encoder import Encoder
from ..model.key_value_cache import KeyValueCache
from ..tokenizers.wordpiece import Tokenizer
from .sampling import Sampling, uniform_numbers

BUCKET = 128
# Tokens between two looks of the host at what a GPU has generated, which end the queue of launched steps.
LOOK_INTERVAL = 16
REPLACEMENT = "\ufffd"
"""What an incomplete UTF-8 sequence decodes to."""

TextCallback = Callable[[int, str], None]
"""Called with the index of a prompt and its next piece of text, if there is one sample a prompt."""


@dataclass(frozen=True)
class GenerationLimits:
    """How many continuations there are, and where they end."""

    max_new_tokens: int = 64
    num_samples: int = 1
    stop: Sequence[str] = ()
    """Strings that end a text, which leaves them out."""
    seed: int = 0
    batch_size: int = 64
    """Sequences that are generated together."""

    def __post_init__(self) -> None:
        """Raise ConfigError for values out of range."""
        for name in ("max_new_tokens", "num_samples", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: give 1 or more.")
        if any(not text for text in self.stop):
            raise ConfigError("stop='': give a string that is not empty.")
        if self.seed < 0:
            raise ConfigError(f"seed={self.seed}: give 0 or more.")


@dataclass(frozen=True)
class Continuation:
    """A generated text."""

    prompt: str
    text: str
    """What follows the prompt."""
    num_tokens: int
    """Number of generated tokens, an end of text included."""
    finish: str
    """Why it ends: `end` of text, a `stop` string, or the `length`."""
    sample: int = 0


@dataclass
class _Row:
    """A sequence of a batch."""

    prompt: int
    sample: int
    ids: NDArray[np.int64]
    max_new: int
    new_ids: list[int] = field(default_factory=list)
    text_before: str = ""
    """The prompt as its tokens decode to it."""
    text: str = ""
    shown: int = 0
    """Characters of the text that the callback has got."""
    finish: str | None = None


@dataclass(frozen=True)
class Generator:
    """A causal language model that continues prompts. `megabert.load_generator(NAME)` returns one."""

    encoder: Encoder
    tokenizer: Tokenizer

    def __post_init__(self) -> None:
        """Raise ConfigError if the network is not causal."""
        if not self.encoder.config.is_causal:
            raise ConfigError("The network is not causal (BERT), so it cannot continue a text. Give one of GPT-2.")

    def generate(
        self,
        prompts: Sequence[str],
        sampling: Sampling | None = None,
        limits: GenerationLimits | None = None,
        *,
        on_text: TextCallback | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Continuation]:
        """Continue each prompt, `num_samples` times one after the other.

        Raises InputError for a prompt without a token, or one that leaves no position for a new one.
        """
        prompts = list_of_texts(prompts, "generate")
        sampling, limits = sampling or Sampling(), limits or GenerationLimits()
        if sampling.is_greedy and limits.num_samples > 1:
            raise ConfigError(
                f"num_samples={limits.num_samples}, but without temperature all are the same. Set temperature=0.8."
            )
        rows = []
        for number, prompt in enumerate(prompts):
            if not isinstance(prompt, str):
                raise InputError(f"prompt {number + 1} is a {type(prompt).__name__}; expected a string.")
        for number, ids in enumerate(self.tokenizer.encode_ids(list(prompts))):
            max_new = min(limits.max_new_tokens, self._room(ids, prompts[number], number))
            before = self.tokenizer.decode(ids.tolist())
            rows += [_Row(number, sample, ids, max_new, text_before=before) for sample in range(limits.num_samples)]
        # Sequences of like lengths together, since all of a batch have as many cached positions as the longest.
        order = sorted(range(len(rows)), key=lambda index: len(rows[index].ids) + rows[index].max_new)
        with side_stream(self.encoder.embeddings.word.weight.device), torch.inference_mode():
            for start in range(0, len(rows), limits.batch_size):
                batch = [rows[index] for index in order[start : start + limits.batch_size]]
                _Batch(self, batch, sampling, limits).run(on_text if limits.num_samples == 1 else None)
                if progress is not None:
                    progress(min(start + limits.batch_size, len(rows)), len(rows))
        return [
            Continuation(prompts[row.prompt], row.text, len(row.new_ids), row.finish or "length", row.sample)
            for row in rows
        ]

    def _room(self, ids: NDArray[np.int64], prompt: str, number: int) -> int:
        most = self.encoder.config.max_positions
        if not len(ids):
            raise InputError(f"prompt {number + 1} ({prompt[:40]!r}) has no token. Give some text.")
        if len(ids) >= most:
            raise InputError(
                f"prompt {number + 1} has {len(ids)} tokens, and the model {most} positions, so nothing can follow. "
                "Shorten it."
            )
        return most - len(ids)


class _Batch:
    """Sequences that are generated together: their state on the device, and the loop."""

    def __init__(self, generator: Generator, rows: list[_Row], sampling: Sampling, limits: GenerationLimits) -> None:
        weight = generator.encoder.embeddings.word.weight
        self._generator, self._rows, self._sampling, self._limits = generator, rows, sampling, limits
        self._end_ids = _end_ids(generator.tokenizer)
        self._num_new = max(row.max_new for row in rows)
        self._longest = max(len(row.ids) for row in rows)
        device = self._device = weight.device
        config = generator.encoder.config
        length = min(self._longest + self._num_new, config.max_positions)
        self._cache = KeyValueCache(config, len(rows), length, weight.dtype, device)
        numbers = [uniform_numbers(limits.seed, row.prompt, row.sample, self._num_new) for row in rows]
        self._uniforms_BN = torch.from_numpy(np.stack(numbers)).to(device)
        self._output_BN = torch.zeros(len(rows), self._num_new, dtype=torch.long, device=device)
        self._last_B = torch.zeros(len(rows), dtype=torch.long, device=device)
        self._count_1 = torch.zeros(1, dtype=torch.long, device=device)
        self._has_occurred_BV: Tensor | None = None
        if sampling.repetition_penalty != 1:
            self._has_occurred_BV = torch.zeros(len(rows), len(weight), dtype=torch.bool, device=device)
            for number, row in enumerate(rows):
                self._has_occurred_BV[number, torch.from_numpy(row.ids).to(device)] = True
        self._graphs: dict[int, CapturedGraph[None]] = {}
        self._pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None

    def run(self, on_text: TextCallback | None) -> None:
        """Generate until every sequence has ended."""
        interval = 1 if self._device.type == "cpu" or on_text is not None else LOOK_INTERVAL
        seen = 0
        for count in self._steps():
            if count - seen < interval and count < self._num_new:
                continue
            self._read(seen, count, on_text)
            if all(row.finish is not None for row in self._rows):
                break
            seen = count
        for row in self._rows:
            if row.finish != "stop":
                row.text = self._text(row)

    def _steps(self) -> Iterator[int]:
        """Compute the prompts, then a token of each sequence a step; yields the number of new tokens."""
        ids = np.concatenate([row.ids for row in self._rows])
        lengths = [len(row.ids) for row in self._rows]
        cu_seqlens_B1 = torch.tensor(np.cumsum([0, *lengths]), dtype=torch.int32, device=self._device)
        prompts = PackedSequences(cu_seqlens_B1, self._longest)
        positions = np.concatenate([np.arange(length) for length in lengths])
        self._cache.begin(prompts)
        hidden_TD = self._encode(*(torch.from_numpy(item).to(self._device) for item in (ids, positions)))
        self._append(hidden_TD.index_select(0, cu_seqlens_B1[1:].long() - 1))
        yield 1
        most = self._cache.keys_LBHSK.shape[3]
        for count in range(1, self._num_new):
            used = min(-(-(self._longest + count) // BUCKET) * BUCKET, most)
            self._cache.used = used
            if used not in self._graphs:
                self._graphs[used] = CapturedGraph(self._step, self._pool, capture=self._device.type == "cuda")
            self._graphs[used]()
            yield count + 1

    def _step(self) -> None:
        # A sequence that has ended may reach the last position before others end.
        positions_B = self._cache.lengths_B.clamp_(max=self._cache.keys_LBHSK.shape[3] - 1)
        self._append(self._encode(self._last_B, positions_B))

    def _encode(self, ids_T: Tensor, positions_T: Tensor) -> Tensor:
        hidden_TD = self._generator.encoder(ids_T, positions_T, None, self._cache)
        self._cache.advance()
        return hidden_TD

    def _append(self, hidden_BD: Tensor) -> None:
        """Choose and store the next token of each sequence from the hidden state of its last one."""
        logits_BV = F.linear(hidden_BD, self._generator.encoder.embeddings.word.weight).float()
        index_1 = self._count_1.clamp(max=self._num_new - 1)
        uniforms_B = self._uniforms_BN.index_select(1, index_1)[:, 0]
        chosen_B = self._sampling.choose(logits_BV, uniforms_B, self._has_occurred_BV)
        if self._has_occurred_BV is not None:
            self._has_occurred_BV.scatter_(1, chosen_B[:, None], True)
        self._output_BN.index_copy_(1, index_1, chosen_B[:, None])
        self._last_B.copy_(chosen_B)
        self._count_1 += 1

    def _read(self, first: int, count: int, on_text: TextCallback | None) -> None:
        """Read new tokens [first, count) and find the sequences that end with them."""
        new = self._output_BN[:, first:count].tolist()
        for row, ids in zip(self._rows, new, strict=True):
            for token_id in ids:
                if row.finish is None:
                    self._add_token(row, token_id)
            if on_text is not None:
                self._show(row, on_text)

    def _add_token(self, row: _Row, token_id: int) -> None:
        row.new_ids.append(token_id)
        if token_id in self._end_ids:
            row.finish = "end"
        elif len(row.new_ids) >= row.max_new:
            row.finish = "length"
        if self._limits.stop:
            row.text = self._text(row)
            places = [place for text in self._limits.stop if (place := row.text.find(text)) >= 0]
            if places:
                row.text, row.finish = row.text[: min(places)], "stop"

    def _text(self, row: _Row) -> str:
        """Decode together with the prompt, since a WordPiece token may be the end of its last word."""
        visible = [token_id for token_id in row.new_ids if token_id not in self._end_ids]
        return self._generator.tokenizer.decode([*row.ids.tolist(), *visible])[len(row.text_before) :]

    def _show(self, row: _Row, on_text: TextCallback) -> None:
        """Pass on the text that cannot change any more."""
        if row.finish != "stop":
            row.text = self._text(row)
        end = len(row.text)
        if row.finish is None:
            end = len(row.text.rstrip(REPLACEMENT))
            # What may be the beginning of a stop string may be left out later.
            starts = [
                place
                for text in self._limits.stop
                for place in range(max(row.shown, end - len(text)), end)
                if text.startswith(row.text[place:end])
            ]
            end = min([end, *starts])
        if end > row.shown:
            on_text(row.prompt, row.text[row.shown : end])
            row.shown = end


def _end_ids(tokenizer: Tokenizer) -> frozenset[int]:
    try:
        return frozenset([tokenizer.end_id])
    except ConfigError:  # a vocabulary without an end of text
        return frozenset()
