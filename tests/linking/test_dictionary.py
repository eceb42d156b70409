"""Dictionaries: what is kept, merged and left out; resuming; damage; similarities beside scikit-learn's."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import TfidfVectorizer

from megabert.cli import main
from megabert.errors import CheckpointError, InputError
from megabert.linking import dictionary_builder, gram_index
from megabert.linking.dictionary import Dictionary
from megabert.linking.dictionary_builder import BuildOptions, build_dictionary
from megabert.linking.name_keys import has_key, initialism, lookup_keys, normalized, series
from tests.linking.conftest import DISEASES, build


def test_names_and_identifiers_are_found_again(diseases):
    assert diseases.meta["concepts"] == 8
    assert diseases.names(0, len(diseases))[:3] == ["Breast Neoplasms", "Breast Cancer", "Cancer, Breast"]
    assert diseases.identifiers(0) == ("mesh:D001943", "omim:114480")
    numbers = diseases.exact(normalized("breast-cancers"))
    assert [diseases.name(number) for number in numbers] == ["Breast Cancer"]
    assert diseases.concepts_of(np.array(numbers)).tolist() == [0]
    assert diseases.exact(normalized("lung cancer")) == []
    assert diseases.equivalents()["omim:114480"] == {"mesh:D001943", "omim:114480"}


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("Tumours", "tumor"), ("TNF-\u03b1", "tnf alpha"), ("C\u00e9tuximab", "cetuximab"), ("KRAS", "kras"),
        ("Haemophilia  A", "hemophilia a"), ("arthritis", "arthritis"), ("Abscess", "abscess"), ("++", "++"),
        ("Non-polyposis", "nonpolyposis"), ("type II diabetes", "type 2 diabete"), ("Factor X lack", "factor x lack"),
        ("type I", "type 1"), ("X-linked SCID type IV", "x linked scid type 4"), ("vitamin D", "vitamin d"),
        ("Sixth nerve palsy", "6 nerve palsy"), ("3rd-degree burn", "3 degree burn"),
    ],
)  # fmt: skip
def test_names_are_normalized(name, key):
    assert normalized(name) == key


def test_initials_of_names_are_found(tmp_path):
    opened = build(tmp_path, "LAB:1||amyotrophic lateral sclerosis type X\nLAB:2||loss of the tail\nLAB:3||asthma\n")
    keys = [initialism(text) for text in ("ALS10", "ALST-10", "LOTT", "LT", "LTs", "Als10", "asthma", "ALS 10")]
    found = [key and opened.exact(key) for key in keys]
    assert opened.exact("als10") == []
    assert found == [[0], [0], [1], None, [], None, None, None]


@pytest.mark.parametrize(
    ("name", "words_and_number"),
    [
        ("Spastic paraplegia type IIIa", ("paraplegia spastic", "3a")), ("SPG23", ("spg", "23")), ("asthma", None),
        ("type 1 diabetes", ("diabete", "1")), ("osteopetrosis 4 A", ("osteopetrosis", "4a")), ("X", None),
        ("hepatitis C", ("hepatitis", "c")), ("axonal type 2A1", ("axonal", "2a1")), ("4", None),
        ("SLC39A8-CDG", ("cdg slc", "39a8")), ("vitamin B 12 lack", ("b lack vitamin", "12")), ("", None),
    ],
)  # fmt: skip
def test_names_are_members_of_series(name, words_and_number):
    assert series(normalized(name)) == words_and_number


def test_a_number_is_found_in_series_that_run_parallel(tmp_path):
    table = """LAB:1||Spastic paraplegia 3|SPG3
