"""An encoder and a head as an ONNX graph: rows of padded sequences in, logits and last hidden states out.

The graph has our own structure, with onnxruntime's fused attention; a head is converted by PyTorch's exporter, whatever
it computes. Batch and length are dynamic. Padding is masked in attention and removed before the head.
Shape legend: B rows, L tokens a row, T tokens without padding, D hidden, N output features.
"""

import logging
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from ..errors import CheckpointError
from ..model.config import EncoderConfig
from ..model.encoder import Encoder
from ..model.heads import Head, TaskModel
from ..model.layers import MLP, Attention, Layer
from ..onnx_session import HIDDEN, INPUTS, LOGITS
from .int8_linear import Graph, Linears, array_of

OPSET = 21
_MICROSOFT = "com.microsoft"
GELU_LOWEST = -0.1701
"""No value of GELU, exact or by tanh, is below: its minima are -0.16997 and -0.17004."""


def onnx_model(model: TaskModel, linears: Linears) -> onnx.ModelProto:
    """Convert a network; `linears` computes its linear layers, in float32 or in 8 bits."""
    graph = Graph()
    encoder = _EncoderGraph(graph, model.encoder, linears)
    hidden_2d = encoder.build()
    num_outputs = _add_head(graph, model, hidden_2d, encoder.shape)
    dims: list[str | int] = ["batch", "length"]
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, dims) for name in INPUTS]
    logits = [*(["batch"] if model.head.is_per_sequence else dims), num_outputs]
    outputs = [
        helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, logits),
        helper.make_tensor_value_info(HIDDEN, TensorProto.FLOAT, [*dims, model.encoder.config.hidden_size]),
    ]
    proto = helper.make_graph(graph.nodes, "megabert", inputs, outputs, graph.initializers)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(_MICROSOFT, 1)]
    return helper.make_model(proto, opset_imports=opsets, ir_version=10, producer_name="megabert")


