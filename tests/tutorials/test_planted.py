"""The planted data: offsets and tags are right, parts differ, a seed gives the same data."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tutorials"))

import planted

SPLITS = ("train", "dev")


@pytest.mark.parametrize("split", SPLITS)
def test_entities_have_well_formed_tags_and_both_types(split):
    sentences = planted.entity_sentences(split, 300)
    for sentence in sentences:
        previous = "O"
        for _, tag in sentence:
            assert tag == "O" or tag[:2] == "B-" or (tag[:2] == "I-" and previous[2:] == tag[2:]), sentence
            previous = tag
    assert {tag for sentence in sentences for _, tag in sentence} == {"O", "B-Chemical", "B-Disease", "I-Disease"}


def test_a_word_alone_does_not_decide_its_tag():
    tagged = [pair for sentence in planted.entity_sentences("train", 500) for pair in sentence]
    for word in ("renal", "Adler"):
        assert len({tag for other, tag in tagged if other == word}) > 1


@pytest.mark.parametrize("split", SPLITS)
def test_positions_of_a_pair_are_those_of_its_names(split):
    pairs = planted.relation_pairs(split, 200)
    for pair in pairs:
        drug, gene = (pair.text[slice(*span)] for span in (pair.drug, pair.gene))
        assert drug.endswith(tuple(planted.DRUG_ENDINGS)) and gene[:3].isupper() and gene[3:].isdigit()
    labels = [pair.label for pair in pairs]
    assert set(labels) == {"false", *planted.VERBS}
    assert 0.3 < labels.count("false") / len(labels) < 0.7


def test_a_negated_relation_is_none_and_a_second_pair_has_its_own():
    by_text = {}
    for pair in planted.relation_pairs("dev", 300):
        by_text.setdefault(pair.text, []).append(pair.label)
    assert all(labels == ["false"] for text, labels in by_text.items() if "did not" in text or "fails to" in text)
    assert all(len(set(labels)) == 3 for text, labels in by_text.items() if "whereas" in text)


@pytest.mark.parametrize("split", SPLITS)
def test_answers_are_at_their_offsets(split):
    (article,) = planted.squad_document(split, 60)["data"]
    for paragraph in article["paragraphs"]:
        for question in paragraph["qas"]:
            (answer,) = question["answers"]
            assert paragraph["context"][answer["answer_start"] :].startswith(answer["text"])


def test_half_of_the_names_in_dev_are_new():
    known, other = ({planted.Names(split, seed).drug() for seed in range(2000)} for split in SPLITS)
    assert 0.35 < len(other - known) / len(other) < 0.65


def test_the_organ_decides_the_complaint():
    names = planted.Names("dev", 0)
    for _ in range(100):
        text, complaint = planted.fact_sentence(names)
        (organ,) = (organ for organ, other in planted.COMPLAINTS.items() if other == complaint)
        assert organ in text and text.count(complaint) == 1


def test_a_seed_gives_the_same_data_and_another_one_other_data():
    for make in (planted.entity_sentences, planted.relation_pairs, planted.documents):
        assert make("train", 20) == make("train", 20) != make("train", 20, seed=1)
        assert make("train", 20) != make("dev", 20)
