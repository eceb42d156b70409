"""Tables, CSV, JSON lines and labels: right values, or an error that names the line and the remedy."""

import json
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megabert.config.parser import compose
from megabert.errors import ConfigError, InputError, InputWarning
from megabert.formats.class_labels import parse_label, trimmed
from megabert.tasks import registry

SENTENCES = ["the drug helped a lot", "pain is gone", "she feels much better", "full recovery seen"]
ROWS = [(text, label) for label in ("good", "bad") for text in SENTENCES] * 3


def task(name, *words):
    kind = registry.find(name)
    return kind(compose(kind.settings_type, words, owner=name)[0])


def read(tmp_path, name, content, *words, of="text_classification"):
    (tmp_path / name).write_text(content, encoding="utf-8")
    return task(of, *words).read(tmp_path / name)


def table(rows, separator="\t"):
    return "".join(separator.join(row) + "\n" for row in rows)


def pairs(examples):
    return [(item.text, *item.labels) for item in examples]


COLUMNS = ("model.dataset.columns.text=review", "model.dataset.columns.label=Sentiment")


def test_a_header_of_unknown_names_is_no_example(tmp_path):
    content = table([("Review", "sentiment"), *ROWS])
    with pytest.raises(InputError, match=r":1: the label 'sentiment' occurs in no other row.*columns.text='Review'"):
        read(tmp_path, "x.tsv", content)
    assert pairs(read(tmp_path, "x.tsv", content, *COLUMNS)) == ROWS
    by_number = ("model.dataset.columns.text=1", "model.dataset.columns.label=2")
    assert len(read(tmp_path, "x.tsv", content, *by_number)) == 25  # it is none, says the user
    with pytest.raises(InputError, match=r":2: there is no 'review' .model.dataset.columns.text.; found a, b"):
        read(tmp_path, "x.tsv", table([("a", "b"), ("c", "d")]), *COLUMNS)
    numbers = [(text, str(number)) for number, (text, _) in enumerate(ROWS)]
    with pytest.raises(InputError, match="the label 'value' occurs in no other row"):
        read(tmp_path, "x.tsv", table([("a rather long name of a column", "value"), *numbers]))


def test_a_header_in_quotes_and_its_cells_are_read_as_csv(tmp_path):
    content = '"text"\t"label"\n"a ""b"" c"\t"good"\n"d\te"\t"bad"\n'
    assert pairs(read(tmp_path, "x.tsv", content)) == [('a "b" c', "good"), ("d\te", "bad")]
    assert pairs(read(tmp_path, "x.tsv", '"text"\tlabel\n"a" b\tgood\n')) == [('"a" b', "good")]  # as it stands


def test_a_rare_label_in_the_first_row_is_no_header(tmp_path):
    rows = [("this drug did not help me at all", "mixed"), *ROWS]
    assert pairs(read(tmp_path, "x.tsv", table(rows))) == rows


def test_columns_that_are_swapped_are_refused(tmp_path):
    swapped = table([(label, text) for text, label in ROWS])
    with pytest.raises(
        InputError, match=r":1: the second column, the label, has 4 different values in 24 rows, the fir"
    ):
        read(tmp_path, "x.tsv", swapped)
    words = ("model.dataset.columns.label=1", "model.dataset.columns.text=2")
    assert pairs(read(tmp_path, "x.tsv", swapped, *words)) == ROWS
    unique = table([(f"t{number}", f"a long text of {number} words") for number in range(5)])
    with pytest.raises(InputError, match="the second column, the label, has 5"):
        read(tmp_path, "x.tsv", unique)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_csv(separator, tmp_path):
    quoted = [(f'"{text}{separator} ""really""\nso"', label) for text, label in ROWS]
    expected = [(f'{text}{separator} "really"\nso', label) for text, label in ROWS]
    header = separator.join(("text", "label")) + "\n"
    assert pairs(read(tmp_path, "x.csv", header + table(quoted, separator))) == expected
    examples = read(tmp_path, "x.CSV", header + table(quoted, separator))
    assert examples[1].location.endswith("x.CSV:4")  # each row takes two lines
    assert pairs(read(tmp_path, "x.csv", table(quoted, separator))) == expected  # without a header
    assert [item.text for item in read(tmp_path, "x.csv", 'text\n"a, b"\nc\n')] == ["a, b", "c"]
    with pytest.raises(InputError, match=r"x.csv:2: not CSV: unexpected end of data"):
        read(tmp_path, "x.csv", header + f'"open{separator}a\nb{separator}c\n')
    with pytest.raises(InputError, match=r"x.csv:3: 3 columns where 2 are expected"):
        read(tmp_path, "x.csv", header + f"a{separator}b\na{separator}b{separator}c\n")


