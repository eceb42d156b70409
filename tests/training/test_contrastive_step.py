"""Gradient caching gives the gradients of one large batch, dropout included, over micro-batches and processes."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from megabert.config.schema import OptimizerSettings
from megabert.data.packing import Features, pack
from megabert.model.config import EncoderConfig
from megabert.model.contrastive_loss import group_positions, in_batch_losses, listwise_losses, margin_mse
from megabert.model.encoder import Encoder, initialize
from megabert.model.heads import EmbeddingHead, TaskModel
from megabert.training.contrastive_step import ContrastiveStepper
from megabert.training.step import seed_step

CONFIG = EncoderConfig(
    vocabulary_size=40, num_layers=1, hidden_size=16, num_heads=2, ffn_size=32, max_positions=16,
    hidden_dropout=0.2, attention_dropout=0.1,
)  # fmt: skip


def loss(embeddings, batch):
    is_query = batch.targets["passage"] == -1
    starts = is_query.nonzero()[:, 0]
    numbers = (~is_query).long().cumsum(0) - 1
    keys = batch.targets["query"]
    return in_batch_losses(
        embeddings[is_query],
        embeddings[~is_query],
        numbers[starts + 1],
        temperature=0.1,
        query_keys_Q=keys[is_query],
        owners_P=torch.full_like(keys[~is_query], -1),
        passage_keys_P=batch.targets["passage"][~is_query],
    ).sum()


def group(number, random):
    lengths = random.integers(3, 9, 3)
    ids = random.integers(1, 40, lengths.sum())
    targets = {"query": np.full(3, number), "passage": np.array([-1, 2 * number, 2 * number + 1])}
    return Features(ids, ids * 0, targets, parts=tuple(lengths.tolist()))


def model(pooling="mean"):
    made = TaskModel(Encoder(CONFIG), EmbeddingHead(pooling, normalize=True))
    initialize(made, torch.Generator().manual_seed(0), num_layers=1)
    return made.train()


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_cached_gradients_equal_those_of_one_graph(pooling):
    random = np.random.default_rng(0)
    batches = [pack([group(2 * n + k, random) for k in range(2)], 16, 0) for n in range(3)]
    network, plain = model(pooling), model(pooling)
    plain.load_state_dict(copy.deepcopy(network.state_dict()))
    stepper = ContrastiveStepper(network, loss, OptimizerSettings(name="sgd"), precision="32", clip=0.0, seed=5)
    mean, norm = stepper.step(batches, 0.0, number=30).tolist()
    parts = []
    for number, batch in enumerate(batches):
        seed_step(5, 30 + number)
        parts.append(plain(*batch.inputs()))
    merged = type(
        "Merged", (), {"targets": {n: torch.cat([b.targets[n] for b in batches]) for n in batches[0].targets}}
    )
    expected = loss(torch.cat(parts), merged) / 6
    gradients = torch.autograd.grad(expected, list(plain.parameters()), allow_unused=True)
    assert mean == pytest.approx(expected.item(), rel=1e-5)
    assert norm == pytest.approx(torch.stack([g.norm() for g in gradients if g is not None]).norm().item(), rel=1e-4)
    for master, gradient in zip(stepper.master_weights.values(), gradients, strict=True):
        if gradient is not None:
            torch.testing.assert_close(master.grad, gradient, atol=1e-6, rtol=1e-4)


def test_poolings_take_mean_first_and_last_token_of_each_part():
    hidden, starts = torch.arange(12.0).reshape(6, 2), torch.tensor([0, 2])
    assert EmbeddingHead("cls")(hidden, starts).tolist() == [[0, 1], [4, 5]]
    assert EmbeddingHead("last")(hidden, starts).tolist() == [[2, 3], [10, 11]]
    assert EmbeddingHead("mean")(hidden, starts).tolist() == [[1, 2], [7, 8]]
    assert EmbeddingHead("cls", normalize=True)(hidden, starts)[0].tolist() == [0, 1]


def test_in_batch_losses_leave_known_positives_out(monkeypatch):
    monkeypatch.setattr("megabert.model.contrastive_loss.BLOCK_SIZE", 4)  # a row at a time
    scores = torch.tensor([[2.0, 5.0, 1.0, 3.0], [0.0, 1.0, 4.0, 2.0]])
    losses = in_batch_losses(
        scores, torch.eye(4), torch.tensor([0, 2]), temperature=1.0,
        query_keys_Q=torch.tensor([7, 8]), owners_P=torch.tensor([7, 7, 8, -1]),
        passage_keys_P=torch.tensor([1, 2, 3, 3]),
    )  # fmt: skip
    first = -F.log_softmax(torch.tensor([2.0, 1.0, 3.0]), 0)[0]  # the query's other positive is left out
    second = -F.log_softmax(torch.tensor([0.0, 1.0, 4.0]), 0)[2]  # the fourth is the positive itself
    torch.testing.assert_close(losses, torch.stack([first, second]))


def test_listwise_and_margin_losses_of_ragged_groups():
    scores, is_first = torch.tensor([2.0, 1.0, 0.0, 3.0]), torch.tensor([True, False, False, True])
    assert group_positions(is_first)[1].tolist() == [0, 1, 2, 0]
    expected = [-F.log_softmax(scores[:3], 0)[0], 0.0]
    torch.testing.assert_close(listwise_losses(scores, is_first), torch.tensor(expected))
    teacher = torch.tensor([5.0, 1.0, 5.0, 2.0])
    assert margin_mse(scores, teacher, torch.tensor([0, 0, 0, 3])).tolist() == [0, 9, 4, 0]
