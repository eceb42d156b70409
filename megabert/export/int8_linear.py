"""Linear layers of an ONNX graph in float32 or in 8 bits, and the graph under construction.

In 8 bits, weights have a scale for each output channel, activations one for each token (dynamic) or one for each layer
(static, measured on calibration data). So the result for a token never depends on the other sequences of its batch, as
it does where a scale is computed over a whole batch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor

from ..onnx_session import INPUTS

Array = NDArray[Any]
# Without VNNI, processors add two products of unsigned and signed bytes in 16 bits, which saturate: with weights of 7
# bits they do not, and every processor computes the same. Source: onnxruntime's documentation of quantization.
WEIGHT_LIMIT = 63
ACTIVATION_LIMIT, ZERO_POINT = 127, 128
_SMALLEST_SCALE = np.float32(1e-12)


@dataclass
class Graph:
    """Nodes and initializers of an ONNX graph; equal initializers are stored once, equal nodes computed once."""

    nodes: list[NodeProto] = field(default_factory=list)
    initializers: list[TensorProto] = field(default_factory=list)
    _names: dict[tuple[Any, ...], str] = field(default_factory=dict)
    _results: dict[tuple[Any, ...], str] = field(default_factory=dict)

    def constant(self, value: Array | np.generic | list[int], name: str | None = None) -> str:
        """Add an initializer, integers as int64; returns its name."""
        array = np.asarray(value, dtype=np.int64) if isinstance(value, list) else np.asarray(value)
        array = np.ascontiguousarray(array).reshape(array.shape)
        key = (array.dtype.str, array.shape, hash(array.tobytes()))
        if key not in self._names:
            self._names[key] = name or f"constant.{len(self.initializers)}"
            self.initializers.append(numpy_helper.from_array(array, self._names[key]))
        return self._names[key]

    def add(
        self, operator: str, *inputs: str, outputs: list[str] | None = None, domain: str = "", **attributes: Any
    ) -> str:
        """Add a node, unless an equal one is there; returns the name of its first output."""
        key = operator, inputs, domain, *sorted(attributes.items())
        if outputs is None and key in self._results:
            return self._results[key]
        names = outputs or [f"{operator}.{len(self.nodes)}"]
        self.nodes.append(helper.make_node(operator, list(inputs), names, domain=domain, **attributes))
        return self._results.setdefault(key, names[0])


class Linears(Protocol):
    """How a graph computes its linear layers."""

    def prepare(self, graph: Graph, name: str, hidden: str, lowest: float | None = None) -> Any:
        """Add what the matmuls of one input share; no value of it is below `lowest`, where that is known."""

    def matmul(self, graph: Graph, name: str, prepared: Any, weight: Array, bias: Array | None = None) -> str:
        """Multiply [T, K] with a weight [K, N], and add a bias."""

    def embed(self, graph: Graph, name: str, table: Array, ids: str) -> str:
        """Look up rows of a table."""


class FloatLinears:
    """Linear layers in float32."""

    def prepare(self, graph: Graph, name: str, hidden: str, lowest: float | None = None) -> str:
        """Return the input as it is."""
        return hidden

    def matmul(self, graph: Graph, name: str, prepared: str, weight: Array, bias: Array | None = None) -> str:
        """Multiply in float32."""
        product = graph.add("MatMul", prepared, graph.constant(weight, f"{name}.weight"))
        return product if bias is None else graph.add("Add", product, graph.constant(bias, f"{name}.bias"))

    def embed(self, graph: Graph, name: str, table: Array, ids: str) -> str:
        """Look up rows in float32."""
        return graph.add("Gather", graph.constant(table, f"{name}.weight"), ids)


@dataclass(frozen=True)
class Int8Linears:
    """Linear layers in 8 bits, accumulated in 32; embeddings are stored in 8 bits.

    `ranges` are the static ranges of the layers' inputs, by name; without them each token has its own.
    """

    ranges: Mapping[str, tuple[float, float]] | None = None

    def prepare(
        self, graph: Graph, name: str, hidden: str, lowest: float | None = None
    ) -> tuple[str, str | None, float, int]:
        """Quantize the input to unsigned bytes; returns them, the scale of each token, that of all, and the zero."""
        if self.ranges is not None:
            low, high = self.ranges[name]
            scale = (high - low) / 255
            zero = round(-low / scale)
            values = graph.constant(np.float32(scale)), graph.constant(np.uint8(zero))
            return graph.add("QuantizeLinear", hidden, *values), None, scale, zero
        axis = graph.constant([1])
        largest = graph.add("ReduceMax", hidden, axis, keepdims=0)
        if lowest is None:
            smallest = graph.add("Neg", graph.add("ReduceMin", hidden, axis, keepdims=0))
            largest = graph.add("Max", largest, smallest, graph.constant(_SMALLEST_SCALE))
        else:  # the bound takes the place of another pass over the input
            largest = graph.add("Max", largest, graph.constant(np.float32(-lowest)))
        scale_t = graph.add("Mul", largest, graph.constant(np.float32(1 / ACTIVATION_LIMIT)))
        num_tokens = graph.add("ReduceProd", graph.add("Shape", INPUTS[0]), keepdims=1)
        zeros = graph.add("Expand", graph.constant(np.array([ZERO_POINT], np.uint8)), num_tokens)
        quantized = graph.add("QuantizeLinear", hidden, scale_t, zeros, axis=0)
        return quantized, graph.add("Unsqueeze", scale_t, axis), 1.0, ZERO_POINT

    def matmul(
        self,
        graph: Graph,
        name: str,
        prepared: tuple[str, str | None, float, int],
        weight: Array,
        bias: Array | None = None,
    ) -> str:
        """Multiply in 8 bits, and scale the sums."""
        quantized, scale_t, scale, zero = prepared
        values, scales = quantize(weight, axis=0, limit=WEIGHT_LIMIT)
        added = [] if bias is None else [graph.constant(bias, f"{name}.bias")]
        product = graph.add(
            "MatMulIntegerToFloat",
            quantized,
            graph.constant(values, f"{name}.weight"),
            graph.constant(np.float32(scale)),
            graph.constant(scales[0], f"{name}.scale"),
            graph.constant(np.uint8(zero)),
            graph.constant(np.int8(0)),
            *(added if scale_t is None else []),
            domain="com.microsoft",
        )
        if scale_t is None:
            return product
        product = graph.add("Mul", product, scale_t)
        return graph.add("Add", product, *added) if added else product

    def embed(self, graph: Graph, name: str, table: Array, ids: str) -> str:
        """Look up rows in 8 bits, each with its own scale."""
        values, scales = quantize(table, axis=1, limit=ACTIVATION_LIMIT)
        rows = graph.add("Gather", graph.constant(values, f"{name}.weight"), ids)
        rows = graph.add("Cast", rows, to=TensorProto.FLOAT)
        return graph.add("Mul", rows, graph.add("Gather", graph.constant(scales, f"{name}.scale"), ids))


def quantize(values: Array, *, axis: int, limit: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Round values to integers of at most `limit`, with one scale for each slice along `axis`."""
    scales = np.maximum(np.abs(values).max(axis=axis, keepdims=True) / limit, _SMALLEST_SCALE).astype(np.float32)
    return np.round(values / scales).astype(np.int8), scales


def array_of(tensor: Tensor) -> NDArray[np.float32]:
    """Return a parameter as an array."""
    array: NDArray[np.float32] = tensor.detach().float().cpu().numpy()
    return array