def test_a_long_cell_is_read(tmp_path):
    assert len(read(tmp_path, "x.csv", f'text,label\n"{"x" * 200_000}",a\n')[0].text) == 200_000


@pytest.mark.parametrize("value", [None, float("nan"), "nan", "NULL", [], {}, "", " \u00a0", '["a", "b"]'])
def test_what_is_no_label_is_an_error_with_its_line(value, tmp_path):
    content = "".join(json.dumps({"text": "a", "label": label}) + "\n" for label in ("x", value))
    with pytest.raises(InputError, match=r"x.jsonl:2: the label is "):
        read(tmp_path, "x.jsonl", content)


@pytest.mark.parametrize(
    ("values", "label"),
    [([1, 1.0, "1", "1.0", " 1\u00a0", "1\u200b", "\ufeff1"], "1"), ([0, -0.0, "0.00"], "0"), ([True, "true"], "true"),
     (["1.10"], "1.10"), ([0.5, "0.5"], "0.5"), (["None"], "None"), (["no relation\u00a0"], "no relation")],
)  # fmt: skip
def test_one_class_has_one_name(values, label):
    assert {parse_label(value, "here") for value in values} == {label}


def test_labels_of_runs_are_written_as_those_of_data():
    restored = task("text_classification")
    restored.restore_state({"labels": ["0.0", "1.0"], "weights": [1.0, 1.0], "problem": "single_label"})
    assert restored.labels == ["0", "1"]


@given(st.text(alphabet="a 1.\u00a0\u200b\ufeff\u0301-", max_size=8))
def test_a_label_has_no_invisible_ends(text):
    label = trimmed(text)
    assert label in text and label == trimmed(label) == label.strip()


@pytest.mark.parametrize(
    ("cell", "expected"),
    [('["good", "short"]', ("good", "short")), ("[]", ()), ("", ()), ("good, short", ("good", "short")),
     ('["a, b"]', ("a, b",)), ("[1, 1.0]", ("1", "1")), (" , ", ())],
)  # fmt: skip
def test_several_labels_in_a_cell(cell, expected, tmp_path):
    rows = read(tmp_path, "x.tsv", f"text\tlabels\na\t{cell}\n", "model.dataset.problem=multi_label")
    assert rows[0].labels == expected


@pytest.mark.parametrize("sign", [";", "|"])
def test_labels_are_separated_at_the_sign_that_the_file_has(sign, tmp_path):
    content = f'text\tlabel\na\tTreatment{sign} Mechanism\nb\tTreatment\nc\t\nd\t["x{sign}y"]\n'
    with pytest.warns(InputWarning, match=rf"labels are separated at '\{sign}', 'Treatment\{sign} Mechanism'"):
        examples = read(tmp_path, "a.tsv", content, "model.dataset.problem=multi_label")
    assert [item.labels for item in examples] == [("Treatment", "Mechanism"), ("Treatment",), (), (f"x{sign}y",)]
    (comma,) = read(tmp_path, "b.tsv", f"text\tlabel\na\tp{sign}q,r\n", "model.dataset.problem=multi_label")
    assert comma.labels == (f"p{sign}q", "r")


def test_texts_that_are_not_read_are_named(tmp_path):
    content = "index\tquestion\tsentence\tlabel\n0\tWho?\tHe is.\tyes\n"
    with pytest.warns(InputWarning, match="of the texts sentence is read, question not") as caught:
        read(tmp_path, "a.tsv", content)
    words = str(caught[0].message).partition("pairs: ")[2].rstrip(".").split()
    (example,) = read(tmp_path, "a.tsv", content, *words)
    assert (example.text, example.pair, example.labels) == ("Who?", "He is.", ("yes",))


def test_pairs_of_bigbio(tmp_path):
    (example,) = read(tmp_path, "a.jsonl", '{"id": "1", "text_1": "a", "text_2": "b", "label": "1"}')
    assert (example.text, example.pair) == ("a", "b")


