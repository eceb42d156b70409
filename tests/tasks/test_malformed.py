"""Readers of malformed files raise errors with location and remedy, or return all rows."""

import contextvars
import copy
import functools
import gzip
import json
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace

import pytest

from megabert.cli.text_generation import GenerateSettings, read_prompts
from megabert.config.parser import compose
from megabert.errors import InputError
from megabert.formats import parallel_passes, record_streams
from megabert.formats.chemprot import read_chemprot
from megabert.tasks import registry


@pytest.fixture(autouse=True)
def all_files_are_large(monkeypatch):
    monkeypatch.setattr(record_streams, "MAX_HELD", -1)
    monkeypatch.setattr(parallel_passes, "MIN_SIZE", 0)
    monkeypatch.setattr(parallel_passes, "PART_SIZE", 1)
    monkeypatch.setattr(parallel_passes, "forked_map", each_in_its_context)


def each_in_its_context(function, items):
    """What forked processes compute, without them."""
    return (contextvars.copy_context().run(function, item) for item in items)


@contextmanager
def divided():
    """Let large files be read by parts."""
    with record_streams.large_files_streamed([]), parallel_passes.several_processes([]):
        yield


def without_id(item):
    return item if isinstance(item, str) else replace(item, id="")


@functools.cache
def composed(task, words):
    """The settings of a task; they take longer than all else here."""
    return compose(registry.find(task).settings_type, list(words), owner=task)[0]


def filled(settings, folder):
    """Copy settings, with a folder for the word HERE."""
    copied = copy.copy(settings)
    for name, value in vars(settings).items():
        is_block = hasattr(value, "__dataclass_fields__")
        own = filled(value, folder) if is_block else copy.deepcopy(value)
        setattr(copied, name, own.replace("HERE", folder) if isinstance(own, str) else own)
    return copied


@dataclass
class Reader:
    """A reader: its task and overrides, its files, a good one with its number of examples."""

    task: str
    name: str
    good: str
    num_rows: int
    words: tuple = ()
    beside: dict = None

    def read(self, folder, content, name=None):
        for other, text in (self.beside or {}).items():
            (folder / other).write_bytes(text if isinstance(text, bytes) else text.encode())
        file = folder / (name or self.name)
        if content is not None:
            file.write_bytes(content)
        task = registry.find(self.task)(filled(composed(self.task, self.words), str(folder)))
        files = task.files(task.settings.model.test_ds) if "model.test_ds" in " ".join(self.words) else []
        outcomes = []
        # Large files give the same, also by parts; numbers that stand for ids begin in each part.
        for streams in (record_streams.large_files_streamed([]), divided(), nullcontext()):
            try:
                with streams:
                    examples = task.read_files(files) if files else task.read(file)
                    outcomes.append([item for part in parallel_passes.by_parts(examples, list) for item in part])
            except InputError as error:
                outcomes.append(str(error))
        streamed, by_parts, held = outcomes
        assert streamed == held
        assert list(map(without_id, by_parts)) == list(map(without_id, held))
        if isinstance(held, str):
            raise InputError(held)
        return held


class Prompts(Reader):
    """The prompts of `megabert generate`."""

    def read(self, folder, content, name=None):
        if content is not None:
            (folder / self.name).write_bytes(content)
        return list(read_prompts(GenerateSettings(file=str(folder / self.name))))


