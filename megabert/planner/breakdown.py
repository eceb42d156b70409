"""Memory and time of a training step by their parts, which add up to a total."""

from dataclasses import dataclass, fields


class _Breakdown:
    """Base of dataclasses whose fields add up to a total."""

    @property
    def total(self) -> float:
        """Sum of all parts."""
        return sum(getattr(self, field.name) for field in fields(self))  # type: ignore[arg-type]

    def to_dict(self) -> dict[str, float]:
        """Convert to the parts and their total by name."""
        parts = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        return parts | {"total": self.total}


@dataclass(frozen=True)
class MemoryUse(_Breakdown):
    """Peak memory of each GPU in a step, bytes."""

    masters: float
    """float32 master weights."""
    moments: float
    """Adam's first and second moments."""
    copy: float
    """16-bit weights: a full copy, or with fsdp those of the units that are gathered at the same time."""
    gradients: float
    activations: float
    logits: float
    """The language-model head: a chunk of logits and its temporaries."""
    buffers: float
    """Communication buffers and workspaces."""


@dataclass(frozen=True)
class StepTime(_Breakdown):
    """Time of a step, seconds."""

    products: float
    """Matmuls with weights."""
    attention: float
    elementwise: float
    optimizer: float
    tensor_communication: float
    """Exposed communication of the tensor axis."""
    data_communication: float
    """Exposed communication of gradients and, with fsdp, weights."""
    other: float
    """Fixed costs, and idle time while the host launches kernels."""
