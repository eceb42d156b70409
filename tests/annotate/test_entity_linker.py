"""Identifiers of annotated entities: in every format, with workers, after an interruption, and for relations."""

import json
from pathlib import Path

import pytest

from megabert.cli import main
from megabert.formats.documents.convert_documents import read_documents
from megabert.linking.dictionary_builder import BuildOptions, build_dictionary

RELATION_RUN = next((Path(__file__).parent.parent / "runs_v1/relation_extraction/run/checkpoints").iterdir())
CORPUS = """1|t|Tumor necrosis factor (TNF) in asthma.
1|a|TNF causes asthma. TP53 does not. Mouse TP53 neither, nor zzz.
1\t0\t21\tTumor necrosis factor\tGene\t
1\t23\t26\tTNF\tGene\t
1\t31\t37\tasthma\tDisease\tmesh:D001249
1\t39\t42\tTNF\tGene\t
1\t50\t56\tasthma\tDisease\t
1\t58\t62\tTP53\tGene\t
1\t73\t78\tMouse\tSpecies\t10090
1\t97\t100\tzzz\tGene\t

2|t|TP53 alone.
2|a|
2\t0\t4\tTP53\tGene\t

"""
GENES = """id\tname\tspecies
ncbigene:7124\tTNF\t9606
ncbigene:7124\tTumor necrosis factor\t9606
ncbigene:7157\tTP53\t9606
ncbigene:22059\tTP53\t10090
ncbigene:21926\tTumor necrosis factor\t10090
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("linking")
    (path / "genes.tsv").write_text(GENES)
    (path / "diseases.txt").write_text("D001249||Asthma\n")
    (path / "corpus.pubtator").write_text(CORPUS)
    build_dictionary([path / "genes.tsv"], path / "genes.dict", BuildOptions())
    build_dictionary([path / "diseases.txt"], path / "diseases.dict", BuildOptions())
    return path


def annotate(folder, output, *options):
    rules = ["--link", f"Gene={folder / 'genes.dict'}", "--link", f"Disease={folder / 'diseases.dict'}"]
    command = ["annotate", str(folder / "corpus.pubtator"), *rules, "--species", "9606", "-o", str(output)]
    return main([*command, "--accelerator", "cpu", *options])


EXPECTED = {
    "1": ["ncbigene:21926", "ncbigene:21926", "mesh:D001249", "ncbigene:21926", "mesh:D001249", "ncbigene:22059",
          "10090", "-"],
    "2": ["ncbigene:7157"],
}  # fmt: skip


@pytest.mark.parametrize("name", ["out.pubtator", "out.bioc.xml", "out.bioc.json", "out.jsonl"])
def test_identifiers_are_in_the_output_whatever_its_format(folder, tmp_path, name):
    # The first document names a mouse; the second one has the species of the command.
    assert annotate(folder, tmp_path / name) == 0
    found = {item.id: [entity.identifier for entity in item.entities] for item in read_documents([tmp_path / name])}
    assert found == EXPECTED


def test_names_and_scores_stand_beside(folder, tmp_path):
    assert annotate(folder, tmp_path / "out.csv") == 0
    header, *rows = (line.split(",") for line in (tmp_path / "out.csv").read_text().splitlines())
    assert header[-2:] == ["name", "link_score"]
    assert [row[-2] for row in rows] == ["Tumor necrosis factor"] * 2 + [""] + ["Tumor necrosis factor", "Asthma",
                                                                             "TP53", "", "", "TP53"]  # fmt: skip
    assert float(rows[0][-1]) > 0.8
    assert float(rows[7][-1]) < 0.2


def test_workers_and_a_resumed_command_give_the_same_bytes(folder, tmp_path):
    contents = []
    for number, options in enumerate(([], ["--workers", "1"], ["--resume"])):
        output = tmp_path / f"out{number}"
        if options == ["--resume"]:
            assert annotate(folder, output) == 0
            (output / "shard-00000.jsonl").unlink()
        assert annotate(folder, output, *options) == 0
        contents.append({file.name: file.read_bytes() for file in output.iterdir()})
    assert contents[0] == contents[1] == contents[2]


def test_a_changed_dictionary_is_no_command_to_resume(folder, tmp_path, capsys):
    assert annotate(folder, tmp_path / "out") == 0
    command = ["annotate", str(folder / "corpus.pubtator"), "--link", f"Gene={folder / 'diseases.dict'}", "-o"]
    assert main([*command, str(tmp_path / "out"), "--species", "9606", "--resume"]) == 65
    assert "begun with other settings: link was" in capsys.readouterr().err


def test_relations_hold_between_predicted_identifiers(folder, tmp_path):
    options = ["--relations", str(RELATION_RUN), "--pairs", "Gene:Disease", "--scope", "document"]
    assert annotate(folder, tmp_path / "out.jsonl", *options) == 0
    ledger = (tmp_path / "out.jsonl.shards" / "ledger.jsonl").read_text().splitlines()
    # Two genes of the first document, each with the disease: pairs of identifiers, not of mentions.
    assert [json.loads(line).get("windows") for line in ledger] == [2, 0, None]


@pytest.mark.parametrize(("rule", "code"), [("Gene", 64), ("Gene=", 64), ("Gene=missing", 65)])
def test_a_wrong_rule_is_refused(folder, tmp_path, capsys, rule, code):
    words = ["annotate", str(folder / "corpus.pubtator"), "--link", rule, "-o", str(tmp_path / "out")]
    assert main(words) == code
    assert capsys.readouterr().err.count("\n") == 1


def test_a_type_to_link_that_no_entity_has_is_noted(folder, tmp_path, capsys):
    command = ["annotate", str(folder / "corpus.pubtator"), "--link", f"GENE={folder / 'genes.dict'}"]
    assert main([*command, "-o", str(tmp_path / "out"), "--accelerator", "cpu"]) == 0
    assert "no entity has the type GENE that --link names. Types: Disease, Gene, Species." in capsys.readouterr().err