TWO = ("model.dataset.data_dir=HERE", "model.test_ds.text_file=text.txt", "model.test_ds.labels_file=labels.txt")
FOLDER = ("model.data_dir=HERE", "model.test_ds.prefix=.")
IN, OUT, LABEL = {"seq.in": "go home\nplay\n"}, {"seq.out": "O B-x\nO\n"}, {"label": "a\nb\n"}
NEMO = ("model.data_dir=HERE", "model.test_ds.prefix=test")
MCTEST = "\t".join(["s1", "Author: 1", "good\\newlineday", *(["one: who?", "a", "b", "c", "d"] * 4)]) + "\n"
READERS = {
    "table": Reader("text_classification", "x.tsv", "good one\ta\nbad\tb\n", 2),
    "header": Reader("text_classification", "x.tsv", "id\ttext\tlabel\n1\tgood one\ta\n2\tbad\tb\n", 2),
    "json": Reader(
        "text_classification", "x.jsonl", '{"text": "good one", "label": "a"}\n{"text": "b", "label": 2}\n', 2
    ),
    "blanks": Reader("text_classification", "x.txt", "good one 1\nbad 0\n", 2),
    "columns": Reader("token_classification", "x.conll", "Marie B-PER\nis O\n\nParis B-LOC\n", 2),
    "tabs": Reader("token_classification", "x.tsv", "Marie\tB-PER\nis\tO\n\nParis\tB-LOC\n", 2),
    "tags in json": Reader("token_classification", "x.jsonl", '{"tokens": ["a", "b"], "tags": ["O", "B-X"]}\n', 1),
    "two files, text": Reader(
        "token_classification", "text.txt", "Marie is\nParis\n", 2, TWO, {"labels.txt": "B-PER O\nB-LOC\n"}
    ),
    "two files, labels": Reader(
        "token_classification", "labels.txt", "B-PER O\nB-LOC\n", 2, TWO, {"text.txt": "Marie is\nParis\n"}
    ),
    "relations": Reader(
        "relation_extraction", "x.jsonl",
        '{"text": "a b", "head": {"start": 0, "end": 1}, "tail": {"start": 2, "end": 3}, "label": "x"}\n', 1,
    ),
    "glue": Reader("glue", "x.tsv", "sentence\tlabel\ngood one\t1\nbad\t0\n", 2, ("model.task_name=sst-2",)),
    "cola": Reader("glue", "x.tsv", "a\t1\t\tgood one\nb\t0\t*\tbad\n", 2, ("model.task_name=cola",)),
    "mrpc": Reader(
        "glue", "x.tsv", "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t2\t3\ta\tb\n", 1, ("model.task_name=mrpc",)
    ),
    "seq.in": Reader("intent_slot", "seq.in", "go home\nplay\n", 2, FOLDER, OUT | LABEL),
    "seq.out": Reader("intent_slot", "seq.out", "O B-x\nO\n", 2, FOLDER, IN | LABEL),
    "label": Reader("intent_slot", "label", "a\nb\n", 2, FOLDER, IN | OUT),
    "nemo intents": Reader(
        "intent_slot", "test.tsv", "sentence\tlabel\ngo home\t0\nplay\t1\n", 2, NEMO,
        {"test_slots.tsv": "1 0\n1\n", "dict.intents.csv": "a\nb\n", "dict.slots.csv": "x\nO\n"},
    ),
    "intents in json": Reader("intent_slot", "x.jsonl", '{"tokens": ["a"], "tags": ["O"], "intent": "x"}\n', 1),
    "plain text": Reader("punctuation_capitalization", "x.txt", "Good, is it?\nNo.\n", 2),
    "marks": Reader(
        "punctuation_capitalization", "labels.txt", ",U OO ?O\n.U\n", 2, TWO, {"text.txt": "good is it\nno\n"}
    ),
    "choices": Reader(
        "multiple_choice", "x.jsonl",
        '{"question": "good", "choices": ["x", "y"], "label": "A"}\n{"question": "b", "choices": ["x", "y"]}\n', 2,
    ),
    "race": Reader(
        "multiple_choice", "x.txt",
        '{"article": "a", "questions": ["good _", "b"], "options": [["x", "y"], ["z", "w"]], "answers": ["A", "B"]}\n',
        2,
    ),
    "dream": Reader(
        "multiple_choice", "x.json",
        '[[["M: good", "W: b"],\n[{"question": "a", "choice": ["x", "y"], "answer": "y"}], "1"]]\n', 1,
    ),
    "mctest": Reader(
        "multiple_choice", "x.tsv", MCTEST, 4, (),
        {"x.ans": "A\tB\tC\tD\n"},
    ),
    "mmlu": Reader("multiple_choice", "x.csv", 'good,"a, b",c,d,e,B\nwhat,a,b,c,d,A\n', 2),
    "pubmedqa": Reader(
        "text_classification", "x.json",
        '{"1": {"QUESTION": "good", "CONTEXTS": ["a", "b"], "final_decision": "yes"},\n'
        '"2": {"QUESTION": "b", "CONTEXTS": ["a"], "final_decision": "no"}}\n', 2,
    ),
    "bioasq": Reader(
        "bioasq", "x.json",
        '{"questions": [\n{"id": "1", "type": "factoid", "body": "good", "snippets": [{"text": "a"}]},'
        '{"id": "2", "type": "yesno", "body": "b", "snippets": [{"text": "a"}], "exact_answer": "yes"}]}\n', 2,
    ),
    "dialogues": Reader(
        "dialogue_state_tracking", "x.json",
        '[\n{"dialogue_id": "1", "services": ["A"], "turns": [{"speaker": "USER", "utterance": "good",\n"frames": '
        '[{"service": "A", "state": {"active_intent": "NONE", "requested_slots": [], "slot_values": {}}}]}]}]\n', 1, (),
        {"schema.json": '[{"service_name": "A", "description": "a", "slots": [], "intents": []}]'},
    ),
    "schema": Reader(
        "dialogue_state_tracking", "schema.json",
        '[\n{"service_name": "A", "description": "good", "slots": [], "intents": []}]\n', 1,
        ("model.dataset.data_dir=HERE", "model.test_ds.ds_item=."),
        {"dialogues_001.json": '[{"dialogue_id": "1", "services": ["A"], "turns": ['
                               '{"speaker": "USER", "utterance": "a", "frames": []}]}]'},
    ),
    "medmcqa": Reader(
        "multiple_choice", "x.jsonl",
        '{"id": "1", "question": "good", "opa": "x", "opb": "y", "opc": "z", "opd": "w", "cop": 4, "exp": null}\n'
        '{"id": "2", "question": "b", "opa": "x", "opb": "y", "opc": "z", "opd": "w"}\n', 2,
    ),
    "medqa": Reader(
        "multiple_choice", "x.jsonl",
        '{"question": "good", "answer": "x", "options": {"A": "x", "B": "y"}, "answer_idx": "A"}\n'
        '{"question": "b", "answer": "y", "options": {"A": "x", "B": "y"}, "answer_idx": "B"}\n', 2,
    ),
    "squad": Reader(
        "question_answering", "x.json",
        '{"data": [\n{"paragraphs": [{"context": "a b", "qas": [{"id": "1", "question": "q", "answers": []}]}]}]}\n', 1,
    ),
    "lambada": Reader("causal_language_model", "x.jsonl", '{"text": "good words"}\n{"text": "b c"}\n', 2),
    "wikitext": Reader(
        "causal_language_model", "x.txt", "good words\nb c\n", 1, ("model.dataset.overlapping_eval=8",)
    ),
    "prompts": Prompts("", "x.txt", "good\nb\n", 2),
    "prompts in json": Prompts("", "x.jsonl", '{"prompt": "good"}\n{"prompt": "b", "id": 1}\n', 2),
    "inference": Reader("zero_shot", "x.tsv", "premise\thypothesis\tlabel\na\tb\tentailment\n", 1),
}  # fmt: skip

