"""Candidates ordered by what annotated mentions teach: kinds of identifiers, words, composites; a document apart."""

import json
from dataclasses import dataclass

import numpy as np
import pytest

import megabert
from megabert.cli import main
from megabert.errors import InputError
from megabert.formats.dictionaries.gold_mentions import GoldMention
from megabert.linking.candidate_ranker import CandidateRanker, kind_of, part_features
from megabert.linking.candidates import LinkedPart, NameCandidate
from megabert.linking.dictionary import Dictionary
from megabert.linking.linker import Calibration, Linker
from megabert.linking.ranker_fitting import _without, fit_ranker
from tests.linking.conftest import build

WORDS = ["alpha", "delta", "kappa", "quartz", "slate", "marble"]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Each name is that of a concept of MeSH's and of one of OMIM's."""
    both = ("MESH:C{0}||{1} deficiency\nOMIM:{0}||{1} deficiency\n".format(100 + n, w) for n, w in enumerate(WORDS))
    return build(tmp_path_factory.mktemp("pairs"), "".join(both) + "MESH:D1||Breast Cancer\nMESH:D2||Ovarian Cancer\n")


def mentions(words, form="{} deficiency"):
    return [
        GoldMention(f"{word}{n}:T1", form.format(word), frozenset({f"omim:{100 + WORDS.index(word)}"}))
        for word in words
        for n in range(10)
    ]


def test_of_equal_names_the_kind_of_concept_that_annotators_take_is_meant(pairs):
    linker = Linker(pairs)
    assert linker.link(["marble deficiency"])[0].identifier == "mesh:C105"
    ranker, calibration, report = fit_ranker(linker, mentions(WORDS[:-1]))
    learned = Linker(pairs, calibration, ranker=ranker)
    assert learned.link(["marble deficiency"])[0].identifier == "omim:105"
    assert learned.link(["inherited marble deficiency"], k=2)[0].parts[0].candidates[0].identifiers == ("omim:105",)
    assert (report["mentions"], report["held_out"], report["held_out_accuracy"]) == (50, 10, 100)
    assert learned.digest != linker.digest
    assert fit_ranker(linker, mentions(WORDS[:-1]))[0].digest == ranker.digest
    with pytest.raises(InputError, match="10 mentions with identifiers are too few"):
        fit_ranker(linker, mentions(WORDS[:1]))


@dataclass
class Parity:
    """Embeddings by which names are similar to texts if both have an even number of letters, or both an odd one."""

    dictionary: Dictionary

    def search(self, texts):
        lengths = np.array(list(map(len, self.dictionary.names(0, len(self.dictionary)))))
        return [Nearest(0.5 + 0.2 * (lengths % 2 == len(text) % 2)) for text in texts]


@dataclass
class Nearest:
    similar: np.ndarray

    names = np.empty(0, np.int64)
    """None besides those that n-grams find."""

    def similarities(self, names):
        return self.similar[names]


def test_what_embeddings_are_worth_is_learned(tmp_path):
    rows = (f"MESH:D1{n}||{word} big\nMESH:D2{n}||{word} huge\n" for n, word in enumerate(WORDS))
    opened = build(tmp_path, "".join(rows))
    linker = Linker(opened, Calibration(0.9), dense=Parity(opened))
    texts = [f"{WORDS[n % 6]} {'z' * (2 + n // 6 % 2)}" for n in range(60)]
    found = []
    for odd, even in ((1, 2), (2, 1)):  # big and zzz are odd, huge and zz even: embeddings are right, then wrong
        gold = [
            GoldMention(f"{n}:T1", text, frozenset({f"mesh:D{odd if n // 6 % 2 else even}{n % 6}"}))
            for n, text in enumerate(texts)
        ]
        ranker, calibration, report = fit_ranker(linker, gold)
        assert (calibration.weight, report["held_out_accuracy"]) == (0.5, 100)
        found.append(ranker.weights["embedding"])
    assert found[0] > found[1] + 1


def test_whether_composites_are_split_is_learned(pairs):
    texts = ["breast and ovarian cancer", "ovarian and breast cancer"]
    one = [GoldMention(f"{n}:T1", texts[n % 2], frozenset({"mesh:D2"})) for n in range(60)]
    two = [GoldMention(item.id, item.text, frozenset({"mesh:D1", "mesh:D2"})) for item in one]
    found = []
    for gold in (one, two):
        ranker, calibration, _ = fit_ranker(Linker(pairs), gold)
        found.append(Linker(pairs, calibration, ranker=ranker).link(texts[:1])[0].identifier)
    assert found == ["mesh:D2", "mesh:D1|mesh:D2"]


def test_names_of_the_document_itself_are_no_candidates():
    def name(text, mentions, is_listed):
        return NameCandidate(text, ("mesh:D1",), 0.9, mentions, is_listed)

    part = LinkedPart("x", (name("Own", 2, False), name("Shared", 3, False), name("Listed", 2, True)))
    counts = {(text, "mesh:D1"): 2 for text in ("own", "shared", "listed")}
    kept = _without(part, counts).candidates
    assert [(item.name, item.mentions) for item in kept] == [("Shared", 1), ("Listed", 0)]


def test_a_ranker_orders_the_first_candidates_and_names_the_best_way(pairs):
    ranker = CandidateRanker({"kind omim": 2.0, "similarity": 1.0}, {})
    whole = LinkedPart("a", tuple(NameCandidate("b", (name,), 0.5) for name in ("mesh:C1", "omim:1", "mesh:C2")))
    assert [item.identifiers[0] for item in ranker.best(whole, [])[0].candidates] == ["omim:1", "mesh:C1", "mesh:C2"]
    empty = LinkedPart("a", ())
    assert ranker.best(empty, [(empty, whole)]) == (empty,)
    assert [kind_of(name) for name in ("mesh:D012", "omim:1", "x:")] == ["mesh D", "omim", "x"]


def test_candidates_are_ordered_by_the_sums_of_their_features(pairs):
    texts = ["inherited marble deficiency", "deficiency marble", "marble", "slate deficiency", "marble and slate"]
    ranker, _, _ = fit_ranker(Linker(pairs), mentions(WORDS, "inherited {} deficiency"))
    for whole, _ in Linker(pairs).searched([(text, ()) for text in texts], 20):
        plain = list(map(ranker.score, part_features(whole, ranker.mentions)))
        assert ranker.ordered(whole).scores == tuple(sorted(plain, reverse=True))


def test_a_learned_dictionary_links_by_it(tmp_path, capsys):
    opened = build(tmp_path, "MESH:C1||granite deficiency\nOMIM:110||granite deficiency\n")
    rows = "".join(f"OMIM:110||granite deficiency{'' if n % 2 else ' x'}\n" for n in range(60))
    (tmp_path / "gold.txt").write_text(rows)
    command = ["dictionary", "learn", str(opened.folder), "--mentions", str(tmp_path / "gold.txt")]
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["mentions"] == 60
    assert megabert.load_linker(opened.folder).link(["granite deficiency"])[0].identifier == "omim:110"
    assert main(["dictionary", "info", str(opened.folder)]) == 0
    assert json.loads(capsys.readouterr().out)["learned_with"] == ["n-grams"]
