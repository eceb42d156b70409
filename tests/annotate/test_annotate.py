"""Annotation of documents in bulk: the Predictor's answers, shards, the ledger, resuming, faults, parts."""

import json
import shlex
from pathlib import Path
from string import Template

import pytest

import megabert
from megabert.annotate import shards
from megabert.cli import main
from megabert.formats.documents.convert_documents import read_documents

RUNS = Path(__file__).parent.parent / "runs_v1"
NUM_DOCUMENTS = 150


@pytest.fixture(scope="module")
def runs():
    """Return the checkpoint folders of a small entity run and a small relation run."""
    return {
        name: next((RUNS / task / "run" / "checkpoints").iterdir())
        for name, task in (("entities", "token_classification"), ("relations", "relation_extraction"))
    }


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Write documents of two passages, some of them empty or with characters of two UTF-16 units."""
    path = tmp_path_factory.mktemp("corpus") / "corpus.pubtator"
    words = ["Peter", "lives", "in", "Paris", "\U0001f600", "and", "Anna", "left", "for", "Rome", "(1999)."]
    lines = []
    for number in range(NUM_DOCUMENTS):
        title = " ".join(words[(number + step) % len(words)] for step in range(number % 5))
        abstract = " ".join(words[(3 * number + step) % len(words)] for step in range(3 + number % 17))
        lines += [f"{number}|t|{title}", f"{number}|a|{abstract}", ""]
    path.write_text("\n".join([*lines, ""]), encoding="utf-8")
    return path


def run(corpus, output, *options):
    """Annotate and return the exit code."""
    return main(["annotate", str(corpus), "-o", str(output), "--accelerator", "cpu", "--shard-size", "60", *options])


def contents(folder):
    """Return the files of a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def annotated(runs, corpus, tmp_path_factory):
    """Annotate the corpus once."""
    folder = tmp_path_factory.mktemp("annotated") / "out"
    assert run(corpus, folder, "--entities", str(runs["entities"])) == 0
    return folder


def test_a_command_that_failed_before_its_first_shard_may_be_repeated(runs, corpus, tmp_path, capsys):
    output, options = tmp_path / "out.jsonl", ("--entities", str(runs["entities"]))
    for _ in range(2):
        assert run(tmp_path / "misspelt.pubtator", output, *options) == 65
        assert "misspelt.pubtator" in capsys.readouterr().err
    assert run(corpus, output, *options) == 0


def test_entities_are_those_of_the_predictor_at_the_offsets_of_the_document(runs, corpus, annotated):
    predictor = megabert.load(runs["entities"], accelerator="cpu")
    predictor.task.settings.model.dataset.max_seq_length = predictor.session.model.encoder.config.max_positions
    documents = list(read_documents([annotated / "shard-00000.jsonl"]))
    num_entities = 0
    for source, document in zip(read_documents([corpus]), documents, strict=False):
        assert document.id == source.id
        assert document.text() == source.text()
        expected = []
        for passage in source.passages:
            if passage.text.strip():
                spans = predictor.predict(text=passage.text).spans
                expected += [(passage.offset + span.start, passage.offset + span.end, span.type) for span in spans]
        assert [(entity.start, entity.end, entity.type) for entity in document.entities] == expected
        assert all(document.text()[entity.start : entity.end] == entity.text for entity in document.entities)
        num_entities += len(expected)
    assert num_entities > 50


def test_the_ledger_accounts_for_every_document_once(annotated):
    lines = [json.loads(line) for line in (annotated / "ledger.jsonl").read_text(encoding="utf-8").splitlines()]
    of_documents = [line for line in lines if "id" in line]
    assert [line["id"] for line in of_documents] == [str(number) for number in range(NUM_DOCUMENTS)]
    assert [line["documents"] for line in lines if "shard" in line] == [60, 60, 30]
    written = [document.id for file in sorted(annotated.glob("shard-*")) for document in read_documents([file])]
    assert written == [line["id"] for line in of_documents]


def test_the_number_of_workers_changes_nothing(runs, corpus, annotated, tmp_path):
    assert run(corpus, tmp_path / "out", "--entities", str(runs["entities"]), "--workers", "2") == 0
    assert contents(tmp_path / "out") == contents(annotated)