# For every reader: how the good file is damaged, and the expected message, or that all rows are read.
ALL = "all rows"
EVERYWHERE = {
    "empty": (lambda good: b"", "is empty|holds no text"),
    "blanks only": (lambda good: b" \n\n \n", "is empty|holds no text"),
    "BOM": (lambda good: b"\xef\xbb\xbf" + good, ALL),
    "CRLF": (lambda good: good.replace(b"\n", b"\r\n"), ALL),
    "BOM and CRLF": (lambda good: b"\xef\xbb\xbf" + good.replace(b"\n", b"\r\n"), ALL),
    "lone CR": (lambda good: good.replace(b"\n", b"\r"), ALL),
    "no end of the last line": (lambda good: good.rstrip(b"\n"), ALL),
    "invalid UTF-8": (lambda good: good[:2] + b"\xff" + good[2:], r":[12]: not UTF-8 text: byte 0xff"),
    "cut UTF-8": (lambda good: good + b"\xe2\x82", "not UTF-8"),
    "latin-1": (lambda good: "é".encode("latin-1") + good, ":1: not UTF-8"),
    "surrogate": (lambda good: b"\xed\xa0\x80" + good, ":1: not UTF-8"),
    "overlong": (lambda good: b"\xc0\xaf" + good, ":1: not UTF-8"),
    "UTF-16": (lambda good: good.decode().encode("utf-16"), "not UTF-8"),
    "UTF-16 without BOM": (lambda good: good.decode().encode("utf-16-le"), "a NUL character"),
    "NUL at the end": (lambda good: good + b"\0", "a NUL character"),
    "NUL": (lambda good: good[:1] + b"\0" + good[1:], ":1: a NUL character"),
    "gzip": (lambda good: gzip.compress(good, mtime=0), ALL),
    "CRLF, no end of the last line": (lambda good: good.rstrip(b"\n").replace(b"\n", b"\r\n"), ALL),
    "beyond Unicode": (lambda good: b"\xf4\x90\x80\x80" + good, ":1: not UTF-8"),
    "a lone continuation byte, late": (lambda good: good[:-2] + b"\x80" + good[-2:], "not UTF-8 text: byte 0x80"),
    "UTF-32": (lambda good: good.decode().encode("utf-32"), "not UTF-8"),
    "UTF-16, big end first, without BOM": (lambda good: good.decode().encode("utf-16-be"), "a NUL character"),
    "PNG": (lambda good: b"\x89PNG\r\n\x1a\n\0\0", "not UTF-8"),
}
WORDS = {  # put into the first text: none of them ends a line or a word where it should not
    "accents": "naïve", "Greek": "β-actin", "Chinese": "中文", "emoji": "👩\u200d🔬", "right to left": "שלום",
    "a dash": "IL-2", "no-break space": "10\u00a0000", "zero width": "a\u200bb", "line separator": "a\u2028b",
    "next line": "a\u0085b", "form feed": "a\x0cb", "a long word": "x" * 100_000,
}  # fmt: skip
HOLDS_WORDS = {"table": "good", "header": "good", "json": "good", "blanks": "good", "columns": "Marie", "tabs": "Marie",
               "two files, text": "Marie", "glue": "good", "cola": "good", "seq.in": "home", "nemo intents": "home",
               "plain text": "Good",
               "choices": "good", "race": "good", "dream": "good", "mctest": "good", "mmlu": "good",
               "dialogues": "good"}  # fmt: skip


