"""The linker: abbreviations, composites, species, NIL, ties, tuning, and its commands."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

import megabert
from megabert.cli import main
from megabert.errors import InputError
from megabert.formats.dictionaries.gold_mentions import GoldMention
from megabert.formats.documents.composites import composite_splits
from megabert.linking.linker import INITIALS, SYNONYM, Calibration, Linker, LinkQuery
from megabert.linking.linker_tuning import chosen_weight, tune
from megabert.linking.open_linker import read_calibration
from megabert.linking.word_synonyms import word_synonyms
from tests.linking.conftest import build

GOLD = """1|t|Duchenne muscular dystrophy (DMD) and breast and ovarian cancer.
1|a|DMD is severe. Wheezing.
1\t0\t27\tDuchenne muscular dystrophy\tDisease\tD020388
1\t29\t32\tDMD\tDisease\tD020388
1\t38\t63\tbreast and ovarian cancer\tDisease\tD001943|D010051
1\t65\t68\tDMD\tDisease\tD020388
1\t80\t88\tWheezing\tDisease\t-1

"""


@pytest.fixture(scope="module")
def linker(diseases):
    return megabert.load_linker(diseases.folder)


def linked(linker, *mentions, **options):
    return [(link.identifier, link.name) for link in linker.link(list(mentions), **options)]


def test_names_link_whatever_their_case_order_and_punctuation(linker):
    assert linked(linker, "BREAST CANCER", "breast-cancers", "asthma bronchial", "dystrophy, Duchenne muscular") == [
        ("mesh:D001943", "Breast Cancer"),
        ("mesh:D001943", "Breast Cancer"),
        ("mesh:D001249", "Bronchial Asthma"),
        ("mesh:D020388", "Muscular Dystrophy, Duchenne"),
    ]


def test_one_string_is_no_list_of_mentions(linker):
    for mentions, message in (("asthma", "takes a list of texts"), (["asthma", None], "mention 2 is a NoneType")):
        with pytest.raises(InputError, match=message):
            linker.link(mentions)


def test_abbreviations_are_what_the_document_defines(linker):
    assert linked(linker, "DM") == [("mesh:D009223", "DM")]
    assert linked(linker, LinkQuery("DM", {"DM": "diabetes mellitus"})) == [("mesh:D003920", "Diabetes Mellitus")]


def test_what_was_linked_before_changes_nothing(diseases):
    queries = [
        LinkQuery("DM"),
        LinkQuery("DM", {"DM": "diabetes mellitus"}),
        LinkQuery("ovary cancer"),
        LinkQuery("DM"),
    ]
    apart = [Linker(diseases).link([query], k=k)[0] for k in (1, 3) for query in queries]
    one = Linker(diseases)
    assert [link for k in (1, 3) for link in one.link(queries, k=k)] == apart
    assert one.link(queries, k=3) == apart[4:]


def test_composites_are_split_unless_the_whole_is_a_name(linker):
    assert linked(linker, "breast and ovarian cancer", "head and neck cancer") == [
        ("mesh:D001943|mesh:D010051", "Breast Cancer|Ovarian Cancer"),
        ("mesh:D006258", "head and neck cancer"),
    ]


@pytest.mark.parametrize(
    ("mention", "split"),
    [
        ("breast and/or ovarian cancer", ("breast cancer", "ovarian cancer")),
        ("colonic, breast, and cervical carcinomas",
         ("colonic carcinomas", "breast carcinomas", "cervical carcinomas")),
        ("hepatitis B and C", ("hepatitis B", "hepatitis C")),
        ("cleft lip/palate", ("cleft lip", "cleft palate")),
        ("cancer of the breast and ovaries", ("cancer of the breast", "cancer of the ovaries")),
        ("asthma|diabetes", ("asthma", "diabetes")),
        ("asthma", None),
        ("1,25-dihydroxyvitamin D", None),
        ("acetaminophen/caffeine/" * 20, None),
    ],
)  # fmt: skip
def test_the_likeliest_split_comes_first(mention, split):
    splits = composite_splits(mention)
    assert splits[:1] == ([split] if split else [])


def test_what_the_dictionary_lacks_is_nil(linker):
    link = linker.link(["xylophone"])[0]
    assert (link.identifier, link.name, link.is_nil) == ("-", "", True)
    assert linker.link([""])[0].identifier == "-"


def test_candidates_are_ranked_and_their_number_changes_nothing(linker):
    one, many = linker.link(["ovary cancer"])[0], linker.link(["ovary cancer"], k=4)[0]
    assert one.identifier == many.identifier
    assert one.score == many.score
    similarities = [item.similarity for item in many.parts[0].candidates]
    assert len(similarities) == 4
    assert similarities == sorted(similarities, reverse=True)


def test_genes_are_those_of_the_species(tmp_path):
    table = "id\tname\tspecies\nncbigene:1\tTP53\t9606\nncbigene:2\tTP53\t10090\nncbigene:3\tTP53B\t10090\n"
    genes = Linker(build(tmp_path, table, "genes.tsv"))
    assert linked(genes, "TP53", species=[10090]) == [("ncbigene:2", "TP53")]
    assert linked(genes, LinkQuery("TP53", species=(9606,)), species=[10090]) == [("ncbigene:1", "TP53")]
    with pytest.raises(InputError, match="no concept of the species 7227"):
        genes.link(["TP53"], species=[7227])


def test_of_equal_names_the_one_that_is_mentioned_more_often_is_meant(tmp_path):
    mentions = (
        "1|t|BC BC BC\n1|a|\n1\t0\t2\tBC\tDisease\tD2\n1\t3\t5\tBC\tDisease\tMESH:D3\n1\t6\t8\tBC\tDisease\tMESH:D3\n"
    )
    opened = build(tmp_path, mentions.replace("\tD2", "\tMESH:D2"), "mentions.pubtator")
    assert linked(Linker(opened), "BC") == [("mesh:D3", "BC")]


def test_of_equal_names_the_preferred_one_is_meant_and_initials_come_before_similar_names(tmp_path):
    table = "LAB:1||Aniridia 2|Aniridia|Iris-absence\nLAB:2||Aniridia\nLAB:3||Lobar lung disease\nLAB:4||LLDX\n"
    opened = Linker(build(tmp_path, table))
    assert linked(opened, "aniridia", "LLD", "Irisabsence", "lobarlung disease") == [
        ("LAB:2", "Aniridia"),
        ("LAB:3", "Lobar lung disease"),
        ("LAB:1", "Iris-absence"),
        ("LAB:3", "Lobar lung disease"),
    ]
    assert opened.link(["LLD"])[0].parts[0].similarity == INITIALS


def test_a_name_with_another_number_comes_behind_one_without(tmp_path):
    table = "LAB:1||Cone dystrophy 2|LCDX 2\nLAB:2||Cone dystrophy so\nLAB:3||Cone dystrophy 7|LCDX 7\nLAB:4||LCDX 8\n"
    links = Linker(build(tmp_path, table)).link(["cone dystrophy 3", "cone dystrophy 8"], k=3)
    best = [link.parts[0].candidates[0].name for link in links]
    assert best == ["Cone dystrophy so", "LCDX 8"]


def test_a_synonym_of_a_word_is_what_names_of_the_same_concepts_differ_in(tmp_path):
    table = "".join(
        f"LAB:{n}||{organ} neoplasm|tumor of {organ}|{organ} tumor\n" for n, organ in enumerate(["skin", "bone"])
    )
    opened = build(tmp_path, table + "LAB:5||Jaw neoplasm\nLAB:6||Jaw tumorlet\nLAB:7||skin lesion 1|skin lesion 2\n")
    assert opened.synonym_keys("tumor jaw") == {"\rjaw neoplasm": 1.0}
    assert opened.synonym_keys("tumor") == opened.synonym_keys("1 lesion") == {}
    link = Linker(opened).link(["jaw tumors"])[0]
    assert (link.name, link.parts[0].similarity) == ("Jaw neoplasm", SYNONYM)
    pairs = [("big toe", 1), ("large toe", 1), ("big ear", 2), ("large ear", 2)]
    assert word_synonyms(pairs) == {"big": {"large": 1.0}, "large": {"big": 1.0}}
    assert word_synonyms([*pairs, ("big eye", 3), ("large eye", 4)]) == {}  # of two pairs in three


def test_tuning_finds_a_threshold_between_right_and_wrong(diseases):
    right = [GoldMention(str(n), name, frozenset(["mesh:D001249"])) for n, name in enumerate(["asthma"] * 40)]
    wrong = [GoldMention(f"n{n}", f"asthma{n}x syndrome", frozenset()) for n in range(40)]
    calibration, report = tune(Linker(diseases), right + wrong)
    tuned = Linker(diseases, calibration)
    assert [link.is_nil for link in tuned.link(["asthma", "asthma7x syndrome"])] == [False, True]
    assert report["accuracy"] == 100
    assert 0.9 < tuned.link(["asthma"])[0].score < 1
    with pytest.raises(InputError, match="too few"):
        tune(Linker(diseases), right)


def test_a_weight_that_is_best_by_chance_is_not_chosen():
    """Differences in five mentions each way are within a standard error, in one way not."""
    right = {0.4: np.ones(100), 0.5: np.ones(100), 0.9: np.ones(100)}
    right[0.4][:12], right[0.5][5:15], right[0.9][:6] = 0, 0, 0
    assert chosen_weight(right) == 0.9
    right[0.9][15:18] = 0
    assert chosen_weight(right) == 0.5
    assert chosen_weight(dict.fromkeys((0.0, 0.2, 1.0), np.ones(4))) == 0.2


def test_a_linker_of_another_calibration_links_anew(diseases):
    linker = Linker(diseases)
    linker.link(["asthma"])
    assert linker._known and not dataclasses.replace(linker)._known


def test_link_and_score_the_mentions_of_documents(tmp_path, diseases, capsys):
    (tmp_path / "gold.pubtator").write_text(GOLD)
    output = tmp_path / "links.jsonl"
    command = ["link", "--mentions", str(tmp_path / "gold.pubtator"), "--dict", str(diseases.folder), "-k", "20"]
    assert main([*command, "-o", str(output)]) == 0
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["identifier"] for row in rows[:4]] == [
        "mesh:D020388", "mesh:D020388", "mesh:D001943|mesh:D010051", "mesh:D020388",
    ]  # fmt: skip
    capsys.readouterr()
    settings = [f"dictionary={diseases.folder}", f"train={tmp_path / 'gold.pubtator'}", "type=Disease"]
    assert main(["score", "linking", str(tmp_path / "gold.pubtator"), str(output), *settings]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["acc@1"] == scores["all_acc@1"] == scores["known/acc@1"] == 100
    assert scores["mentions"] == 4  # NIL is none
    assert "unseen_mention/acc@1" not in scores


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["link", "asthma"], 64, "--dict"),
        (["link", "--dict", "DICT"], 64, "Give either names"),
        (["link", "GOLD", "--dict", "DICT"], 64, "megabert link - < GOLD"),
        (["link", "asthma", "--dict", "missing"], 65, "is no dictionary"),
        (["dictionary", "build", "missing.obo", "-o", "x"], 65, "missing.obo"),
        (["dictionary", "tune", "DICT", "--mentions", "GOLD"], 65, "too few"),
        (["score", "linking", "GOLD", "missing"], 65, "missing does not exist"),
        (["dictionary", "tune", "DICT", "--mentions", "GENES"], 65, "has none of the 60 gold identifiers"),
        (["score", "linking", "GOLD", "GOLD", "k=1"], 64, "'k=1' is no setting"),
        (["link", "--mentions", "GOLD", "--type", "Gene", "--dict", "DICT"], 65, "There are: Disease ("),
        (["score", "linking", "GOLD", "GOLD", "type=Gene"], 65, "GOLD: no mention has the type Gene."),
        (["link", "TP53", "--dict", "DICT", "--species", "9606"], 65, "no concept of the species 9606"),
    ],
)
def test_a_wrong_command_is_one_message(tmp_path, monkeypatch, diseases, capsys, words, code, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "GOLD").write_text(GOLD)
    (tmp_path / "GENES").write_text("".join(f"ncbigene:{number}\tname\n" for number in range(60)))
    words = [str(diseases.folder) if word == "DICT" else word for word in words]
    assert main(words) == code
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_the_tuned_calibration_is_that_of_the_dictionary(tmp_path, capsys):
    opened = build(tmp_path)
    (tmp_path / "names.txt").write_text("D001249||asthma\n" * 60)
    assert main(["dictionary", "tune", str(opened.folder), "--mentions", str(tmp_path / "names.txt")]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert read_calibration(opened, "").slope == shown["slope"] != Calibration().slope


def test_the_floor_of_ncbi_disease_comes_out(datasets, tmp_path, capsys):
    """The n-grams of a mention find 72.6 % of the concepts in MEDIC, with abbreviations written out 75.7 %."""
    folder, dev = datasets("linking_dictionaries"), datasets("entity_linking_ncbi_disease") / "dev.pubtator.txt"
    built, links = tmp_path / "medic.dict", tmp_path / "links.jsonl"
    assert main(["dictionary", "build", str(folder / "medic_06Jul2012.txt"), "-o", str(built)]) == 0
    assert main(["link", "--mentions", str(dev), "--dict", str(built), "-k", "5", "-o", str(links)]) == 0
    capsys.readouterr()
    assert main(["score", "linking", str(dev), str(links)]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["mentions"] == 787
    assert scores["acc@1"] > 78


def test_documents_are_scored_by_concepts_under_any_of_their_identifiers(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    build(
        tmp_path,
        "D1|MESH:D1||Asthma\nMESH:D2|OMIM:100100|OMIM:100200||Gout\n".replace("D1|MESH:D1", "MESH:D1|OMIM:100300"),
    )
    text = "1|t|gout asthma\n1|a|\n1\t0\t4\tgout\tDisease\t{}\n1\t5\t11\tasthma\tDisease\t{}\n\n"
    Path("gold.pubtator").write_text(text.format("OMIM:100200", "MESH:D1"), encoding="utf-8")
    Path("found.pubtator").write_text(text.format("MESH:D2", "MESH:D2"), encoding="utf-8")
    assert main(["score", "linking", "gold.pubtator", "found.pubtator", "dictionary=diseases.dict"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert [scores[f"{kind}_f1"] for kind in ("mention", "strict", "document_set")] == [50, 50, pytest.approx(200 / 3)]
