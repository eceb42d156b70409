"""Training data that are tokenized in blocks: the same numbers and warnings as at once, in bounded memory."""

import tracemalloc
import warnings

import numpy as np
import pytest

from megabert.config.parser import compose
from megabert.data import feature_cache
from megabert.data.fingerprint import fingerprint
from megabert.errors import ConfigError, InputWarning
from megabert.formats import json_reader, parallel_passes, record_streams
from megabert.tasks import registry, task_data
from megabert.tasks.task_data import load_training_data
from megabert.tokenizers.wordpiece import Tokenizer
from tests.tasks.test_contract import CASES

LETTERS = [chr(code) for code in range(ord("a"), ord("z") + 1)]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TOKENIZER = Tokenizer([*SPECIAL, *LETTERS, *(f"##{letter}" for letter in LETTERS)], lower_case=True)
CACHED = [
    name
    for name, case in CASES.items()
    if (kind := registry.find(case.task)).caches_features and not kind.groups_sequences
]


def load(name, folder, *words):
    case = CASES[name]
    (folder / case.file).write_text(case.content)
    settings = [f"model.train_ds.file={folder / case.file}", *case.words, *words]
    task = registry.find(case.task)(compose(registry.find(case.task).settings_type, settings, owner=case.task)[0])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data = load_training_data(task, TOKENIZER, task.settings.model, folder / "cache", learn_labels=True)
    return data, sorted(str(item.message) for item in caught if issubclass(item.category, InputWarning))


@pytest.mark.parametrize("name", CACHED)
def test_features_of_streams_in_blocks_equal_those_of_all_examples_at_once(name, tmp_path, monkeypatch):
    lengths = ("model.dataset.max_seq_length=40",)
    if name == "question_answering":
        lengths = (*lengths, "model.dataset.max_query_length=20", "model.dataset.doc_stride=8")
    whole, messages = load(name, tmp_path, "model.train_ds.use_cache=false", *lengths)
    monkeypatch.setattr(task_data, "BLOCK_SIZE", 1)
    monkeypatch.setattr(record_streams, "MAX_HELD", -1)
    made, cached = (load(name, tmp_path, *lengths) for _ in range(2))
    for limit in ("MIN_SIZE", "PART_SIZE"):
        monkeypatch.setattr(parallel_passes, limit, 1)
    (tmp_path / "cache").rename(tmp_path / "serial")
    by_processes = load(name, tmp_path, *lengths)
    entries = [[file.read_bytes() for file in sorted((tmp_path / kind).glob("*/*"))] for kind in ("serial", "cache")]
    assert entries[0] == entries[1]
    for data, own in (made, cached, by_processes):
        assert own == messages
        assert (data.num_examples, data.labels) == (whole.num_examples, whole.labels)
        assert fingerprint(data.features) == fingerprint(whole.features)
        for left, right in zip(data.features, whole.features, strict=True):
            assert (left.weight, left.parts) == (right.weight, right.parts)
            assert np.array_equal(left.segment_ids, right.segment_ids)


@pytest.mark.parametrize("ending", [".ann", ".con"])
def test_features_are_made_anew_if_a_file_beside_the_named_one_changes(ending, tmp_path):
    def num_tokens(folder):
        kind = registry.find("token_classification")
        words = [f"model.train_ds.file={folder / 'x'}{ending}"]
        task = kind(compose(kind.settings_type, words, owner="token_classification")[0])
        data = load_training_data(task, TOKENIZER, task.settings.model, tmp_path / "cache", learn_labels=True)
        return sum(map(len, data.features))

    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
        (folder / "x.ann").write_text("T1\tT 0 1\ta\n")
        (folder / "x.con").write_text('c="a" 1:0 1:0||t="T"\n')
        (folder / "x.txt").write_text("a b")
    assert num_tokens(folders[0]) == num_tokens(folders[1]) == 4
    assert len(list((tmp_path / "cache").iterdir())) == 1
    (folders[1] / "x.txt").write_text("a b c d")
    assert num_tokens(folders[1]) == 6
    assert num_tokens(folders[0]) == 4