class _EncoderGraph:
    """The nodes of an encoder; hidden states are [B * L, D]."""

    def __init__(self, graph: Graph, encoder: Encoder, linears: Linears) -> None:
        self.graph, self.encoder, self.linears = graph, encoder, linears
        self.config: EncoderConfig = encoder.config
        self.shape = graph.add("Shape", INPUTS[0])
        self.mask = self._mask()

    def build(self) -> str:
        """Add all nodes; returns the name of the last hidden states."""
        graph, encoder = self.graph, self.encoder
        hidden = self._embeddings()
        if self.config.is_post_norm:
            for number, layer in enumerate(encoder.layers):
                hidden = self._post_norm_layer(hidden, layer, f"encoder.layers.{number}")  # type: ignore[arg-type]
        else:
            for number, layer in enumerate(encoder.layers):
                hidden = self._pre_norm_layer(hidden, layer, f"encoder.layers.{number}")  # type: ignore[arg-type]
            hidden = self._norm(hidden, encoder.final_norm)
        graph.add("Reshape", hidden, self._shape_3d(self.config.hidden_size), outputs=[HIDDEN])
        return hidden

    def _embeddings(self) -> str:
        graph, embeddings = self.graph, self.encoder.embeddings
        start, axis = graph.constant([0]), graph.constant([1])
        length = graph.add("Slice", self.shape, axis, graph.constant([2]))
        positions = graph.constant(array_of(embeddings.position.weight), "encoder.embeddings.position.weight")
        hidden = self.linears.embed(graph, "encoder.embeddings.word", array_of(embeddings.word.weight), INPUTS[0])
        hidden = graph.add("Add", hidden, graph.add("Slice", positions, start, length, start))
        if embeddings.segment is not None:
            segments = graph.constant(array_of(embeddings.segment.weight), "encoder.embeddings.segment.weight")
            hidden = graph.add("Add", hidden, graph.add("Gather", segments, INPUTS[2]))
        hidden = graph.add("Reshape", hidden, graph.constant([-1, self.config.hidden_size]))
        return hidden if embeddings.norm is None else self._norm(hidden, embeddings.norm)

    def _post_norm_layer(self, hidden: str, layer: Layer, name: str) -> str:
        hidden = self.graph.add("Add", hidden, self._attention(hidden, layer.attention, f"{name}.attention"))
        hidden = self._norm(hidden, layer.attention_norm)
        hidden = self.graph.add("Add", hidden, self._mlp(hidden, layer.mlp, f"{name}.mlp"))
        return self._norm(hidden, layer.mlp_norm)

    def _pre_norm_layer(self, hidden: str, layer: Layer, name: str) -> str:
        takes_normed = self.config.norm_place == "pre_residual_normed"
        normed = self._norm(hidden, layer.attention_norm)
        attended = self._attention(normed, layer.attention, f"{name}.attention")
        hidden = self.graph.add("Add", normed if takes_normed else hidden, attended)
        normed = self._norm(hidden, layer.mlp_norm)
        return self.graph.add("Add", normed if takes_normed else hidden, self._mlp(normed, layer.mlp, f"{name}.mlp"))

    def _norm(self, hidden: str, norm: nn.LayerNorm | None) -> str:
        assert norm is not None
        scale, shift = (self.graph.constant(array_of(item)) for item in (norm.weight, norm.bias))
        return self.graph.add("LayerNormalization", hidden, scale, shift, axis=-1, epsilon=norm.eps)

    def _attention(self, hidden: str, attention: Attention, name: str) -> str:
        graph, config = self.graph, self.config
        # Rows are ordered [heads, 3, dim]; onnxruntime takes queries, keys and values apart.
        weights = array_of(attention.qkv.weight).reshape(config.num_heads, 3, config.head_dim, config.hidden_size)
        biases = array_of(attention.qkv.bias).reshape(config.num_heads, 3, config.head_dim)
        prepared = self.linears.prepare(graph, f"{name}.qkv", hidden)
        parts = []
        # Three products, each with its bias: to split the result of one, and to add biases in attention, takes longer.
        for number, part in enumerate(("query", "key", "value")):
            # Queries have one more column of 1, keys of 0, or -1e30 at padding: a mask would take twice as long.
            more = ((0, 0), (0, 1 if number < 2 else 0))
            weight = np.pad(weights[:, number], (*more, (0, 0))).reshape(-1, config.hidden_size)
            bias = np.pad(biases[:, number], more, constant_values=1 if number == 0 else 0).ravel()
            flat = self.linears.matmul(graph, f"{name}.{part}", prepared, weight.T, bias)
            parts.append(graph.add("Reshape", flat, self._shape_3d(len(weight))))
        query, key, value = parts
        context = graph.add(
            "MultiHeadAttention",
            query,
            graph.add("Add", key, self.mask),
            value,
            domain=_MICROSOFT,
            num_heads=config.num_heads,
            unidirectional=int(config.is_causal),
            scale=config.head_dim**-0.5,
        )
        context = graph.add("Reshape", context, graph.constant([-1, config.hidden_size]))
        return self._linear(f"{name}.out", context, attention.out)

    def _shape_3d(self, width: int) -> str:
        return self.graph.add("Concat", self.shape, self.graph.constant([width]), axis=0)

    def _mask(self) -> str:
        """Add what keys get: -1e30 in the last column of each head at padding, else 0: [B, L, heads * (dim + 1)]."""
        graph, config = self.graph, self.config
        padding = graph.add("Sub", graph.constant(np.float32(1)), graph.add("Cast", INPUTS[1], to=TensorProto.FLOAT))
        last = np.zeros((config.num_heads, config.head_dim + 1), np.float32)
        last[:, -1] = -1e30
        padding = graph.add("Unsqueeze", padding, graph.constant([2]))
        return graph.add("Mul", padding, graph.constant(last.reshape(1, 1, -1)))

    def _mlp(self, hidden: str, mlp: MLP, name: str) -> str:
        up = self._linear(f"{name}.up", hidden, mlp.up)
        up = self.graph.add("Gelu", up, approximate="tanh" if mlp.gelu == "tanh" else "none")
        return self._linear(f"{name}.down", up, mlp.down, GELU_LOWEST)

    def _linear(self, name: str, hidden: str, linear: nn.Linear, lowest: float | None = None) -> str:
        prepared = self.linears.prepare(self.graph, name, hidden, lowest)
        return self.linears.matmul(self.graph, name, prepared, array_of(linear.weight).T, array_of(linear.bias))