@pytest.mark.parametrize("case", EVERYWHERE)
@pytest.mark.parametrize("name", READERS)
def test_damaged_text_files(name, case, tmp_path):
    reader, (damage, expected) = READERS[name], EVERYWHERE[case]
    content = damage(reader.good.encode())
    if expected is ALL:
        assert len(reader.read(tmp_path, content)) == reader.num_rows
        return
    with pytest.raises(InputError, match=expected) as caught:
        reader.read(tmp_path, content)
    assert str(tmp_path / reader.name) in str(caught.value)


@pytest.mark.parametrize("name", [name for name in READERS if name != "schema"])  # a dialogue may have its own
def test_a_file_that_is_not_there_or_is_a_folder(name, tmp_path):
    reader = READERS[name]
    with pytest.raises(InputError, match=r"cannot be read: No such file|does not exist\. Give a text"):
        reader.read(tmp_path, None)
    (tmp_path / reader.name).mkdir()
    with pytest.raises(InputError, match=r"cannot be read|is a folder|holds no "):
        reader.read(tmp_path, None)


@pytest.mark.parametrize("case", WORDS)
@pytest.mark.parametrize("name", HOLDS_WORDS)
def test_no_character_loses_a_row(name, case, tmp_path):
    reader = READERS[name]
    content = reader.good.replace(HOLDS_WORDS[name], WORDS[case], 1)
    if name in ("json", "choices", "race", "dream", "dialogues"):
        content = content.replace("\x0c", "\\f")
    found = reader.read(tmp_path, content.encode())
    assert len(found) == reader.num_rows
    assert WORDS[case] in getattr(found[0], "text", "") or WORDS[case] in found[0].question + found[0].passage


NO_TEXT = (
    gzip.compress(b"good words\n" * 99, mtime=0)[:-9], gzip.compress(b"", mtime=0), b"\xfd7zXZ\0good",
    b"PK\x03\x04\x14\0\0\0", b"\x80\x04\x95\x0b\0", b"%PDF-1.7\n%\xe2\xe3\n", b"\xff\xd8\xff\xe0",
    b"\xd0\xcf\x11\xe0\xa1\xb1", b"SQLite format 3\0", b"x.txt" + bytes(99), b"PAR1\x15\0", b"\x93NUMPY\x01\0",
    b"\x10\0\0\0\0\0\0\0{}", b"\xef\xbb\xbf",
)  # fmt: skip
"""Cut and empty archives, pickle, PDF, JPEG, Word, SQLite, tar, Parquet, numpy, safetensors, nothing but a BOM."""


@pytest.mark.parametrize("name", ["mctest", "mmlu", "wikitext", "lambada", "prompts", "prompts in json"])
def test_files_that_are_no_text(name, tmp_path):
    for content in NO_TEXT:
        with pytest.raises(InputError, match=r"not UTF-8|a NUL character|is empty|holds no text|is damaged or"):
            READERS[name].read(tmp_path, content)


@pytest.mark.parametrize(
    ("start", "kind"), [(b"PAR1\x15\0", "Parquet"), (b"%PDF-1.7\n%\xe2", "PDF"), (b"\xff\xfea\0", "UTF-16")]
)
def test_the_kind_of_a_file_that_is_no_text_is_named(start, kind, tmp_path):
    with pytest.raises(InputError, match=f"It is .*{kind}"):
        READERS["table"].read(tmp_path, start)


def bioasq(**values):
    """BioASQ's file with one question."""
    question = {"id": "1", "type": "factoid", "body": "a", "snippets": [{"text": "a"}], "exact_answer": [["a"]]}
    return json.dumps({"questions": [question | values]})


