import dataclasses
import itertools
import math

import pytest
import torch

from megabert.errors import CheckpointError
from megabert.model.attention import PackedSequences, attend
from megabert.model.config import EncoderConfig
from megabert.model.encoder import Encoder, initialize
from megabert.model.heads import TaskModel, TokenHead
from tests.checkpoints.networks import new_pretraining_model

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
    with torch.no_grad():  # larger than initial weights, so that errors show
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model


def pack(sequences, padding=0):
    """Pack sequences: (token_ids, position_ids, segment_ids, documents)."""
    lengths = [len(sequence) for sequence in sequences] + [padding] * bool(padding)
    documents = PackedSequences(torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32), 12)
    ids = torch.tensor([token for sequence in sequences for token in sequence] + [0] * padding)
    positions = torch.tensor([position for length in lengths for position in range(length)])
    return ids, positions, (positions > 1).long(), documents


SEQUENCES = [[5, 6, 7, 8], [9, 10], [11, 12, 13]]


@pytest.mark.parametrize("name", SHAPES)
def test_packed_sequences_do_not_attend_to_each_other(name):
    model = encoder(SHAPES[name])
    together = model(*pack(SEQUENCES, padding=2))
    start = 0
    for sequence in SEQUENCES:
        alone = model(*pack([sequence]))
        torch.testing.assert_close(together[start : start + len(sequence)], alone, atol=1e-5, rtol=0)
        start += len(sequence)
    assert together.isfinite().all()


@pytest.mark.parametrize("name", SHAPES)
def test_padded_rows_equal_packed_sequences(name):
    model = encoder(SHAPES[name])
    rows = torch.zeros(3, 5, dtype=torch.long)
    for row, sequence in zip(rows, SEQUENCES, strict=True):
        row[: len(sequence)] = torch.tensor(sequence)
    segments = (torch.arange(5) > 1).long().expand(3, 5)
    padded = model(rows, segment_ids=segments, documents=PackedSequences.of_rows((rows > 0).long()))
    assert padded.shape == (3, 5, 16)
    for row, sequence in zip(padded, SEQUENCES, strict=True):
        torch.testing.assert_close(row[: len(sequence)], model(*pack([sequence])), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", SHAPES)
def test_packing_never_changes_a_gradient(name):
    model = encoder(SHAPES[name])

    def gradients(batches, padding=0):
        model.zero_grad()
        for sequences in batches:
            hidden = model(*pack(sequences, padding))
            (hidden[: sum(map(len, sequences))] ** 2).sum().backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    pairs = zip(gradients([SEQUENCES], padding=3), gradients([[sequence] for sequence in SEQUENCES]), strict=True)
    for packed_gradient, single_gradient in pairs:
        torch.testing.assert_close(packed_gradient, single_gradient, atol=1e-4, rtol=1e-4)


def test_document_boundaries_are_where_ids_change():
    documents = PackedSequences.of_rows(torch.tensor([[1, 1, 2, 0], [2, 2, 2, 2]]))
    assert documents.cu_seqlens_N1.tolist() == [0, 2, 3, 4, 8]
    assert documents.cu_seqlens_N1.dtype == torch.int32
    assert documents.starts().tolist() == [0, 2, 3, 4]
    assert documents.lengths().tolist() == [2, 1, 1, 4]


def test_an_empty_document_starts_inside_the_tokens():
    documents = PackedSequences(torch.tensor([0, 2, 2, 2], dtype=torch.int32), 2)
    assert documents.starts().tolist() == [0, 1, 1]


@pytest.mark.parametrize("is_causal", [False, True])
def test_attention_matches_the_formula(is_causal):
    """softmax(q k' / sqrt(K)) v, computed by hand for one document."""
    qkv = torch.tensor([[[1.0, 2.0], [0.5, -1.0], [3.0, 4.0]], [[0.0, 1.0], [2.0, 0.0], [-1.0, 2.0]]])[:, None]
    scores = torch.tensor([[1 * 0.5 + 2 * -1, 1 * 2.0], [-1.0, 0.0]]) / math.sqrt(2)
    if is_causal:
        scores[0, 1] = -math.inf
    weights = torch.tensor([[math.exp(a), math.exp(b)] for a, b in scores.tolist()])
    weights /= weights.sum(1, keepdim=True)
    expected = weights @ torch.tensor([[3.0, 4.0], [-1.0, 2.0]])
    documents = PackedSequences(torch.tensor([0, 2], dtype=torch.int32), 2)
    context = attend(qkv, documents, dropout=0.0, is_causal=is_causal)
    torch.testing.assert_close(context[:, 0], expected)


def test_causal_attention_ignores_later_tokens():
    model = encoder(SHAPES["gpt"])
    ids = torch.tensor([[5, 6, 7, 8]])
    changed = torch.tensor([[5, 6, 9, 8]])
    assert torch.equal(model(ids)[:, :2], model(changed)[:, :2])
    assert not torch.equal(encoder(SMALL)(ids)[:, :2], encoder(SMALL)(changed)[:, :2])


def test_by_default_each_row_is_one_document():
    model = encoder(SMALL)
    ids, positions, segments, documents = pack([SEQUENCES[0]])
    expected = model(ids, positions, torch.zeros_like(segments), documents)
    torch.testing.assert_close(model(torch.tensor([SEQUENCES[0], SEQUENCES[0]])), expected.expand(2, 4, 16))


def test_initial_weights_are_those_of_megatron():
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


def test_dropout_applies_in_training_only():
    model = encoder(dataclasses.replace(SMALL, hidden_dropout=0.5, attention_dropout=0.5))
    ids = torch.tensor([SEQUENCES[0]])
    assert not torch.equal(model(ids), model(ids))
    model.eval()
    assert torch.equal(model(ids), model(ids))


def test_a_head_scores_every_token():
    head = TokenHead(16, 3, num_layers=2, dropout=0.0, activation="relu")
    model = TaskModel(encoder(SMALL), head)
    ids, positions, segments, documents = pack(SEQUENCES)
    assert model(ids, positions, segments, *documents).shape == (9, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 3}, "is not divisible"),
        ({"num_layers": 0}, "num_layers is 0"),
        ({"norm_place": "middle"}, "norm_place is 'middle'"),
        ({"gelu": "quick"}, "gelu is 'quick'"),
        ({"hidden_size": "16"}, "hidden_size is '16'; expected int"),
        ({"hidden_size": True}, "expected int"),
        ({"colour": 3}, "'colour' is not a field"),
    ],
)
def test_impossible_configurations_are_rejected(changes, message):
    with pytest.raises(CheckpointError, match=message):
        EncoderConfig.from_dict(SMALL.to_dict() | changes)


def test_a_configuration_round_trips_through_plain_values():
    assert EncoderConfig.from_dict(SMALL.to_dict()) == SMALL
    with pytest.raises(CheckpointError, match="incomplete"):
        EncoderConfig.from_dict({"num_layers": 2})
