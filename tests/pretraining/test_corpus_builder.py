import itertools
import json
import subprocess
import sys
import time

import numpy as np
import pytest

from megabert.cli import main
from megabert.errors import InputError
from megabert.pretraining import corpus_builder as corpus
from megabert.pretraining.corpus_builder import BuildSettings, build
from megabert.pretraining.indexed_dataset import IndexedDataset
from megabert.tokenizers.wordpiece import Tokenizer

DOCUMENTS = [
    "Marie Curie was born in Warsaw. She found radium.\nIn Paris, she was.",
    "The river Seine is in Paris.",
    "Marie Curie was  born in Warsaw. She found radium.\nIn Paris, she was.",  # the first one, up to a blank
    "The city of Paris.",
    "The river Seine is in Paris.",
]


def contents(prefix):
    tokens = IndexedDataset(prefix)
    return [[sequence.tolist() for sequence in tokens.document(number)] for number in range(tokens.num_documents)]


def write(folder, documents=DOCUMENTS):
    file = folder / "x.txt"
    file.write_text("\n\n".join(documents) + "\n")
    return file


def test_duplicate_documents_are_left_out(tmp_path, vocab_file, monkeypatch):
    file = write(tmp_path)
    tokenizer = Tokenizer.from_file(vocab_file)
    report = build([file], tmp_path / "a", BuildSettings(str(vocab_file)), workers=1)
    sentences = [
        ["Marie Curie was born in Warsaw.", "She found radium.", "In Paris, she was."],
        ["The river Seine is in Paris."],
        ["The city of Paris."],
    ]
    assert contents(tmp_path / "a") == [[ids.tolist() for ids in tokenizer.encode_ids(own)] for own in sentences]
    assert (report.num_documents, report.num_duplicates, report.num_sequences) == (3, 2, 5)
    assert report.num_tokens == IndexedDataset(tmp_path / "a").num_tokens
    build([file], tmp_path / "b", BuildSettings(str(vocab_file), by_sentence=False), workers=1)
    assert contents(tmp_path / "b") == [[list(itertools.chain(*document))] for document in contents(tmp_path / "a")]
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".bin", ".bin", ".idx", ".idx", ".txt"]


def test_the_number_of_processes_and_units_changes_nothing(tmp_path, vocab_file, monkeypatch):
    file = write(tmp_path, [f"{text} {n % 7}" for n in range(40) for text in DOCUMENTS[:2]])
    build([file], tmp_path / "a", BuildSettings(str(vocab_file)), workers=1)
    monkeypatch.setattr(corpus, "UNIT_CHARACTERS", 200)
    build([file], tmp_path / "b", BuildSettings(str(vocab_file)), workers=2)
    for suffix in (".bin", ".idx"):
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


def test_an_interrupted_build_resumes(tmp_path, vocab_file, monkeypatch):
    monkeypatch.setattr(corpus, "UNIT_CHARACTERS", 60)
    file = write(tmp_path)
    build([file], tmp_path / "a", BuildSettings(str(vocab_file)), workers=1)

    class StopError(Exception):
        pass

    def stop(done, num_read):
        if done >= 2:
            raise StopError

    with pytest.raises(StopError):
        build([file], tmp_path / "b", BuildSettings(str(vocab_file)), workers=1, progress=stop)
    assert not (tmp_path / "b.idx").exists()
    made = sorted((tmp_path / "b.work").glob("*.unit"))
    assert made
    before = [unit.stat().st_mtime_ns for unit in made]
    with pytest.raises(InputError, match="other input or settings"):
        build([file], tmp_path / "b", BuildSettings(str(vocab_file), by_sentence=False), workers=1)
    seen = []
    build([file], tmp_path / "b", BuildSettings(str(vocab_file)), workers=1,
          progress=lambda *_: seen.append([unit.stat().st_mtime_ns for unit in made]))  # fmt: skip
    assert seen[-1] == before  # finished units are not made again
    assert contents(tmp_path / "b") == contents(tmp_path / "a")
    assert not (tmp_path / "b.work").exists()