LAB:2||SPG4|Spastic paraplegia type IV
LAB:3||Hereditary spasm of Meier, spastic paraplegia 23
LAB:4||Spastic paraplegia 5|Foot disease 3
LAB:5||Foot disease 23|SPG6
"""
    opened = build(tmp_path, table)
    names = opened.names(0, len(opened))
    found = {text: [names[place] for place in opened.in_series(normalized(text))] for text in (
        "SPG 5", "spastic paraplegia 6", "paraplegia, spastic, 4", "SPG99", "spastic", "foot disease 4", "SPG 4c"
    )}  # fmt: skip
    assert found == {
        "SPG 5": ["Spastic paraplegia 5", "Foot disease 3"], "spastic paraplegia 6": ["Foot disease 23", "SPG6"],
        "paraplegia, spastic, 4": ["Spastic paraplegia type IV"], "SPG99": [], "spastic": [], "foot disease 4": [],
        "SPG 4c": ["SPG4"],
    }  # fmt: skip


def test_common_forms_are_those_of_words_and_what_stands_before_them():
    forms = {
        "Non-small tumours": "nonsmall tumor", "non non small": "nonnonsmall", "non I": "non 1", "I": "i",
        "type i x": "type 1 10", "i v anaemia": "i v anemia", "first, 2nd & XIIth": "1 2 xiith", "type": "type",
        "Bus oedemas": "bus edema", "non-β": "nonbeta", "-": "-", "": "",
    }  # fmt: skip
    assert {name: normalized(name) for name in forms} == forms


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet="ab -IVXtypenos19é"), st.text(alphabet="ab 12-"))
def test_a_key_is_a_names_where_it_is_looked_up(name, other):
    name, others = normalized(name), lookup_keys(normalized(other))
    assert all(has_key(name, key) for key in lookup_keys(name))
    assert {key for key in others if has_key(name, key)} == others & lookup_keys(name)


def test_the_similarity_is_the_cosine_of_tfidf_vectors(diseases):
    keys = [normalized(name) for name in diseases.names(0, len(diseases))]
    # Short words apart: scikit-learn counts a word that is shorter than a gram as a gram.
    vectorizer = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), binary=True, lowercase=False)
    vectors = vectorizer.fit_transform(keys)
    known = [normalized(name) for name in ("ovarian neoplasm cancer", "asthma bronchial", "dystrophy duchenne")]
    for key, expected in zip(known, (vectorizer.transform(known) @ vectors.T).toarray(), strict=True):
        query = diseases.grams.queries([key])[0]
        known_grams = gram_index._idf(np.zeros(1), len(keys))[0]
        assert known_grams > 0
        names, scores = diseases.grams.search(query, 30)
        ratio = scores / expected[names]
        # A gram that no name has makes the query longer, the order is the same.
        assert ratio.max() - ratio.min() < 2e-3
        assert ratio.max() <= 1 + 1e-3
        assert set(names) == set(np.flatnonzero(expected))


def test_a_search_within_bounds_finds_the_same_names(tmp_path, monkeypatch):
    rng = np.random.default_rng(1)
    syllables = [a + b for a in "bcdfgklmnprst" for b in "aeiou"]
    lines = [
        f"LAB:{number}||{''.join(rng.choice(syllables, 4))} {''.join(rng.choice(syllables, 3))}"
        for number in range(3000)
    ]
    opened = build(tmp_path, "\n".join(lines) + "\n")
    queries = opened.grams.queries([normalized(name) for name in opened.names(0, 60)])
    whole = [opened.grams.search(query, 5) for query in queries]
    monkeypatch.setattr(gram_index, "MAX_POSTINGS", 500)
    for query, (names, scores) in zip(queries, whole, strict=True):
        found, similar = opened.grams.search(query, 5)
        assert found[0] == names[0]
        assert scores[0] == pytest.approx(1, abs=1e-5)
        assert similar[0] == pytest.approx(scores[0], abs=1e-5)


def test_queries_and_similarities_do_not_depend_on_what_is_computed_together(diseases, monkeypatch):
    keys = [normalized(name) for name in diseases.names(0, len(diseases))] + ["", "zzz"]
    together, names = diseases.grams.queries(keys), np.arange(len(diseases))[::-1]
    scores = [diseases.grams.scores(query, names) for query in together]
    monkeypatch.setattr(gram_index, "BITMAP_BYTES", 0)
    lists_alone = Dictionary.open(diseases.folder).grams
    for key, query, score in zip(keys, together, scores, strict=True):
        alone = lists_alone.queries([key])[0]
        assert (alone.grams.tolist(), alone.weights.tolist()) == (query.grams.tolist(), query.weights.tolist())
        assert lists_alone.scores(alone, names).tolist() == score.tolist()


def test_batches_do_not_change_the_index(tmp_path, diseases, monkeypatch):
    monkeypatch.setattr(gram_index, "BATCH_NAMES", 3)
    monkeypatch.setattr(dictionary_builder, "BATCH_NAMES", 3)
    build(tmp_path)
    for file in sorted(diseases.folder.iterdir()):
        if file.suffix == ".npy":
            assert file.read_bytes() == (tmp_path / "diseases.dict" / file.name).read_bytes(), file.name


def test_files_are_merged_by_identifier(tmp_path):
    (tmp_path / "a.txt").write_text(DISEASES)
    (tmp_path / "b.tsv").write_text(
        "id\tname\nMESH:D001249\tasthma\nMESH:D001249\tWheeze\nOMIM:114480\tBRCA\nLAB:1\tNew\n"
    )
    build_dictionary([tmp_path / "a.txt", tmp_path / "b.tsv"], tmp_path / "d", BuildOptions(prefer="omim"))
    opened = Dictionary.open(tmp_path / "d")
    by_name = {
        opened.name(n): opened.identifiers(int(opened.concepts_of(np.array([n]))[0])) for n in range(len(opened))
    }
    assert by_name["Wheeze"] == ("mesh:D001249",)
    assert by_name["BRCA"] == ("omim:114480", "mesh:D001943")
    assert "asthma" not in by_name  # the concept has it in capitals
    assert opened.meta["prefixes"] == {"mesh": 7, "omim": 1, "LAB": 1}
    assert opened.meta["repeated_names"] == 1


def test_an_interrupted_build_reads_only_what_is_missing(tmp_path, monkeypatch, diseases):
    (tmp_path / "a.txt").write_text(DISEASES)
    (tmp_path / "b.txt").write_text("D000001||Calcimycin\n")
    files, read = [tmp_path / "a.txt", tmp_path / "b.txt"], []
    whole = dictionary_builder.read_concepts

    def interrupted(path, *arguments):
        read.append(path.name)
        if path.name == "b.txt" and read.count("b.txt") == 1:
            raise KeyboardInterrupt
        return whole(path, *arguments)

    monkeypatch.setattr(dictionary_builder, "read_concepts", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build_dictionary(files, tmp_path / "d", BuildOptions())
    assert not (tmp_path / "d").exists()
    meta = build_dictionary(files, tmp_path / "d", BuildOptions())
    assert read == ["a.txt", "b.txt", "b.txt"]
    assert meta["concepts"] == 9
    assert not (tmp_path / "d.parts").exists()


def test_the_species_of_genes_are_filtered(tmp_path):
    table = "id\tname\tspecies\nncbigene:1\tTP53\t9606\nncbigene:2\tTrp53\t10090\n"
    assert build(tmp_path, table, "genes.tsv", species=(9606,)).meta["names"] == 1


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        ("format-version: 1.2\n\n[Term]\nid: DOID:1\nname: a\n\n[Term]\nid: DOID:1\nname: b\n", "a.obo",
         ":7: doid:1 is that of"),
        ("format-version: 1.2\n\n[Term]\nid: DOID:1\nname: a\nis_obsolete: true\n", "a.obo",
         "has no concept with a name (1 obsolete terms)"),
        ("\n\n", "a.tsv", "is empty"),
    ],
)  # fmt: skip
def test_faulty_dictionaries_are_one_message(tmp_path, capsys, content, name, message):
    (tmp_path / name).write_text(content)
    assert main(["dictionary", "build", str(tmp_path / name), "-o", str(tmp_path / "d")]) == 65
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "d").exists()


def test_what_is_no_dictionary_or_damaged_is_said(tmp_path, diseases):
    with pytest.raises(InputError, match="is no dictionary"):
        Dictionary.open(tmp_path)
    build(tmp_path)
    file = tmp_path / "diseases.dict" / "names.bin"
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match="is damaged"):
        Dictionary.open(file.parent)


def test_info_shows_what_was_left_out(diseases, capsys):
    assert main(["dictionary", "info", str(diseases.folder)]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["names"] == len(diseases)
    assert shown["sources"][0]["format"] == "biosyn"


def test_a_file_that_cannot_be_read_leaves_nothing(tmp_path):
    (tmp_path / "names.txt").write_bytes(b"D1||\0name\n")
    with pytest.raises(InputError, match="NUL"):
        build_dictionary([tmp_path / "names.txt"], tmp_path / "d", BuildOptions())
    assert [file.name for file in tmp_path.iterdir()] == ["names.txt"]
