"""The review page in a real browser: decisions by keyboard, mouse and buttons, each in the file at once; the routes."""

import json
import re
import threading

import pytest

from megabert.correction.review_store import ReviewStore
from megabert.formats.documents.convert_documents import read_documents
from megabert.serve.page_routes import content_policy
from megabert.serve.review_routes import REVIEW_PAGE, make_review_application
from megabert.serve.server import HttpServer, listen
from megabert.serve.server_parts import ServeSettings
from tests.serve.browser import open_page
from tests.serve.running_server import Running

PAYLOAD = "<img src=x onerror=hit()></script><script>hit()</script>"
POOL = f"""1|t|\U0001f600 Ataxia and breast cancer.
1|a|It affects BRCA1 in {PAYLOAD} most cases.
1\t2\t8\tAtaxia\tDisease\tD001260\t0.9
1\t20\t26\tcancer\tDisease\t-\t0.4
1\t39\t44\tBRCA1\tDisease\t-\t0.5

2|t|{PAYLOAD}
2|a|Aspirin helps.
2\t0\t4\t<img\t<b onclick=hit()>X</b>\t-\t0.9

"""
TYPES = ("Disease", "Gene", "<b onclick=hit()>X</b>")


@pytest.fixture(scope="module")
def review(tmp_path_factory):
    """Serve a review in a thread."""
    folder = tmp_path_factory.mktemp("review")
    (folder / "pool.pubtator").write_text(POOL, encoding="utf-8")
    store = ReviewStore(list(read_documents([folder / "pool.pubtator"])), folder / "out.pubtator", "pubtator")
    settings = ServeSettings(port=0, access_log="none")
    listener = listen(settings)
    server = HttpServer(make_review_application(store, TYPES, settings), settings)
    started = threading.Event()
    thread = threading.Thread(target=server.serve_socket, args=(listener, started.set))
    thread.start()
    started.wait(120)
    running = Running(listener.getsockname()[1], server, None, {})
    running.store = store
    yield running
    server.stop()
    thread.join(120)
    listener.close()
    store.close()


@pytest.fixture(scope="module")
def page(review, tmp_path_factory):
    with open_page(review.url, tmp_path_factory.mktemp("browser"), ready="#document option") as found:
        found.run("window.hits = 0; window.hit = () => { window.hits += 1; }; 0")
        yield found


def saved(review):
    """Return (text, type) of the entities of the first document, as the file has them."""
    store = review.store
    path = store.output if store.output.exists() else store.unfinished
    return [(item.text, item.type) for item in next(read_documents([path])).entities]


def decide(page, key, status, modifiers=0):
    """Press a key and wait for what the live region announces."""
    page.press(key, modifiers)
    page.wait(f"document.getElementById('status').textContent.includes({json.dumps(status)})")


def test_a_document_is_corrected_by_the_keyboard_alone(page, review):
    assert page.run("document.querySelector('#text').textContent") == review.store.state(0).document.text()
    assert page.run("document.querySelector('mark.current').textContent") == "Ataxia"
    page.type("#who", "Ann")
    page.run("document.querySelector('#text').focus()")
    decide(page, "a", "Saved: accepted Ataxia [Disease]. 2 open.")
    assert ("Ataxia", "Disease") in saved(review)
    assert page.run("document.querySelector('mark.current').textContent") == "cancer"  # the next that is open
    decide(page, "q", "Saved: breast cancer [Disease].")
    assert ("breast cancer", "Disease") in saved(review)
    decide(page, "u", "Saved: breast [Disease].")
    decide(page, "Q", "Saved: d breast", modifiers=8)  # a character, over the blank before the word
    assert ("d breast", "Disease") in saved(review)
    for text in ("breast:", "breast cancer:"):
        decide(page, "z", "the last decision is undone")
        page.wait(f"document.querySelector('mark.current').getAttribute('aria-label').startsWith('{text}')")
    decide(page, "n", "BRCA1 [Disease], open")
    decide(page, "2", "Saved: BRCA1 is Gene.")
    decide(page, "ArrowRight", "Chosen: BRCA1")
    decide(page, "ArrowRight", "Chosen: in")
    decide(page, "ArrowRight", "Chosen: <")
    decide(page, "ArrowRight", "Chosen: <img", modifiers=8)
    decide(page, "1", "Saved: added <img [Disease].")
    decide(page, "r", "Saved: rejected <img [Disease].")
    assert saved(review) == [("Ataxia", "Disease"), ("breast cancer", "Disease"), ("BRCA1", "Gene")]
    decide(page, "f", "Saved: finished.")
    assert saved(review) == [("Ataxia", "Disease"), ("breast cancer", "Disease"), ("BRCA1", "Gene")]
    assert review.store.output.exists() and page.run("document.getElementById('name').textContent") == "2"
    lines = [json.loads(line) for line in review.store.log_path.read_text(encoding="utf-8").splitlines()]
    assert {line["who"] for line in lines} == {"Ann"} and all("when" in line for line in lines)


