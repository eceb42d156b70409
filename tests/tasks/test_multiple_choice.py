"""Multiple choice: sequences as Megatron-LM cuts them, the loss over choices, windows, scores, transformers' class."""

import json

import numpy as np
import pytest
import torch

from megabert.cli import main
from megabert.config.parser import compose
from megabert.data.packing import BatchSize, pack
from megabert.errors import ConfigError, InputError
from megabert.metrics.classification import choice_scores
from megabert.tasks import registry
from megabert.tokenizers.wordpiece import Tokenizer
from tests.conftest import WORDS
from tests.tasks.test_contract import CASES, train

KIND = registry.find("multiple_choice")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("MEGABERT_HOME", str(tmp_path_factory.mktemp("home")))


@pytest.fixture(name="tokenizer", scope="module")
def small_tokenizer():
    return Tokenizer(WORDS)


def task_of(*words):
    return KIND(compose(KIND.settings_type, words, owner="multiple_choice")[0])


def examples_of(task, *numbers):
    return [
        task.example(
            id=str(k), question="who was born", choices=["paris", "the seine", "a", "b"][:k], passage="in a " * 9
        )
        for k in numbers
    ]


def labelled(examples):
    from dataclasses import replace

    return [replace(item, label=len(item.choices) - 1) for item in examples]


def test_sequences_are_those_of_megatron_lm(tokenizer):
    task = task_of("model.dataset.max_seq_length=16", "model.dataset.max_qa_length=4")
    example = task.example(question="born in _ ?", choices=["paris", "the seine"], passage="marie " * 50)
    first, second = task.features([example], tokenizer, with_targets=False)

    def ids(text):
        return tokenizer.encode_ids([text])[0].tolist()

    cls, sep = tokenizer.cls_id, tokenizer.sep_id
    qa = ids("born in paris ?")
    assert first.token_ids.tolist() == [cls, *qa, sep, *ids("marie " * 50)[: 13 - len(qa)], sep]
    assert first.segment_ids.tolist() == [0] * (len(qa) + 2) + [1] * (14 - len(qa))
    assert second.token_ids.tolist()[1:5] == ids("born in the seine ?")[:4]  # cut to max_qa_length
    assert len(second) == 16


@pytest.mark.parametrize("is_static", [False, True])
def test_the_loss_is_the_cross_entropy_over_the_choices_of_each_question(tokenizer, is_static):
    task = task_of("model.dataset.max_seq_length=64", "model.dataset.max_qa_length=16")
    features = task.features(labelled(examples_of(task, 2, 4, 3)), tokenizer, with_targets=True)
    assert [item.num_sequences for item in features] == [2, 4, 3]
    size = BatchSize(sum(map(len, features)) + 70, 14) if is_static else None
    batch = pack(features, 64, 0, size)
    assert batch.parts == (2, 4, 3) and batch.num_sequences == 9
    scores = torch.randn(len(batch.cu_seqlens_N1) - 1, 1, dtype=torch.float64, requires_grad=True)
    groups, labels = [slice(0, 2), slice(2, 6), slice(6, 9)], [1, 3, 2]
    expected = sum(-torch.log_softmax(scores[own, 0], 0)[label] for own, label in zip(groups, labels, strict=True))
    found = task.loss(scores, batch)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    gradient = torch.autograd.grad(found, scores)[0]
    assert torch.allclose(gradient, torch.autograd.grad(expected, scores)[0], atol=1e-6)
    assert not gradient[9:].any()  # fillers
    assert task.loss(scores, batch.emptied(0)).item() == 0
    starts, lengths = batch.cu_seqlens_N1[:-1], batch.cu_seqlens_N1.diff()
    assert (batch.position_ids_T[starts[:9].long()] == 0).all() and lengths.max() <= 64


