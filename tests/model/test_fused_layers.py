"""Fused layers against plain ones; on a CPU with TRITON_INTERPRET=1, where Triton is there."""

import pytest
import torch
from torch import nn

from megabert.model.attention import HAS_TRITON, PackedSequences
from megabert.model.config import EncoderConfig
from megabert.model.encoder import Encoder, initialize
from megabert.model.fused_embeddings import TokenIds
from megabert.model.fused_layers import encode_fused, fuse_layers
from megabert.model.key_value_cache import KeyValueCache

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
    random = torch.Generator().manual_seed(1)
    # Positions in no order: nothing says that they count a document's tokens.
    ids = TokenIds(*(torch.randint(size, (sum(LENGTHS),), generator=random).to(DEVICE) for size in (50, 20, 2)))
    return encoder.to(DEVICE, dtype), ids, PackedSequences(ends, 20)


def exact_network(encoder, **settings):
    exact, _, _ = network(dtype=torch.float64, **settings)
    exact.load_state_dict(encoder.state_dict())
    return exact


def relative_error(actual, expected):
    return float((actual.detach().double() - expected.detach().double()).norm() / expected.detach().double().norm())


@pytest.mark.parametrize(("dtype", "tolerance"), TYPES)
@pytest.mark.parametrize(
    "settings",
    [{"norm_place": "pre"}, {"norm_place": "post", "gelu": "tanh"}, {"norm_place": "pre_residual_normed"}],
)
def test_outputs_and_gradients_match_plain_layers(settings, dtype, tolerance):
    encoder, ids, documents = network(dtype=dtype, **settings)
    results = []
    for run, model in ((Encoder.encode, exact_network(encoder, **settings)), (encode_fused, encoder)):
        inputs = ids if run is Encoder.encode else [ids]
        output = run(model, *inputs, documents)
        # As in a language model, whose head has the word embedding, too.
        logits = nn.functional.linear(output, model.embeddings.word.weight)
        direction = torch.randn(logits.shape, generator=torch.Generator().manual_seed(2)).to(output)
        results.append([output, *torch.autograd.grad((logits * direction).sum(), list(model.parameters()))])
    names = [name for name, _ in encoder.named_parameters()]
    for name, expected, actual in zip(["output", *names], *results, strict=True):
        assert relative_error(actual, expected) < (20 if "bias" in name else 4) * tolerance, name


@pytest.mark.parametrize("is_causal", [False, True])
def test_biases_of_keys_have_a_gradient_of_0(is_causal):
    settings = {"norm_place": "pre", "is_causal": is_causal, "dropout": 0.2}
    encoder, ids, documents = network(**settings)
    exact = exact_network(encoder, **settings).train()
    output = encode_fused(encoder.train(), ids, documents)
    output.backward(torch.randn_like(output))
    plain = Encoder.encode(exact, *ids, documents)
    plain.backward(torch.randn_like(plain))
    for ours, theirs in zip(encoder.layers, exact.layers, strict=True):
        query, key, value = ours.attention.qkv.bias.grad.unflatten(0, (2, 3, 16)).unbind(1)
        assert not key.any()
        assert query.all()
        assert value.all()
        query, key, value = theirs.attention.qkv.bias.grad.unflatten(0, (2, 3, 16)).unbind(1)
        # Rounding errors of float64, not 0: also of a gradient with dropout, of causal attention.
        assert key.abs().max() < 1e-13 * query.abs().max()


def test_frozen_parameters_get_no_gradient_and_others_do():
    encoder, ids, documents = network()
    frozen = {"layers.0.attention.qkv.weight", "embeddings.word.weight", "embeddings.segment.weight"}
    for name in frozen:
        encoder.get_parameter(name).requires_grad_(False)
    encode_fused(encoder, ids, documents).sum().backward()
    assert {name for name, parameter in encoder.named_parameters() if parameter.grad is None} == frozen


@pytest.mark.parametrize("norm_place", ["pre", "post", "pre_residual_normed"])
@pytest.mark.parametrize(("dtype", "tolerance"), TYPES)
def test_inference_matches_plain_layers(dtype, tolerance, norm_place):
    settings = {"norm_place": norm_place, "num_segments": 0}
    encoder, ids, documents = network(dtype=dtype, **settings)
    with torch.inference_mode():
        actual = encode_fused(encoder.eval(), ids, documents)
        expected = Encoder.encode(exact_network(encoder, **settings).eval(), *ids, documents)
    assert relative_error(actual, expected) < 4 * tolerance


@pytest.mark.parametrize("norm_place", ["pre", "post"])
def test_gradients_use_the_dropout_masks_of_the_forward_pass(norm_place):
    encoder, ids, documents = network(dropout=0.3, norm_place=norm_place)
    tables = [table.weight for table in (encoder.embeddings.word, encoder.embeddings.position)]
    steps = [1e-2 * torch.randn_like(table) for table in tables]

    def run(factor=0):
        torch.manual_seed(3)
        with torch.no_grad():
            for table, step in zip(tables, steps, strict=True):
                table += factor * step
        return encode_fused(encoder.train(), ids, documents)

    output = run()
    direction = torch.randn_like(output)
    gradients = torch.autograd.grad(output, tables, direction)
    change = ((run(1) - run(-2)).detach().double() * direction).sum()
    expected = sum(float((gradient.double() * step).sum()) for gradient, step in zip(gradients, steps, strict=True))
    assert expected == pytest.approx(float(change) / 2, rel=2e-2)
    again = run(1)
    assert relative_error(again, output) < 1e-5
    assert relative_error(encode_fused(encoder, ids, documents), again) > 0.1
    plain = Encoder.encode(encoder.eval(), *ids, documents)
    assert relative_error(encode_fused(encoder, ids, documents), plain) < 1e-4


@pytest.mark.skipif(not torch.cuda.is_available(), reason="only encoders on a GPU are fused")
def test_only_plain_layers_and_embeddings_are_fused():
    encoder, _, _ = network()
    assert not fuse_layers(network()[0].cpu())
    assert fuse_layers(encoder)
    assert not fuse_layers(network(num_segments=9)[0])
    replaced, _, _ = network()
    replaced.layers[1].mlp.up = nn.Sequential(replaced.layers[1].mlp.up)
    assert not fuse_layers(replaced)
    replaced, _, _ = network()
    replaced.embeddings.word = nn.Sequential(replaced.embeddings.word)
    assert not fuse_layers(replaced)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="only encoders on a GPU are fused")
def test_generation_runs_plain_layers_of_a_fused_encoder():
    encoder, ids, documents = network(norm_place="pre", is_causal=True)
    encoder.eval()
    results = []
    with torch.inference_mode():
        for _ in range(2):
            cache = KeyValueCache(encoder.config, len(LENGTHS), 20, torch.float32, torch.device(DEVICE))
            cache.begin(documents)
            results.append(encoder(*ids, cache))
            assert fuse_layers(encoder)
    assert torch.equal(*results)
