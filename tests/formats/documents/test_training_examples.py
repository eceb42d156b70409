"""Sentences with tags and pairs of entities, made of documents; counted by hand, and on the real corpora."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megabert.formats.documents.document import Argument, Document, Entity, Passage, Relation
from megabert.formats.documents.training_examples import (
    ExampleCounts,
    PairOptions,
    TypeRule,
    entity_pairs,
    sentences_of,
    tagged_sentences,
)


def entity(name, text, words, kind="Gene", identifier=""):
    start = text.index(words)
    return Entity(name, ((start, start + len(words)),), words, kind, identifier)


def test_tags_words_and_sentences():
    text = "IL-2 binds TNF-α. It is (new)."
    document = Document("d", (Passage(0, text),), (entity("1", text, "IL-2"), entity("2", text, "TNF-α")))
    first, second = tagged_sentences([document])
    assert [first.text[start:end] for start, end in first.words] == ["IL", "-", "2", "binds", "TNF", "-", "α", "."]
    assert first.tags == ("B-Gene", "I-Gene", "I-Gene", "O", "B-Gene", "I-Gene", "I-Gene", "O")
    assert (second.text, set(second.tags), second.start) == ("It is (new).", {"O"}, 18)


def test_entities_without_a_type_are_counted_as_such():
    counts = ExampleCounts()
    document = Document("1", (Passage(0, "a b"),), (entity("T1", "a b", "a", kind=""), entity("T2", "a b", "b")))
    (sentence,) = tagged_sentences([document], counts=counts)
    assert sentence.tags == ("O", "B-Gene")
    assert counts.note("x") == "x: 1 entities without a type left out."


def test_a_sentence_never_ends_within_an_entity():
    text = "We saw E. Coli Strain Nr. 5 there. Then we left."
    document = Document("d", (Passage(0, text),), (entity("1", text, "E. Coli Strain Nr. 5"),))
    assert [text[start:end] for start, end in sentences_of(document, document.entities)] == [
        "We saw E. Coli Strain Nr. 5 there.",
        "Then we left.",
    ]
    long = Entity("2", ((0, len(text)),), text, "All")
    assert sentences_of(document, [long]) == [(0, len(text))]


def test_overlapping_discontinuous_and_other_entities_are_counted():
    text = "renal and hepatic failure of p53a"
    discontinuous = Entity("3", ((0, 5), (18, 25)), "renal failure", "Disease")
    entities = (
        entity("1", text, "hepatic failure", "Disease"),
        discontinuous,
        entity("4", text, "p53"),
        entity("5", text, "of", "X"),
    )
    counts = Counter()
    document = Document("d", (Passage(0, text),), entities)
    (only,) = tagged_sentences([document], TypeRule({"Disease": "D", "Gene": "G"}), counts)
    assert only.tags == ("B-D", "I-D", "I-D", "I-D", "O", "B-G")
    assert {what: count for what, count in counts.items() if count} == {
        "entities of other types left out": 1,
        "entities left out for a longer one that they overlap": 1,
        "discontinuous entities read as their whole extent": 1,
        "entities that end within a word, read as whole words": 1,
    }


@settings(max_examples=50, deadline=None)
@given(st.text("aB. ", min_size=1, max_size=40), st.lists(st.tuples(st.integers(0, 39), st.integers(1, 9)), max_size=4))
def test_every_entity_is_whole_in_one_sentence(text, places):
    spans = [(start, min(start + length, len(text))) for start, length in places if start < len(text)]
    kept = [span for span in spans if text[slice(*span)].strip()]
    entities = tuple(Entity(str(i), (span,), text[slice(*span)], "T") for i, span in enumerate(kept))
    found = sentences_of(Document("d", (Passage(0, text),), entities), entities)
    assert all(first[1] <= second[0] for first, second in pairwise(found))
    for start, end in kept:
        inside = range(start, end)
        words = [position for position in inside if not text[position].isspace()]
        assert any(a <= words[0] and words[-1] < b for a, b in found)


@pytest.mark.parametrize(
    ("name", "file", "num_entities"),
    [("entity_linking_bc5cdr", "train.pubtator.txt", 9385), ("entity_linking_ncbi_disease", "dev.pubtator.txt", 787)],
)
def test_nearly_all_entities_of_the_corpora_have_exact_words(dataset, read_all, name, file, num_entities):
    documents, _ = read_all(dataset(name) / file)
    counts = Counter()
    tags = Counter(tag[:1] for item in tagged_sentences(documents, counts=counts) for tag in item.tags)
    left_out = counts["entities left out for a longer one that they overlap"]
    shared = counts["entities that share their only word with another one"]
    assert tags["B"] + left_out + shared == num_entities
    assert left_out + shared <= 0.002 * num_entities
    assert counts["entities that end within a word, read as whole words"] <= 0.02 * num_entities


def related():
    text = "Aspirin helps pain. Aspirin and codeine hurt."
    second = text.rindex("Aspirin")
    entities = (
        entity("a", text, "Aspirin", "Chemical", "C1"),
        entity("p", text, "pain", "Disease", "D1"),
        Entity("b", ((second, second + 7),), "Aspirin", "Chemical", "C1"),
        entity("c", text, "codeine", "Chemical", "C2"),
        entity("h", text, "hurt", "Disease", "D2"),
    )
    relation = Relation("R", "CID", (Argument("Chemical", identifier="C1"), Argument("Disease", identifier="D2")))
    return Document("d", (Passage(0, text),), entities, (relation,))


def test_pairs_of_a_sentence_have_the_relation_of_their_identifiers():
    counts = Counter()
    pairs = list(entity_pairs([related()], PairOptions(), counts))
    found = {pair.id: pair.label for pair in pairs}
    assert found == {"d.a.p": "false", "d.b.h": "CID", "d.c.h": "false"}
    assert counts["related pairs of mentions in different sentences, left out"] == 1
    values = pairs[1].values()
    assert values["text"][values["head"]["start"] : values["head"]["end"]] == "Aspirin"


def test_pairs_of_a_document_are_pairs_of_identifiers():
    pairs = list(entity_pairs([related()], PairOptions(scope="document")))
    assert {pair.id: pair.label for pair in pairs} == {
        "d.C1.D1": "false", "d.C1.D2": "CID", "d.C2.D1": "false", "d.C2.D2": "false"
    }  # fmt: skip
    (cid,) = [pair for pair in pairs if pair.label == "CID"]
    assert cid.head[0] == 20  # the mention that is nearest to the other


def test_no_entity_is_lost_at_white_space_between_sentences():
    text, counts = "Aspirin helps. Asthma is bad. ", Counter()
    spans = {"A": (0, 8), "B": (14, 21), "C": (29, 30)}  # "Aspirin ", " Asthma", " "
    entities = tuple(Entity(name, (span,), text[slice(*span)], name, name) for name, span in spans.items())
    relation = Relation("R", "r", (Argument("1", entity="A"), Argument("2", entity="B")))
    document = Document("d", (Passage(0, text),), entities, (relation,))
    tags = [sentence.tags for sentence in tagged_sentences([document], counts=counts)]
    assert tags == [("B-A", "O", "O"), ("B-B", "O", "O", "O")]
    assert +counts == {"entities of white space, left out": 1}
    (pair,) = entity_pairs([document], PairOptions(scope="document"))
    assert (pair.head, pair.tail) == ((0, 7, "A"), (15, 21, "B"))


def test_each_relation_between_identifiers_is_a_pair_or_counted():
    given, counts = related(), Counter()
    ends = [("C1", "D1|D2"), ("C1", "C1"), ("C1", "D9"), ("C2", "D1")]
    relations = [Relation(str(n), "CID", (Argument("1", identifier=a), Argument("2", identifier=b)))
                 for n, (a, b) in enumerate(ends)]  # fmt: skip
    fragments = replace(given.entities[3], fragments=((32, 34), (36, 39)))
    document = replace(given, relations=tuple(relations), entities=(*given.entities[:3], fragments, given.entities[4]))
    pairs = list(entity_pairs([document], PairOptions(scope="document"), counts))
    assert [pair.ends for pair in pairs if pair.label == "CID"] == [("C1", "D1"), ("C1", "D2"), ("C2", "D1")]
    assert +counts == {
        "relations of an identifier with itself, left out": 1,
        "related pairs of identifiers without two mentions, left out": 1,
        "discontinuous entities read as their whole extent": 1,
    }


def test_pairs_of_one_type_occur_in_one_direction_unless_both_are_related():
    text = "p53 binds MDM2 and ATM"
    entities = tuple(entity(word, text, word) for word in ("p53", "MDM2", "ATM"))
    relation = Relation("R", "binds", (Argument("1", entity="MDM2"), Argument("2", entity="p53")))
    document = Document("d", (Passage(0, text),), entities, (relation,))
    labels = {pair.id: pair.label for pair in entity_pairs([document], PairOptions(negative_label="none"))}
    assert labels == {"d.MDM2.p53": "binds", "d.p53.ATM": "none", "d.MDM2.ATM": "none"}


def test_cid_pairs_of_the_dev_set(dataset, read_all):
    """1,012 relations of 500 documents; the counts of the corpus's own description."""
    documents, _ = read_all(dataset("entity_linking_bc5cdr") / "dev.pubtator.txt")
    labels = Counter(pair.label for pair in entity_pairs(documents, PairOptions(scope="document")))
    assert labels["CID"] == 1012
    assert 4000 < labels["false"] < 4500
