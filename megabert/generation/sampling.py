"""Choice of the next token: greedy, temperature, top-k, top-p, repetition penalty.

A sample is a function of its seed and the logits alone, not of the batch that it is computed in: one uniform number a
token, drawn in advance, selects it from the cumulative distribution.

Sources: Holtzman et al. 2019 (arXiv:1904.09751) for top-p; Keskar et al. 2019 (arXiv:1909.05858) for the penalty.

Shape legend: B sequences, V vocabulary, N new tokens.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import ConfigError


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. Raises ConfigError for values out of range."""

    temperature: float = 0.0
    """Logits are divided by it; 0: greedy, the most likely token."""
    top_k: int = 0
    """Sample from this many most likely tokens; 0: from all."""
    top_p: float = 1.0
    """Sample from the most likely tokens whose probabilities add up to this."""
    repetition_penalty: float = 1.0
    """Logits of tokens that have occurred are divided by it if positive, else multiplied; 1: none."""

    def __post_init__(self) -> None:
        limits = {
            "temperature": (self.temperature >= 0, "0 or more"),
            "top_k": (self.top_k >= 0, "0 or more"),
            "top_p": (0 < self.top_p <= 1, "more than 0 and at most 1"),
            "repetition_penalty": (self.repetition_penalty > 0, "more than 0"),
        }
        for name, (is_valid, expected) in limits.items():
            if not is_valid:
                raise ConfigError(f"{name}={getattr(self, name)}: give {expected}.")

    @property
    def is_greedy(self) -> bool:
        """Whether no random number is used."""
        return self.temperature == 0 or self.top_k == 1

    def choose(self, logits_BV: Tensor, uniforms_B: Tensor, has_occurred_BV: Tensor | None) -> Tensor:
        """Choose a token of each sequence from float32 logits: int64 [B]."""
        if has_occurred_BV is not None:
            penalty = self.repetition_penalty
            penalized_BV = torch.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty)
            logits_BV = torch.where(has_occurred_BV, penalized_BV, logits_BV)
        if self.is_greedy:
            return logits_BV.argmax(1)
        logits_BV = logits_BV / self.temperature
        if not self.top_k and self.top_p == 1:
            return _select(logits_BV.softmax(1), uniforms_B)
        count = min(self.top_k or logits_BV.shape[1], logits_BV.shape[1])
        top = logits_BV.topk(count, dim=1)
        probabilities_BC = top.values.softmax(1)
        # The first token always stays: the sum before it is 0.
        is_kept_BC = probabilities_BC.cumsum(1) - probabilities_BC < self.top_p
        chosen_B = _select(probabilities_BC * is_kept_BC, uniforms_B)
        return top.indices.gather(1, chosen_B[:, None])[:, 0]


def _select(weights_BC: Tensor, uniforms_B: Tensor) -> Tensor:
    """Invert the cumulative distribution of weights that need not add up to 1: indices [B]."""
    cumulative_BC = weights_BC.double().cumsum(1)
    threshold_B1 = uniforms_B.double()[:, None] * cumulative_BC[:, -1:]
    # The last index with a weight, where rounding would lead beyond.
    last_B = (weights_BC > 0).long().mul(torch.arange(weights_BC.shape[1], device=weights_BC.device)).amax(1)
    return torch.minimum((cumulative_BC <= threshold_B1).sum(1), last_B)


def uniform_numbers(seed: int, prompt: int, sample: int, count: int) -> NDArray[np.float64]:
    """Draw the numbers in [0, 1) that select a sample's tokens, float64 [N]."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, prompt, sample]))).random(count)