@pytest.mark.parametrize("cell", ["['good', 'short']", '["good", null]', "[[1]]"])
def test_lists_that_hold_no_labels_are_errors(cell, tmp_path):
    with pytest.raises(InputError, match=r":2: the label"):
        read(tmp_path, "x.tsv", f"text\tlabels\na\t{cell}\n", "model.dataset.problem=multi_label")


def snli(*labels):
    return table([("gold_label", "sentence1", "sentence2"), *((label, "a man", "a person") for label in labels)])


@pytest.mark.parametrize("labels", [("yes", "-", "no", "-"), ("0", "-1", "1", "-1", "2")])
@pytest.mark.parametrize("of", ["zero_shot", "text_classification"])
def test_pairs_without_a_gold_label_are_left_out_and_counted(labels, of, tmp_path):
    reader = task(of, f"model.train_ds.file={tmp_path}/x.tsv")
    (tmp_path / "x.tsv").write_text(snli(*labels))
    with pytest.warns(InputWarning, match=f"2 of {len(labels)} pairs have no gold label"):
        examples = reader.read(tmp_path / "x.tsv")
        kept = reader.read_data(reader.settings.model.train_ds)
    assert len(examples) == len(labels)  # all are predicted
    assert [item.labels[0] for item in kept] == [label for label in labels if not label.startswith("-")]
    reader.learn_labels(kept)
    assert len(reader.labels) == len(kept)
    prediction = type("Prediction", (), {"labels": (reader.labels[0],), "id": "", "value": None})()
    scores = reader.score(examples, [prediction] * len(examples))
    assert scores["total"] == len(kept) and scores["accuracy"] == pytest.approx(100 / len(kept))
    assert len(reader.label_pairs(examples, [prediction] * len(examples))["label"]) == len(kept)
    assert reader.gold(examples[1]) == {}


def test_other_uses_of_minus_are_labels(tmp_path):
    assert [item.labels for item in read(tmp_path, "x.tsv", "a b\t+\nc d\t-\n")] == [("+",), ("-",)]
    assert {item.labels for item in read(tmp_path, "x.tsv", snli("1", "-1", "0"))} == {("1",), ("-1",), ("0",)}
    assert {item.labels for item in read(tmp_path, "x.tsv", snli("-1", "-1"))} == {None}  # GLUE's test data
    assert {item.labels for item in read(tmp_path, "x.tsv", "text\tlabel\na\t-1\nb\t-1\n")} == {None}
    reader = task("text_classification")
    reader.labels = ["-1", "0", "1"]  # of the run
    (tmp_path / "x.tsv").write_text(snli("-1", "-1"))
    assert {item.labels for item in reader.read(tmp_path / "x.tsv")} == {("-1",)}


def test_columns_are_named_in_json_lines_too(tmp_path):
    words = ("model.dataset.columns.text=abstract", "model.dataset.columns.label=topic")
    row = '{"abstract": "a", "topic": 3, "text": "not this", "pmid": 7}\n'
    (example,) = read(tmp_path, "x.jsonl", row, *words)
    assert (example.text, example.labels, example.given) == ("a", ("3",), {"pmid": 7})
    (example,) = read(tmp_path, "x.jsonl", '{"abstract": "a"}\n', *words)
    assert example.labels is None
    with pytest.raises(ConfigError, match=r"columns.txt is none of text, text_b, label, id"):
        task("text_classification", "model.dataset.columns.txt=a")


def test_integers_of_many_digits_are_no_traceback(tmp_path):
    with pytest.raises(InputError, match=r":1: not JSON: Exceeds the limit"):
        read(tmp_path, "x.jsonl", f'{{"text": "a", "label": {"1" * 5000}}}\n')


def test_numbers_at_the_ends_of_raw_text_stay(tmp_path):
    reader = task("text_classification")
    reader.labels = ["0", "1"]
    (tmp_path / "x.txt").write_text("the dose was 5\nin ward 12\n")
    assert [item.text for item in reader.read(tmp_path / "x.txt")] == ["the dose was 5", "in ward 12"]
    (tmp_path / "x.txt").write_text("it was good 1\u00a0\nit was bad 0\n")
    assert [item.labels for item in reader.read(tmp_path / "x.txt")] == [("1",), ("0",)]