def test_documents_without_tokens_are_left_out_and_counted(tmp_path, vocab_file):
    report = build([write(tmp_path, ["\u200b", "Paris."])], tmp_path / "a", BuildSettings(str(vocab_file)), workers=1)
    assert (report.num_documents, report.num_empty) == (1, 1)
    (tmp_path / "y.txt").write_text("\n\n \n")
    with pytest.raises(InputError, match="contain no text"):
        build([tmp_path / "y.txt"], tmp_path / "b", BuildSettings(str(vocab_file)), workers=1)


def test_the_commands(tmp_path, vocab_file, capsys):
    file = write(tmp_path, DOCUMENTS * 3)
    words = ["corpus", "build", str(file), "-o", str(tmp_path / "a"), "--vocab_file", str(vocab_file), "--workers", "1"]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["num_documents"] == 3
    assert main(words) == 65
    assert "exists already" in capsys.readouterr().err
    assert main(["corpus", "info", str(tmp_path / "a"), "--vocab_file", str(vocab_file)]) == 0
    out = capsys.readouterr().out
    assert '"documents": 3' in out
    assert "marie curie was born in warsaw" in out
    words = [
        "one",
        "two",
        "three",
        "four",
        "five",
        "six",
        "seven",
        "eight",
        "nine",
        "ten",
        "eleven",
        "twelve",
        "thirteen",
        "fourteen",
        "fifteen",
    ]
    file = write(tmp_path, [*DOCUMENTS * 3, *[" ".join(words)] * 3])
    words = ["vocabulary", "train", str(file), "--size", "100", "-o", str(tmp_path / "v.txt")]
    assert main(words) == 0
    tokens = (tmp_path / "v.txt").read_text().splitlines()
    assert len(tokens) == 100
    assert tokens[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer.from_file(tmp_path / "v.txt")
    assert tokenizer.unknown_id not in np.concatenate(tokenizer.encode_ids(DOCUMENTS))
    assert main([*words[:4], "9000", "-o", str(tmp_path / "w.txt")]) == 65
    assert "too few words" in capsys.readouterr().err


@pytest.mark.parametrize(
    "damage", [lambda data: b"", lambda data: data[:-30], lambda data: data[:99] + b"?" + data[100:]]
)
def test_a_damaged_unit_is_made_again(tmp_path, vocab_file, monkeypatch, damage):
    file = write(tmp_path)
    build([file], tmp_path / "a", BuildSettings(str(vocab_file)), workers=1)
    monkeypatch.setattr(corpus.shutil, "rmtree", lambda folder: None)
    build([file], tmp_path / "b", BuildSettings(str(vocab_file)), workers=1)
    monkeypatch.undo()
    # As a kill before the index was renamed leaves it.
    (tmp_path / "b.idx").unlink()
    unit = tmp_path / "b.work" / "00000000.unit"
    unit.write_bytes(damage(unit.read_bytes()))
    build([file], tmp_path / "b", BuildSettings(str(vocab_file)), workers=1)
    assert contents(tmp_path / "b") == contents(tmp_path / "a")
    assert not (tmp_path / "b.work").exists()


def test_workers_end_with_a_killed_build(tmp_path, vocab_file):
    file = write(tmp_path, [f"{document} {number}" for number in range(12_000) for document in DOCUMENTS])
    words = ["corpus", "build", str(file), "-o", str(tmp_path / "a"), "--vocab_file", str(vocab_file), "--workers", "2"]
    process = subprocess.Popen([sys.executable, "-m", "megabert", *words], stderr=subprocess.PIPE)
    while not list((tmp_path / "a.work").glob("*.unit")):
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    # The workers hold the pipe, too: it ends when the last one has ended.
    process.communicate(timeout=300)