PLACED = [
    ("table", "a\tb\tc\td\n", ":1: 4 columns; expected at most 2"),
    ("table", "good\ta\nbad\n", ":2: 1 columns where 2 are expected"),
    ("table", "good\ta\nbad\tb\tc\n", ":2: 3 columns where 2"),
    ("table", "good\ta\n\n\nbad\n", ":4: 1 columns"),
    ("table", "\ta\n", ":1: the text is empty"),
    ("table", "good\t \n", ":1: the label is ' '"),
    ("table", "text\tlabel\n", "no rows but a header"),
    ("table", "text\ttext\tlabel\na\tb\tc\n", "a column's name appears twice"),
    ("table", "id\tlabel\n1\ta\n", ":2: there is no text"),
    ("header", "id\ttext\tlabel\n1\ta\tx\n1\tb\ty\n", ":3: the id '1' is that of .*:2 too"),
    ("blanks", "good 1\nbad\n", ":2: no label at the end"),
    ("json", '{"text": "a", "label": 1}\n{"text": \n', ":2: not JSON"),
    ("json", "[1]\n", ":1: a JSON list; expected an object"),
    ("json", '{"text": 3, "label": 1}\n', ":1: the text is 3"),
    ("json", '{"text": null, "label": 1}\n', ":1: there is no text"),
    ("json", '{"text": "a", "label": [1]}\n', r":1: the label is \[1\]"),
    ("json", '{"text": "a", "label": {}}\n', r":1: the label is \{\}"),
    ("json", '{"text": "a", "label": ""}\n', r":1: the label is ''"),
    ("json", '{"text": "a"} {"text": "b"}\n', ":1: not JSON"),
    ("json", '{"id": 1, "text": "a"}\n{"id": 1, "text": "b"}\n', ":2: the id 1 is that of"),
    ("json", "[" * 100_000 + "\n", ":1: not JSON"),
    ("choices", '{"question": "a", "choices": ["x", "y"], "label": 2}\n{}\n', ":1: the answer 2 is none of the 2"),
    ("choices", '{"question": "a", "choices": ["x", "y"], "label": "C"}\n{}\n', ":1: the answer 'C' is none"),
    ("choices", '{"question": "a", "choices": ["x", "x"], "label": "x"}\n{}\n', ":1: the answer 'x' is 2 of"),
    ("choices", '{"question": "a", "choices": ["x", "y"], "label": true}\n{}\n', ":1: the answer True is none"),
    ("choices", '{"question": "a", "choices": ["x"]}\n{}\n', ":1: the choices are .* expected two or more strings"),
    ("choices", '{"question": "a", "choices": ["x", " "]}\n{}\n', ":1: the choices are"),
    ("choices", '{"question": "a", "choices": "xy"}\n{}\n', ":1: the choices are"),
    ("choices", '{"question": "a"}\n{}\n', ":1: there is no 'choices'"),
    ("choices", '{"question": " ", "choices": ["x", "y"]}\n{}\n', ":1: 'question' is ' '"),
    ("choices", '{"question": "a", "choices": ["x", "y"], "passage": 3}\n{}\n', ":1: 'passage' is a int"),
    ("choices", '{"question": "a", "opa": "x", "opb": "y", "opc": "z", "opd": "w", "cop": 5}\n{}\n', "none of the 4"),
    ("choices", '{"question": "a", "opa": "x", "opb": "y", "opc": "z"}\n{}\n', ":1: there is no 'opd'"),
    ("choices", '{"id": 1, "question": "a", "choices": ["x", "y"]}\n' * 2, ":2: the id '1' is that of .*:1, too"),
    ("race", '{"article": "a", "questions": ["b"], "options": [["x", "y"]], "answers": []}', "not RACE's format"),
    ("race", '{"article": "a", "questions": ["b"], "options": [["x", "y"]], "answers": ["E"]}', "question 1: the ans"),
    ("race", "[" * 100_000, "nested too deeply"),
    ("race", "3", "expected multiple-choice questions"),
    ("dream", "[[1, 2]]", r"\[0\] is not DREAM's format"),
    ("dream", '[[["a"], [{"question": "b"}], "1"]]', r"\[0\]\[1\]\[0\]: expected an object of question"),
    ("dream", "[[\n", "x.json:1:3: not JSON|x.json:2:1: not JSON"),
    ("mctest", "a\tb\n", ":1: 2 columns; MCTest's have 23"),
    ("mctest", MCTEST.replace("\td\n", "\n"), ":1: 22 columns"),
    ("mctest", MCTEST[:-1] + "\te\n", ":1: 24 columns"),
    ("mctest", MCTEST * 2, "1 lines for the 2 stories"),
    ("mctest", MCTEST.replace("who?", " ", 1), ":1, question 1: 'question' is ' '"),
    ("mctest", MCTEST.replace("\ta\t", "\t \t", 1), ":1, question 1: the choices are"),
    ("mctest", MCTEST.replace("\td\tone", "\t\tone", 1), ":1, question 1: the choices are"),
    ("mmlu", "a,b,A\n", ":1: 3 columns; expected question"),
    ("mmlu", "good,b,c,d,e,\n,b,c,d,e,A\n", ":2: 'question' is ''"),
    ("mmlu", "good,b,,d,e,A\n", ":1: the choices are"),
    ("mmlu", "good,b,c,d,e,F\n", ":1: the answer 'F' is none"),
    ("mmlu", "good,b,c,d,e,4\n", ":1: the answer '4' is none"),
    ("mmlu", 'good,b,c,d,e,A\n"x\n', ":3|:2"),
    ("prompts in json", '{"prompt": 3}\n', ":1: 'prompt' is 3"),
    ("prompts in json", '{"prompt": null}\n', ":1: 'prompt' is None"),
    ("prompts in json", '{"prompt": " "}\n', ":1: 'prompt' is ' '"),
    ("prompts in json", '{"prompt": ["a"]}\n', ":1: 'prompt' is"),
    ("prompts in json", '{"text": "a"}\n', ":1: there is no 'prompt'"),
    ("prompts in json", '{"prompt": "a"}\n{"prompt": \n', ":2: not JSON"),
    ("prompts in json", '["a"]\n', ":1: a JSON list"),
    ("prompts in json", '"a"\n', ":1: a JSON str"),
    ("prompts in json", '{"prompt": "\\ud800"}\n', ":1: .*surrogate"),
    ("prompts in json", '{"prompt": "a"} {"prompt": "b"}\n', ":1: not JSON"),
    ("prompts in json", "[" * 100_000 + "\n", ":1: not JSON"),
    ("mmlu", "a,b,c,Z\n", ":1: the answer 'Z' is none"),
    ("pubmedqa", '["CONTEXTS"]', "not PubMedQA's format"),
    ("pubmedqa", '{"1": ["CONTEXTS"]}', "x.json: 1: a JSON list; expected an object"),
    ("pubmedqa", '{"1": {"QUESTION": "a", "CONTEXTS": []}}', "x.json: 1: 'CONTEXTS' is"),
    ("pubmedqa", '{"1": {"QUESTION": "a", "CONTEXTS": "b"}}', "x.json: 1: 'CONTEXTS' is"),
    ("pubmedqa", '{"1": {"CONTEXTS": ["b"]}}', "x.json: 1: there is no 'QUESTION'"),
    ("pubmedqa", '{"1": {"QUESTION": 3, "CONTEXTS": ["b"]}}', "x.json: 1: 'QUESTION' is 3"),
    ("pubmedqa", '{"1": {"QUESTION": "a", "CONTEXTS": ["b"], "final_decision": null}}', "1: final_decision is 'None'"),
    ("pubmedqa", '{"1": {"QUESTION": "a", "CONTEXTS": ["b"], "final_decision": "Yes"}}', "expected yes, no, maybe"),
    ("pubmedqa", '{"1": {"CONTEXTS": ["a"], "QUESTION": "a"}, "1": {}}', "an object has the name '1' twice"),
    ("pubmedqa", '{"1": {"QUESTION": "a", "CONTEXTS": ["b"]\n', "not JSON"),
    ("bioasq", '{"questions": {}}', "not BioASQ's format"),
    ("bioasq", '{"questions": []}', "holds no questions"),
    ("bioasq", "[]", "not BioASQ's format"),
    ("bioasq", '{"questions": [\n', "x.json:2:1: not JSON|x.json:1:16: not JSON"),
    ("bioasq", '{"questions": [3]}', r"questions\[0\] is no object with an id"),
    ("bioasq", '{"questions": [{"type": "list"}]}', r"questions\[0\] is no object with an id"),
    ("bioasq", bioasq(type="essay"), r"questions\[0\] \(id '1'\): the type is 'essay'"),
    ("bioasq", bioasq(snippets=None), "snippets is 'None'; expected a list of objects"),
    ("bioasq", bioasq(snippets=["a"]), "expected a list of objects with a text"),
    ("bioasq", bioasq(snippets=[]), "there are no snippets"),
    ("bioasq", bioasq(snippets=[{"text": " "}]), "there are no snippets"),
    ("bioasq", bioasq(body=""), "'body' is ''"),
    ("bioasq", bioasq(exact_answer=3), "the exact answer is '3'; expected lists of synonyms"),
    ("bioasq", bioasq(exact_answer=[[3]]), "expected lists of synonyms"),
    ("bioasq", bioasq(exact_answer=[]), "expected lists of synonyms"),
    ("bioasq", bioasq(exact_answer=[[" "]]), "expected lists of synonyms"),
    ("bioasq", bioasq(type="yesno", exact_answer="maybe"), "expected yes or no"),
    ("bioasq", bioasq(type="yesno", exact_answer=[["yes"]]), "expected yes or no"),
    ("bioasq", bioasq()[:-2] + ", " + bioasq()[15:], "two questions have the id '1'"),
    ("columns", "a O\nb\n", ":2: 1 columns where other lines have 2"),
    ("columns", "a O\nb c O\n", ":2: 3 columns where"),
    ("columns", "a B-X\nb Y\n", ":2: the tag 'Y' is neither O nor"),
    ("columns", "a O\n\nb I-\n\nc B-X\n", ":3: the tag 'I-' is neither"),
    ("columns", "-DOCSTART- O\n", "holds no sentences"),
    ("tabs", "a\tO\nb\t\nc\tB-X\n", ":2: a word or a tag is missing"),
    ("tabs", "a\tO\n\tB-X\n", ":2: a word or a tag is missing"),
    ("tags in json", '{"tokens": ["a", "b"], "tags": ["O"]}\n', ":1: 1 tags for 2 words"),
    ("tags in json", '{"tokens": [], "tags": ["O"]}\n', ":1: 'tokens' is '\\[\\]'; expected a list"),
    ("tags in json", '{"tokens": "a b", "tags": ["O"]}\n', "expected a list of strings"),
    ("tags in json", '{"tokens": [1], "tags": ["O"]}\n', "expected a list of strings"),
    ("tags in json", '{"words": ["a"]}\n{"x": 1}\n', ":2: there is no 'words'"),
    ("two files, text", "Marie\nParis\n", "labels.txt:1: 2 tags for the 1 words of .*text.txt:1"),
    ("two files, text", "Marie is\n", "text.txt has 1 lines, .*labels.txt has 2"),
    ("two files, labels", "B-PER O\n", "text.txt has 2 lines, .*labels.txt has 1"),
    ("two files, labels", "B-PER\nB-LOC\n", "labels.txt:1: 1 tags for the 2 words"),
    ("two files, labels", "B-PER O\nLOC\n", "text.txt:2: the tag 'LOC' is neither"),
    ("relations", '{"text": "a b", "head": {"start": 0, "end": 1}, "label": "x"}\n', ":1: there is no 'tail'"),
    ("relations", '{"text": "a", "head": {"start": 0, "end": 9}, "tail": {}}\n', ":1: the head is .*which has 1"),
    ("relations", '{"text": "ab", "head": {"start": 1, "end": 1}, "tail": {}}\n', ":1: the head is"),
    ("relations", '{"text": "ab", "head": [0, 1], "tail": {}}\n', ":1: the head is"),
    ("relations", '{"text": "ab", "head": {"start": 0, "end": 1}, "tail": {"start": "0"}}\n', ":1: the tail is"),
    ("relations", '{"text": "", "head": {}, "tail": {}}\n', ":1: 'text' is ''"),
    ("glue", "sentence\tlabel\na\tb\n", ":2: the label 'b' is none of SST-2's 0, 1"),
    ("glue", "sentence\tlabel\na\n", ":2: 1 columns where the first line has 2"),
    ("glue", "text\tlabel\na\t1\n", ":1: not a file of SST-2: its header should name sentence"),
    ("cola", "a\t1\tgood\n", ":1: not a file of CoLA"),
    ("cola", "a\t1\t\tgood\nb\t1\n", ":2: 2 columns"),
    ("cola", "a\t2\t\tgood\n", ":1: the label '2' is none"),
    ("mrpc", "Quality\t#1 String\t#2 String\n1\ta\n", ":2: 2 columns"),
    ("seq.in", "go home\n", "seq.in has 1 lines, seq.out 2, label 2"),
    ("seq.in", "go\nplay\n", "seq.in:1: 2 slots for 1 words"),
    ("seq.in", "go home\n \n", "seq.in:2: the line is empty"),
    ("seq.out", "O\nO\n", "seq.in:1: 1 slots for 2 words"),
    ("seq.out", "O B-\nO\n", "seq.in:1: the tag 'B-' is neither"),
    ("label", "a\n\n", "label:2: the line is empty"),
    ("label", "a\n", "seq.out 2, label 1"),
    ("nemo intents", "sentence\tlabel\ngo home\t2\nplay\t1\n", ":2: '2' is no number of the 2 lines of .*dict.intents"),
    ("nemo intents", "sentence\tlabel\ngo home\tx\nplay\t1\n", ":2: 'x' is no number"),
    ("nemo intents", "sentence\tlabel\ngo home 0\nplay\t1\n", ":2: expected a sentence, a tab"),
    ("nemo intents", "sentence\tlabel\ngo home\t0\n", "1 utterances below its header, .* has 2 lines"),
    ("nemo intents", "go home\t0\nplay\t1\n", "1 utterances below its header"),
    ("intents in json", '{"tokens": ["a"], "tags": ["O"], "intent": 3}\n', ":1: 'intent' is 3"),
    ("intents in json", '{"tokens": ["a"], "tags": ["O"], "intents": ["x", "y"]}\n', ":1: 2 intents; expected one"),
    ("intents in json", '{"tokens": ["a"], "tags": ["O", "O"], "intent": "x"}\n', ":1: 2 tags for 1 words"),
    ("intents in json", '{"intent": "x"}\n', ":1: there is no 'text'"),
    ("marks", ",U OO\n.U\n", "labels.txt:1: 2 tags for the 3 words"),
    ("marks", ",U OO ?\n.U\n", "text.txt:1: the label '\\?'; expected two letters"),
    ("marks", ",U OO ?OO\n.U\n", "text.txt:1: the label '\\?OO'"),
    ("inference", "premise\thypothesis\tlabel\na\tb\n", ":2: 2 columns where 3"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "message"), PLACED)
