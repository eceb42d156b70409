"""The kernels of a fused layer against PyTorch in float64; on a CPU with TRITON_INTERPRET=1, where Triton is there."""

import os

import pytest
import torch
import torch.nn.functional as F

from megabert.model.attention import HAS_TRITON

pytestmark = pytest.mark.skipif(not HAS_TRITON, reason="the kernels need a GPU, or Triton and TRITON_INTERPRET=1")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TYPES = [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)]
if os.environ.get("TRITON_INTERPRET") != "1":
    TYPES.append((torch.float16, 2e-3))


def relative_error(actual, expected):
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


def random(*shape, dtype=torch.float32):
    return torch.randn(*shape, device=DEVICE).to(dtype)


def mask(seed_1, rows, columns, dropout):
    """Dropout's mask by the definition, in Python's integers."""

    def hashed(values):
        bits = ((values ^ (values >> 16)) * 0x85EBCA6B) & 0xFFFFFFFF
        bits = ((bits ^ (bits >> 13)) * 0xC2B2AE35) & 0xFFFFFFFF
        return bits ^ (bits >> 16)

    of_rows = hashed((torch.arange(rows) * 0x9E3779B1 + int(seed_1)) & 0xFFFFFFFF)[:, None]
    of_columns = hashed(torch.arange(columns) + 0x7F4A7C15) | 1
    return ((((of_rows ^ of_columns) * of_columns) & 0xFFFFFFFF) >= round(dropout * 2**32)).to(DEVICE)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("has_total", [False, True])
@pytest.mark.parametrize(("rows", "width"), [(37, 64), (5, 24), (1, 512)])
@pytest.mark.parametrize(("dtype", "tolerance"), TYPES)
def test_residual_norms_and_gradients_match_the_formula(dtype, tolerance, rows, width, has_total, dropout):
    from megabert.kernels.residual_norm import residual_norm, residual_norm_backward

    torch.manual_seed(0)
    residual, branch, d_total, d_normed = (random(rows, width, dtype=dtype) for _ in range(4))
    bias, weight, shift = (random(width, dtype=dtype) for _ in range(3))
    seed_1 = torch.tensor([2**31 - 5], device=DEVICE)
    exact = [item.double().requires_grad_() for item in (residual, branch, bias, weight, shift)]
    kept = mask(seed_1, rows, width, dropout)
    expected = exact[0] + (exact[1] + exact[2]) * kept / (1 - dropout)
    normed = F.layer_norm(expected, (width,), exact[3], exact[4], 1e-5)
    total, actual, statistics = residual_norm(residual, branch, bias, weight, shift, 1e-5, seed_1, dropout)
    assert relative_error(total, expected) < tolerance
    assert relative_error(actual, normed) < tolerance
    outputs, directions = ([expected, normed], [d_total, d_normed]) if has_total else ([normed], [d_normed])
    gradients = torch.autograd.grad(outputs, exact, [item.double() for item in directions])
    own = residual_norm_backward(d_total if has_total else None, d_normed, total, statistics, weight, seed_1, dropout)
    d_weight, d_shift, d_bias = own.sums_3D
    for mine, theirs in zip((own.residual_TD, own.branch_TD, d_bias, d_weight, d_shift), gradients, strict=True):
        assert relative_error(mine, theirs) < 2 * tolerance
    again = residual_norm_backward(d_total if has_total else None, d_normed, total, statistics, weight, seed_1, dropout)
    assert all(torch.equal(*pair) for pair in zip(own, again, strict=True))


@pytest.mark.parametrize("variant", ["erf", "tanh"])
@pytest.mark.parametrize(("rows", "width"), [(37, 64), (150, 1100)])
@pytest.mark.parametrize(("dtype", "tolerance"), TYPES)
def test_gelu_and_its_gradient_match_pytorch(dtype, tolerance, rows, width, variant):
    from megabert.kernels.gelu import gelu, gelu_backward

    torch.manual_seed(0)
    hidden, gradient = random(rows, width, dtype=dtype) * 3, random(rows, width, dtype=dtype)
    bias = random(width, dtype=dtype) if variant == "erf" else None
    exact = (hidden.double() if bias is None else hidden.double() + bias.double()).requires_grad_()
    expected = F.gelu(exact, approximate="tanh" if variant == "tanh" else "none")
    assert relative_error(gelu(hidden, bias, variant), expected) < tolerance
    (exact_gradient,) = torch.autograd.grad(expected, exact, gradient.double())
    sums = gelu_backward(gradient, hidden, bias, variant)
    assert relative_error(gradient, exact_gradient) < tolerance
    assert relative_error(sums, exact_gradient.sum(0)) < tolerance


@pytest.mark.parametrize("variant", ["erf", "tanh"])
@pytest.mark.parametrize(("rows", "width", "columns"), [(300, 96, 328), (130, 64, 512)])
def test_a_linear_map_with_gelu_matches_pytorch(rows, width, columns, variant):
    if DEVICE == "cuda" and torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("bulk copies need compute capability 9.0")
    from megabert.kernels.linear_gelu import linear_gelu

    torch.manual_seed(0)
    hidden, weight, bias = (
        random(*shape, dtype=torch.float16) for shape in ((rows, width), (columns, width), (columns,))
    )
    weight /= width**0.5
    expected = F.gelu(
        F.linear(hidden.double(), weight.double(), bias.double()), approximate="tanh" if variant == "tanh" else "none"
    )
    assert relative_error(linear_gelu(hidden, weight, bias, variant), expected) < 2e-3


@pytest.mark.parametrize(("dtype", "tolerance"), TYPES)
def test_norms_of_offset_rows_match_pytorch(dtype, tolerance):
    from megabert.kernels.residual_norm import offset_norm

    total, weight, shift, offset = (
        random(37, 70, dtype=dtype),
        random(70, dtype=dtype),
        random(70, dtype=dtype),
        random(70),
    )
    expected = F.layer_norm(total.double() + offset, (70,), weight.double(), shift.double(), 1e-5)
    assert relative_error(offset_norm(total, offset, weight, shift, 1e-5), expected) < tolerance


@pytest.mark.parametrize("shape", [(1, 3), (200, 70), (300, 3, 24), (1100, 70)])
def test_column_sums(shape):
    from megabert.kernels.column_sums import column_sums

    torch.manual_seed(0)
    source = random(*shape)
    torch.testing.assert_close(column_sums(source, torch.float32), source.sum(0), rtol=1e-4, atol=1e-5)
    assert column_sums(source, torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize("rows", [5, 1100])
def test_sums_of_queries_and_values_leave_keys_out(rows):
    from megabert.kernels.column_sums import qkv_column_sums

    torch.manual_seed(0)
    source = random(rows, 5 * 3 * 16)
    expected = source.unflatten(1, (5, 3, 16)).sum(0)
    expected[:, 1] = 0
    actual = qkv_column_sums(source, 16, torch.float32)
    torch.testing.assert_close(actual, expected.flatten(), rtol=1e-4, atol=1e-5)
    assert not actual.unflatten(0, (5, 3, 16))[:, 1].any()
