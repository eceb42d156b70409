"""Kinds of errors by hand; the page is safe whatever the data contain."""

import html.parser
import math

import pytest

from megabert.analysis.error_cases import cases, is_abbreviation, pair_mentions
from megabert.analysis.error_report import costliest, summarize, to_page, to_text, to_tsv
from megabert.errors import InputError
from tests.analysis.test_judgments import ANSWER, mention

TEXT = "TNF and lung cancer in colon cancer patients with flu or IL-2"
#       0   4   8    13     20 23    29     36       45   50  54 57
GOLD = [("G", 0, 3), ("D", 8, 19), ("D", 23, 35), ("D", 50, 53), ("G", 57, 61)]
FOUND = [("G", 0, 3), ("D", 13, 19), ("G", 23, 35), ("D", 4, 7), ("D", 57, 59)]


def row(text=TEXT, gold=GOLD, found=FOUND):
    gold, found = ([mention(*item, 0.75, text[item[1] : item[2]]) for item in side] for side in (gold, found))
    return {"id": "7", "text": text, "entities": found, "tags": [], "gold": {"entities": gold, "tags": []}}


def test_each_kind_of_error_of_entities():
    found = cases([row()], {"tnf", "lung cancer"})
    assert [(case.kind, case.gold, case.predicted) for case in found] == [
        ("correct", "TNF [G]", "TNF [G]"),
        ("spurious", "", "and [D]"),
        ("boundary", "lung cancer [D]", "cancer [D]"),
        ("type", "colon cancer [D]", "colon cancer [G]"),
        ("missed", "flu [D]", ""),
        ("boundary and type", "IL-2 [G]", "IL [D]"),
    ]
    assert [case.cost for case in found] == [0, 0.75, 1.75, 1.75, 1, 1.75]
    assert [case.facts["training data"] for case in found] == ["seen", "unseen", "seen", "unseen", "unseen", "unseen"]
    assert [case.facts["words"] for case in found] == ["1", "1", "2", "2", "1", "1"]
    assert [case.facts["abbreviation"] for case in found] == ["yes", "no", "no", "no", "no", "yes"]
    assert "training data" not in cases([row()])[0].facts


def test_an_entity_has_at_most_one_partner_and_the_equal_one_first():
    wide, narrow, other = mention("D", 0, 10), mention("D", 0, 4), mention("D", 5, 10)
    pairs = pair_mentions([wide], [narrow, other])
    assert pairs == [(wide, other), (None, narrow)] or pairs == [(None, narrow), (wide, other)]
    assert pair_mentions([narrow, wide], [wide]) == [(narrow, None), (wide, wide)]


def test_abbreviations():
    assert [is_abbreviation(name) for name in ("TNF", "IL-2", "NaCl", "p53", "Aspirin", "DNA damage", "A", "mRNA")] == [
        True, True, True, False, False, False, False, True]  # fmt: skip


def test_labels_answers_and_numbers():
    probabilities = {"a": 0.9, "b": 0.1}
    wrong = {"id": "1", "text": "t", "label": "a", "probabilities": probabilities, "gold": {"label": "b"}}
    (case,) = cases([wrong])
    assert (case.kind, case.cost) == ("b -> a", pytest.approx(-math.log(0.1)))
    (case,) = cases([ANSWER])
    assert (case.kind, case.cost) == ("boundary", pytest.approx(0.7 / 3))
    assert case.text[slice(*case.spans[0])] == "Marie Curie"
    with pytest.raises(InputError, match="numbers"):
        cases([{"value": 1.0, "gold": {"value": 2.0}}])


def test_the_summary_counts_cases_by_kind_and_fact():
    summary = summarize(cases([row()], {"tnf"}))
    assert (summary["cases"], summary["errors"]) == (6, 5)
    assert summary["groups"]["type"]["D"] == {"spurious": 1, "boundary": 1, "type": 1, "missed": 1}
    assert summary["groups"]["training data"]["seen"] == {"correct": 1}
    text = to_text(summary)
    assert "5 errors in 6 cases" in text and "training data" in text


def test_the_table_has_a_line_for_each_error_the_costliest_first():
    head, *lines = to_tsv(cases([row(), row("=1+1\tx\ny", [("D", 0, 4)], [])])).splitlines()
    assert head.split("\t")[:5] == ["id", "kind", "gold", "predicted", "cost"]
    assert len(lines) == 6 and all(len(line.split("\t")) == len(head.split("\t")) for line in lines)
    assert [float(line.split("\t")[4]) for line in lines] == [1.75, 1.75, 1.75, 1, 1, 0.75]
    assert "\t'=1+1 x y" in lines[4]


class Tags(html.parser.HTMLParser):
    """Collect tags, attributes and text."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.text = set(), set(), []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data):
        self.text.append(data)


def test_nothing_of_the_data_becomes_markup():
    hostile = "<script>alert(1)</script> & <img src=x onerror=alert(2)> </table>"
    bad = row(hostile, [('"><script>', 0, 8)], [("D", 0, 4)]) | {"id": "<svg onload=alert(3)>"}
    page = to_page(cases([bad]), "<title>", 10)
    parsed = Tags(page)
    assert not parsed.tags & {"script", "img", "svg", "link", "iframe"}
    assert not {name for name in parsed.attributes if name.startswith("on")} | ({"src", "href"} & parsed.attributes)
    assert "<script>alert(1)</script>" in "".join(parsed.text)
    assert "default-src 'none'" in page and "prefers-color-scheme: dark" in page


def test_the_page_marks_gold_and_predicted_characters_and_shows_the_costliest():
    found = cases([row()])
    page = to_page(found, "RUN", 1)
    assert "The first 1 errors" in page and '<mark class="gold">lung </mark><mark class="both">cancer</mark>' in page
    assert costliest(found)[0].kind == "boundary"
