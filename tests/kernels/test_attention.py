"""The Triton attention kernel against PyTorch's attention of each document."""

import pytest
import torch

from megabert.model.attention import PackedSequences, _document_by_document

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="the attention kernel needs a GPU")

LENGTHS = [5, 64, 1, 200, 0, 65, 128, 31]


def inputs(dtype, head_dim=64, heads=3):
    torch.manual_seed(0)
    cu_seqlens = torch.tensor([0, *LENGTHS]).cumsum(0).int().cuda()
    qkv = torch.randn(sum(LENGTHS), heads, 3, head_dim, device="cuda", dtype=dtype)
    return qkv, PackedSequences(cu_seqlens, 210)


def kernel(qkv, documents, *, dropout=0.0, is_causal=False, seed=1):
    from megabert.kernels.attention import varlen_attention

    seed_1 = torch.tensor([seed], device="cuda")
    return varlen_attention(qkv, *documents[:1], seed_1, documents.max_seqlen, dropout, is_causal)[0]


def relative_error(actual, expected):
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("head_dim", [16, 32, 64, 128])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2), (torch.float16, 2e-3)])
def test_outputs_and_gradients_match_the_formula(dtype, tolerance, head_dim, is_causal):
    qkv, documents = inputs(dtype, head_dim)
    exact = qkv.double().requires_grad_()
    expected = _document_by_document(exact, documents, 0.0, is_causal)
    leaf = qkv.clone().requires_grad_()
    output = kernel(leaf, documents, is_causal=is_causal)
    assert relative_error(output, expected) < tolerance
    weights = torch.randn_like(output)
    (gradient,) = torch.autograd.grad(output, leaf, weights)
    (exact_gradient,) = torch.autograd.grad(expected, exact, weights.double())
    for part in range(3):
        assert relative_error(gradient[:, :, part], exact_gradient[:, :, part]) < 2 * tolerance


def dropped_weights(documents, dropout, seed, heads=2, dim=128):
    """Compute the attention weights after dropout: with unit vectors as values they are the output."""
    num_tokens = int(documents.cu_seqlens_N1[-1])
    qkv = torch.zeros(num_tokens, heads, 3, dim, device="cuda")
    for start, end in zip(documents.cu_seqlens_N1.tolist(), documents.cu_seqlens_N1.tolist()[1:], strict=False):
        qkv[start:end, :, 2, : end - start] = torch.eye(end - start, device="cuda")[:, None]
    return kernel(qkv, documents, dropout=dropout, seed=seed)


def test_dropout_has_its_probability_and_scales_the_kept_weights():
    documents = PackedSequences(torch.tensor([0, 128, 256, 384], dtype=torch.int32).cuda(), 128)
    weights = dropped_weights(documents, 0.1, seed=7)
    is_kept = weights > 0
    assert float(is_kept.float().mean()) == pytest.approx(0.9, abs=0.005)
    torch.testing.assert_close(weights[is_kept], torch.full_like(weights[is_kept], 1 / 128 / 0.9))
    # Masks of rows are independent across heads and documents: correlations are those of chance.
    rows = is_kept.permute(1, 0, 2).flatten(0, 1).double() - 0.9
    for of in (rows, rows.T):
        correlations = (of @ of.T) / of.shape[1] / 0.09
        correlations.fill_diagonal_(0)
        assert float(correlations.std()) == pytest.approx(of.shape[1] ** -0.5, rel=0.05)
        assert float(correlations.abs().max()) < 6.5 * of.shape[1] ** -0.5
    assert torch.equal(weights, dropped_weights(documents, 0.1, seed=7))
    assert not torch.equal(weights, dropped_weights(documents, 0.1, seed=8))


def test_gradients_use_the_dropout_mask_of_the_forward_pass():
    qkv, documents = inputs(torch.float32)
    leaf = qkv.clone().requires_grad_()
    output = kernel(leaf, documents, dropout=0.3)
    direction, probe = torch.randn_like(output), torch.randn_like(qkv)
    (gradient,) = torch.autograd.grad(output, leaf, direction)
    for part in range(3):
        step = torch.zeros_like(qkv)
        step[:, :, part] = 1e-3 * probe[:, :, part]
        change = (kernel(qkv + step, documents, dropout=0.3) - kernel(qkv - step, documents, dropout=0.3)).double()
        expected = float((change * direction).sum()) / 2
        assert float((gradient.double() * step).sum()) == pytest.approx(expected, rel=2e-2, abs=1e-4)


@pytest.mark.parametrize("max_seqlen", [2, 65])  # one tile and two tiles for each document
def test_more_documents_than_an_axis_of_a_grid_has_programs(max_seqlen):
    qkv = torch.randn(140_000, 2, 3, 16, device="cuda", requires_grad=True)
    cu_seqlens = torch.arange(0, 140_001, 2, dtype=torch.int32, device="cuda")
    output = kernel(qkv, PackedSequences(cu_seqlens, max_seqlen))
    rows = qkv.detach().double().view(70_000, 2, 2, 3, 16).permute(3, 0, 2, 1, 4).requires_grad_()
    expected = torch.nn.functional.scaled_dot_product_attention(*rows.unbind())
    assert relative_error(output, expected.transpose(1, 2).reshape(output.shape)) < 1e-5
    output.square().sum().backward()
    expected.square().sum().backward()
    assert relative_error(qkv.grad, rows.grad.permute(1, 3, 2, 0, 4).reshape(qkv.shape)) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_tile_table_changes_no_number(dtype, monkeypatch):
    from megabert.kernels import attention
    from megabert.kernels.attention import tile_table, varlen_attention_backward, varlen_attention_forward

    monkeypatch.setattr(attention, "FEWEST_SAVED", 1)
    qkv, (cu_seqlens, max_seqlen) = inputs(dtype)
    seed_1 = torch.tensor([3], device="cuda")
    tiles = tile_table(cu_seqlens, len(qkv), max_seqlen, dtype)
    assert tiles is not None
    results = []
    for options in ((), (tiles,)):
        output, lse = varlen_attention_forward(qkv, cu_seqlens, seed_1, max_seqlen, 0.1, False, *options)
        gradient = varlen_attention_backward(
            torch.ones_like(output), qkv, output, lse, cu_seqlens, seed_1, max_seqlen, 0.1, False, *options
        )
        results.append((output, lse, gradient))
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))