def test_actors_of_ray_change_nothing(runs, corpus, annotated, tmp_path, capsys):
    pytest.importorskip("ray", reason="the extra ray is not installed")
    assert run(corpus, tmp_path / "out", "--entities", str(runs["entities"]), "--ray", "2") == 0
    assert contents(tmp_path / "out") == contents(annotated)
    bad = tmp_path / "bad.pubtator"
    bad.write_text("1|t|Peter in Paris\n1|a|\n1\t0\t4\tPeter\tPER\n\n", encoding="utf-8")
    assert run(bad, tmp_path / "stop", "--entities", str(runs["entities"]), "--ray", "1") == 65
    assert "Peter" in capsys.readouterr().err


@pytest.mark.parametrize("operation", ["fsync", "truncate"])
@pytest.mark.parametrize("number", [1, 2, 4, 6])
def test_an_interrupted_job_resumes_to_the_same_bytes(
    runs, corpus, annotated, tmp_path, monkeypatch, operation, number
):
    calls = []
    whole = getattr(shards.os, operation)

    def fail(*arguments):
        calls.append(arguments)
        if len(calls) == number:
            raise KeyboardInterrupt
        return whole(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(shards.os, operation, fail)
        assert run(corpus, tmp_path / "out", "--entities", str(runs["entities"])) in (0, 75)
    assert run(corpus, tmp_path / "out", "--entities", str(runs["entities"]), "--resume") == 0
    assert contents(tmp_path / "out") == contents(annotated)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "shard-00001.jsonl").unlink(),
        lambda folder: (folder / "shard-00000.jsonl").write_bytes(b"x"),
        lambda folder: (folder / "ledger.jsonl").write_bytes((folder / "ledger.jsonl").read_bytes()[:-9]),
        lambda folder: (folder / "ledger.jsonl").unlink(),
    ],
)
def test_what_is_missing_or_damaged_is_made_again(runs, corpus, annotated, tmp_path, damage):
    folder = tmp_path / "out"
    folder.mkdir()
    for name, content in contents(annotated).items():
        (folder / name).write_bytes(content)
    damage(folder)
    assert run(corpus, folder, "--entities", str(runs["entities"]), "--resume") == 0
    assert contents(folder) == contents(annotated)


def test_a_job_killed_before_it_was_described_begins_anew(runs, corpus, annotated, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / ".job.json.tmp-0").write_bytes(b'{"inp')
    assert run(corpus, folder, "--entities", str(runs["entities"])) == 0
    assert contents(folder) == contents(annotated)


def test_a_changed_input_or_setting_is_refused_on_resuming(runs, corpus, annotated, tmp_path, capsys):
    assert run(corpus, annotated, "--entities", str(runs["entities"])) == 65
    assert "--resume" in capsys.readouterr().err
    assert run(corpus, annotated, "--entities", str(runs["entities"]), "--resume", "--existing", "replace") == 65
    assert "existing was 'keep'" in capsys.readouterr().err
    folder, changed = tmp_path / "out", tmp_path / "corpus.pubtator"
    changed.write_bytes(corpus.read_bytes())
    assert run(changed, folder, "--entities", str(runs["entities"])) == 0
    (folder / "shard-00002.jsonl").unlink()
    changed.write_bytes(corpus.read_bytes().replace(b"\n3|", b"\nnew|"))
    assert run(changed, folder, "--entities", str(runs["entities"]), "--resume") == 65
    assert "other documents" in capsys.readouterr().err


def test_one_file_has_the_documents_of_all_shards(runs, corpus, annotated, tmp_path):
    for name, form in (("one.bioc.xml", "bioc"), ("one.pubtator", "pubtator"), ("one.csv", "csv")):
        assert run(corpus, tmp_path / name, "--entities", str(runs["entities"])) == 0
        sharded = tmp_path / f"{form}-shards"
        assert run(corpus, sharded, "--entities", str(runs["entities"]), "--format", form) == 0
        parts = sorted(sharded.glob("shard-*"))
        assert len(parts) == 3
        if form == "csv":
            header, *rows = (tmp_path / name).read_bytes().splitlines()
            assert header.startswith(b"document,")
            assert rows == [
                row for file in sorted(sharded.glob("shard-*")) for row in file.read_bytes().splitlines()[1:]
            ]
            continue
        whole = [(item.id, item.entities) for item in read_documents([tmp_path / name])]
        parts = [
            (item.id, item.entities) for file in sorted(sharded.glob("shard-*")) for item in read_documents([file])
        ]
        assert whole == parts
        assert len(whole) == NUM_DOCUMENTS


