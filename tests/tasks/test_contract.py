"""What every task must do: learn lines by heart, keep them, answer the same in a fresh process; refuse bad files."""

import json
import subprocess
import sys
from dataclasses import dataclass

import pytest

from megabert.cli import main
from megabert.config import compose
from megabert.errors import InputError
from megabert.tasks import task as tasks
from tests.conftest import squad_document

TINY = (
    "model.language_model.config={hidden_size: 64, num_layers: 2, num_attention_heads: 4, max_position_embeddings: 64}"
)


@dataclass
class Case:
    """A task, a file of lines to learn, its settings, the score that says they are learnt."""

    task: str
    file: str
    content: str
    words: tuple[str, ...]
    score: str
    asked: tuple[str, ...]


COLUMNS = "marie B-PER\ncurie I-PER\nwas O\nborn O\nin O\nwarsaw B-LOC\n\nthe O\nseine B-LOC\nis O\nin O\nparis B-LOC\n"
CASES = {
    "question_answering": Case(
        "question_answering",
        "x.json",
        json.dumps(squad_document()),
        ("model.dataset.max_query_length=24", "model.dataset.doc_stride=16", "model.optim.lr=1e-3",
         "trainer.max_epochs=150"),
        "f1",
        ("question=Where was Marie Curie born?", "context=Marie Curie was born in Warsaw."),
    ),
    "text_classification": Case(
        "text_classification", "x.tsv", "marie was born\tyes\nthe river in paris\tno\nradium in france\tmaybe\na\tno\n",
        (), "accuracy", ("text=the river in paris",),
    ),
    "pairs": Case(
        "text_classification", "x.jsonl",
        "".join(json.dumps({"sentence1": a, "sentence2": b, "label": label}) + "\n"
                for a, b, label in (("marie", "paris", 1), ("paris", "marie", 0), ("river", "city", 1), ("a", "b", 0))),
        (), "accuracy", ("text=marie", "text_b=paris"),
    ),
    "several labels": Case(
        "text_classification", "x.tsv", "marie was born\ta,b\nthe river in paris\tb\nradium in france\tc\nwho\ta\n",
        ("model.dataset.problem=multi_label",), "exact_match", ("text=marie was born",),
    ),
    "a number": Case(
        "text_classification", "x.tsv", "marie was born\t0.5\nthe river in paris\t2\nradium in france\t-1\nwho\t1\n",
        ("model.dataset.problem=regression",), "pearson", ("text=marie was born",),
    ),
    "token_classification": Case(
        "token_classification", "x.conll", COLUMNS, (), "f1", ("text=Marie Curie was born in Warsaw.",),
    ),
}  # fmt: skip


def train(case, folder, vocab_file, *more):
    folder.mkdir(exist_ok=True)
    file = folder / case.file
    file.write_text(case.content, encoding="utf-8")
    words = [
        f"model.train_ds.file={file}", f"model.validation_ds.file={file}",
        "model.language_model.pretrained_model_name=null", TINY, f"model.tokenizer.vocab_file={vocab_file}",
        "model.dataset.max_seq_length=64", "model.train_ds.batch_size=4", "model.optim.lr=3e-3",
        "model.optim.sched.name=WarmupPolicy", "model.language_model.hidden_dropout=0",
        "model.language_model.attention_dropout=0", "trainer.max_epochs=60", "trainer.val_check_interval=0",
        "trainer.accelerator=cpu", "trainer.enable_progress_bar=false",
        f"exp_manager.explicit_log_dir={folder / 'run'}",
        "exp_manager.create_tensorboard_logger=false", "model.optim.sched.warmup_ratio=null", *case.words, *more,
    ]  # fmt: skip
    assert main(["train", case.task, *words]) == 0
    return folder / "run", file


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("MEGABERT_HOME", str(tmp_path_factory.mktemp("home")))


