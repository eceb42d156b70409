"""The page in a real browser: what it shows for each task, keyboard, copies, and texts that try to be markup."""

import json
import re
from pathlib import Path

import pytest

from megabert.serve.page_routes import PAGE, content_policy
from tests.serve.browser import open_page

PAYLOADS = ("<img src=x onerror=hit()>", "</script><script>hit()</script>", "<svg/onload=hit()>", "\"'><b>x</b>",
            "javascript:hit()", "{{hit()}}", "\u202egnirts", "&lt;script&gt;", "<iframe srcdoc='<script>hit()</script>'>")  # fmt: skip  # noqa: E501


@pytest.fixture(scope="module")
def page(server, tmp_path_factory):
    with open_page(server.url, tmp_path_factory.mktemp("browser")) as found:
        yield found


def compute(page, model, mode, fields):
    """Choose, fill in, press Ctrl + Enter, wait for the answer; returns the text of the result."""
    page.choose("#model", model)
    page.choose("#mode", mode)
    for name, text in fields.items():
        page.type(f"#field-{name}", text)
    page.press("Enter", modifiers=2)
    page.wait("!document.getElementById('run').disabled && document.getElementById('output').children.length > 0")
    return page.run("document.getElementById('output').innerText")


def test_entities_are_marked_in_the_text_at_code_points(page, server):
    text = "\U0001f600 Peter lives in Paris"
    compute(page, "ner", "entities", {"text": text})
    spans = server.runs["ner"].predict(text=text).spans
    assert spans
    marks = page.run("[...document.querySelectorAll('mark')].map(mark => [mark.firstChild.data, mark.title])")
    assert [mark[0] for mark in marks] == [span.text for span in spans]
    assert all(f"{span.start} to {span.end}" in mark[1] for span, mark in zip(spans, marks, strict=True))
    assert page.run("document.querySelector('#output .text').textContent") == text
    page.run("copy('pubtator')")
    span = spans[0]
    assert f"\t{span.start}\t{span.end}\t{span.text}\t{span.type}\t" in page.run("window.copied")
    page.run("copy('brat')")
    assert page.run("window.copied").startswith(f"T1\t{span.type} {span.start} {span.end}\t{span.text}\n")


def test_every_mode_shows_its_answer(page):
    document = "1|t|Peter lives in Paris\n1|a|Anna left for Rome.\n"
    page.choose("#model", "ner")
    page.choose("#mode", "documents")
    page.choose("#format", "pubtator")
    assert "Paris" in compute_now(page, {"content": document})
    assert page.run("copy('pubtator').then(() => window.copied)").startswith("1|t|Peter lives in Paris\n")
    assert "Best candidates" in compute(
        page, "qa", "answers", {"question": "Where?", "context": "Peter lives in Paris."}
    )
    assert page.run("document.querySelectorAll('#output mark').length") == 1
    assert "no" in compute(page, "classes", "classes", {"text": "good"})
    assert page.run("document.querySelectorAll('#output .bar').length") == 3
    assert compute(page, "marks", "punctuation", {"text": "play music"}).startswith("Play music")
    assert "0." in compute(page, "zero", "zero-shot", {"text": "a b", "labels": "sport\npolitics"})
    assert "ask" in compute(page, "intents", "intents", {"text": "play music"})
    assert "CPR" in compute(page, "relations", "relations", {"text": "Peter saw Anna", "head": "Peter", "tail": "Anna"})
    assert "number 1" in compute(page, "pairs", "rank", {"query": "a b", "texts": "b c\nc d"})
    assert "b c" in compute(page, "ner", "similarity", {"source": "a b", "sentences": "b c\nc d"})


def compute_now(page, fields):
    """Compute with what is chosen."""
    for name, text in fields.items():
        page.type(f"#field-{name}", text)
    page.press("Enter", modifiers=2)
    page.wait("!document.getElementById('run').disabled && document.getElementById('output').children.length > 0")
    return page.run("document.getElementById('output').innerText")


@pytest.mark.parametrize("payload", PAYLOADS)
def test_text_never_becomes_markup(page, payload):
    page.run("window.hits = 0; window.hit = () => { window.hits += 1; }; 0")
    compute(page, "ner", "entities", {"text": f"Peter {payload} Paris"})
    assert page.run("document.querySelector('#output .text').textContent") == f"Peter {payload} Paris"
    compute(page, "qa", "answers", {"question": payload, "context": f"It is {payload} here."})
    assert page.run("window.hits") == 0
    assert page.run("document.querySelectorAll('#output img, #output iframe, #output b, #output svg').length") == 0


