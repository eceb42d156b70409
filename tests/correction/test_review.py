"""A review: what decisions do, the log and the documents that they leave, a kill after a decision."""

import json
import os
import subprocess
import sys
import urllib.request
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megabert.config.parser import compose
from megabert.correction.decisions import DECISIONS, UNDO, Decision, ReviewState, decide
from megabert.correction.review_store import Outdated, ReviewStore
from megabert.errors import ConfigError, InputError
from megabert.formats.documents.convert_documents import read_documents, write_documents
from megabert.formats.documents.document import Argument, Relation, check_structure, is_text_at
from megabert.formats.documents.losses import Losses
from megabert.tasks.registry import find

PUBTATOR = """1|t|Radium and \U0001f600 asthma.
1|a|Marie Curie found radium in Paris.
1\t0\t6\tRadium\tChemical\tD011883\t0.9
1\t11\t19\t\U0001f600 asthma\tDisease\t-\t0.4

2|t|Aspirin.
2|a|It helps.
2\t0\t7\tAspirin\tChemical\tD001241

3|t|Nothing.

"""


@pytest.fixture
def pool(tmp_path):
    path = tmp_path / "pool.pubtator"
    path.write_text(PUBTATOR, encoding="utf-8")
    return path


def read(path):
    return list(read_documents([path]))


def store_of(pool, output, form="pubtator", **options):
    return ReviewStore(read(pool), output, form, **options)


def entities(state):
    return {(item.start, item.end, item.type, item.identifier, item.id in state.open) for item in state.entities}


def test_decisions_change_type_borders_and_what_is_open(pool):
    state = ReviewState.of(read(pool)[0])
    radium, asthma = (entity.id for entity in state.entities)
    state = decide(state, Decision("accept", radium))
    assert entities(state) == {(0, 6, "Chemical", "D011883", False), (11, 19, "Disease", "-", True)}
    assert state.entities[0].score is None and state.entities[1].score == 0.4
    state = decide(state, Decision("change", asthma, start=13))
    assert (13, 19, "Disease", "-", False) in entities(state) and state.entities[1].text == "asthma"
    changed = decide(state, Decision("change", radium, type="Gene"))
    assert (0, 6, "Gene", "", False) in entities(changed)
    state = decide(state, Decision("add", type="Place", start=49, end=54))
    assert state.entities[-1].text == "Paris" and state.revision == 3
    state = decide(decide(state, Decision("reject", asthma)), Decision("finish"))
    assert entities(state) == {(0, 6, "Chemical", "D011883", False), (49, 54, "Place", "", False)}
    assert state.is_finished and not decide(state, Decision("reopen")).is_finished


def test_finishing_accepts_what_is_open_and_relations_go_with_their_entities(pool):
    document = read(pool)[0]
    ends = tuple(Argument(role, entity.id) for role, entity in zip("ab", document.entities, strict=True))
    state = ReviewState.of(replace(document, relations=(Relation("R1", "CID", ends),)))
    finished = decide(state, Decision("finish"))
    assert not finished.open and [item.score for item in finished.entities] == [None, None]
    assert len(finished.corrected().relations) == 1
    assert decide(state, Decision("reject", ends[0].entity)).corrected().relations == ()