@pytest.mark.parametrize("name", CASES)
def test_lines_learnt_by_heart_are_answered_in_a_fresh_process(name, tmp_path, vocab_file, capsys):
    case = CASES[name]
    run, file = train(case, tmp_path / "a", vocab_file)
    capsys.readouterr()
    assert main(["evaluate", str(run), f"file={file}", "accelerator=cpu"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores[case.score] >= 99
    file.unlink()  # a run needs no data
    assert main(["predict", str(run), *case.asked, "accelerator=cpu"]) == 0
    here = json.loads(capsys.readouterr().out)
    command = [sys.executable, "-m", "megabert", "predict", str(run), *case.asked, "accelerator=cpu"]
    there = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert there == here


def test_a_new_set_of_labels_on_a_trained_run(tmp_path, vocab_file, capsys):
    run, _ = train(CASES["text_classification"], tmp_path / "a", vocab_file, "trainer.max_epochs=2")
    other = Case("text_classification", "y.tsv", "marie\tleft\nparis\tright\n", (), "accuracy", ())
    start = (f"pretrained_model={run}", "trainer.max_epochs=1")
    (tmp_path / "b").mkdir()
    file = tmp_path / "b" / "y.tsv"
    file.write_text(other.content)
    words = [f"model.train_ds.file={file}", *start, "trainer.accelerator=cpu", "model.dataset.max_seq_length=64"]
    refused = main(["train", "text_classification", *words, f"exp_manager.explicit_log_dir={tmp_path / 'c'}"])
    assert refused == 65
    assert "'left' is not one of the 3 that were trained: maybe, no, yes" in capsys.readouterr().err
    train(other, tmp_path / "d", vocab_file, *start, "model.head.reset=true")
    assert main(["predict", str(tmp_path / "d" / "run"), "text=marie", "accelerator=cpu"]) == 0
    assert set(json.loads(capsys.readouterr().out)["probabilities"]) == {"left", "right"}


BAD_TABLES = {
    "empty": (b"", "is empty"),
    "blank": (b" \n\n", "is empty"),
    "not utf-8": (b"good\ta\nb\xffd\tb\n", r":2: not UTF-8 text: byte 0xff"),
    "utf-16": ("good\ta\n".encode("utf-16"), "not UTF-8"),
    "NUL": (b"good\ta\nb\0d\tb\n", ":2: a NUL character"),
    "too many columns": (b"a\tb\tc\td\n", ":1: 4 columns; expected at most 2"),
    "ragged": (b"good\ta\nbad\n", ":2: 1 columns where 2 are expected"),
    "a tab too many": (b"good\ta\nbad\tb\tc\n", ":2: 3 columns where 2"),
    "no text": (b"\ta\n", ":1: there is no text"),
    "no label": (b"good\t \n", ":1: the label is ' '"),
    "header only": (b"text\tlabel\n", "no rows but a header"),
    "a name twice": (b"text\ttext\tlabel\na\tb\tc\n", "a column's name stands twice"),
    "header without text": (b"id\tlabel\n1\ta\n", ":2: there is no text"),
    "blanks, one label lacks": (b"good 1\nbad\n", ":2: no label at the end"),
}
BAD_JSON = {
    "not JSON": (b'{"text": "a", "label": 1}\n{"text": \n', ":2: not JSON"),
    "a list": (b"[1]\n", ":1: a JSON list; expected an object"),
    "a number as text": (b'{"text": 3, "label": 1}\n', ":1: the text is 3"),
    "null text": (b'{"text": null, "label": 1}\n', ":1: there is no text"),
    "a list as label": (b'{"text": "a", "label": [1]}\n', r":1: the label is \[1\]"),
    "deep": (b"[" * 100_000 + b"\n", ":1: not JSON"),
}
BAD_COLUMNS = {
    "empty": (b"", "is empty"),
    "not utf-8": (b"a O\nb\xff O\n", ":2: not UTF-8"),
    "NUL": (b"a\0 O\n", ":1: a NUL"),
    "ragged": (b"a O\nb\n", ":2: 1 columns where the lines before have 2"),
    "a tag missing": (b"a\tO\nb\t\n", ":2: a word or a tag is missing"),
    "a word missing": (b"a\tO\n\tB-X\n", ":2: a word or a tag is missing"),
    "a tag of another kind": (b"a B-X\nb Y\n", ":1: the tag 'Y' is neither O nor"),
    "a prefix alone": (b"a B-X\nb I-\n", ":1: the tag 'I-' is neither"),
    "only DOCSTART": (b"-DOCSTART- O\n", "holds no sentences"),
}


def read(name, path):
    kind = tasks.find(name)
    return kind(compose(kind.settings_type, [], owner=name)[0]).read(path)


@pytest.mark.parametrize("name", BAD_TABLES)
def test_a_malformed_table_is_answered_with_place_and_remedy(name, tmp_path):
    content, message = BAD_TABLES[name]
    (tmp_path / "x.tsv").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read("text_classification", tmp_path / "x.tsv")


@pytest.mark.parametrize("name", BAD_JSON)
def test_malformed_json_lines_are_answered_with_place_and_remedy(name, tmp_path):
    content, message = BAD_JSON[name]
    (tmp_path / "x.jsonl").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read("text_classification", tmp_path / "x.jsonl")


@pytest.mark.parametrize("name", BAD_COLUMNS)
def test_malformed_columns_are_answered_with_place_and_remedy(name, tmp_path):
    content, message = BAD_COLUMNS[name]
    (tmp_path / "x.conll").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read("token_classification", tmp_path / "x.conll")


@pytest.mark.parametrize("content", [b"\xef\xbb\xbfa b\tx\r\nc\ty\r\n", b"a b\tx\nc\ty", b"a b\tx\n\n\nc\ty\n"])
def test_byte_order_marks_line_ends_and_empty_lines_lose_no_row(content, tmp_path):
    (tmp_path / "x.tsv").write_bytes(content)
    found = read("text_classification", tmp_path / "x.tsv")
    assert [(item.text, item.labels) for item in found] == [("a b", ("x",)), ("c", ("y",))]


def test_a_line_of_a_million_characters_is_read(tmp_path):
    (tmp_path / "x.tsv").write_text("word " * 200_000 + "\tx\n")
    (example,) = read("text_classification", tmp_path / "x.tsv")
    assert len(example.text) == 1_000_000


@pytest.mark.parametrize(
    ("name", "gold", "content", "message"),
    [
        ("text_classification", "a\tx\n", '{"label": \n', ":1: not JSON"),
        ("text_classification", "a\tx\n", '{"text": "a"}\n', ":1: there is no 'label'"),
        ("token_classification", "a B-X\n", "[]\n", ":1: a JSON list"),
        ("token_classification", "a B-X\n", '{"text": "a"}\n', ":1: there is no 'tags'"),
    ],
)
def test_predictions_that_cannot_be_scored_are_answered_with_their_place(name, gold, content, message, tmp_path):
    (tmp_path / "gold.tsv").write_text(gold)
    (tmp_path / "found.jsonl").write_text(content)
    with pytest.raises(InputError, match=message):
        tasks.find(name).score_files(tmp_path / "gold.tsv", tmp_path / "found.jsonl")
