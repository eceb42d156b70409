"""Weights of modules: allocate without initializing, initialize by a seed, copy from a checkpoint's tensors."""

from collections.abc import Collection, Iterable, Mapping

import torch
from torch import Tensor, nn

from .checkpoints.files.lazy_tensor import Readable
from .errors import CheckpointError
from .model.config import EncoderConfig
from .model.encoder import Encoder, initialize

# Random streams: initial weights of head and encoder differ although they come from one seed.
HEAD_STREAM, ENCODER_STREAM = 1, 2


def initialize_weights(module: nn.Module, seed: int, stream: int) -> None:
    """Initialize weights as a function of the seed alone; `stream` separates modules with the same seed."""
    generator = torch.Generator().manual_seed(seed * 8 + stream)
    num_layers = module.config.num_layers if isinstance(module, Encoder) else 0
    initialize(module, generator, num_layers=num_layers)


def new_encoder(config: EncoderConfig, *, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Encoder:
    """Allocate an encoder whose weights are not initialized."""
    with torch.device("meta"):
        encoder = Encoder(config).to(dtype)
    materialize(encoder, device)
    return encoder


def materialize(module: nn.Module, device: str = "cpu") -> None:
    """Allocate memory, uninitialized, for parameters on the meta device; tied ones stay tied.

    As module.to_empty does, which imports sympy, half a second.
    """
    made: dict[nn.Parameter, nn.Parameter] = {}
    for owner in module.modules():
        for name, parameter in list(owner.named_parameters(recurse=False, remove_duplicate=False)):
            if parameter not in made:
                empty = torch.empty(parameter.shape, dtype=parameter.dtype, device=device)
                made[parameter] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
            owner.register_parameter(name, made[parameter])


def load_weights(
    module: nn.Module, tensors: Mapping[str, Tensor | Readable], source: str, skipped: Collection[str] = ()
) -> None:
    """Copy tensors into a module, one at a time; `skipped` parameters stay as they are.

    Raises CheckpointError that lists missing, unexpected and misshapen tensors.
    """
    parameters = {name: item for name, item in module.named_parameters() if name not in skipped}
    missing = sorted(parameters.keys() - tensors.keys())
    unexpected = sorted(tensors.keys() - parameters.keys())
    misshapen = [
        f"{name} is {tuple(tensors[name].shape)}, expected {tuple(parameter.shape)}"
        for name, parameter in parameters.items()
        if name in tensors and tensors[name].shape != parameter.shape
    ]
    problems = [
        f"{what}: {', '.join(names[:6])}{' ...' if len(names) > 6 else ''}"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen))
        if names
    ]
    if problems:
        raise CheckpointError(f"{source} does not fit the network. {'; '.join(problems)}.")
    with torch.no_grad():
        for name, parameter in parameters.items():
            tensor = tensors[name]
            parameter.copy_(tensor if isinstance(tensor, Tensor) else tensor.read())


def _equal_to(parameter: nn.Parameter, others: Iterable[nn.Parameter]) -> nn.Parameter | None:
    facts = parameter.shape, parameter.dtype, parameter.device
    fits = (item for item in others if (item.shape, item.dtype, item.device) == facts)
    return next((item for item in fits if torch.equal(item, parameter)), None)


def share_weights(model: nn.Module, others: Iterable[nn.Module]) -> int:
    """Let a model use the parameters of others that are the same, such as the base of adapters; returns their bytes.

    Parameters are the same that have one name, dtype and value.
    """
    known: dict[str, list[nn.Parameter]] = {}
    for other in others:
        for name, parameter in other.named_parameters():
            known.setdefault(name, []).append(parameter)
    equal = {item: _equal_to(item, known.get(name, ())) for name, item in model.named_parameters()}
    same = {item: other for item, other in equal.items() if other is not None}
    for owner in model.modules():
        for name, parameter in owner.named_parameters(recurse=False, remove_duplicate=False):
            if parameter in same:
                owner.register_parameter(name, same[parameter])
    return sum(item.numel() * item.element_size() for item in same.values())