def test_errors_are_shown_and_the_keyboard_reaches_the_entities(page):
    page.choose("#model", "qa")
    page.type("#field-question", "Where?")
    page.press("Enter", modifiers=2)
    page.wait("document.getElementById('status').className === 'bad'")
    assert "context" in page.run("document.getElementById('status').textContent")
    compute(page, "ner", "entities", {"text": "Peter lives in Paris"})
    page.run("document.getElementById('output').focus()")
    page.press("Tab")
    assert page.run("document.activeElement.tagName") == "MARK"
    assert "score" in page.run("document.activeElement.getAttribute('aria-label')")
    assert page.run("[...document.querySelectorAll('input, select, textarea')].every(item => item.closest('label'))")


def test_the_page_requests_nothing_from_elsewhere_and_breaks_no_rule(page, server):
    assert all(address.startswith((server.url, "data:")) for address in page.requests)
    assert not [line for line in page.console if "Content Security Policy" in line or "exceptionDetails" in line]


def test_the_page_is_one_file_whose_only_script_its_policy_names():
    document = PAGE.read_text(encoding="utf-8")
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|https?://", document)
    policy = content_policy(document)
    assert policy.startswith("default-src 'none'")
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert document.count("<script") == policy.count("script-src 'sha256-") == 1
    assert Path(PAGE).stat().st_size < 30_000


ARCS = """[...document.querySelectorAll('#output .arc')].map(arc => {
  const box = arc.ownerSVGElement.getBoundingClientRect(), ends = arc.getAttribute('d').match(/[-\\d.]+/g).map(Number);
  return [ends[0] + box.left, ends[1] + box.top, ends[6] + box.left, ends[7] + box.top]; })"""
PLACES = "[...document.querySelectorAll('#output mark')].map(mark => mark.getClientRects()[0]).map(r => [r.left, r.right, r.top])"  # noqa: E501


def test_relations_are_arcs_from_span_to_span_and_a_table(page):
    words = [("Aspirin", "D1"), ("headache", "D2"), ("fever", "D3")]
    text = "\U0001f600 Aspirin against headache, " + "a long word " * 40 + "and fever"
    entities = [
        {
            "id": f"T{number}",
            "type": "Drug",
            "text": word,
            "start": start,
            "end": start + len(word),
            "identifiers": [name],
        }
        for number, (word, name) in enumerate(words)
        for start in [text.index(word)]
    ]
    relations = [
        {"id": "R1", "type": "<b>treats</b>", "score": 0.8, "arguments": [{"entity": "T0"}, {"entity": "T1"}]},
        {"id": "R2", "type": "treats", "score": 0.7, "arguments": [{"identifier": "D3"}, {"identifier": "D1"}]},
    ]
    document = {"text": text, "entities": entities, "relations": relations}
    page.choose("#model", "ner")
    page.run(f"show('documents', {json.dumps({'documents': [document], 'content': ''})}, {{}}); 0")
    for width in ("100%", "20rem"):  # drawn again where the lines break elsewhere
        page.run(f"document.getElementById('output').style.width = '{width}'; 0")
        page.wait("document.querySelectorAll('#output .arc').length === 2")
        page.run("new Promise(done => requestAnimationFrame(() => setTimeout(done, 50)))")
        places = page.run(PLACES)
        for (x1, y1, x2, y2), (first, second) in zip(page.run(ARCS), ((0, 1), (2, 0)), strict=True):
            for x, y, (left, right, top) in ((x1, y1, places[first]), (x2, y2, places[second])):
                assert left < x < right and abs(y - top) < 2
    page.run("document.getElementById('output').style.width = ''; 0")
    assert page.run("document.querySelector('#output svg').getAttribute('aria-hidden')") == "true"
    assert page.run("document.querySelectorAll('#output b').length") == 0
    assert "Aspirin (T0) → headache (T1)" in page.run("document.getElementById('output').innerText")
    compute(page, "relations", "relations", {"text": "Peter saw Anna", "head": "Peter", "tail": "Anna"})
    page.wait("document.querySelectorAll('#output .arc').length === 1")
