import dataclasses
import math

import pytest
import torch

from megabert.errors import CheckpointError
from megabert.model.encoder import Encoder, initialize
from megabert.model.heads import TaskModel, TokenHead, new_pretraining_model
from megabert.model.layers import attention_mask
from megabert.model.shape import EncoderConfig

SMALL = EncoderConfig(
    vocabulary_size=50,
    num_layers=2,
    hidden_size=16,
    num_heads=4,
    ffn_size=40,
    max_positions=12,
    hidden_dropout=0.0,
    attention_dropout=0.0,
)
SHAPES = {
    "megatron-bert": SMALL,
    "residual from the norm": dataclasses.replace(SMALL, norm_place="pre_residual_normed"),
    "bert": dataclasses.replace(SMALL, norm_place="post"),
    "gpt": dataclasses.replace(SMALL, is_causal=True, num_segments=0),
}


def encoder(config, seed=0):
    model = Encoder(config)
    generator = torch.Generator().manual_seed(seed)
    initialize(model, generator, num_layers=config.num_layers)
    with torch.no_grad():  # larger than at the start, so that mistakes show
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model


def packed(texts, row_length):
    """Lay texts into one row: (token_ids, position_ids, segment_ids, document_ids)."""
    ids = [torch.zeros(1, row_length, dtype=torch.long) for _ in range(4)]
    start = 0
    for number, text in enumerate(texts, start=1):
        end = start + len(text)
        ids[0][0, start:end] = torch.tensor(text)
        ids[1][0, start:end] = torch.arange(len(text))
        ids[2][0, start:end] = (torch.arange(len(text)) > 1).long()
        ids[3][0, start:end] = number
        start = end
    return ids


TEXTS = [[5, 6, 7, 8], [9, 10], [11, 12, 13]]


@pytest.mark.parametrize("name", SHAPES)
def test_texts_that_share_a_row_do_not_see_each_other(name):
    model = encoder(SHAPES[name])
    together = model(*packed(TEXTS, 12))
    start = 0
    for text in TEXTS:
        alone = model(*packed([text], len(text)))
        torch.testing.assert_close(together[:, start : start + len(text)], alone, atol=1e-5, rtol=0)
        start += len(text)


@pytest.mark.parametrize("name", SHAPES)
def test_packing_never_changes_a_gradient(name):
    model = encoder(SHAPES[name])

    def gradients(rows):
        model.zero_grad()
        for row in rows:
            hidden = model(*packed(row, 12))
            used = sum(len(text) for text in row)
            (hidden[0, :used] ** 2).sum().backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    for packed_gradient, single_gradient in zip(gradients([TEXTS]), gradients([[t] for t in TEXTS]), strict=True):
        torch.testing.assert_close(packed_gradient, single_gradient, atol=1e-4, rtol=1e-4)


def test_padding_is_finite_and_never_changes_a_vector():
    model = encoder(SMALL)
    short, long = model(*packed([TEXTS[0]], 4)), model(*packed([TEXTS[0]], 11))
    assert long.isfinite().all()
    torch.testing.assert_close(long[:, :4], short, atol=1e-5, rtol=0)


def test_who_sees_whom():
    mask = attention_mask(torch.tensor([[1, 1, 2, 0]]), is_causal=False)[0, 0]
    assert mask.int().tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    mask = attention_mask(torch.tensor([[1, 1, 2, 0]]), is_causal=True)[0, 0]
    assert mask.int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]


def test_a_causal_network_does_not_see_what_follows():
    model = encoder(SHAPES["gpt"])
    ids = torch.tensor([[5, 6, 7, 8]])
    changed = torch.tensor([[5, 6, 9, 8]])
    assert torch.equal(model(ids)[:, :2], model(changed)[:, :2])
    assert not torch.equal(encoder(SMALL)(ids)[:, :2], encoder(SMALL)(changed)[:, :2])


def test_token_ids_alone_are_one_text_a_row():
    model = encoder(SMALL)
    torch.testing.assert_close(model(torch.tensor([TEXTS[0]])), model(*[
        ids if number != 2 else torch.zeros_like(ids) for number, ids in enumerate(packed([TEXTS[0]], 4))
    ]))  # fmt: skip


def test_initial_weights_are_megatron_s():
    config = dataclasses.replace(SMALL, hidden_size=128, ffn_size=512, num_layers=8, vocabulary_size=1000)
    model = Encoder(config)
    initialize(model, torch.Generator().manual_seed(3), num_layers=config.num_layers)
    scaled = 0.02 / math.sqrt(16)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            assert torch.equal(parameter, torch.full_like(parameter, float(name.endswith("weight")))), name
        elif name.endswith("bias"):
            assert not parameter.any(), name
        else:
            expected = scaled if name.endswith(("attention.out.weight", "mlp.down.weight")) else 0.02
            if parameter.numel() > 10_000:
                assert float(parameter.std()) == pytest.approx(expected, rel=0.03), name


def test_initial_weights_are_a_function_of_the_seed():
    first, same, other = (new_pretraining_model(SMALL, seed) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), same.parameters(), strict=True))
    assert not torch.equal(first.encoder.layers[0].mlp.up.weight, other.encoder.layers[0].mlp.up.weight)


def test_dropout_is_on_in_training_only():
    model = encoder(dataclasses.replace(SMALL, hidden_dropout=0.5, attention_dropout=0.5))
    ids = torch.tensor([TEXTS[0]])
    assert not torch.equal(model(ids), model(ids))
    model.eval()
    assert torch.equal(model(ids), model(ids))


def test_a_head_scores_every_token():
    head = TokenHead(16, 3, num_layers=2, dropout=0.0, activation="relu")
    model = TaskModel(encoder(SMALL), head)
    assert model(*packed(TEXTS, 12), torch.tensor([0, 4, 6])).shape == (1, 12, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 3}, "does not divide"),
        ({"num_layers": 0}, "num_layers is 0"),
        ({"norm_place": "middle"}, "norm_place is 'middle'"),
        ({"gelu": "quick"}, "gelu is 'quick'"),
        ({"hidden_size": "16"}, "hidden_size is '16'; expected int"),
        ({"hidden_size": True}, "expected int"),
        ({"colour": 3}, "'colour' is not a property"),
    ],
)
def test_a_shape_that_no_network_has_is_refused(changes, message):
    with pytest.raises(CheckpointError, match=message):
        EncoderConfig.from_dict(SMALL.to_dict() | changes)


def test_a_shape_survives_as_plain_values():
    assert EncoderConfig.from_dict(SMALL.to_dict()) == SMALL
    with pytest.raises(CheckpointError, match="incomplete"):
        EncoderConfig.from_dict({"num_layers": 2})