def test_malformed_lines_are_reported_with_their_location(name, content, message, tmp_path):
    with pytest.raises(InputError, match=message):
        READERS[name].read(tmp_path, content.encode())


def test_a_line_of_a_million_characters_is_read(tmp_path):
    (example,) = READERS["table"].read(tmp_path, b"word " * 200_000 + b"\tx\n")
    assert len(example.text) == 1_000_000


def test_qqp_s_three_broken_rows_are_left_out_and_a_fourth_is_not(tmp_path):
    reader = Reader("glue", "train.tsv", "", 1, ("model.task_name=qqp",))
    good = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n1\t2\t3\ta\tb\t1\n"
    assert len(reader.read(tmp_path, f"{good}4\t5\n6\t7\n8\t9\n".encode())) == 1
    with pytest.raises(InputError, match=":3: 2 columns where the first line has 6"):
        reader.read(tmp_path, f"{good}4\t5\n6\t7\n8\t9\n9\t9\n".encode())


CHEMPROT = {
    "abstracts": "1\tAspirin and p53\tAspirin inhibits COX-2. It does not bind p53.\n",
    "entities": "1\tT1\tCHEMICAL\t0\t7\tAspirin\n1\tT2\tGENE-Y\t12\t15\tp53\n1\tT3\tCHEMICAL\t16\t23\tAspirin\n"
    "1\tT4\tGENE-N\t33\t38\tCOX-2\n1\tT5\tGENE-Y\t57\t60\tp53\n",
    "relations": "1\tCPR:4\tY\tINHIBITOR\tArg1:T3\tArg2:T4\n1\tCPR:10\tN\tNOT\tArg1:T3\tArg2:T5\n",
}


