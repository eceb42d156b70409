"""Tensor parallelism without a second process: dropout streams, the sharding tables, shards."""

import pytest
import torch
from torch import nn

from megabert.config.schema import ParallelSettings
from megabert.errors import ConfigError
from megabert.model.attention import PackedSequences, attend
from megabert.model.dropout import Dropout
from megabert.model.encoder import Encoder
from megabert.model.heads import TaskModel, TokenHead
from megabert.model.pretraining_heads import PretrainingHead
from megabert.parallel.process_group import World
from megabert.parallel.sharding import HEAD_SHARDING, SHARDING, Sharding, find_sharded_modules, parallelize
from tests.parallel.processes import BERT, network


def test_every_row_of_the_sharding_tables_names_modules():
    sharded = find_sharded_modules(network(BERT))
    assert len(sharded) == 1 + 4 * BERT.num_layers + 1
    assert set(sharded.values()) == set((SHARDING | HEAD_SHARDING).values())
    model = network(BERT)
    model.encoder.layers[0].mlp.down = model.encoder.layers[1].mlp.down = nn.Module()
    del model.encoder.embeddings.word
    with pytest.raises(AssertionError, match=r"embeddings\.word names no module"):
        find_sharded_modules(model)


def test_a_head_without_a_vocabulary_is_replicated():
    model = TaskModel(Encoder(BERT), TokenHead(32, 2, num_layers=1, dropout=0.0, activation="relu"))
    assert not any(name.startswith("head") for name in find_sharded_modules(model))


def test_sizes_that_do_not_divide_are_rejected():
    world = World(torch.device("cpu"), size=3, tensor_size=3)
    with pytest.raises(ConfigError, match=r"parallel\.tensor=3 does not divide the network's attention heads, 4"):
        parallelize(network(BERT), world, ParallelSettings(tensor=3), precision="32", is_compiled=False)


def test_fp8_needs_unsharded_layers():
    world = World(torch.device("cpu"), size=2, tensor_size=2)
    with pytest.raises(ConfigError, match=r"precision=fp8 needs unsharded layers"):
        parallelize(network(BERT), world, ParallelSettings(tensor=2), precision="fp8", is_compiled=False)


@pytest.mark.parametrize(("rows", "size"), [(30522, 4), (30522, 8), (5, 4), (3, 4), (1, 2)])
def test_the_shards_of_any_vocabulary_make_the_full_weight(rows, size):
    full = torch.arange(2 * rows).view(rows, 2)
    tensor_sharded = {"word": (0, full.shape)}
    shards = [
        Sharding(World(torch.device("cpu"), tensor_rank=rank, tensor_size=size), tensor_sharded).shard("word", full)
        for rank in range(size)
    ]
    assert torch.equal(torch.cat(shards), full)
    assert max(map(len, shards)) == -(-rows // size)


def test_shards_have_different_dropout_masks_and_the_same_random_state():
    hidden = torch.ones(64, 64)
    drops, after = [], []
    for stream in (1, 2):
        dropout = Dropout(0.5)
        dropout.stream = stream
        torch.manual_seed(3)
        drops.append(dropout(hidden))
        after.append(torch.rand(1))
    assert after[0] == after[1]
    assert 0.4 < (drops[0] == drops[1]).float().mean() < 0.6
    assert all(abs(float(item.mean()) - 1) < 0.1 for item in drops)


def test_sharded_heads_have_different_dropout_masks_and_the_same_random_state():
    torch.manual_seed(0)
    qkv = torch.randn(20, 2, 3, 8)
    documents = PackedSequences(torch.tensor([0, 9, 20], dtype=torch.int32), 20)
    contexts, after = [], []
    for stream in (1, 2, 1):
        torch.manual_seed(3)
        contexts.append(attend(qkv, documents, dropout=0.5, is_causal=False, stream=stream))
        after.append(torch.rand(1))
    assert after[0] == after[1]
    assert torch.equal(contexts[0], contexts[2])
    assert not torch.allclose(contexts[0], contexts[1], atol=0.1)


def test_the_language_model_head_computes_losses_by_its_vocabulary():
    head = PretrainingHead(BERT, target_share=1.0, sentence_order=False)
    hidden, targets = torch.randn(7, 32), torch.arange(7)
    losses, is_right = head.language_model.vocabulary.losses(hidden, targets)
    logits = head.language_model.vocabulary(hidden)
    torch.testing.assert_close(losses, nn.functional.cross_entropy(logits, targets, reduction="none"))
    assert torch.equal(is_right, logits.argmax(1) == targets)
