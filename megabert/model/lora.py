"""Low-rank adapters (LoRA) on an encoder's linear layers: trained matrices A and B beside frozen weights.

Applied to an `Encoder` from outside; its own parameters keep their names. Source: Hu et al. 2021 (arXiv:2106.09685);
rank-stabilized scaling: Kalajdzievski 2023 (arXiv:2312.03732).

Shape legend: T tokens, I inputs, O outputs, R rank.
"""

import hashlib
import math
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import CheckpointError, ConfigError
from .dropout import Dropout
from .encoder import Encoder

# NeMo's names of the linear layers
TARGETS: Mapping[str, Sequence[str]] = {
    "attention_qkv": ("attention.qkv",),
    "attention_dense": ("attention.out",),
    "mlp_fc1": ("mlp.up",),
    "mlp_fc2": ("mlp.down",),
    "attention": ("attention.qkv", "attention.out"),
    "mlp": ("mlp.up", "mlp.down"),
    "all": ("attention.qkv", "attention.out", "mlp.up", "mlp.down"),
}
A, B = "lora_a", "lora_b"


@dataclass(frozen=True)
class LoraConfig:
    """What all adapters of a network share; the rank of each is that of its matrices."""

    rank: int
    alpha: float
    dropout: float = 0.0
    rank_stabilized: bool = False

    def __post_init__(self) -> None:
        """Raise ConfigError for values out of range."""
        if self.rank < 1 or not math.isfinite(self.alpha) or self.alpha <= 0:
            raise ConfigError(f"An adapter of rank {self.rank} and alpha {self.alpha:g}: both must be positive.")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"An adapter's dropout is {self.dropout:g}; a probability from 0 to below 1 is needed.")

    @property
    def scaling(self) -> float:
        """Factor of the product B A: alpha / R, rank-stabilized alpha / sqrt(R)."""
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilized else self.rank)

    @classmethod
    def from_document(cls, document: Any, source: str) -> "LoraConfig":
        """Read a checkpoint's document. Raises CheckpointError if it is none of an adapter."""
        match document:
            case {
                "rank": int() as rank,
                "alpha": int() | float() as alpha,
                "dropout": int() | float() as dropout,
                "rank_stabilized": bool() as stabilized,
            }:
                try:
                    return cls(rank, alpha, dropout, stabilized)
                except ConfigError as error:
                    raise CheckpointError(f"{source}: {error}") from None
        raise CheckpointError(f"{source}: adapter.json lacks rank, alpha, dropout or rank_stabilized of its adapter.")

    def to_document(self) -> dict[str, Any]:
        """Return plain values for a checkpoint."""
        return asdict(self)


class LoraLinear(nn.Linear):
    """A frozen linear map plus scaling * B A of the input."""

    def __init__(self, base: nn.Linear, rank: int, config: LoraConfig) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias = base.weight, base.bias
        self.config = config
        self.dropout = Dropout(config.dropout)
        # float32, which precision and sharding cast and cut as they do other trained weights
        self.lora_a = nn.Parameter(torch.zeros(rank, base.in_features, device=base.weight.device))
        self.lora_b = nn.Parameter(torch.zeros(base.out_features, rank, device=base.weight.device))

    def forward(self, hidden_TI: Tensor) -> Tensor:
        """Map [T, I] to [T, O]."""
        return super().forward(hidden_TI) + self.adaptation(hidden_TI)

    def adaptation(self, hidden_TI: Tensor) -> Tensor:
        """Compute what the adapter adds to the outputs: [T, O]."""
        low_TR = F.linear(self.dropout(hidden_TI), self.lora_a)
        return self.config.scaling * F.linear(low_TR, self.lora_b)

    def merged(self) -> nn.Linear:
        """Return the plain linear layer with the same map; the product is computed in float64."""
        linear = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        product = self.config.scaling * (self.lora_b.double() @ self.lora_a.double())
        linear.weight = nn.Parameter((self.weight.double() + product).to(self.weight.dtype))
        linear.bias = None if self.bias is None else nn.Parameter(self.bias.detach())
        return linear


class MixedLoraLinear(nn.Linear):
    """The frozen linear map of several encoders, each of which adds its own adapter to its own tokens.

    `segments.now` lists (index of an encoder, first token, end). Slices, not matrices gathered by token: all
    ranks and layers fit, nothing is padded or copied, and a segment's products are those of its encoder alone.
    """

    def __init__(self, linears: Sequence[nn.Linear], segments: threading.local) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linears[0].in_features, linears[0].out_features
        self.weight, self.bias = linears[0].weight, linears[0].bias
        self._adapters = [linear if isinstance(linear, LoraLinear) else None for linear in linears]
        self._segments = segments

    def forward(self, hidden_TI: Tensor) -> Tensor:
        """Map [T, I] to [T, O]; for inference, without a gradient."""
        outputs_TO = super().forward(hidden_TI)
        for number, start, end in self._segments.now:
            if (adapter := self._adapters[number]) is not None:
                outputs_TO[start:end] += adapter.adaptation(hidden_TI[start:end])
        return outputs_TO


