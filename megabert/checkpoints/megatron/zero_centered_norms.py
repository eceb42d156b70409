"""Restore the weights of layer norms that a checkpoint stores minus one (--apply-layernorm-1p, zero-centered gamma).

Which norms a version's code stores so: in megatron.core, and in megatron.model from September 2023 on (the names with
`norm`), all of them; before, all but the language-model head's. NeMo's code depends on the version and the model. Where
the code does not decide, the weights do: trained weights stay nearer to their initial value, 0 or 1.
"""

from collections.abc import Collection, Iterator, Mapping

import torch

from ..files.lazy_tensor import Derived, Readable
from .megatron_arguments import Arguments
from .megatron_names import ERAS
from .open_megatron import MegatronFile

ARGUMENTS = ("apply_layernorm_1p", "layernorm_zero_centered_gamma")


def restore_norms(
    tensors: Mapping[str, Readable], file: MegatronFile, ignored: Collection[str] = ()
) -> tuple[dict[str, Readable], list[str]]:
    """Add one to the weights of layer norms that are stored minus one, in float32; returns all tensors, and notes.

    Where the arguments do not set it, or are to be `ignored`, the tensors are returned as they are.
    """
    arguments = Arguments(file.arguments, file.source)
    if not any(arguments.flag(name) and name not in ignored for name in ARGUMENTS):
        return dict(tensors), []
    restored, notes = dict(tensors), []
    for part, names in _parts(tensors):
        mean = sum(float(tensors[name].read().float().mean()) for name in names) / len(names)
        looks_centered = mean < 0.5
        is_certain = file.container != ".nemo" and (part == "layers" or file.era not in ERAS[:2])
        if is_certain or looks_centered:
            restored |= {name: _plus_one(tensors[name]) for name in names}
            notes.append(f"layer norms of the {part}: weights are stored minus one ({' or '.join(ARGUMENTS)})")
        else:
            notes.append(
                f"layer norms of the {part}: weights as stored (mean {mean:.2f}), its code does not center them"
            )
        if is_certain and not looks_centered:
            notes.append(
                f"WARNING: these weights are {mean:.2f} on average, as if they were stored as they are. If so: "
                f"--ignore-argument {' '.join(ARGUMENTS)}"
            )
    return restored, notes


def _parts(tensors: Mapping[str, Readable]) -> Iterator[tuple[str, list[str]]]:
    norms = [name for name in tensors if name.endswith("norm.weight")]
    for part, prefix in (("layers", "encoder."), ("language-model head", "language_model.")):
        names = [name for name in norms if name.startswith(prefix)]
        if names:
            yield part, names


def _plus_one(stored: Readable) -> Derived:
    # Near 0 a half-precision number has digits that it would lose near 1.
    return Derived(tuple(stored.shape), torch.float32, lambda: stored.read().float() + 1)
