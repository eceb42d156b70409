import pytest
import torch

from megabert.model.dropout import Dropout, keep_mask


def mask(seed, p=0.1, rows=600, columns=512):
    return keep_mask(rows, columns, p, torch.tensor([seed], dtype=torch.int32))


@pytest.mark.parametrize("p", [0.05, 0.1, 0.5])
def test_elements_are_dropped_with_the_probability(p):
    assert float(mask(5, p, 4000, 1024).double().mean()) == pytest.approx(1 - p, abs=1e-3)


@pytest.mark.parametrize("seed", [0, 1, -5, 2**31 - 1])
def test_rows_and_columns_are_independent(seed):
    centred = mask(seed).double() - 0.9
    for of in (centred, centred.T):
        correlations = (of @ of.T) / of.shape[1] / 0.09
        correlations.fill_diagonal_(0)
        assert float(correlations.std()) == pytest.approx(of.shape[1] ** -0.5, rel=0.05)
        assert float(correlations.abs().max()) < 7 * of.shape[1] ** -0.5


def test_masks_of_different_seeds_are_independent():
    masks = torch.stack([mask(seed).flatten() for seed in range(20)]).double() - 0.9
    correlations = masks @ masks.T / masks.shape[1] / 0.09
    correlations.fill_diagonal_(0)
    assert float(correlations.abs().max()) < 0.02
    assert torch.equal(mask(3), mask(3))


def test_evaluation_drops_nothing():
    hidden = torch.randn(4, 6)
    assert torch.equal(Dropout(0.5).eval()(hidden), hidden)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="compiled dropout is for GPUs")
def test_compiled_gradients_use_the_mask_of_the_forward_pass():
    layer = Dropout(0.3).train()
    layer.compile()
    hidden = torch.randn(300, 64, device="cuda", requires_grad=True)
    dropped = layer(hidden)
    (gradient,) = torch.autograd.grad(dropped.sum(), hidden)
    torch.testing.assert_close(dropped, hidden * gradient)
    assert float((gradient == 0).float().mean()) == pytest.approx(0.3, abs=0.02)
    torch.testing.assert_close(gradient[gradient > 0], torch.full_like(gradient[gradient > 0], 1 / 0.7))