def mix_encoders(encoders: Sequence[Encoder], segments: threading.local) -> Encoder:
    """Return an encoder of the base that the encoders share, with the adapters of all; it has no weights of its own."""
    with torch.device("meta"):
        mixed = Encoder(encoders[0].config)
    for name, module in list(mixed.named_modules()):
        linears: list[Any] = [encoder.get_submodule(name) for encoder in encoders]
        if any(isinstance(linear, LoraLinear) for linear in linears):
            parent, _, child = name.rpartition(".")
            setattr(mixed.get_submodule(parent), child, MixedLoraLinear(linears, segments))
            continue
        for own, _ in list(module.named_parameters(recurse=False)):
            module.register_parameter(own, getattr(linears[0], own))
    return mixed.eval()


def find_targets(encoder: nn.Module, targets: Sequence[str]) -> list[str]:
    """List the encoder's linear layers that NeMo's names stand for. Raises ConfigError for another name."""
    unknown = [name for name in targets if name not in TARGETS]
    if unknown or not targets:
        raise ConfigError(f"model.peft.lora_tuning.target_modules={list(targets)}: give some of {', '.join(TARGETS)}.")
    ends = tuple(f".{end}" for name in targets for end in TARGETS[name])
    return [name for name, module in encoder.named_modules() if isinstance(module, nn.Linear) and name.endswith(ends)]


def add_lora(encoder: nn.Module, ranks: Mapping[str, int], config: LoraConfig) -> None:
    """Freeze an encoder and put adapters, all zeros, on the linear layers that `ranks` names."""
    encoder.requires_grad_(False)
    for name, rank in ranks.items():
        parent, _, child = name.rpartition(".")
        owner = encoder.get_submodule(parent)
        base = getattr(owner, child)
        assert isinstance(base, nn.Linear), f"{name} is no linear layer"
        setattr(owner, child, LoraLinear(base, rank, config))


def initialize_lora(encoder: nn.Module, generator: torch.Generator) -> None:
    """Initialize each A uniformly as PEFT does, within 1 / sqrt(I), and B with zeros: training starts from the base."""
    with torch.no_grad():
        for module in encoder.modules():
            if isinstance(module, LoraLinear):
                bound = 1 / math.sqrt(module.in_features)
                initial = torch.empty(module.lora_a.shape).uniform_(-bound, bound, generator=generator)
                module.lora_a.copy_(initial)
                module.lora_b.zero_()


def lora_config(model: nn.Module) -> LoraConfig | None:
    """Return the configuration of a model's adapters; None where it has none."""
    return next((module.config for module in model.modules() if hasattr(module, A)), None)  # type: ignore[return-value]


def frozen_base(model: nn.Module) -> frozenset[str]:
    """List the frozen parameters of the encoder under adapters, which have no masters and are in no checkpoint."""
    if lora_config(model) is None:
        return frozenset()
    return frozenset(name for name, parameter in model.named_parameters() if not parameter.requires_grad)


def merge_lora(encoder: nn.Module) -> None:
    """Add the adapters to the weights in place, and remove them."""
    adapted = [(name, module) for name, module in encoder.named_modules() if isinstance(module, LoraLinear)]
    for name, module in adapted:
        parent, _, child = name.rpartition(".")
        setattr(encoder.get_submodule(parent), child, module.merged())


def base_parameters(encoder: nn.Module) -> dict[str, nn.Parameter]:
    """Return an encoder's own parameters, without those of adapters."""
    return {name: item for name, item in encoder.named_parameters() if not name.endswith((A, B))}


def base_digest(encoder: nn.Module) -> str:
    """Hash an encoder's own weights, rounded to bfloat16, so that the digest is the same at every precision."""

    def one(item: tuple[str, nn.Parameter]) -> bytes:
        name, parameter = item
        digest = hashlib.sha256(f"{name} {list(parameter.shape)}".encode())
        rounded = parameter.detach().to(torch.bfloat16).cpu().contiguous()
        digest.update(rounded.flatten().view(torch.uint8).numpy().data)
        return digest.digest()

    own = sorted(base_parameters(encoder).items())
    with ThreadPoolExecutor(4) as threads:
        return hashlib.sha256(b"".join(threads.map(one, own))).hexdigest()
