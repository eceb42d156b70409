import pytest
import torch
from torch.nn import functional as F

from megabert.model import vocabulary_loss
from megabert.model.vocabulary_loss import NO_TARGET, vocabulary_losses


def inputs(dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    hidden, weight = (torch.randn(size, 8, generator=generator, dtype=dtype) for size in (13, 29))
    bias = torch.randn(29, generator=generator, dtype=dtype)
    targets = torch.randint(29, (13,), generator=generator)
    targets[[2, 12]] = NO_TARGET
    return [item.requires_grad_() for item in (hidden, weight, bias)], targets


@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_losses_and_gradients_match_pytorch(chunk, monkeypatch):
    monkeypatch.setattr(vocabulary_loss, "CHUNK", chunk)
    parts, targets = inputs()
    scales = torch.linspace(-1, 2, 13)
    losses, is_right = vocabulary_losses(*parts, targets)
    gradients = torch.autograd.grad((losses * scales).sum(), parts)
    logits = F.linear(*parts)
    expected = F.cross_entropy(logits, targets, reduction="none")
    torch.testing.assert_close(losses, expected)
    assert is_right.tolist() == (logits.argmax(1) == targets).tolist()
    for ours, theirs in zip(gradients, torch.autograd.grad((expected * scales).sum(), parts), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


def test_without_bias_or_targets():
    (hidden, weight, _), targets = inputs()
    losses, _ = vocabulary_losses(hidden, weight, None, targets)
    torch.testing.assert_close(losses, F.cross_entropy(F.linear(hidden, weight), targets, reduction="none"))
    losses, is_right = vocabulary_losses(hidden, weight, None, torch.full((13,), NO_TARGET))
    gradients = torch.autograd.grad(losses.sum(), (hidden, weight))
    assert not losses.any()
    assert not is_right.any()
    assert not any(gradient.any() for gradient in gradients)


def test_half_precision_keeps_sums_in_float32():
    parts, targets = inputs()
    half = [part.detach().bfloat16().requires_grad_() for part in parts]
    losses, _ = vocabulary_losses(*half, targets)
    expected, _ = vocabulary_losses(*parts, targets)
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, expected, atol=0.2, rtol=0.05)
    gradients = torch.autograd.grad(losses.sum(), half)
    assert all(gradient.dtype == torch.bfloat16 for gradient in gradients)
    for ours, theirs in zip(gradients, torch.autograd.grad(expected.sum(), parts), strict=True):
        torch.testing.assert_close(ours.float(), theirs, atol=0.2, rtol=0.1)


def test_no_logits_are_saved_for_the_backward_pass(monkeypatch):
    # The backward pass saves the inputs and one number for each token.
    parts, targets = inputs()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda item: saved.append(item) or item, lambda item: item):
        vocabulary_losses(*parts, targets)
    assert max(item.numel() for item in saved) == parts[1].numel()
    assert sum(item.numel() for item in saved) == 13 * 8 + 29 * 8 + 29 + 13 + 13


@pytest.mark.skipif(not vocabulary_loss.HAS_TRITON, reason="the kernels need a GPU")
@pytest.mark.parametrize("max_logits", [2**29, 70_000])  # logits are kept, or computed again in three chunks
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_the_kernels_match_pytorch_in_double_precision(dtype, tolerance, max_logits, monkeypatch):
    monkeypatch.setattr(vocabulary_loss, "MAX_LOGITS", max_logits)
    torch.manual_seed(0)
    parts = [torch.randn(shape, device="cuda").to(dtype) for shape in ((20, 64), (9001, 64), (9001,))]
    parts[1][7000] = parts[1][3]  # a tie
    leaves = [part.clone().requires_grad_() for part in parts]
    targets = torch.randint(9001, (20,), device="cuda")
    targets[[2, 12]] = NO_TARGET
    scales = torch.linspace(-1, 2, 20, device="cuda")
    exact = [part.double().requires_grad_() for part in parts]
    logits = F.linear(*exact)
    expected = F.cross_entropy(logits, targets, reduction="none")
    losses, is_correct = vocabulary_losses(*leaves, targets)
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses.double(), expected, atol=10 * tolerance, rtol=tolerance)
    assert is_correct.tolist() == (F.linear(*parts).argmax(1) == targets).tolist()
    theirs = torch.autograd.grad((expected * scales).sum(), exact)
    for _ in range(2):  # the second backward pass finds no kept logits
        ours = torch.autograd.grad((losses * scales).sum(), leaves, retain_graph=True)
        for own, other in zip(ours, theirs, strict=True):
            assert (own.double() - other).norm() / other.norm() < tolerance