@pytest.mark.parametrize("pooling", ["mean", "maximum"])
def test_windows_show_the_whole_passage_and_are_pooled(tokenizer, pooling):
    task = task_of(
        "model.dataset.max_seq_length=24", "model.dataset.max_qa_length=8", "model.dataset.long_texts=windows",
        f"model.dataset.window_pooling={pooling}",
    )  # fmt: skip
    words = ["marie", "curie", "paris", "seine", "radium"] * 7
    example = task.example(question="who", choices=["paris", "the seine"], passage=" ".join(words))
    features = task.features([example], tokenizer, with_targets=False)
    shown = [item.token_ids[item.segment_ids == 1][:-1] for item in features if item.notes.choice == 1]
    step = 24 - 3 - 3
    assert np.array_equal(np.concatenate([shown[0], *(part[step - step // 2 :] for part in shown[1:])])[: len(words)],
                          tokenizer.encode_ids([" ".join(words)])[0])  # fmt: skip
    logits = [np.array([float(number % 5)], dtype=np.float32) for number in range(len(features))]
    (found,) = task.decode([example], features, logits)
    values = np.array(logits).reshape(-1, 2)
    pooled = values.mean(0) if pooling == "mean" else values.max(0)
    assert found.windows == len(features) // 2 == len(values)
    assert found.probabilities == pytest.approx((np.exp(pooled) / np.exp(pooled).sum()).tolist())
    (unit, *others) = task.features(labelled([example]), tokenizer, with_targets=True)
    assert unit.weight * (1 + len(others)) == pytest.approx(1)
    both = task.decode([example], [unit, *others], list(values[:, :, None]))
    assert both[0].probabilities == pytest.approx(found.probabilities)


def test_scores_by_group_and_chance():
    found = choice_scores([0, 1, 2, 3], [0, 1, 0, 0], [4, 4, 3, 2], ["high", "high", "middle", None])
    assert found == {
        "accuracy": 50, "high_accuracy": 100, "high_total": 2, "middle_accuracy": 0, "middle_total": 1,
        "chance": pytest.approx(100 * (0.25 + 0.25 + 1 / 3 + 0.5) / 4), "total": 4,
    }  # fmt: skip


def test_refusals():
    with pytest.raises(ConfigError, match="leaves no token of a passage"):
        task_of("model.dataset.max_seq_length=64", "model.dataset.max_qa_length=61")
    task = task_of()
    with pytest.raises(InputError, match="no list in JSON"):
        task.example(question="who", choices="[1")
    with pytest.raises(InputError, match="expected two or more strings"):
        task.example(question="who", choices=["x"])
    with pytest.raises(InputError, match="choices is missing"):
        task.example(question="a")
    with pytest.raises(InputError, match="unexpected field text"):
        task.example(question="who", choices=["x", "y"], text="a")
    with pytest.raises(InputError, match="the question has no answer to train on"):
        task.score([task.example(question="who", choices=["x", "y"])], [])


def test_a_folder_of_race(tmp_path):
    for group in ("middle", "high"):
        (tmp_path / "train" / group).mkdir(parents=True)
        text = '{"article": "a", "questions": ["b"], "options": [["x", "y"]], "answers": ["B"]}'
        (tmp_path / "train" / group / "7.txt").write_text(text)
    task = task_of(f"model.train_ds.file={tmp_path / 'train'}")
    examples = task.read_data(task.settings.model.train_ds)
    assert [(item.id, item.group, item.label) for item in examples] == [
        ("high7-0", "high", 1),
        ("middle7-0", "middle", 1),
    ]
    task.check_files()
    assert task.read(tmp_path / "train") == examples


def test_transformers_computes_the_same_probabilities(tmp_path, vocab_file, capsys):
    from transformers import AutoModelForMultipleChoice

    from megabert import load

    run, _ = train(CASES["multiple_choice"], tmp_path / "a", vocab_file, "trainer.max_epochs=3")
    assert main(["convert", str(run), str(tmp_path / "hf"), "--to", "huggingface"]) == 0
    model = AutoModelForMultipleChoice.from_pretrained(tmp_path / "hf").eval()
    assert type(model).__name__.endswith("ForMultipleChoice")
    predictor = load(run, accelerator="cpu")
    fields = {"question": "who found _", "choices": ["radium", "the seine"], "passage": "marie found radium"}
    features = predictor.task.features([predictor.task.example(**fields)], predictor.tokenizer, with_targets=False)
    length = max(map(len, features))
    padded = [
        [torch.tensor(np.pad(values, (0, length - len(values)))) for values in
         (item.token_ids, item.segment_ids, np.ones(len(item), dtype=np.int64))]
        for item in features
    ]  # fmt: skip
    ids, segments, mask = (torch.stack(column)[None] for column in zip(*padded, strict=True))
    with torch.no_grad():
        logits = model(input_ids=ids, token_type_ids=segments, attention_mask=mask).logits
    found = predictor.predict(**fields).probabilities
    assert found == pytest.approx(torch.softmax(logits[0], 0).tolist(), abs=1e-5)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([{"key": "A", "value": "x"}, {"key": "B", "value": "y"}], 1),  # MedQA as first released
        ({"text": ["x", "y"], "label": ["A", "B"]}, 1),
        ({"text": ["x", "y"]}, 1),
        ({"text": ["x", "y"], "label": ["A"]}, "2 choices with 1 labels"),
    ],
)
def test_no_choice_is_lost_whatever_its_form(options, expected, tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"question": "q", "choices": options, "answerKey": "B"}))
    if isinstance(expected, str):
        with pytest.raises(InputError, match=expected):
            task_of().read(tmp_path / "a.jsonl")
    else:
        (example,) = task_of().read(tmp_path / "a.jsonl")
        assert (example.choices, example.label) == (("x", "y"), expected)


OPTIONS = {"question": "q", "opa": "w", "opb": "x", "opc": "y", "opd": "z"}


@pytest.mark.parametrize(
    ("numbers", "expected", "num_warnings"),
    [
        ([1, 4, 2], [0, 3, 1], 0),  # as MedMCQA's authors count
        ([0, 3, -1], [0, 3, None], 0),  # as the library datasets does
        ([-1, -1], [None, None], 0),  # its test data
        ([-1, 4, 1], [None, 3, 0], 0),
        (["d", "a"], [3, 0], 0),
        ([1, 2], [0, 1], 1),
    ],
)
def test_options_of_medmcqa_count_from_1_or_as_datasets_from_0(numbers, expected, num_warnings, tmp_path, recwarn):
    rows = [json.dumps(OPTIONS | {"cop": number}) for number in numbers]
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    assert [item.label for item in task_of().read(tmp_path / "a.jsonl")] == expected
    (tmp_path / "a.json").write_text(f"[{','.join(rows)}]")
    assert [item.label for item in task_of().read(tmp_path / "a.json")] == expected
    assert ["cop, the right option, counts from 1" in str(item.message) for item in recwarn] == [
        True
    ] * 2 * num_warnings


def test_questions_stand_in_parquet_with_the_names_of_their_labels(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    features = {"cop": {"names": ["a", "b", "c", "d"], "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    rows = [OPTIONS | {"id": "7", "cop": 1}, OPTIONS | {"id": "8", "cop": -1}]
    table = pyarrow.Table.from_pylist(rows).replace_schema_metadata(metadata)
    parquet.write_table(table, tmp_path / "a.parquet")
    examples = task_of().read(tmp_path / "a.parquet")
    assert [(item.id, item.choices, item.label) for item in examples] == [
        ("7", tuple("wxyz"), 1), ("8", tuple("wxyz"), None)
    ]  # fmt: skip
