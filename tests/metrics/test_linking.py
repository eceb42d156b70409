"""Linking scores: hand-computed, HunFlair2's published figures, and naive code written from the definitions."""

import json
import random

import pytest

from megabert.formats.dictionaries.curies import to_curie
from megabert.formats.documents.convert_documents import read_documents
from megabert.metrics.linking import LinkedMention, RankedMention, accuracy_scores, linked_scores


def ids(*names):
    return frozenset(names)


def test_a_composite_needs_all_its_parts():
    both = RankedMention(ids("a", "b"), [[ids("a")], [ids("x"), ids("b", "c")]])
    whole = RankedMention(ids("a", "b"), [[ids("x"), ids("x"), ids("a")]])
    scores = accuracy_scores([both, whole], ranks=(1, 2, 3))
    assert [scores[f"acc@{k}"] for k in (1, 2, 3)] == [0, 50, 100]
    # The second mention is right for any of its identifiers among names, and among two distinct concepts.
    assert [scores[f"concept_acc@{k}"] for k in (1, 2, 3)] == [0, 100, 100]
    assert [scores[f"all_acc@{k}"] for k in (1, 2, 3)] == [0, 50, 50]


def test_subsets_have_their_own_denominators():
    seen = RankedMention(ids("a"), [[ids("a")]])
    unseen = RankedMention(ids("a"), [[ids("b")]], subsets=("unseen_mention",))
    scores = accuracy_scores([seen, seen, seen, unseen])
    assert scores["acc@1"] == 75
    assert scores["unseen_mention/acc@1"] == 0
    assert scores["unseen_mention/mentions"] == 1


def test_random_rankings_have_the_accuracy_of_the_definition():
    rng = random.Random(1)
    for _ in range(1000):
        mentions = []
        for _ in range(rng.randint(1, 6)):
            parts = [
                [frozenset(rng.sample("abcdef", rng.randint(1, 2))) for _ in range(rng.randint(0, 6))]
                for _ in range(rng.choice([1, 1, 2, 3]))
            ]
            mentions.append(RankedMention(frozenset(rng.sample("abcdef", rng.randint(1, 2))), parts))
        scores = accuracy_scores(mentions, ranks=(1, 3))
        for k in (1, 3):
            right = 0
            for mention in mentions:
                hits = 0
                for part in mention.parts:
                    for candidate in part[:k]:
                        if len(set(candidate).intersection(set(mention.gold))) > 0:
                            hits += 1
                            break
                right += hits == len(mention.parts)
            assert scores[f"acc@{k}"] == pytest.approx(100 * right / len(mentions))


def mention(start, end, *names, kind="Gene"):
    return LinkedMention(start, end, kind, frozenset(names))


def test_one_character_of_tolerance_and_any_identifier():
    gold = [[mention(0, 5, "1"), mention(10, 15, "2", "3"), mention(20, 25), mention(30, 35, "4")]]
    found = [[mention(1, 5, "1"), mention(10, 15, "3"), mention(20, 25, "9"), mention(32, 35, "4")]]
    scores = linked_scores(gold, found)
    assert (scores["mention_tp"], scores["mention_fp"], scores["mention_fn"]) == (2, 1, 1)
    assert scores["strict_f1"] == 0
    assert linked_scores(gold, gold)["strict_f1"] == 100


def test_a_predicted_nil_counts_as_wrong_unless_the_gold_is_nil():
    gold = [[mention(0, 5, "1"), mention(10, 15)]]
    scores = linked_scores(gold, [[mention(0, 5), mention(10, 15)]])
    assert (scores["mention_tp"], scores["mention_fp"], scores["mention_fn"]) == (0, 1, 1)
    assert scores["strict_recall"] == 50


def test_types_are_scored_apart_and_together():
    gold = [[mention(0, 5, "1"), mention(0, 5, "2", kind="Disease")]]
    found = [[mention(0, 5, "1"), mention(0, 5, "9", kind="Disease")]]
    scores = linked_scores(gold, found)
    assert scores["mention_f1"] == 50
    assert scores["Gene/mention_f1"] == 100
    assert scores["Disease/document_set_f1"] == 0


def test_random_documents_have_the_f1_of_the_definition():
    rng = random.Random(2)
    for _ in range(1000):
        gold, found, tp, num_gold, num_found = [], [], 0, 0, 0
        for place in range(rng.randint(1, 8)):
            start, names = 100 * place, rng.sample("abcd", rng.randint(0, 2))
            has_gold, has_found = rng.random() < 0.8, rng.random() < 0.8
            moved = [rng.randint(-2, 2), rng.randint(-2, 2)]
            linked = rng.sample("abcd", rng.randint(0, 2))
            is_close = max(map(abs, moved)) <= 1
            if has_gold:
                gold.append(mention(start, start + 10, *names))
            if has_found:
                found.append(mention(start + moved[0] + 3, start + 13 + moved[1], *linked))
                gold = [mention(m.start + 3, m.end + 3, *m.identifiers) if m.start == start else m for m in gold]
            num_gold += has_gold and bool(names)
            is_skipped = has_gold and not names and is_close
            num_found += has_found and not is_skipped
            tp += has_gold and has_found and is_close and bool(set(names) & set(linked))
        scores = linked_scores([gold], [found])
        assert (scores["mention_tp"], scores["mention_fp"], scores["mention_fn"]) == (tp, num_found - tp, num_gold - tp)


@pytest.fixture(scope="module")
def tmvar(datasets):
    return datasets("hunflair2_tmvar3")


def read(file):
    """The genes of each document; predictions may be lines without texts."""
    documents = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        cells = line.split("\t")
        if len(cells) >= 5 and cells[1].isdecimal() and cells[4].lower() == "gene":
            if len(cells) < 6 or not cells[5]:
                continue  # a mention that was not linked; -1 is NIL
            names = {to_curie(item, "ncbigene") for item in cells[5].replace(";", ",").split(",")}
            own = documents.setdefault(cells[0], [])
            own.append(LinkedMention(int(cells[1]), int(cells[2]), "Gene", frozenset(names - {""})))
    return documents


@pytest.mark.parametrize("tool", ["bern", "pubtator", "bent", "hunflair2"])
def test_the_published_scores_of_a_tool_come_out(tmvar, tool):
    official = json.loads((tmvar / "official_scores.json").read_text(encoding="utf-8"))["dev_files"][tool]
    names = [document.id for document in read_documents([tmvar / "goldstandard.txt"])]
    gold, found = (read(tmvar / f"{name}.txt") for name in ("goldstandard", tool))
    scores = linked_scores([gold.get(name, []) for name in names], [found.get(name, []) for name in names])
    for name, value in official.items():
        is_count = name.endswith(("tp", "fp", "fn"))
        assert scores[name] == pytest.approx(value if is_count else 100 * value), name
