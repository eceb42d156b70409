"""Layers with packed weights against plain ones, in float32, which every processor has."""

import pytest
import torch

from megabert.model import precision
from megabert.model.attention import PackedSequences
from megabert.model.config import EncoderConfig
from megabert.model.encoder import Encoder, initialize
from megabert.model.lora import LoraConfig, LoraLinear
from megabert.model.packed_layers import pack_layers

LENGTHS = (5, 1, 17)


def network(**settings):
    encoder = Encoder(EncoderConfig(50, 2, 32, 2, 64, 20, **settings)).eval()
    initialize(encoder, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in encoder.parameters():  # no bias is 0, no norm's weight 1
            parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(parameter.numel()))
    ends = torch.tensor([0, *LENGTHS]).cumsum(0).int()
    hidden = torch.randn(sum(LENGTHS), 32, generator=torch.Generator().manual_seed(1))
    return encoder, hidden, PackedSequences(ends, 20)


@pytest.mark.parametrize(
    "settings",
    [
        {"norm_place": "pre"},
        {"norm_place": "post", "gelu": "tanh"},
        {"norm_place": "pre_residual_normed"},
        {"norm_place": "pre", "is_causal": True, "gelu": "tanh"},
    ],
)
def test_packed_layers_compute_what_plain_ones_do(settings):
    encoder, hidden, documents = network(**settings)
    with torch.inference_mode():
        expected = encoder.run_layers(hidden, documents)
        assert pack_layers(encoder)
        plain_linear, torch.nn.Linear.forward = torch.nn.Linear.forward, None  # none is called
        try:
            actual = encoder.run_layers(hidden, documents)
        finally:
            torch.nn.Linear.forward = plain_linear
    torch.testing.assert_close(actual, expected, atol=2e-5, rtol=2e-5)


def test_gradients_come_from_plain_layers():
    encoder, hidden, documents = network()
    pack_layers(encoder)
    encoder.run_layers(hidden, documents).sum().backward()
    assert encoder.layers[0].mlp.up.weight.grad.abs().sum() > 0


def test_layers_with_adapters_are_not_packed():
    encoder, _, _ = network()
    encoder.layers[1].mlp.up = LoraLinear(encoder.layers[1].mlp.up, 2, LoraConfig(2, 4.0))
    assert not pack_layers(encoder)


@pytest.mark.parametrize(("dtype", "is_native", "is_packed"), [("bf16", True, 1), ("bf16", False, 0), ("32", True, 0)])
def test_bfloat16_is_packed_where_the_processor_has_it(monkeypatch, dtype, is_native, is_packed):
    packed = []
    monkeypatch.setattr(precision, "pack_layers", packed.append)
    monkeypatch.setattr(precision, "has_native_bfloat16", lambda: is_native)
    model = torch.nn.Module()
    model.encoder, model.head = network()[0], torch.nn.Linear(2, 2)
    model.encoder.to(precision.DTYPES[dtype])
    precision.freeze(model)
    assert len(packed) == is_packed


@pytest.mark.parametrize(
    ("allowed", "expected"), [(None, True), ("AVX512_CORE", False), ("AVX2", False), ("AVX512_CORE_AMX", True)]
)
def test_bfloat16_is_native_where_the_processor_and_onednn_have_it(monkeypatch, allowed, expected):
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    if allowed:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", allowed)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert precision.has_native_bfloat16() is expected
