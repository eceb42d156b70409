"""Fused layers against plain ones; on a CPU with TRITON_INTERPRET=1, where Triton is there."""

import pytest
import torch
from torch import nn

from megabert.model.attention import HAS_TRITON, PackedSequences
from megabert.model.config import EncoderConfig
from megabert.model.encoder import Encoder, initialize
from megabert.model.fused_layers import fuse_layers, run_fused

pytestmark = pytest.mark.skipif(not HAS_TRITON, reason="the kernels need a GPU, or Triton and TRITON_INTERPRET=1")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LENGTHS = (5, 1, 17)
# The interpreter multiplies no matrices of bfloat16.
TYPES = [(torch.float32, 1e-5), *([(torch.bfloat16, 3e-2)] if DEVICE == "cuda" else [])]


def network(dropout=0.0, dtype=torch.float32, **settings):
    config = EncoderConfig(50, 2, 32, 2, 64, 20, hidden_dropout=dropout, attention_dropout=dropout, **settings)
    encoder = Encoder(config)
    initialize(encoder, torch.Generator().manual_seed(0))
    for parameter in encoder.parameters():  # no bias is 0, no norm's weight 1
        nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(parameter.numel()))
    ends = torch.tensor([0, *LENGTHS], device=DEVICE).cumsum(0).int()
    hidden = torch.randn(sum(LENGTHS), 32, generator=torch.Generator().manual_seed(1))
    return encoder.to(DEVICE, dtype), hidden.to(DEVICE, dtype), PackedSequences(ends, 20)


def relative_error(actual, expected):
    return float((actual.detach().double() - expected.detach().double()).norm() / expected.detach().double().norm())


@pytest.mark.parametrize(("dtype", "tolerance"), TYPES)
@pytest.mark.parametrize(
    "settings",
    [{"norm_place": "pre"}, {"norm_place": "post", "gelu": "tanh"}, {"norm_place": "pre_residual_normed"}],
)
def test_outputs_and_gradients_match_plain_layers(settings, dtype, tolerance):
    encoder, hidden, documents = network(dtype=dtype, **settings)
    exact, exact_hidden, _ = network(dtype=torch.float64, **settings)
    exact.load_state_dict(encoder.state_dict())
    exact_hidden.copy_(hidden)
    results = []
    for run, model, leaf in (
        (Encoder.run_layers, exact, exact_hidden.requires_grad_()), (run_fused, encoder, hidden.requires_grad_())
    ):  # fmt: skip
        output = run(model, leaf, documents)
        names = [name for name, _ in model.named_parameters() if not name.startswith("embeddings")]
        parameters = [model.get_parameter(name) for name in names]
        direction = torch.randn(output.shape, generator=torch.Generator().manual_seed(2)).to(output)
        results.append([output, *torch.autograd.grad((output * direction).sum(), [leaf, *parameters])])
    for name, expected, actual in zip(["output", "hidden", *names], *results, strict=True):
        # The bias of keys changes nothing but rounding.
        assert relative_error(actual, expected) < (20 if "bias" in name else 4) * tolerance, name


def test_frozen_parameters_get_no_gradient_and_others_do():
    encoder, hidden, documents = network()
    encoder.layers[0].attention.qkv.weight.requires_grad_(False)
    run_fused(encoder, hidden, documents).sum().backward()
    missing = {name for name, parameter in encoder.named_parameters() if parameter.grad is None}
    assert {name for name in missing if not name.startswith("embeddings")} == {"layers.0.attention.qkv.weight"}


@pytest.mark.parametrize(("dtype", "tolerance"), TYPES)
def test_inference_matches_plain_layers_and_leaves_its_input(dtype, tolerance):
    encoder, hidden, documents = network(dtype=dtype, norm_place="pre")
    exact, _, _ = network(dtype=torch.float64, norm_place="pre")
    exact.load_state_dict(encoder.state_dict())
    before = hidden.clone()
    with torch.inference_mode():
        actual = run_fused(encoder.eval(), hidden, documents)
        expected = Encoder.run_layers(exact.eval(), hidden.double(), documents)
    assert relative_error(actual, expected) < 4 * tolerance
    assert torch.equal(hidden, before)


@pytest.mark.parametrize("norm_place", ["pre", "post"])
def test_gradients_use_the_dropout_masks_of_the_forward_pass(norm_place):
    encoder, hidden, documents = network(dropout=0.3, norm_place=norm_place)

    def run(leaf):
        torch.manual_seed(3)
        return run_fused(encoder.train(), leaf, documents)

    leaf = hidden.clone().requires_grad_()
    output = run(leaf)
    direction, step = torch.randn_like(output), 1e-2 * torch.randn_like(hidden)
    (gradient,) = torch.autograd.grad(output, leaf, direction)
    change = ((run(hidden + step) - run(hidden - step)).double() * direction).sum()
    assert float((gradient.double() * step).sum()) == pytest.approx(float(change) / 2, rel=2e-2)
    assert torch.equal(output, run(hidden))
    assert relative_error(run_fused(encoder, hidden, documents), output) > 0.1
    plain = Encoder.run_layers(encoder.eval(), hidden, documents)
    assert relative_error(run_fused(encoder, hidden, documents), plain) < 1e-4


@pytest.mark.skipif(not torch.cuda.is_available(), reason="only encoders on a GPU are fused")
def test_only_plain_layers_are_fused():
    encoder, _, _ = network()
    assert not fuse_layers(network()[0].cpu())
    assert fuse_layers(encoder)
    replaced, _, _ = network()
    replaced.layers[1].mlp.up = nn.Sequential(replaced.layers[1].mlp.up)
    assert not fuse_layers(replaced)
