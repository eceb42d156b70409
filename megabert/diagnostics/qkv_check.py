"""Tell by meaning in which order the query-key-value rows of a checkpoint lie.

A wrong order loads without an error and costs accuracy. Two things show it. With a language-model head: only in the
order that the weights were trained in does the network know its language, so the loss on plain text is compared
under each order. Without one: the biases of the keys, see `checkpoint.qkv`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checkpoints.mapping import QKV_LAYOUTS
from ..checkpoints.open import Checkpoint
from ..errors import ConfigError
from ..model.heads import PretrainingModel
from ..tokenizers.bpe import BytePairTokenizer
from ..tokenizers.wordpiece import Tokenizer
from .checkpoint_report import build

# Plain sentences of daily life, science and medicine, written for this check.
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
# A difference that is neither chance nor a trifle: standard errors, and nats a token.
_LEAST_ERRORS, _LEAST_NATS = 4.0, 0.05
# The keys' share of the bias in the right order must be this much smaller than in the next one.
_LEAST_RATIO = 0.5

OpenAs = Callable[[str], Checkpoint]


@dataclass(frozen=True)
class Check:
    """What was found. `by_loss` and `by_bias` are None where that way says nothing."""

    read: str | None
    claimed: str | None
    by_loss: str | None
    by_bias: str | None
    losses: Mapping[str, float]
    key_bias_shares: Mapping[str, float]
    evidence: Sequence[str]

    @property
    def found(self) -> str | None:
        """The order that the weights were trained in, as far as it can be told: the loss counts more."""
        return self.by_loss or self.by_bias

    @property
    def agrees(self) -> bool | None:
        """Whether it is what the file claims; None if it cannot be told."""
        return None if self.found is None or self.claimed is None else self.found == self.claimed

    @property
    def verdict(self) -> str:
        """The result in a sentence."""
        if self.claimed is None:
            return "this format stores query, key and value in one order only: there is nothing to choose"
        if self.found is None:
            return f"undecided: the file is read as {self.read}, and neither way below says more"
        if self.found != self.read:
            return (
                f"WARNING: the weights were trained as {self.found}, but the file is read as {self.read}. "
                f"Give --qkv-layout {self.found} (in training: model.language_model.qkv_layout={self.found})."
            )
        if not self.agrees:
            return (
                f"WARNING: the weights were trained as {self.found} and are read so, but the file claims {self.claimed}"
            )
        return f"{self.found}, as the file says and is read"

    def to_dict(self) -> dict[str, Any]:
        """Give plain values, for JSON."""
        return {
            "read": self.read,
            "claimed": self.claimed,
            "found": self.found,
            "agrees": self.agrees,
            "by_loss": self.by_loss,
            "by_bias": self.by_bias,
            "losses": dict(self.losses),
            "key_bias_shares": dict(self.key_bias_shares),
            "verdict": self.verdict,
            "evidence": list(self.evidence),
        }


def check(checkpoint: Checkpoint, open_as: OpenAs, text: str) -> Check:
    """Compare the orders; `open_as` opens the same file with a given one."""
    read, claimed = checkpoint.facts.get("qkv_layout"), checkpoint.facts.get("qkv_claimed")
    others = [layout for layout in QKV_LAYOUTS if layout != read] if read else []
    opened = {read or "as stored": checkpoint} | {layout: open_as(layout) for layout in others}
    evidence: list[str] = []
    losses = _losses(checkpoint, opened, text, evidence)
    means = {layout: float(values.mean()) for layout, values in losses.items()}
    if read is None:
        return Check(None, None, None, None, means, {}, evidence)
    shares = checkpoint.facts["key_bias_shares"]
    by_bias = _smallest_share(shares, evidence)
    return Check(read, claimed, _smallest_loss(losses, evidence), by_bias, means, shares, evidence)


def _losses(
    checkpoint: Checkpoint, opened: Mapping[str, Checkpoint], text: str, evidence: list[str]
) -> dict[str, Tensor]:
    if "language-model head" not in checkpoint.heads:
        evidence.append("loss: not computed, the file has no language-model head")
        return {}
    try:
        batches = _batches(checkpoint, text)
    except ConfigError as error:  # the biases can still tell
        evidence.append(f"loss: not computed. {error}")
        return {}
    losses = {layout: _loss(build(item), batches) for layout, item in opened.items()}
    chance = math.log(checkpoint.config.vocabulary_size)
    shown = ", ".join(f"{layout} {float(values.mean()):.3f}" for layout, values in losses.items())
    count = len(next(iter(losses.values())))
    evidence.append(f"loss on {count} tokens, in nats (by chance {chance:.2f}): {shown}")
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
        + ("" if decides else ", too little to decide: the network is hardly trained, or the text is not of its kind")
    )
    return best if decides else None


def _smallest_share(shares: Mapping[str, float], evidence: list[str]) -> str | None:
    if any(math.isnan(share) for share in shares.values()):
        evidence.append("keys' bias: all biases are 0, as in an untrained network")
        return None
    best, second = sorted(shares, key=lambda layout: shares[layout])[:2]
    decides = shares[best] < _LEAST_RATIO * shares[second]
    shown = ", ".join(f"{layout} {share:.1%}" for layout, share in shares.items())
    evidence.append(
        f"keys' share of the bias (the trained order has much the smallest): {shown}"
        + ("" if decides else "; too alike to decide")
    )
    return best if decides else None


def _batches(checkpoint: Checkpoint, text: str) -> list[tuple[Tensor, Tensor]]:
    """Make (token ids [1, L], targets [1, L], -100 where none is asked) of a text, cut where positions end."""
    config, files = checkpoint.config, checkpoint.tokenizer_files
    if config.is_causal:
        if "merges.txt" not in files:
            raise ConfigError("The text needs GPT-2's vocab.json and merges.txt; put them beside the checkpoint.")
        ids = BytePairTokenizer(files["vocab.json"], files["merges.txt"]).encode_ids([text])[0].tolist()
        return [_next_tokens(torch.tensor(part)) for part in _cut(ids, config.max_positions)]
    if "vocab.txt" not in files:
        raise ConfigError("The text needs the vocabulary that the checkpoint was trained with: --vocab-file FILE.")
    tokenizer = Tokenizer.from_bytes(
        files["vocab.txt"], lower_case=checkpoint.lower_case, source=checkpoint.tokenizer_source
    )
    parts = [
        part
        for encoded in tokenizer.encode([line for line in text.splitlines() if line.strip()])
        for part in _cut(encoded.token_ids.tolist(), config.max_positions - 2)
    ]
    return [_masked(torch.tensor([tokenizer.cls_id, *part, tokenizer.sep_id]), tokenizer.mask_id) for part in parts]


def _cut(ids: list[int], length: int) -> list[list[int]]:
    parts = [ids[start : start + length] for start in range(0, len(ids), length)]
    return [part for part in parts if len(part) > MASK_EVERY]


def _masked(ids: Tensor, mask_id: int) -> tuple[Tensor, Tensor]:
    places = torch.arange(MASK_EVERY // 2, len(ids) - 1, MASK_EVERY)
    targets, masked = torch.full_like(ids, -100), ids.clone()
    targets[places], masked[places] = ids[places], mask_id
    return masked[None], targets[None]


def _next_tokens(ids: Tensor) -> tuple[Tensor, Tensor]:
    targets = torch.full_like(ids, -100)
    targets[:-1] = ids[1:]
    return ids[None], targets[None]


def _loss(model: PretrainingModel, batches: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Compute the loss of every token asked for, in nats."""
    losses = []
    for ids_BL, targets_BL in batches:
        with torch.inference_mode():
            lm_logits, _ = model(ids_BL)
        assert lm_logits is not None, "the head was looked for"
        asked = targets_BL != -100
        losses.append(F.cross_entropy(lm_logits[asked], targets_BL[asked], reduction="none"))
    return torch.cat(losses)
