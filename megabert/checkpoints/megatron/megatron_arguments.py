"""Read the network's shape from the arguments in a Megatron-LM checkpoint, with the assumptions made."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import CheckpointError
from ..network_arguments import check_arguments

# Arguments that change the computation and are interpreted here, under all of their values
INTERPRETED = (
    "openai_gelu",
    "bias_gelu_fusion",
    "layernorm_epsilon",
    "norm_epsilon",
    "apply_residual_connection_post_layernorm",
    "apply_layernorm_1p",
    "layernorm_zero_centered_gamma",
)


@dataclass(frozen=True)
class Arguments:
    """The arguments of a file, with typed access. Raises CheckpointError for values of another type."""

    values: Mapping[str, Any]
    source: str

    def flag(self, name: str) -> bool:
        """Return a flag; false where it is absent."""
        value = self.values.get(name)
        if value is None or value in (0, 1):
            return bool(value)
        raise self._error(name, "true or false")

    def number(self, name: str) -> float | None:
        """Return a positive, finite number, also one that is written as text, as YAML leaves 1e-5."""
        value = self.values.get(name)
        if value is None:
            return None
        number = to_number(value)
        if number is None or number <= 0:
            raise self._error(name, "a positive number")
        return number

    def integer(self, name: str) -> int | None:
        """Return a positive whole number, also one that is written as text."""
        number = self.number(name)
        if number is not None and number != int(number):
            raise self._error(name, "a whole number")
        return None if number is None else int(number)

    def _error(self, name: str, expected: str) -> CheckpointError:
        return CheckpointError(f"{self.source}: its argument {name} is {self.values[name]!r:.60}; expected {expected}.")


def to_number(value: object) -> float | None:
    """Convert a finite number, or a text that is one; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def read_arguments(
    arguments: Arguments, *, is_core: bool, is_gpt: bool, ignored: Collection[str] = ()
) -> tuple[dict[str, Any], list[str]]:
    """Read the properties of an EncoderConfig that arguments determine; returns them and the assumptions.

    Raises CheckpointError for arguments that mean another network.
    """
    notes = check_arguments(arguments.values, arguments.source, read=INTERPRETED, ignored=ignored)
    shape: dict[str, Any] = {}
    num_heads = arguments.integer("num_attention_heads")
    if num_heads is not None:
        shape["num_heads"] = num_heads
    gelus, note = _gelus(arguments, is_core)
    shape |= gelus | ({"head_gelu": gelus["gelu"]} if is_core and is_gpt else {})  # GPT's head has none
    notes.append(note)
    shape["norm_epsilon"] = arguments.number("layernorm_epsilon") or arguments.number("norm_epsilon") or 1e-5
    notes.append(f"layer norm epsilon: {shape['norm_epsilon']}")
    shape["norm_place"], note = _norm_place(arguments, is_core, is_gpt, ignored)
    return shape, [*notes, note]


def _gelus(arguments: Arguments, is_core: bool) -> tuple[dict[str, str], str]:
    openai, fused = arguments.flag("openai_gelu"), arguments.flag("bias_gelu_fusion")
    because = "openai_gelu" if openai else "bias_gelu_fusion" if fused else "no fused or OpenAI gelu in the arguments"
    if openai and is_core:
        # core_transformer_config_from_args does not pass it on: F.gelu, or the fused kernel.
        because, openai = f"bias_gelu_fusion is {fused}; megatron.core ignores openai_gelu", False
    gelu = "tanh" if openai or fused else "erf"
    note = f"gelu: {gelu} ({because if arguments.values else 'the file has no arguments'})"
    return {"gelu": gelu, "head_gelu": "tanh" if openai else "erf"}, note


def _norm_place(arguments: Arguments, is_core: bool, is_gpt: bool, ignored: Collection[str]) -> tuple[str, str]:
    """Find where residuals branch off.

    megatron.core has the argument in its configuration. TransformerLayer of core_v0.3 (GPT only) followed it, those
    from core_v0.5 on (BERT came with them) do not.
    """
    name = "apply_residual_connection_post_layernorm"
    if not arguments.flag(name):
        return "pre", "residual: from before the layer norm"
    if not is_core:
        return "pre_residual_normed", "residual: from after the layer norm"
    if is_gpt and name not in ignored:
        raise CheckpointError(
            f"{arguments.source}: its argument {name} is True, which megatron.core followed up to core_v0.3 and "
            f"ignored from core_v0.5 on. If a later version trained it: --ignore-argument {name} (in training "
            f"model.language_model.ignored_arguments=[{name}])."
        )
    return "pre", f"residual: from before the layer norm (megatron.core ignores {name})"