def test_words_are_chosen_by_the_mouse_and_buttons_do_what_keys_do(page, review):
    page.run("act(() => open(1)).then(() => 0)")  # shown when this returns: a drag must not meet a change of the text
    box = page.run("""(() => {
        const part = [...document.querySelectorAll('#text > *')].pop().firstChild, range = document.createRange();
        const at = part.data.indexOf('Aspirin'); range.setStart(part, at); range.setEnd(part, at + 7);
        const box = range.getBoundingClientRect(); return [box.left, box.right, box.top + box.height / 2]; })()""")
    page.drag((box[0] + 1, box[2]), (box[1] - 1, box[2]))
    page.wait("document.getElementById('status').textContent.startsWith('Chosen: Aspirin')")
    page.run("document.querySelector('#types button:nth-child(2)').click()")
    page.wait("document.getElementById('status').textContent.includes('added Aspirin [Gene]')")
    page.run("document.querySelector('[data-act=undo]').click()")
    page.wait("document.getElementById('status').textContent.includes('undone')")
    assert [item.text for item in review.store.state(1).entities] == ["<img"]


def test_text_types_and_names_never_become_markup(page):
    assert page.run("document.querySelectorAll('#text img, #text script, main b').length") == 0
    assert page.run("window.hits") == 0
    assert PAYLOAD in page.run("document.querySelector('#text').textContent")


def test_another_windows_decision_is_shown_instead_of_overwritten(page, review):
    state = review.store.state(1)
    review.post("/v1/review/1", revision=state.revision, decision="accept", entity=state.entities[0].id)
    page.run("document.querySelector('#text').focus()")
    decide(page, "f", "changed meanwhile")
    page.wait("document.querySelectorAll('mark.open').length === 0")
    assert not review.store.state(1).is_finished


def test_a_screen_reader_finds_names_states_and_a_live_region(page):
    assert page.run("document.getElementById('status').getAttribute('role')") == "status"
    assert page.run("[...document.querySelectorAll('input, select')].every(item => item.closest('label'))")
    tree = page.send("Accessibility.getFullAXTree")["nodes"]
    buttons = [node["name"]["value"] for node in tree if node.get("role", {}).get("value") == "button"]
    assert any(name.startswith("<img: ") and name.endswith("decided") for name in buttons)
    assert "Start one word earlier" in buttons and any(name.startswith("Accept") for name in buttons)
    assert all(buttons)


def test_the_page_requests_nothing_from_elsewhere_and_breaks_no_rule(page, review):
    assert all(address.startswith((review.url, "data:")) for address in page.requests)
    assert not [line for line in page.console if "Content Security Policy" in line or "exceptionDetails" in line]


def test_the_routes_refuse_what_is_not_of_the_review(review):
    def post(number="0", **body):
        status, _, answer = review.call("POST", f"/v1/review/{number}", {"revision": 99, "decision": "finish", **body})
        return status, answer["error"]

    assert post()[0] == 409
    revision = review.store.state(1).revision
    assert post("1", revision=revision, decision="add", type="Other", start=0, end=1)[0] == 422
    assert "blank" in post("1", revision=revision, decision="add", type="Gene", start=0, end=5)[1]
    assert post("1", revision=revision, decision="steal")[0] == 422
    assert post("1", revision=revision, file="/etc/passwd")[0] == 422
    assert {post(number)[0] for number in ("2", "-1", "..", "%2e%2e", "9" * 30, "%C2%B2")} == {404}
    assert review.call("GET", "/v1/review/1", origin="http://elsewhere")[0] == 403
    status, headers, _ = review.call("GET", "/")
    assert status == 200 and "unsafe" not in headers["content-security-policy"]


def test_the_review_page_is_one_file_whose_only_script_its_policy_names():
    document = REVIEW_PAGE.read_text(encoding="utf-8")
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|https?://", document)
    assert document.count("<script") == content_policy(document).count("script-src 'sha256-") == 1
    assert REVIEW_PAGE.stat().st_size < 30_000