def test_an_input_without_documents_makes_an_output_without_documents(runs, tmp_path):
    (tmp_path / "empty.pubtator").write_bytes(b"")
    for name in ("out.jsonl", "out.bioc.xml"):
        assert run(tmp_path / "empty.pubtator", tmp_path / name, "--entities", str(runs["entities"])) == 0
        assert list(read_documents([tmp_path / name])) == []


def test_the_parts_of_several_machines_are_the_whole(runs, corpus, annotated, tmp_path):
    for part in ("1/2", "2/2"):
        assert run(corpus, tmp_path / "out", "--entities", str(runs["entities"]), "--shard", part) == 0
    ids = [item.id for file in (tmp_path / "out").glob("part-*/shard-*") for item in read_documents([file])]
    assert sorted(ids, key=int) == [str(number) for number in range(NUM_DOCUMENTS)]
    assert (tmp_path / "out" / "part-1-of-2" / "ledger.jsonl").is_file()


def test_the_array_of_slurm_annotates_each_part_once_and_resumes(runs, corpus, tmp_path):
    script = (Path(__file__).parents[2] / "examples" / "annotate_slurm.sh").read_text(encoding="utf-8")
    command = script[script.index("srun megabert ") :].replace("\\\n", " ")
    for task in (1, 2, 2):
        values = {"corpus": corpus, "run": runs["entities"], "out": tmp_path / "out"}
        values |= {"SLURM_ARRAY_TASK_ID": task, "SLURM_ARRAY_TASK_COUNT": 2}
        assert main(shlex.split(Template(command).substitute(values))[2:]) == 0
    lines = [json.loads(line) for file in (tmp_path / "out").glob("part-*/ledger.jsonl") for line in file.open()]
    assert sorted(int(line["id"]) for line in lines if "id" in line) == list(range(NUM_DOCUMENTS))


def test_faults_stop_or_are_listed(runs, tmp_path, capsys):
    corpus = tmp_path / "corpus.pubtator"
    corpus.write_text("1|t|Peter in Paris\n1|a|\n1\t0\t4\tPeter\tPER\n\n2|t|Rome\n2|a|\n\n", encoding="utf-8")
    entities = ("--entities", str(runs["entities"]))
    assert run(corpus, tmp_path / "stop", *entities) == 65
    assert "Peter" in capsys.readouterr().err
    assert run(corpus, tmp_path / "skip", *entities, "--on-error", "skip") == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["documents"], summary["written"], summary["faults"]) == (2, 2, 1)
    faults = [
        line
        for line in (tmp_path / "skip" / "ledger.jsonl").read_text(encoding="utf-8").splitlines()
        if "fault" in line
    ]
    assert "Peter" in faults[0]


def test_a_run_of_another_task_is_refused(runs, corpus, tmp_path, capsys):
    assert run(corpus, tmp_path / "out", "--entities", str(runs["relations"])) == 64
    assert "is a run of relation_extraction. Give one of token_classification." in capsys.readouterr().err
    assert run(corpus, tmp_path / "out", "--relations", str(runs["entities"]), "--pairs", "A:B") == 64
    assert "is a run of token_classification. Give one of relation_extraction." in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_relations_hold_between_the_entities_of_a_sentence(runs, tmp_path):
    corpus = tmp_path / "corpus.pubtator"
    text = "marie was born in paris. Curie left."
    mentions = [(0, 5, "PER"), (18, 23, "LOC"), (25, 30, "PER")]
    lines = [f"1|t|{text}", "1|a|", *(f"1\t{a}\t{b}\t{text[a:b]}\t{kind}" for a, b, kind in mentions)]
    corpus.write_text("\n".join([*lines, ""]), encoding="utf-8")
    output = tmp_path / "out.jsonl"
    options = ("--relations", str(runs["relations"]), "--existing", "use")
    assert run(corpus, output, *options) == 64
    assert run(corpus, output, *options, "--pairs", "PER:LOC") == 0
    (document,) = read_documents([output])
    predictor = megabert.load(runs["relations"], accelerator="cpu")
    head, tail = ({"start": a, "end": b, "type": kind} for a, b, kind in mentions[:2])
    expected = predictor.predict(text="marie was born in paris.", head=head, tail=tail)
    (relation,) = document.relations
    assert (relation.type, relation.score) == ("CPR:4", round(expected.probabilities["CPR:4"], 4))
    assert [item.entity for item in relation.arguments] == [entity.id for entity in document.entities[:2]]
    assert relation.source == predictor.digest