def chemprot(folder, **changed):
    for name, content in (CHEMPROT | changed).items():
        (folder / name).write_text(content)
    return read_chemprot(folder / "abstracts", folder / "entities", folder / "relations")


def test_chemprot_s_own_files_become_pairs(tmp_path):
    rows = {row["id"]: row for row in chemprot(tmp_path).rows}
    # The title has no full stop: it goes on into the first sentence.
    assert {name: row["label"] for name, row in rows.items()} == {
        "1.T1.T2": "false", "1.T1.T4": "false", "1.T3.T2": "false", "1.T3.T4": "CPR:4",
    }  # fmt: skip
    row = rows["1.T3.T4"]
    assert row["text"] == "Aspirin and p53 Aspirin inhibits COX-2."
    assert row["text"][row["head"]["start"] : row["head"]["end"]] == "Aspirin"
    assert row["text"][row["tail"]["start"] : row["tail"]["end"]] == "COX-2"


def test_related_pairs_of_different_sentences_are_not_lost(tmp_path):
    corpus = chemprot(tmp_path, relations="1\tCPR:3\tY\tACTIVATOR\tArg1:T3\tArg2:T5\n")
    (row,) = [row for row in corpus.rows if row["label"] == "CPR:3"]
    assert row["text"].endswith("It does not bind p53.")
    assert "1 related pairs are in different sentences" in " ".join(corpus.notes)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"abstracts": "1\ta\n"}, "abstracts:1: 2 columns where ChemProt's file has 3"),
        ({"abstracts": CHEMPROT["abstracts"] * 2}, "abstracts:2: article 1 appears twice"),
        ({"entities": "2\tT1\tCHEMICAL\t0\t7\tAspirin\n"}, "entities:1: article 2 is not among the abstracts"),
        ({"entities": "1\tT1\tCHEMICAL\t1\t7\tAspirin\n"}, "entities:1: 'Aspirin' is not at characters 1 to 7"),
        ({"entities": "1\tT1\tCHEMICAL\tx\t7\tAspirin\n"}, "entities:1: 'Aspirin' is not at"),
        ({"entities": "1\tT1\tDRUG\t0\t7\tAspirin\n"}, "entities:1: the type 'DRUG'"),
        ({"entities": "1\tT1\tCHEMICAL\t0\t7\tAspirin\n" * 2}, "entities:2: T1 appears twice"),
        ({"relations": "1\tCPR:4\tY\tINHIBITOR\tArg1:T9\tArg2:T4\n"}, "relations:1: article 1 has no entity 'T9'"),
        ({"relations": "1\tCPR:4\n"}, "relations:1: 2 columns"),
    ],
)
def test_inconsistent_chemprot_files(changed, message, tmp_path):
    with pytest.raises(InputError, match=message):
        chemprot(tmp_path, **changed)
