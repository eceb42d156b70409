"""Scores of documents equal what BioCreative V's CDR evaluator prints, to the last digit."""

import json
import re

import pytest

from megabert.cli import main
from megabert.errors import InputError, InputWarning
from megabert.formats.documents.convert_documents import read_documents
from megabert.formats.documents.document_scores import document_scores

CORPUS = """1|t|Aspirin and codeine caused nausea.
1|a|

1\t0\t7\tAspirin\tChemical\tMESH:C1
1\t12\t19\tcodeine\tChemical\tC2
1\t27\t33\tnausea\tDisease\tD1|D2
1\tCID\tC2\tD1
"""


def test_mentions_identifiers_and_relations_are_sets(tmp_path, capsys):
    gold, found = tmp_path / "a.pubtator", tmp_path / "b.pubtator"
    gold.write_text(CORPUS.replace("1|a|\n", "1|a|"), encoding="utf-8")
    found.write_text(gold.read_text().replace("MESH:C1", "C1").replace("D1|D2", "D2").replace("CID\tC2", "CID\tC1"))
    assert main(["score", "documents", str(gold), str(found), "prefix=MESH"]) == 0
    scores = json.loads(capsys.readouterr().out)
    counts = {name: [scores[f"{name}_{kind}"] for kind in ("tp", "fp", "fn")] for name in (
        "mention/Chemical", "id/Chemical", "id/Disease", "relation/CID")}  # fmt: skip
    assert counts == {
        "mention/Chemical": [2, 0, 0], "id/Chemical": [2, 0, 0], "id/Disease": [1, 0, 1], "relation/CID": [0, 1, 1],
    }  # fmt: skip
    assert main(["score", "documents", str(gold), str(found), "type=x"]) == 64


@pytest.mark.parametrize("kind", ["documents", "linking"])
def test_types_that_gold_and_predicted_mentions_do_not_share_are_named(kind, tmp_path, capsys):
    gold, found = tmp_path / "a.pubtator", tmp_path / "b.pubtator"
    gold.write_text("1|t|A flu\n1\t2\t5\tflu\tSpecificDisease\tD1\n\n", encoding="utf-8")
    found.write_text(gold.read_text().replace("SpecificDisease", "Disease"), encoding="utf-8")
    assert main(["score", kind, str(gold), str(found)]) == 0
    error = capsys.readouterr().err
    assert "Gold mentions have the types SpecificDisease, predicted ones Disease" in error
    assert "--entity-types" in error
    assert main(["score", kind, str(gold), str(gold)]) == 0
    assert "--entity-types" not in capsys.readouterr().err


def test_documents_are_matched_by_their_identifiers(tmp_path):
    def written(name, *ids):
        text = "".join(f"{item}|t|A flu\n{item}\t2\t5\tflu\tDisease\tD1\n\n" for item in ids)
        (tmp_path / name).write_text(text, encoding="utf-8")
        return read_documents([tmp_path / name])

    for golds, found, message in (
        (("1", "1"), ("1",), r"a.pubtator:4: document 1 is at .*a.pubtator:1, too"),
        (("1",), ("2", "2"), r"b.pubtator:4: document 2 is at .*b.pubtator:1, too"),
        (("1",), ("2", "3"), "None of the 2 predicted documents has the identifier of a gold one: 2 and 1"),
        ((), ("2",), "There are no gold documents"),
    ):
        with pytest.raises(InputError, match=message):
            document_scores(written("a.pubtator", *golds), written("b.pubtator", *found))
    with pytest.warns(InputWarning, match="1 predicted documents, such as 3, are no gold documents"):
        scores = document_scores(written("a.pubtator", "1", "2"), written("b.pubtator", "1", "3"))
    assert [scores[f"mention/Disease_{what}"] for what in ("tp", "fp", "fn")] == [1, 1, 1]
    assert document_scores(written("a.pubtator", "1"), written("b.pubtator"))["mention/Disease_fn"] == 1


def test_relations_of_mentions_without_identifiers_are_not_one(tmp_path):
    """Two of three relations are right; by identifiers alone all would be the same."""
    marks = "T1\tDrug 0 1\ta\nT2\tDose 2 3\tb\nT3\tDose 4 5\tc\n"
    relations = ["R1\thas Arg1:T1 Arg2:T2\n", "R2\thas Arg1:T1 Arg2:T3\n", "R3\thas Arg1:T2 Arg2:T3\n"]
    documents = []
    for name, kept in (("gold", relations), ("found", [*relations[:2], "R3\thas Arg1:T3 Arg2:T2\n"])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text("a b c", encoding="utf-8")
        (tmp_path / name / "a.ann").write_text(marks + "".join(kept), encoding="utf-8")
        documents.append(list(read_documents([tmp_path / name])))
    scores = document_scores(*documents)
    assert [scores[f"relation/has_{what}"] for what in ("tp", "fp", "fn")] == [2, 1, 1]


def printed(path):
    """Yield what the evaluator printed: kind, type, format, files, and its numbers."""
    for block in path.read_text(encoding="utf-8").split("## ")[1:]:
        head, *lines = block.splitlines()
        kind, name, form, gold, found = head.split()
        numbers = [float(re.split(": ", line)[1]) for line in lines[:6]]
        yield kind, name, form, gold, found, numbers


@pytest.mark.parametrize("part", ["sample", "dev"])
def test_scores_equal_the_official_evaluator_s(dataset, read_all, part):
    folder = dataset("bc5cdr_eval") / part
    paths = {path.name: path for path in folder.rglob("*") if path.is_file()}
    paths["GOLD"] = dataset("entity_linking_bc5cdr") / "dev.pubtator.txt"
    scores, num_compared = {}, 0
    for kind, name, form, *files, numbers in printed(folder / "official_scores.txt"):
        if form == "BioC" and kind != "relation":
            continue  # documents of the BioC files have shifted offsets: the evaluator does not look at the text
        pair = tuple(file.rpartition("/")[2] for file in files)
        if pair not in scores:
            scores[pair] = document_scores(*(read_all(paths[file])[0] for file in pair), "MESH")
        own = [scores[pair].get(f"{kind}/{name}_{what}", 0) for what in ("tp", "fp", "fn", "precision", "recall", "f1")]
        assert own[:3] == numbers[:3], (kind, name, pair)
        expected = [0.0 if number != number else number for number in numbers[3:]]
        assert [value / 100 for value in own[3:]] == pytest.approx(expected, rel=1e-15)
        num_compared += 1
    assert num_compared == {"sample": 8, "dev": 9}[part]
