"""A training's losses are those of a plain transformers loop on the same batches, step by step."""

import json

import pytest
import torch
import torch.nn.functional as F

from megabert.adapters import Placement
from megabert.config.parser import compose
from megabert.data.sampler import BatchSampler
from megabert.initial_model import load_initial_model
from megabert.tasks import registry
from megabert.tasks.task_data import load_training_data
from megabert.training.step import Stepper
from tests.conftest import WORDS, squad_document

PASSAGES = ["marie curie found radium", "the seine is a river", "warsaw is a city in poland", "paris was born"]
STEPS, RATE = 8, 2e-3


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """Folder of a small BERT with random weights and its pooler, in transformers' format."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(WORDS), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=64, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, initializer_range=0.1,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("bert")
    transformers.BertForPreTraining(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in WORDS))
    return folder


def ranking(folder):
    groups = [{"query": f"what is {n}", "positive": PASSAGES[n], "negatives": PASSAGES[:n] + PASSAGES[n + 1 :]}
              for n in range(4)]  # fmt: skip
    (folder / "train.jsonl").write_text("".join(json.dumps(group) + "\n" for group in groups))
    return "train.jsonl", ["model.dataset.loss=bce", "model.classifier_head.fc_dropout=0"]


def answers(folder):
    (folder / "train.json").write_text(json.dumps(squad_document()))
    words = ["model.dataset.max_seq_length=24", "model.dataset.max_query_length=12", "model.dataset.doc_stride=4"]
    return "train.json", words


def choices(folder):
    rows = [{"id": str(n), "question": "what is it", "choices": PASSAGES, "passage": PASSAGES[n], "label": n}
            for n in range(4)]  # fmt: skip
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return "train.jsonl", ["model.classifier_head.fc_dropout=0", "model.dataset.max_qa_length=32"]


def ranking_loss(twin, rows, batch):
    return F.binary_cross_entropy_with_logits(twin(**rows).logits[:, 0], batch.targets["is_first"].float())


def answers_loss(twin, rows, batch):
    found = twin(**rows)  # its own loss has the logits of padding in the softmax
    logits = torch.stack([found.start_logits, found.end_logits], 2)
    is_padding = rows["attention_mask"][:, :, None] == 0
    return F.cross_entropy(logits.masked_fill(is_padding, -torch.inf), batch.targets["span"])


def choices_loss(twin, rows, batch):
    rows = {name: values.view(-1, 4, values.shape[1]) for name, values in rows.items()}
    return twin(**rows, labels=batch.targets["weight"].view(-1, 4).argmax(1)).loss


def padded(batch):
    """Unpack a batch to rows as transformers takes them."""
    lengths = batch.cu_seqlens_N1.diff()
    named = {"input_ids": batch.token_ids_T, "token_type_ids": batch.segment_ids_T}
    rows = {name: batch.by_sequence(values, 0, int(lengths.max())) for name, values in named.items()}
    return rows | {"attention_mask": (torch.arange(int(lengths.max())) < lengths[:, None]).long()}


@pytest.mark.parametrize(
    ("name", "kind", "data", "twin_loss"),
    [
        ("text_ranking", "BertForSequenceClassification", ranking, ranking_loss),
        ("question_answering", "BertForQuestionAnswering", answers, answers_loss),
        ("multiple_choice", "BertForMultipleChoice", choices, choices_loss),
    ],
)
def test_losses_are_those_of_transformers(bert, tmp_path, name, kind, data, twin_loss):
    transformers = pytest.importorskip("transformers")
    file, more = data(tmp_path)
    words = [
        f"model.train_ds.file={tmp_path / file}", f"model.language_model.pretrained_model_name={bert}",
        "model.dataset.max_seq_length=64", "model.train_ds.batch_size=2", "model.optim.weight_decay=0.1", *more,
    ]  # fmt: skip
    settings = compose(registry.find(name).settings_type, words, owner=name)[0]
    initial = load_initial_model(name, settings, Placement(), home=tmp_path, resumed=None, folder=tmp_path)
    task, tokenizer = initial.task, initial.language_model.tokenizer
    training = load_training_data(task, tokenizer, settings.model, tmp_path, learn_labels=True)
    model = initial.build(0)
    sampler = BatchSampler(training.features, 2, task.row_length, tokenizer.pad_id, seed=0)
    options = {} if name != "text_ranking" else {"num_labels": 1}
    twin = getattr(transformers, kind).from_pretrained(bert, **options).train()
    out = twin.qa_outputs if name == "question_answering" else twin.classifier
    out.load_state_dict(model.head.out.state_dict())
    if name != "question_answering":  # the pooler is pre-trained, with both
        torch.testing.assert_close(model.head.hidden[0].weight, twin.bert.pooler.dense.weight)
    stepper = Stepper(model, task.loss, settings.model.optim, precision="32", clip=1.0, seed=0)
    groups = [[item for item in twin.parameters() if (item.ndim > 1) is decays] for decays in (True, False)]
    optimizer = torch.optim.AdamW(
        [{"params": own, "weight_decay": decay} for own, decay in zip(groups, (0.1, 0.0), strict=True)], lr=RATE
    )
    found, expected = [], []
    for number in range(STEPS):
        (batch,) = sampler.step(number)
        found.append(float(stepper.step([batch], RATE, number)[0]))
        loss = twin_loss(twin, padded(batch), batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(twin.parameters(), 1.0)
        optimizer.step()
        expected.append(loss.item())
    assert found == pytest.approx(expected, rel=2e-4)
    assert found[-1] < found[0]