def _add_head(graph: Graph, model: TaskModel, hidden: str, shape: str) -> int:
    """Add the head on the tokens without padding; returns the width of its logits.

    Logits of tokens are placed in rows again; at padding they repeat those of the token before.
    """
    lengths = graph.add("ReduceSum", INPUTS[1], graph.constant([1]), keepdims=0)
    starts = graph.add("CumSum", lengths, graph.constant(np.array(0)), exclusive=1)
    flat_mask = graph.add("Reshape", INPUTS[1], graph.constant([-1]))
    packed = graph.add("Compress", hidden, graph.add("Cast", flat_mask, to=TensorProto.BOOL), axis=0)
    head = head_model(model.head, model.encoder.config.hidden_size)
    (output,) = (item.name for item in head.graph.output)
    names = {value.name: own for value, own in zip(head.graph.input, (packed, starts), strict=True)}
    names |= {tensor.name: graph.constant(numpy_helper.to_array(tensor)) for tensor in head.graph.initializer}
    names[""] = ""
    for node in head.graph.node:
        for value in node.output:
            names[value] = names.get(value, f"head.{value}")
        node.name = ""
        node.input[:] = [names[value] for value in node.input]
        node.output[:] = [names[value] for value in node.output]
        graph.nodes.append(node)
    width = head.graph.output[0].type.tensor_type.shape.dim[1].dim_value
    if model.head.is_per_sequence:
        graph.add("Identity", names[output], outputs=[LOGITS])
        return width
    # The number of the token at each place, of tokens without padding
    numbers = graph.add("CumSum", flat_mask, graph.constant(np.array(0)))
    numbers = graph.add("Sub", numbers, graph.constant(np.array(1)))
    rows = graph.add("Gather", names[output], graph.add("Max", numbers, graph.constant(np.array(0))))
    shape_3d = graph.add("Concat", shape, graph.constant([width]), axis=0)
    graph.add("Reshape", rows, shape_3d, outputs=[LOGITS])
    return width


class _HeadWithoutTargets(nn.Module):
    """A head as a function of hidden states and starts alone."""

    def __init__(self, head: Head) -> None:
        super().__init__()
        self.head = head

    def forward(self, hidden_TD: Tensor, starts_N: Tensor) -> Tensor:
        """Compute logits, or where the head takes targets its predictions."""
        return self.head(hidden_TD, starts_N, {}) if self.head.takes_targets else self.head(hidden_TD, starts_N)


def head_model(head: Head, hidden_size: int) -> onnx.ModelProto:
    """Convert a head, of any kind, by PyTorch's exporter, with dynamic numbers of tokens and of sequences.

    Raises CheckpointError for a head that PyTorch cannot convert.
    """
    module = _HeadWithoutTargets(head).float().eval()
    # Neither 0 nor 1, for which exporters specialize.
    examples = torch.zeros(37, hidden_size), torch.tensor([0, 5, 11])
    dims = {0: torch.export.Dim("tokens", min=2)}, {0: torch.export.Dim("sequences", min=2)}
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program: Any = torch.onnx.export(
                module, examples, dynamo=True, dynamic_shapes=dims, verbose=False, opset_version=OPSET
            )
    except (torch.onnx.OnnxExporterError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0][:300]
        raise CheckpointError(f"the head {type(head).__name__} has no ONNX form: {reason}") from error
    finally:
        logger.setLevel(level)
    proto: onnx.ModelProto = program.model_proto
    assert not proto.functions, "functions of the head are inlined"
    return proto


def used_operators(proto: onnx.ModelProto) -> Sequence[str]:
    """List the operators of a graph, those of onnxruntime with their domain."""
    return sorted({f"{node.domain}.{node.op_type}".lstrip(".") for node in proto.graph.node})
