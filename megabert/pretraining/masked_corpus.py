"""The texts of masked-language-model training: what the network sees, what it is asked, drawn anew in each pass."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..data.packing import NO_TARGET, Features
from ..tokenizers.wordpiece import Tokenizer
from .blend import SequenceCorpus, check_vocabulary
from .indexed_dataset import TokenDataset
from .masking import Masking, apply_mask, choose_masked_positions
from .sample_mapping import SampleMapping

# What keeps the numbers drawn for masks apart from others that come from the same seed.
MASK_STREAM = 13


@dataclass(frozen=True)
class MaskedSequenceSettings:
    """How runs of sentences become texts."""

    masking: Masking
    sentence_order: bool
    """Cut a text of two sentences or more into two segments and swap them half of the time."""
    seed: int

    @property
    def num_special(self) -> int:
        """Count the special tokens that a text may have."""
        return 3 if self.sentence_order else 2


class MaskedCorpus(SequenceCorpus):
    """A corpus's runs of sentences as texts: [CLS] A [SEP], or [CLS] A [SEP] B [SEP] with sentence order.

    token_targets: `token`, what stood at the places that are asked for. With sentence order also, at the first token
    alone: `order`, 1 where the segments are swapped, and `order_weight`, the number of tokens that are asked for.
    Each text counts as much as it has such tokens.
    Source: Megatron-LM, megatron/data/bert_dataset.py.
    """

    def __init__(
        self, tokens: TokenDataset, runs: SampleMapping, plan: MaskedSequenceSettings, tokenizer: Tokenizer, source: str
    ) -> None:
        self._tokens, self._runs, self._plan, self._source = tokens, runs, plan, source
        self._cls_id, self._sep_id, self._mask_id = tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id
        self._is_continuation = np.array([token.startswith("##") for token in tokenizer.tokens])
        # Two segments need two sentences, one of which ends the first; a text of one is not asked for its order.
        self._has_order = plan.sentence_order & (runs.ends - runs.firsts > 1)

    def __len__(self) -> int:
        """Count the texts."""
        return len(self._runs)

    def lengths(self, number: int) -> NDArray[np.int64]:
        """Count each text's tokens."""
        return self._runs.num_tokens + 2 + self._has_order

    def fingerprint(self) -> str:
        """Digest the tokens, how they are cut and what is drawn."""
        runs, plan, masking = self._runs, self._plan, self._plan.masking
        # Run folders hold the fingerprint, so these names stay.
        facts = {
            "masking": {
                "share": masking.masked_lm_prob,
                "largest_ngram": masking.max_ngram,
                "whole_words": masking.whole_words,
                "mask_share": masking.mask_share,
                "random_share": masking.random_share,
            },
            "sentence_order": plan.sentence_order,
            "seed": plan.seed,
        }
        digest = hashlib.sha256(f"{self._tokens.fingerprint()} {facts}".encode())
        for array in (runs.firsts, runs.ends, runs.offsets, runs.num_tokens):
            digest.update(array.tobytes())
        return digest.hexdigest()

    def sequence(self, index: int, number: int) -> Features:
        """Make a text as a pass shows it."""
        random = np.random.default_rng([self._plan.seed, MASK_STREAM, number, index])
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
            sentences.append(self._tokens.part(sequence, start, stop).astype(np.int64))
            rest -= stop - start
            start = 0
        largest = max(int(sentence.max(initial=0)) for sentence in sentences)
        check_vocabulary(largest, len(self._is_continuation), self._source)
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
        masking = self._plan.masking
        is_maskable = (ids != self._cls_id) & (ids != self._sep_id)
        places = choose_masked_positions(self._is_continuation[ids], is_maskable, masking, random)
        seen = apply_mask(
            ids, places, masking, random, mask_id=self._mask_id, vocabulary_size=len(self._is_continuation)
        )
        targets = np.full(len(ids), NO_TARGET, dtype=np.int64)
        targets[places] = ids[places]
        token_targets = {"token": targets}
        if self._plan.sentence_order:
            token_targets |= {name: np.full(len(ids), NO_TARGET, dtype=np.int64) for name in ("order", "order_weight")}
            token_targets["order"][0] = order
            token_targets["order_weight"][0] = len(places) if order != NO_TARGET else 0
        return Features(seen, segment_ids, token_targets=token_targets, weight=float(len(places)))