def test_warnings_about_blocks_become_one_about_all_examples(tmp_path, monkeypatch):
    monkeypatch.setattr(task_data, "BLOCK_SIZE", 1)
    _, messages = load(
        "text_classification", tmp_path, "model.dataset.max_seq_length=8", "model.dataset.long_texts=truncate"
    )
    assert [message[:36] for message in messages] == ["3 of 4 examples are truncated to 8 t"]
    assert "x.tsv:1." in messages[0]


WORDS = ["ab", "cd", "efg", "hij"] * 5
RECORDS = {
    "text_classification": ("x.tsv", "", lambda n: f"{' '.join(WORDS)} {n}\t{'ab'[n % 2]}\n", ""),
    "token_classification": (
        "x.conll",
        "",
        lambda n: "".join(f"{word}\t{'OB'[n % 2]}{'-X' * (n % 2)}\n" for word in WORDS) + "\n",
        "",
    ),
    "question_answering": (
        "x.json",
        '{"data": [{"paragraphs": [{"context": "a", "qas": []}',
        lambda n: (
            f', {{"context": "{" ".join(WORDS)} {n}", "qas": [{{"id": {n}, "question": "b?", "answers": '
            '[{"text": "cd", "answer_start": 3}]}]}'
        ),
        "]}]}",
    ),
}


@pytest.mark.parametrize("name", RECORDS)
def test_memory_does_not_grow_with_the_file(name, tmp_path, monkeypatch):
    for module, limit, size in ((task_data, "BLOCK_SIZE", 2**11), (feature_cache, "BLOCK_TOKENS", 2**9)):
        monkeypatch.setattr(module, limit, size)
    monkeypatch.setattr(json_reader, "CHUNK", 2**12)
    file, before, record, after = RECORDS[name]
    kind = registry.find(name)
    peaks = {}
    runs = [(-1, 50), (-1, 200)] + [(2**25, 200)] * (name == "token_classification")
    for held, number in runs:
        monkeypatch.setattr(record_streams, "MAX_HELD", held)
        (tmp_path / file).write_text(before + "".join(map(record, range(number))) + after)
        words = [f"model.train_ds.file={tmp_path / file}"]
        task = kind(compose(kind.settings_type, words, owner=name)[0])
        tracemalloc.start()
        data = load_training_data(
            task, TOKENIZER, task.settings.model, tmp_path / f"cache{held}{number}", learn_labels=True
        )
        peaks[held, number] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert data.num_examples == number
    assert peaks[-1, 200] < 1.5 * peaks[-1, 50]
    assert peaks.get((2**25, 200), 10**9) > 1.5 * peaks[-1, 200]


def test_small_files_that_are_large_together_are_streamed(tmp_path, monkeypatch):
    for name in "ab":
        (tmp_path / f"{name}.tsv").write_text("ab cd\tx\nef\ty\n")
    kind = registry.find("text_classification")
    for held, expected in ((26, list), (25, record_streams.RecordStream)):
        monkeypatch.setattr(record_streams, "MAX_HELD", held)
        task = kind(compose(kind.settings_type, [f"model.train_ds.file={tmp_path}/*.tsv"], owner=kind.name())[0])
        data = task.settings.model.train_ds
        with record_streams.large_files_streamed(task.files(data)):
            examples = task.read_data(data)
        assert isinstance(examples, expected)
        assert [example.text for example in examples] == ["ab cd", "ef"] * 2


def test_a_full_disk_is_an_error_for_a_large_file_only(tmp_path, monkeypatch):
    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(feature_cache.GrowingArray, "append", full)
    assert len(load("text_classification", tmp_path)[0].features) == 4
    monkeypatch.setattr(record_streams, "MAX_HELD", -1)
    with pytest.raises(ConfigError, match=r"The features of 4 examples cannot be written to .*cache, and are too many"):
        load("text_classification", tmp_path)
    assert not list((tmp_path / "cache").iterdir())
