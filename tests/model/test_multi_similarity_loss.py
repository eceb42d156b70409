"""The multi-similarity loss beside the formula written in loops, and its gradient."""

import math

import pytest
import torch

from megabert.model.multi_similarity_loss import multi_similarity_losses

OPTIONS = {"scale_positive": 1.0, "scale_negative": 60.0, "base": 0.5, "margin": 0.2}


def in_loops(vectors, concepts, scale_positive, scale_negative, base, margin):
    losses = []
    for i, anchor in enumerate(concepts):
        similarity = [float(vectors[i] @ vectors[j]) for j in range(len(concepts))]
        same = [j for j, name in enumerate(concepts) if name == anchor and j != i]
        other = [j for j, name in enumerate(concepts) if name != anchor]
        # All triplets within the margin.
        hard = [(p, n) for p in same for n in other if similarity[p] - similarity[n] <= margin]
        positive = sum(math.exp(-scale_positive * (similarity[p] - base)) for p in {p for p, _ in hard})
        negative = sum(math.exp(scale_negative * (similarity[n] - base)) for n in {n for _, n in hard})
        losses.append(math.log1p(positive) / scale_positive + math.log1p(negative) / scale_negative)
    return losses


@pytest.mark.parametrize("seed", range(20))
def test_it_is_the_sum_over_the_pairs_of_hard_triplets(seed):
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.nn.functional.normalize(torch.randn(12, 4, generator=generator), dim=1)
    concepts = torch.randint(0, 5, (12,), generator=generator)
    losses = multi_similarity_losses(vectors, concepts, **OPTIONS)
    torch.testing.assert_close(
        losses, torch.tensor(in_loops(vectors, concepts.tolist(), **OPTIONS)), rtol=1e-4, atol=1e-5
    )


def test_padding_and_names_without_partners_have_no_loss_and_a_finite_gradient():
    vectors = torch.eye(4).requires_grad_()
    losses = multi_similarity_losses(vectors, torch.tensor([0, 1, -100, -100]), **OPTIONS)
    losses.sum().backward()
    assert losses.tolist() == [0, 0, 0, 0]
    assert torch.equal(vectors.grad, torch.zeros(4, 4))
