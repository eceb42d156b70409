"""The pre-training head returns losses instead of logits; they and their gradients match those of PretrainingModel."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from megabert.data.packing import NO_TARGET, BatchSize, Features, pack
from megabert.model.attention import PackedSequences
from megabert.model.config import (
    HAS_ORDER,
    HAS_TARGET,
    IS_CORRECT,
    IS_ORDER_CORRECT,
    LOSS,
    NUM_PREDICTIONS,
    ORDER_LOSS,
    EncoderConfig,
)
from megabert.model.encoder import Encoder
from megabert.model.heads import TaskModel
from megabert.model.pretraining_heads import PretrainingHead
from megabert.model.question_head import QuestionHead
from tests.checkpoints.networks import new_pretraining_model

BERT = EncoderConfig(
    vocabulary_size=50, num_layers=2, hidden_size=32, num_heads=2, ffn_size=64, max_positions=40,
    hidden_dropout=0.0, attention_dropout=0.0,
)  # fmt: skip
GPT = dataclasses.replace(BERT, is_causal=True, num_segments=0)


def models(config, *, sentence_order, share):
    """Build a TaskModel and a PretrainingModel with the same weights."""
    plain = new_pretraining_model(config, 3, language_model=True, sentence_order=sentence_order).double()
    head = PretrainingHead(config, target_share=share, sentence_order=sentence_order)
    ours = TaskModel(Encoder(config), head).double()
    weights = dict(plain.state_dict())
    ours.load_state_dict({name if name.startswith("encoder.") else f"head.{name}": weights[name] for name in weights})
    return ours, plain


def make_features(share, *, order):
    random = np.random.default_rng(0)
    features = []
    for number, length in enumerate((11, 5, 17, 1)):
        ids = random.integers(1, 50, length)
        targets = np.where(random.random(length) < share, ids, NO_TARGET)
        token_targets = {"token": targets}
        if order:
            token_targets["order"] = np.full(length, NO_TARGET)
            token_targets["order"][0] = (1, 0, NO_TARGET, 0)[number]
        segments = (np.arange(length) > length // 2).astype(np.int64)
        features.append(Features(ids, segments, token_targets=token_targets))
    return features


@pytest.mark.parametrize("size", [None, BatchSize(64, 6)], ids=["tight", "static size"])
@pytest.mark.parametrize(("config", "share"), [(BERT, 0.3), (GPT, 1.0)], ids=["bert", "gpt"])
def test_losses_and_gradients_match_those_of_the_pretraining_model(config, share, size):
    order = not config.is_causal
    ours, plain = models(config, sentence_order=order, share=share)
    items = make_features(share * 0.8, order=order)
    batch = pack(items, 40, 0, size)
    columns = ours(*batch.inputs())
    expected_lm, expected_order, has_target, is_correct = [], [], [], []
    for item in items:
        ids, segments = torch.tensor(item.token_ids)[None], torch.tensor(item.segment_ids)[None]
        logits, order_logits = plain(
            ids, segments if order else None, PackedSequences(torch.tensor([0, len(item)]).int(), 40)
        )
        targets = torch.tensor(item.token_targets["token"])
        expected_lm.append(F.cross_entropy(logits[0], targets, ignore_index=NO_TARGET, reduction="none"))
        has_target.append(targets != NO_TARGET)
        is_correct.append((logits[0].argmax(1) == targets) & has_target[-1])
        if order:
            target = torch.tensor(item.token_targets["order"][:1])
            expected_order.append(F.cross_entropy(order_logits, target, ignore_index=NO_TARGET, reduction="none"))
    num = sum(map(len, items))
    torch.testing.assert_close(columns[:num, LOSS].double(), torch.cat(expected_lm), atol=1e-6, rtol=1e-6)
    assert columns[:num, HAS_TARGET].bool().equal(torch.cat(has_target))
    assert columns[:num, IS_CORRECT].bool().equal(torch.cat(is_correct))
    assert not columns[num:, [LOSS, HAS_TARGET, IS_CORRECT, HAS_ORDER, ORDER_LOSS]].any()
    total, expected = columns[:, LOSS].sum(), torch.cat(expected_lm).sum()
    if order:
        starts = batch.cu_seqlens_N1[:4].long()
        torch.testing.assert_close(
            columns[starts, ORDER_LOSS].double(), torch.cat(expected_order), atol=1e-6, rtol=1e-6
        )
        assert columns[starts, HAS_ORDER].tolist() == [1, 1, 0, 1]
        assert columns[:, IS_ORDER_CORRECT].sum() <= 3
        total, expected = total + 2 * columns[:, ORDER_LOSS].sum(), expected + 2 * torch.cat(expected_order).sum()
    total.backward()
    expected.backward()
    gradients = {name.removeprefix("head."): parameter.grad for name, parameter in ours.named_parameters()}
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-6, rtol=1e-5, msg=name)


def test_without_targets_the_most_probable_tokens_are_returned():
    ours, plain = models(BERT, sentence_order=False, share=0.3)
    (item,) = make_features(0.3, order=False)[:1]
    batch = pack([dataclasses.replace(item, token_targets={})], 40, 0)
    columns = ours(*batch.inputs())
    ids, segments = torch.tensor(item.token_ids)[None], torch.tensor(item.segment_ids)[None]
    logits, _ = plain(ids, segments)
    top = logits[0].softmax(-1).topk(NUM_PREDICTIONS)
    assert columns[:, :NUM_PREDICTIONS].long().equal(top.indices)
    torch.testing.assert_close(columns[:, NUM_PREDICTIONS:].double(), top.values, atol=1e-6, rtol=1e-5)


def test_the_vocabulary_weights_are_tied_to_the_word_embedding():
    ours, _ = models(BERT, sentence_order=True, share=0.3)
    assert ours.head.language_model.vocabulary.weight is ours.encoder.embeddings.word.weight
    assert "head.language_model.vocabulary.weight" not in dict(ours.named_parameters())


def test_a_question_head_reads_answers_from_first_tokens_and_spans_from_all():
    """As NeMo's SGDEncoder and SGDDecoder: a layer with tanh, and layers of their own for each kind of answer."""
    head = QuestionHead(16, (1, 3), dropout=0.1).eval()
    before = [weight.clone() for weight in head.parameters()]
    head.start_from(Encoder(BERT))
    assert torch.equal(head.first.weight, before[0] * (48**-0.5 / 0.02)) and torch.equal(head.first.bias, before[1])
    hidden, starts = torch.randn(9, 16), torch.tensor([0, 4, 8, 8])  # the last is a filler's
    logits = head(hidden, starts)
    for number in range(9):
        first = torch.tanh(F.linear(hidden[number], head.first.weight, head.first.bias))
        parts = [(item, first) for item in head.answers] + [(head.spans, hidden[number])]
        expected = [item.out(F.gelu(item.hidden[0](inputs))) for item, inputs in parts]
        if number not in starts:
            expected[:2] = torch.zeros(1), torch.zeros(3)
        torch.testing.assert_close(logits[number], torch.cat(expected))