@pytest.mark.parametrize(
    ("decision", "message"),
    [
        (Decision("accept", "T99"), "no entity"),
        (Decision("add", type="X", start=17, end=25), "one passage"),  # over the title's end
        (Decision("add", type="X", start=0, end=7), "blank"),
        (Decision("add", type="X", start=3, end=3), "one passage"),
        (Decision("add", type="X", start=-2, end=3), "one passage"),
        (Decision("add", type="X"), "start and end"),
        (Decision("add", start=0, end=6), "type"),
        (Decision("add", type="Chemical", start=0, end=6), "already"),
        (Decision("destroy"), "no decision"),
    ],
)
def test_what_does_not_fit_is_refused(pool, decision, message):
    with pytest.raises(InputError, match=message):
        decide(ReviewState.of(read(pool)[0]), decision)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_sequence_of_decisions_is_replayed_from_the_log(data, tmp_path_factory):
    """Whatever is decided, a store that is opened again has the same states, and its files hold valid offsets."""
    folder = tmp_path_factory.mktemp("review")
    (folder / "pool.pubtator").write_text(PUBTATOR, encoding="utf-8")
    form = data.draw(st.sampled_from(("pubtator", "jsonl", "brat", "bioc")))
    output = folder / "out"
    store = store_of(folder / "pool.pubtator", output, form)
    for _ in range(data.draw(st.integers(1, 8))):
        number = data.draw(st.integers(0, 2))
        state = store.state(number)
        names = [item.id for item in state.entities] or ["T1"]
        start = data.draw(st.integers(0, 30))
        kind, kinds = data.draw(st.sampled_from("AB")), (*DECISIONS, UNDO)
        extent = (start, start + data.draw(st.integers(1, 8)))
        decision = Decision(data.draw(st.sampled_from(kinds)), data.draw(st.sampled_from(names)), kind, *extent)
        try:
            store.decide(number, state.revision, decision, "Ann")
        except InputError:
            assert store.state(number) == state
    store.close()
    again = store_of(folder / "pool.pubtator", output, form)
    assert again.history == store.history
    for states in again.history:
        check_structure(states[-1].corrected())
        assert all(is_text_at(states[-1].document.text(), item) for item in states[-1].entities)
    finished = {states[-1].document.id for states in again.history if states[-1].is_finished}
    found = list(read_documents([output], format_name=form)) if finished else []
    assert {document.id for document in found} == finished == ({item.id for item in found})
    again.close()


def test_finished_documents_are_training_data_and_unfinished_ones_stand_apart(pool, tmp_path):
    output = tmp_path / "out.pubtator"
    store = store_of(pool, output, keeps_time=False)
    assert not output.exists() and not store.unfinished.exists()
    store.decide(0, 0, Decision("reject", store.state(0).entities[1].id), " Ann ")
    assert store.unfinished.name == "out.unfinished.pubtator" and not output.exists()
    assert store.unfinished.read_text().splitlines()[2:] == ["1\t0\t6\tRadium\tChemical\tD011883\t0.9", ""]
    store.decide(0, 1, Decision("finish"))
    assert not store.unfinished.exists()
    assert output.read_text().splitlines()[2:] == ["1\t0\t6\tRadium\tChemical\tD011883", ""]
    store.decide(1, 0, Decision("finish"))
    assert output.read_text().splitlines()[-2:] == ["2\t0\t7\tAspirin\tChemical\tD001241", ""]  # as its file had it
    lines = [json.loads(line) for line in store.log_path.read_text().splitlines()]
    assert [(line["decision"]["kind"], line.get("who"), "when" in line) for line in lines] == [
        ("reject", "Ann", False), ("finish", None, False), ("finish", None, False)]  # fmt: skip
    store.decide(1, 1, Decision("reopen"))
    assert [document.id for document in read(output)] == ["1"] and len(read(store.unfinished)) == 1
    store.close()


def test_undo_goes_back_decision_by_decision(pool, tmp_path):
    store = store_of(pool, tmp_path / "out.jsonl", "jsonl")
    before = entities(store.state(0))
    name = store.state(0).entities[0].id
    store.decide(0, 0, Decision("change", name, type="Gene"))
    store.decide(0, 1, Decision("reject", name))
    assert (0, 6, "Gene", "", False) in entities(store.decide(0, 2, Decision(UNDO)))
    assert entities(store.decide(0, 3, Decision(UNDO))) == before
    with pytest.raises(InputError, match="no decision to undo"):
        store.decide(0, 4, Decision(UNDO))
    assert "when" in json.loads(store.log_path.read_text().splitlines()[0])
    store.close()