def test_columns_without_a_header_that_have_no_label_of_the_run_are_refused(tmp_path):
    reader = task("text_classification")
    reader.labels = ["bad", "good"]
    (tmp_path / "x.tsv").write_text("7\tit was good\n8\tbad\n")
    assert len(reader.read(tmp_path / "x.tsv")) == 2
    (tmp_path / "x.tsv").write_text("7\tit was good\n8\tit was so\n")
    with pytest.raises(InputError, match=r"x.tsv:1: 'it was good' is not one of the trained labels \(bad, g"):
        reader.read(tmp_path / "x.tsv")
    queries = task("zero_shot")
    queries.labels = ["entailment", "neutral"]
    assert [item.labels for item in queries.read(tmp_path / "x.tsv")] == [("it was good",), ("it was so",)]


@pytest.mark.parametrize(
    ("labels", "cells"),
    [
        (["good", "short"], ['["good", "short"]', '["good"]']),
        (["0", "1", "2"], ["0_0,1_1,2_0", "0_0,1_0,2_1"]),
        (["3"], ["[0, 0, 0, 1]", "[0, 0, 0, 0]"]),
        (["A", "B"], ["A; B", "B"]),
        (["A, B"], ['["A, B"]', "[]"]),
        (["A"], ["[]", "[]"]),
        (["v1.0", "v2.0"], ["v1.0", "v1.0"]),
        (["1", "-2"], ["1.0", "-2.0"]),
    ],
)
def test_labels_of_the_run_are_known_as_all_forms_have_them(labels, cells, tmp_path):
    reader = task("text_classification", "model.dataset.problem=multi_label")
    reader.labels = labels
    (tmp_path / "x.tsv").write_text("".join(f"it was {n}\t{cell}\n" for n, cell in enumerate(cells)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InputWarning)
        found = {label for item in reader.read(tmp_path / "x.tsv") for label in item.labels}
    assert found <= set(labels)


def test_labels_that_mark_each_class_are_those_that_are_present(tmp_path):
    words = "model.dataset.problem=multi_label"
    with pytest.warns(InputWarning, match="each row has a mark for all of 3 labels"):
        rows = read(tmp_path, "hoc.tsv", "labels\tsentence\tindex\n0_0,1_1,2_1\ta\t1\n0_0,1_0,2_0\tb\t2\n", words)
    assert [row.labels for row in rows] == [("1", "2"), ()]
    rows = read(tmp_path, "x.tsv", "text\tlabels\na\tgrade_0,stage_1\nb\tgrade_1\n", words)
    assert [row.labels for row in rows] == [("grade_0", "stage_1"), ("grade_1",)]


@pytest.mark.parametrize("cell", ["[0, 1, 1]", "[0.0, 1.0, 1.0]", "[false, true, true]", '"[0, 1, 1]"'])
def test_labels_that_are_vectors_are_the_classes_that_have_1(cell, tmp_path):
    words = "model.dataset.problem=multi_label"
    content = f'{{"text": "a", "labels": {cell}}}\n{{"text": "b", "labels": [0, 0, 0]}}\n'
    with pytest.warns(InputWarning, match="each row has 0 or 1 for each of 3 labels"):
        assert [row.labels for row in read(tmp_path, "x.jsonl", content, words)] == [("1", "2"), ()]
    sets = '{"text": "a", "labels": [0, 1]}\n{"text": "b", "labels": [1, 0]}\n'
    assert [row.labels for row in read(tmp_path, "x.jsonl", sets, words)] == [("0", "1"), ("1", "0")]


def test_what_a_row_lacks_is_named_with_what_it_has(tmp_path):
    with pytest.raises(InputError, match=r"x.tsv:3: the text is empty. Leave the row out"):
        read(tmp_path, "x.tsv", "text\tlabel\na\tb\n\tc\n")
    with pytest.raises(InputError, match=r"there is no text. Name its column text, .*; found abstract, label"):
        read(tmp_path, "x.jsonl", '{"abstract": "a", "label": 1}\n')
    classifier = task("text_classification")
    (tmp_path / "x.csv").write_text("id,text,relation\n1,a,b\n", encoding="utf-8")
    with pytest.raises(
        InputError, match=r"x.csv:2: the training data have no labels.*model.dataset.columns.label=relation"
    ):
        classifier.learn_labels(classifier.read(tmp_path / "x.csv"))


def test_candidate_labels_are_a_list_with_or_without_brackets():
    for labels in ("a,b", "[a, b]", ["a", "b"]):
        assert task("zero_shot").example(text="x", labels=labels).candidates == ("a", "b")
