"""Check the query-key-value layout of a checkpoint by its language-model loss and by the biases of the keys.

A wrong layout loads without an error and costs accuracy. With a language-model head, the loss on plain text is computed
under each layout: it is low only under the one that the weights were trained in. Without a head, the biases of the keys
give evidence (see `checkpoints.megatron.qkv_layout`).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checkpoints.mapping import QKV_LAYOUTS
from ..checkpoints.open import Checkpoint
from ..errors import ConfigError
from ..model.pretraining_heads import PretrainingModel
from ..tokenizers.load import load_tokenizer
from ..tokenizers.wordpiece import Tokenizer
from .checkpoint_logits import load_pretraining_model

# General, scientific and medical sentences, written for this check
SAMPLE_TEXT = """\
The old bridge across the river was closed for three weeks while workers replaced the wooden planks. People who lived \
on the other side had to drive an extra ten miles to reach the market, and many of them complained to the town \
council. When the bridge opened again, the mayor gave a short speech and the children of the local school were the \
first to walk across it.
Water boils at a lower temperature on a high mountain because the pressure of the air is lower there. For the same \
reason, rice and beans take longer to cook, and bakers have to change their recipes. The effect was first measured in \
the eighteenth century by travellers who carried thermometers and barometers to the tops of the Alps.
The patient was a woman of sixty years with a history of high blood pressure and type 2 diabetes who was admitted to \
the hospital with chest pain and shortness of breath. Her blood tests showed an elevated level of troponin, and an \
electrocardiogram was consistent with myocardial infarction. She was treated with aspirin and heparin and was \
discharged after five days in stable condition.
Mutations in this gene have been associated with an increased risk of breast and ovarian cancer. The protein that it \
encodes is expressed in most tissues and plays a role in the repair of DNA damage. In mice, loss of the gene leads to \
early death of the embryo, which suggests that it is required for normal development of the cells.
In the second half of the game the home team scored two goals in five minutes and won the match. It was their fourth \
victory in a row, and they are now in second place in the league behind the champions of last year. The coach said \
that he was proud of his players, but that there was still a lot of work to do before the end of the season.
"""

MASK_EVERY = 7  # tokens: about 15 %
# The least significant difference in loss: standard errors, and nats per token
_LEAST_ERRORS, _LEAST_NATS = 4.0, 0.05
# The keys' share of the bias under the best layout must be less than this fraction of that under the second
_LARGEST_RATIO = 0.5


@dataclass(frozen=True)
class QkvCheck:
    """Result of the check. `by_loss` and `by_bias` are the layouts that each test favors, None where undecided."""

    read: str | None
    claimed: str | None
    by_loss: str | None
    by_bias: str | None
    losses: Mapping[str, float]
    key_bias_shares: Mapping[str, float]
    evidence: Sequence[str]

    @property
    def found(self) -> str | None:
        """The layout that the weights were trained in; the loss takes precedence. None if undecided."""
        return self.by_loss or self.by_bias

    @property
    def agrees(self) -> bool | None:
        """Whether this is the layout that the file claims; None if undecided."""
        return None if self.found is None or self.claimed is None else self.found == self.claimed

    @property
    def verdict(self) -> str:
        """The result as a sentence."""
        if self.claimed is None:
            return "this format has only one layout of query, key and value: there is nothing to choose"
        if self.found is None:
            return f"undecided: the file is read as {self.read}, and neither test below is conclusive"
        if self.found != self.read:
            return (
                f"WARNING: the weights were trained as {self.found}, but the file is read as {self.read}. "
                f"Give --qkv-layout {self.found} (in training: model.language_model.qkv_layout={self.found})."
            )
        if not self.agrees:
            return (
                f"WARNING: the weights were trained as {self.found} and are read so, but the file claims {self.claimed}"
            )
        return f"{self.found}, as the file claims and as it is read"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return asdict(self) | {"found": self.found, "agrees": self.agrees, "verdict": self.verdict}


def check_qkv_layout(checkpoint: Checkpoint, open_as: Callable[[str], Checkpoint], text: str) -> QkvCheck:
    """Compare the layouts on `text`; `open_as` opens the same file with a given layout."""
    read, claimed = checkpoint.facts.get("qkv_layout"), checkpoint.facts.get("qkv_claimed")
    others = [layout for layout in QKV_LAYOUTS if layout != read] if read else []
    opened = {read or "as stored": checkpoint} | {layout: open_as(layout) for layout in others}
    evidence: list[str] = []
    losses = _losses(checkpoint, opened, text, evidence)
    means = {layout: float(values.mean()) for layout, values in losses.items()}
    if read is None:
        return QkvCheck(None, None, None, None, means, {}, evidence)
    shares = checkpoint.facts["key_bias_shares"]
    by_bias = _smallest_share(shares, evidence)
    return QkvCheck(read, claimed, _smallest_loss(losses, evidence), by_bias, means, shares, evidence)


def _losses(
    checkpoint: Checkpoint, opened: Mapping[str, Checkpoint], text: str, evidence: list[str]
) -> dict[str, Tensor]:
    if "language-model head" not in checkpoint.heads:
        evidence.append("loss: not computed, the file has no language-model head")
        return {}
    try:
        batches = _batches(checkpoint, text)
        if not batches:
            raise ConfigError(f"No line of the text has more than {MASK_EVERY} tokens. Give a longer text.")
    except ConfigError as error:  # the biases remain as evidence
        evidence.append(f"loss: not computed. {error}")
        return {}
    losses = {layout: _token_losses(load_pretraining_model(item), batches) for layout, item in opened.items()}
    chance = math.log(checkpoint.config.vocabulary_size)
    shown = ", ".join(f"{layout} {float(values.mean()):.3f}" for layout, values in losses.items())
    count = len(next(iter(losses.values())))
    evidence.append(f"loss on {count} tokens, in nats (at random {chance:.2f}): {shown}")
    return losses


def _smallest_loss(losses: Mapping[str, Tensor], evidence: list[str]) -> str | None:
    if not losses:
        return None
    best, second = sorted(losses, key=lambda layout: float(losses[layout].mean()))[:2]
    difference = losses[second] - losses[best]
    mean, error = float(difference.mean()), float(difference.std() / math.sqrt(len(difference)))
    decides = mean > _LEAST_NATS and mean > _LEAST_ERRORS * error
    evidence.append(
        f"loss: {best} is better than {second} by {mean:.3f} ± {error:.3f}"
        + ("" if decides else ", not significant: the network is hardly trained, or the text is from another domain")
    )
    return best if decides else None


def _smallest_share(shares: Mapping[str, float], evidence: list[str]) -> str | None:
    if any(math.isnan(share) for share in shares.values()):
        evidence.append("keys' bias: all biases are 0, as in an untrained network")
        return None
    best, second = sorted(shares, key=lambda layout: shares[layout])[:2]
    decides = shares[best] < _LARGEST_RATIO * shares[second]
    shown = ", ".join(f"{layout} {share:.1%}" for layout, share in shares.items())
    evidence.append(
        f"keys' share of the bias (by far the smallest under the right layout): {shown}"
        + ("" if decides else "; not significant")
    )
    return best if decides else None


def _batches(checkpoint: Checkpoint, text: str) -> list[tuple[Tensor, Tensor]]:
    """Split a text into windows: (token ids [1, L], targets [1, L]), where -100 is no target."""
    config, files = checkpoint.config, checkpoint.tokenizer_files
    if config.is_causal:
        if "merges.txt" not in files:
            raise ConfigError("The text needs GPT-2's vocab.json and merges.txt; put them beside the checkpoint.")
        ids = _tokenizer(checkpoint).encode_ids([text])[0].tolist()
        return [_next_tokens(torch.tensor(part)) for part in _split(ids, config.max_positions)]
    if "vocab.txt" not in files:
        raise ConfigError("The text needs the vocabulary that the checkpoint was trained with: --vocab-file FILE.")
    tokenizer = _tokenizer(checkpoint)
    parts = [
        part
        for encoded in tokenizer.encode([line for line in text.splitlines() if line.strip()])
        for part in _split(encoded.token_ids.tolist(), config.max_positions - 2)
    ]
    return [_masked(torch.tensor([tokenizer.cls_id, *part, tokenizer.sep_id]), tokenizer.mask_id) for part in parts]


def _tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    tokenizer = load_tokenizer(
        checkpoint.tokenizer_files,
        lower_case=checkpoint.lower_case,
        rules=checkpoint.tokenizer_rules,
        source=checkpoint.tokenizer_source,
    )
    assert tokenizer is not None, "the files of a vocabulary are there"
    return tokenizer


def _split(ids: list[int], length: int) -> list[list[int]]:
    parts = [ids[start : start + length] for start in range(0, len(ids), length)]
    return [part for part in parts if len(part) > MASK_EVERY]


def _masked(ids: Tensor, mask_id: int) -> tuple[Tensor, Tensor]:
    positions = torch.arange(MASK_EVERY // 2, len(ids) - 1, MASK_EVERY)
    targets, masked = torch.full_like(ids, -100), ids.clone()
    targets[positions], masked[positions] = ids[positions], mask_id
    return masked[None], targets[None]


def _next_tokens(ids: Tensor) -> tuple[Tensor, Tensor]:
    targets = torch.full_like(ids, -100)
    targets[:-1] = ids[1:]
    return ids[None], targets[None]


def _token_losses(model: PretrainingModel, batches: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Compute the loss of every target token, in nats."""
    losses = []
    for ids_BL, targets_BL in batches:
        with torch.inference_mode():
            lm_logits, _ = model(ids_BL)
        assert lm_logits is not None, "the checkpoint has a language-model head"
        is_target = targets_BL != -100
        losses.append(F.cross_entropy(lm_logits[is_target], targets_BL[is_target], reduction="none"))
    return torch.cat(losses)