def test_other_windows_other_documents_and_other_files_are_not_overwritten(pool, tmp_path):
    output = tmp_path / "out.pubtator"
    store = store_of(pool, output)
    store.decide(0, 0, Decision("finish"))
    with pytest.raises(Outdated):
        store.decide(0, 0, Decision("reopen"))
    with pytest.raises(ConfigError, match="another process"):
        store_of(pool, output)
    store.close()
    pool.write_text(PUBTATOR.replace("Marie Curie", "Pierre Curie"), encoding="utf-8")
    with pytest.raises(InputError, match="another text"):
        store_of(pool, output)
    pool.write_text(PUBTATOR.partition("\n\n")[2], encoding="utf-8")
    with pytest.raises(InputError, match="no '1' among the documents"):
        store_of(pool, output)
    store.log_path.unlink()
    with pytest.raises(ConfigError, match=r"out\.pubtator exists"):
        store_of(pool, output)
    with pytest.raises(InputError, match="same identifier"):
        ReviewStore([*read(pool), *read(pool)], tmp_path / "twice.jsonl", "jsonl")


def test_a_torn_line_is_cut_off_and_a_damaged_one_is_named(pool, tmp_path):
    output = tmp_path / "out.pubtator"
    store = store_of(pool, output)
    store.decide(0, 0, Decision("finish"))
    store.close()
    whole = store.log_path.read_bytes()
    store.log_path.write_bytes(whole + whole[: len(whole) // 2])
    output.unlink()
    again = store_of(pool, output)
    assert again.log_path.read_bytes() == whole and again.history == store.history and output.exists()
    again.close()
    store.log_path.write_bytes(b"{}\n" + whole)
    with pytest.raises(InputError, match=r"decisions\.jsonl:1"):
        store_of(pool, output)


def test_a_full_disk_refuses_the_decision_and_keeps_the_log_whole(pool, tmp_path, monkeypatch):
    store = store_of(pool, tmp_path / "out.jsonl", "jsonl")

    def fail(_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("megabert.correction.review_store.os.fsync", fail)
        with pytest.raises(OSError, match="No space"):
            store.decide(0, 0, Decision("finish"))
    assert store.log_path.read_bytes() == b"" and not store.state(0).is_finished
    assert store.decide(0, 0, Decision("finish")).is_finished
    store.close()


def test_a_decision_survives_a_kill_of_the_server(pool, tmp_path):
    pytest.importorskip("uvicorn", reason="the extra serve is not installed")
    output = tmp_path / "out.pubtator"
    words = ["review", str(pool), "-o", str(output), "--port", "0", "--types", "Gene"]
    command = [sys.executable, "-m", "megabert", *words]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        line = next(line for line in server.stderr if "http://" in line)
        body = {"revision": 0, "decision": "change", "type": "Gene", "who": "Ann", "entity": "T3"}
        headers = {"content-type": "application/json"}
        request = urllib.request.Request(f"{line.split()[-1]}/v1/review/0", json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=30) as answer:
            assert json.load(answer)["revision"] == 1
    finally:
        server.kill()  # SIGKILL
        server.communicate()
    (document,) = read(tmp_path / "out.unfinished.pubtator")
    assert [(item.text, item.type) for item in document.entities] == [
        ("Radium", "Gene"), ("\U0001f600 asthma", "Disease")]  # fmt: skip
    again = store_of(pool, output)
    assert again.state(0).revision == 1 and '"who": "Ann"' in again.log_path.read_text()
    again.close()


def test_corrected_documents_are_training_data_beside_older_ones(pool, tmp_path):
    """What is finished is read as sentences with tags; what was begun, and not finished, is not read."""
    store = store_of(pool, tmp_path / "corrected.pubtator")
    store.decide(0, 0, Decision("add", type="Place", start=49, end=54))
    store.decide(0, 1, Decision("finish"))
    store.decide(1, 0, Decision("accept", store.state(1).entities[0].id))
    store.close()
    write_documents(read(pool)[1:2], tmp_path / "old.pubtator", "pubtator", Losses())
    files = f"model.train_ds.file=[{tmp_path / 'old.pubtator'},{tmp_path / 'corrected.pubtator'}]"
    task_type = find("token_classification")
    task = task_type(compose(task_type.settings_type, [files], owner="token_classification")[0])
    examples = task.read_data(task.settings.model.train_ds)
    assert [example.id for example in examples] == ["2.1", "2.2", "1.1", "1.2"]
    assert [set(example.tags) - {"O"} for example in examples] == [
        {"B-Chemical"}, set(), {"B-Chemical", "B-Disease", "I-Disease"}, {"B-Place"}]  # fmt: skip
