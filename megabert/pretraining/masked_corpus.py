"""Sequences of masked-language-model pre-training, with masks and segment order resampled in each pass."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from ..data.packing import NO_TARGET, Features
from ..tokenizers.wordpiece import Tokenizer
from .blend import SequenceCorpus, check_vocabulary
from .indexed_dataset import TokenDataset
from .masking import Masking, apply_mask, choose_masked_positions
from .sample_mapping import SampleMapping

# Separates masks and segment order from other random streams of the same seed.
MASK_STREAM = 13


@dataclass(frozen=True)
class MaskedSequenceSettings:
    """How runs of sentences become sequences."""

    masking: Masking
    sentence_order: bool
    """Sentence-order prediction: divide a run of sentences into two segments and swap them half of the time."""
    seed: int

    @property
    def num_special(self) -> int:
        """Count the special tokens of a sequence, at most."""
        return 3 if self.sentence_order else 2


class MaskedCorpus(SequenceCorpus):
    """Runs of sentences as sequences: [CLS] A [SEP], or [CLS] A [SEP] B [SEP] with sentence order.

    token_targets: `token`, the original token at each masked position. With sentence order also, at the first token
    only: `order`, 1 where the segments are swapped, and `order_weight`, the number of masked positions.
    That number is also the sequence's weight.
    Source: Megatron-LM, megatron/data/bert_dataset.py.
    """

    def __init__(
        self,
        tokens: TokenDataset,
        runs: SampleMapping,
        settings: MaskedSequenceSettings,
        tokenizer: Tokenizer,
        source: str,
    ) -> None:
        self._tokens, self._runs, self._settings, self._source = tokens, runs, settings, source
        self._cls_id, self._sep_id, self._mask_id = tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id
        self._is_continuation = np.array([token.startswith("##") for token in tokenizer.tokens])
        # Two segments need two sentences.
        self._has_order = settings.sentence_order & (runs.ends - runs.firsts > 1)

    def __len__(self) -> int:
        """Count the sequences."""
        return len(self._runs)

    def lengths(self, number: int) -> NDArray[np.int64]:
        """Count the tokens of each sequence."""
        return self._runs.num_tokens + 2 + self._has_order

    def fingerprint(self) -> str:
        """Hash the tokens, the runs and the masking settings."""
        runs, facts = self._runs, asdict(self._settings)
        # Run folders hold the fingerprint, so the names in it are those of its first version.
        names = {"masked_lm_prob": "share", "max_ngram": "largest_ngram"}
        facts["masking"] = {names.get(name, name): value for name, value in facts["masking"].items()}
        digest = hashlib.sha256(f"{self._tokens.fingerprint()} {facts}".encode())
        for array in (runs.firsts, runs.ends, runs.offsets, runs.num_tokens):
            digest.update(array.tobytes())
        return digest.hexdigest()

    def sequence(self, index: int, number: int) -> Features:
        """Make a sequence of a pass."""
        random = np.random.default_rng([self._settings.seed, MASK_STREAM, number, index])
        sentences = self._sentences(index)
        if self._has_order[index]:
            return self._pair(sentences, random)
        ids = np.concatenate([[self._cls_id], *sentences, [self._sep_id]])
        return self._masked(ids, np.zeros_like(ids), NO_TARGET, random)

    def _sentences(self, index: int) -> list[NDArray[np.int64]]:
        runs = self._runs
        first, end = int(runs.firsts[index]), int(runs.ends[index])
        start, rest = int(runs.offsets[index]), int(runs.num_tokens[index])
        sentences = []
        for sequence in range(first, end):
            stop = min(int(self._tokens.lengths[sequence]), start + rest)
            sentences.append(self._tokens.read(sequence, start, stop).astype(np.int64))
            rest -= stop - start
            start = 0
        check_vocabulary(np.concatenate(sentences), len(self._is_continuation), self._source)
        return sentences

    def _pair(self, sentences: Sequence[NDArray[np.int64]], random: np.random.Generator) -> Features:
        cut = int(random.integers(1, len(sentences)))
        is_swapped = int(random.random() < 0.5)
        segments = [np.concatenate(sentences[:cut]), np.concatenate(sentences[cut:])]
        first, second = segments[::-1] if is_swapped else segments
        ids = np.concatenate([[self._cls_id], first, [self._sep_id], second, [self._sep_id]])
        segment_ids = (np.arange(len(ids)) >= len(first) + 2).astype(np.int64)
        return self._masked(ids, segment_ids, is_swapped, random)

    def _masked(
        self, ids: NDArray[np.int64], segment_ids: NDArray[np.int64], order: int, random: np.random.Generator
    ) -> Features:
        masking = self._settings.masking
        is_maskable = (ids != self._cls_id) & (ids != self._sep_id)
        positions = choose_masked_positions(self._is_continuation[ids], is_maskable, masking, random)
        masked_ids = apply_mask(
            ids, positions, masking, random, mask_id=self._mask_id, vocabulary_size=len(self._is_continuation)
        )
        targets = np.full(len(ids), NO_TARGET, dtype=np.int64)
        targets[positions] = ids[positions]
        token_targets = {"token": targets}
        if self._settings.sentence_order:
            token_targets |= {name: np.full(len(ids), NO_TARGET, dtype=np.int64) for name in ("order", "order_weight")}
            token_targets["order"][0] = order
            token_targets["order_weight"][0] = len(positions) if order != NO_TARGET else 0
        return Features(masked_ids, segment_ids, token_targets=token_targets, weight=float(len(positions)))
