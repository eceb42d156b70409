"""The commands on finished runs: `megabert runs` and `megabert errors`."""

import json
import subprocess
import sys

import pytest

from megabert import cli

TRAIN = "TNF\tB-G\nis\tO\n\nIL-2\tB-G\n\n"
MENTIONS = [("TNF", 0, 3), ("IL-2", 4, 8)]


def entity(text, start, end, score=1.0):
    return {"type": "G", "text": text, "start": start, "end": end, "score": score}


def write_run(folder, *, lr, found, complete=True):
    """Write what a training leaves, with predictions of 8 texts of two entities: `found` are the entities of each."""
    (folder / "validation").mkdir(parents=True)
    (folder / "train.tsv").write_text(TRAIN)
    model = {"language_model": {"pretrained_model_name": "megabert-mini-uncased"},
             "train_ds": {"file": str(folder / "train.tsv")}, "optim": {"lr": lr}}  # fmt: skip
    facts = {"task": "token_classification", "monitor": "f1", "mode": "max", "started": "2026-11-28 02:04:40 +0000",
             "total_steps": 20, "settings": {"seed": 1, "model": model}}  # fmt: skip
    (folder / "run.json").write_text(json.dumps(facts))
    points = ((10, 70.0), (20, 60.0))
    lines = [{"step": step, "seconds": 1.5 * step, "split": "validation", "f1": f1} for step, f1 in points]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines[: 2 if complete else 1]))
    if complete:
        gold = {"entities": [entity(*item) for item in MENTIONS], "tags": []}
        rows = [{"id": str(i), "text": "TNF IL-2", "entities": [entity(*MENTIONS[n], 0.9) for n in numbers], "tags": [],
                 "gold": gold} for i, numbers in enumerate(found)]  # fmt: skip
        (folder / "validation" / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / "validation" / "scores.json").write_text(json.dumps({"f1": 60.0, "G/f1": 60.0, "total": 8}))
    return folder


@pytest.fixture
def folder(tmp_path):
    """Two complete runs and one that was interrupted."""
    write_run(tmp_path / "genes" / "good", lr=1e-4, found=[(0, 1)] * 8)
    write_run(tmp_path / "genes" / "weak", lr=1e-5, found=[(0,)] * 6 + [(0, 1)] * 2)
    write_run(tmp_path / "stopped", lr=1e-4, found=(), complete=False)
    return tmp_path


def run(capsys, *words):
    code = cli.main([str(word) for word in words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_runs_lists_each_run_with_its_best_score(capsys, folder):
    code, out, _ = run(capsys, "runs", folder)
    head, *lines = out.splitlines()
    assert code == 0 and head.split() == ["run", "task", "encoder", "started", "steps", "metric", "best", "test"]
    assert [line.split()[0] for line in lines] == ["genes/good", "genes/weak", "stopped"]
    assert lines[0].split()[-3:] == ["20", "f1", "70.00"] and "10 of 20" in lines[2]
    code, out, _ = run(capsys, "runs", folder, "--json")
    assert [(item["best"], item["best_step"], item["is_complete"]) for item in json.loads(out)] == [
        (70.0, 10, True), (70.0, 10, True), (70.0, 10, False)]  # fmt: skip


def test_a_damaged_run_is_named_and_the_others_are_listed(capsys, folder):
    (folder / "stopped" / "run.json").write_text("[]")
    code, out, err = run(capsys, "runs", folder)
    assert code == 0 and len(out.splitlines()) == 3 and "run.json is not a JSON object" in err
    assert run(capsys, "runs", folder / "nothing")[0] == 65
    assert run(capsys, "runs", "a", "b", "c")[0] == 64
    (folder / "empty").mkdir()
    assert "no runs" in run(capsys, "runs", folder / "empty")[1]


def test_runs_compares_settings_scores_and_predictions(capsys, folder):
    good, weak = folder / "genes" / "good", folder / "genes" / "weak"
    code, out, _ = run(capsys, "runs", weak, good)
    assert code == 0 and "model.optim.lr" in out and "seed" not in out and "explicit_log_dir" not in out
    # weak: 10 of 16 entities, all correct: F1 = 20 / 26; 6 texts only good has right: p = 2 / 2^6
    line = next(line for line in out.splitlines() if line.startswith("f1") and "[" in line)
    assert "76.92" in line and "100.00" in line and "+23.08" in line and line.split()[-3:] == ["0", "6", "0.031"]
    document = json.loads(run(capsys, "runs", weak, good, "--json")[1])
    assert document["tests"][0]["examples"] == {"only_first": 0, "only_second": 6, "p_value": 0.03125}
    assert document["settings"]["model.optim.lr"] == [1e-5, 1e-4]


def test_runs_on_other_data_are_not_tested(capsys, folder):
    good, weak = folder / "genes" / "good", folder / "genes" / "weak"
    file = good / "validation" / "predictions.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[1:]))
    code, out, _ = run(capsys, "runs", weak, good)
    assert code == 0 and "different data (8 and 7 examples)" in out and "McNemar" not in out
    assert "does not exist, so there is no test" in run(capsys, "runs", weak, folder / "stopped")[1]


def test_errors_tells_seen_entities_and_writes_page_and_table(capsys, folder):
    weak = folder / "genes" / "weak"
    code, out, err = run(capsys, "errors", weak)
    assert code == 0 and "6 errors in 16 cases" in out and "seen" in out and "errors.html" in err
    assert len((weak / "validation" / "errors.tsv").read_text().splitlines()) == 7
    assert "IL-2 [G]" in (weak / "validation" / "errors.html").read_text()
    (weak / "train.tsv").unlink()
    code, out, err = run(capsys, "errors", weak, "--json", "-o", folder / "out")
    assert code == 0 and "training data" not in json.loads(out)["groups"] and "cannot be read" in err
    assert (folder / "out" / "errors.tsv").is_file()
    assert run(capsys, "errors", folder / "stopped")[0] == 65


def test_the_analysis_starts_without_torch(folder):
    script = "import sys; from megabert.cli import main; main(sys.argv[1:]); print('torch' in sys.modules)"
    words = ["errors", str(folder / "genes" / "weak")]
    done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
