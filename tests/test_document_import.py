"""The command `megabert import documents`."""

import gzip
import json

import pytest

from megabert.cli import main

CORPUS = "7|t|Aspirin.\n7|a|It helps.\n7\t0\t7\tAspirin\tChemical\tC1\n7\t9\t12\tIt \tX\tD1\n\n8|t|A\n8|a|B\n\n"


@pytest.fixture
def corpus(tmp_path):
    file = tmp_path / "a.pubtator"
    file.write_text(CORPUS, encoding="utf-8")
    return file


def test_a_wrong_offset_stops_with_exit_code_65_and_writes_nothing(corpus, tmp_path, capsys):
    corpus.write_text(CORPUS.replace("\t9\t12\tIt ", "\t8\t12\tIt "), encoding="utf-8")
    assert main(["import", "documents", str(corpus), "-o", str(tmp_path / "out.bioc.xml")]) == 65
    error = capsys.readouterr().err
    assert "a.pubtator:4: document 7, X T4: 'It ' is expected at 8 to 12" in error
    # Trainings read the same files and have no such option.
    assert "--on-error skip of `megabert import documents`" in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pubtator"]


def test_skipped_annotations_are_reported_and_counted(corpus, tmp_path, capsys):
    corpus.write_text(CORPUS.replace("\t9\t12\tIt ", "\t8\t12\tIt "), encoding="utf-8")
    words = ["-o", str(tmp_path / "out.jsonl.gz"), "--on-error", "skip", "--report", str(tmp_path / "faults.txt")]
    assert main(["import", "documents", str(corpus), *words]) == 0
    printed = capsys.readouterr().err
    assert "1 faults were skipped." in printed
    assert "Wrote 2 documents" in printed
    assert len((tmp_path / "faults.txt").read_text(encoding="utf-8").splitlines()) == 1
    with gzip.open(tmp_path / "out.jsonl.gz", "rt", encoding="utf-8") as file:
        first = json.loads(file.readline())
    assert [entity["text"] for entity in first["entities"]] == ["Aspirin"]


def test_entity_types_are_renamed_and_others_left_out(tmp_path, capsys):
    file = tmp_path / "a.pubtator"
    relation = "7\tCID\tC1\tD1\n"
    file.write_text(CORPUS.replace("\n\n8", f"\n{relation}\n8"), encoding="utf-8")
    out = tmp_path / "out.pubtator"
    assert main(["import", "documents", str(file), "-o", str(out), "--entity-types", "*:Drug"]) == 0
    assert "\tAspirin\tDrug\tC1\n7\t9\t12\tIt \tDrug\tD1\n7\tCID\tC1\tD1" in out.read_text(encoding="utf-8")
    assert main(["import", "documents", str(file), "-o", str(out), "--entity-types", "Chemical:Drug,Y:Z"]) == 0
    assert "1 entities of other types left out." in capsys.readouterr().err
    assert "\tX\t" not in out.read_text(encoding="utf-8")
    assert main(["import", "documents", str(file), "-o", str(out), "--entity-types", "Drug"]) == 64
    assert "'Drug' is not of the form OLD:NEW" in capsys.readouterr().err


def test_losses_and_repeated_identifiers_are_reported_once(corpus, tmp_path, capsys):
    copy = tmp_path / "b.pubtator"
    copy.write_bytes(corpus.read_bytes())
    files = [str(corpus), str(copy), str(copy)]
    assert main(["import", "documents", *files, "-o", str(tmp_path / "out.csv")]) == 0
    printed = capsys.readouterr().err
    assert printed.count("csv does not hold") == 3
    assert "1 files are given twice. Each is read once." in printed
    assert "2 identifiers name several documents, such as 7." in printed
    assert len((tmp_path / "out.csv").read_text(encoding="utf-8").splitlines()) == 5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-o", "x.unknown"], "names no format"),
        (["-o", "x.tsv"], "names no format that can be written"),
        (["-o", "x.jsonl", "--format", "nonsense"], "invalid choice"),
    ],
)
def test_wrong_options_exit_with_64(corpus, words, message, capsys):
    assert main(["import", "documents", str(corpus), *words]) == 64
    assert message in capsys.readouterr().err
