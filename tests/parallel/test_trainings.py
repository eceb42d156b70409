"""Complete trainings on several processes: checkpoints, resuming with another layout, lost processes."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from megabert.build import load_run
from megabert.checkpoints.native import run_checkpoints as run
from megabert.config.schema import Settings
from megabert.errors import ConfigError
from megabert.parallel.process_group import World
from megabert.training.resume import keep_sequences_per_step
from tests.parallel.processes import FORKING
from tests.parallel.trainings import CUT, STEPS, wait_for_steps, words

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folder with the runs of `trainings`, and the exit codes."""
    from ..conftest import WORDS, squad_document

    folder = tmp_path_factory.mktemp("runs")
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in WORDS), encoding="utf-8")
    (folder / "facts.json").write_text(json.dumps(squad_document()), encoding="utf-8")
    command = [sys.executable, "-m", "tests.parallel.trainings", folder, folder / "facts.json", folder / "vocab.txt"]
    done = subprocess.run(command, cwd=ROOT, env=FORKING, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr
    return folder, json.loads((folder / "results.json").read_text())


def tensors(folder):
    return run.read(run.find_last(folder).path, groups=("model", "optimizer")).tensors


def lines(folder, split):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    ignored = ("seconds", "tokens_per_second", "split")
    return [
        {name: value for name, value in row.items() if name not in ignored} for row in rows if row["split"] == split
    ]


def log_of(folder, name, rank):
    return (folder / f"{name}.{rank}").read_text()


def all_tensors(folder):
    return {f"{group}/{name}": item for group, items in tensors(folder).items() for name, item in items.items()}


def test_a_checkpoint_is_independent_of_the_layout(runs):
    folder, results = runs
    assert results["mixed"] == [0, 0, 0, 0]
    one, several = all_tensors(folder / "mixed_as_one"), all_tensors(folder / "mixed")
    assert {name: item.shape for name, item in one.items()} == {name: item.shape for name, item in several.items()}
    files = sorted(file.name for file in run.find_last(folder / "mixed").path.glob("*.safetensors"))
    parts = [f"{part:05d}-of-00004.safetensors" for part in range(1, 5)]
    assert files == [f"{group}-{part}" for group in ("model", "optimizer") for part in parts]
    sizes = [(run.find_last(folder / "mixed").path / name).stat().st_size for name in files[:4]]
    assert min(sizes) > 0.4 * max(sizes)


def test_fsdp_shards_only_the_optimizer_where_whole_weights_fit(runs):
    folder, _ = runs
    assert "on 2 x cpu (data 2, optimizer sharded)" in log_of(folder, "dropping", 0)
    assert "on 4 x cpu (data 2, fsdp 2, tensor 2)" in log_of(folder, "mixed", 0)


@pytest.mark.parametrize(("again", "whole"), [("dropping_again", "dropping"), ("mixed_again", "mixed")])
def test_a_resumed_run_is_bit_identical(runs, again, whole):
    folder, results = runs
    assert set(results[again]) == {0}
    first, second = all_tensors(folder / whole), all_tensors(folder / again)
    assert all(torch.equal(first[name], second[name]) for name in first)
    for split in ("train", "validation"):
        assert lines(folder / whole, split) == lines(folder / again, split)


@pytest.mark.parametrize(
    ("again", "whole"),
    [
        ("data_as_one", "data"),
        ("data_as_smaller", "data"),
        ("data_as_sequence", "data"),
        ("mixed_as_one", "mixed"),
        ("dropping_as_one", "dropping"),  # dropout depends on the micro-batch, not on the process
    ],
)
def test_a_run_resumes_with_another_layout(runs, again, whole):
    folder, results = runs
    assert set(results[again]) == {0}, log_of(folder, again, 0)
    first, second = all_tensors(folder / whole), all_tensors(folder / again)
    for name in first:
        torch.testing.assert_close(first[name], second[name], atol=1e-5, rtol=1e-5, msg=name)
    one, other = lines(folder / whole, "train"), lines(folder / again, "train")
    assert [line["loss"] for line in one] == pytest.approx([line["loss"] for line in other], abs=1e-5)
    assert [line["grad_norm"] for line in one] == pytest.approx([line["grad_norm"] for line in other], rel=1e-4)
    assert len(lines(folder / again, "train")) == STEPS
    assert f"from step {CUT}" in log_of(folder, again, 0)


def test_validation_scores_match_one_process(runs):
    folder, _ = runs
    one, several = lines(folder / "data_as_one", "validation"), lines(folder / "data", "validation")
    assert [line["step"] for line in one] == [10, 20]
    assert one == [pytest.approx(line, abs=1e-5) for line in several]
    # The saved run has the same scores with a predictor on one device.
    predictor = load_run(folder / "mixed", accelerator="cpu")
    result = predictor.evaluate(predictor.task.read(folder / "facts.json"))
    assert result.scores["f1"] == pytest.approx(max(line["f1"] for line in lines(folder / "mixed", "validation")))


def test_accumulation_keeps_the_global_batch(runs):
    folder, _ = runs
    assert "accumulate_grad_batches=2 keeps the run's 4 sequences a step" in log_of(folder, "data_as_one", 0)
    assert "accumulate_grad_batches=2 keeps the run's 4 sequences a step" in log_of(folder, "data_as_smaller", 0)
    settings = Settings()
    settings.model.train_ds.batch_size = 2
    documents = {
        "settings": {"trainer": {"accumulate_grad_batches": 1}, "model": {"train_ds": {"batch_size": 2}}},
        "progress": {"texts_per_step": 12},
    }
    notes = []
    keep_sequences_per_step(settings, documents, World(torch.device("cpu"), data_size=3), notes.append)
    assert settings.trainer.accumulate_grad_batches == 2
    assert len(notes) == 1
    settings.trainer.accumulate_grad_batches = 1
    with pytest.raises(ConfigError, match=r"model\.train_ds\.batch_size=1 or 3"):
        keep_sequences_per_step(settings, documents, World(torch.device("cpu"), data_size=4), notes.append)
    with pytest.raises(ConfigError, match=r"a number of processes that divides 12"):
        keep_sequences_per_step(settings, documents, World(torch.device("cpu"), data_size=5), notes.append)


def test_a_killed_process_stops_the_others(runs):
    folder, results = runs
    assert results["killed"] == [76, -signal.SIGKILL]
    assert results["killed.seconds"] < 60
    assert f"process 2 of 2 is gone, so the others stop. Saved checkpoints are complete; resume with: megabert train "\
           f"question_answering --resume {folder}/killed" in log_of(folder, "killed", 0)  # fmt: skip
    assert results["killed_again"] == [0, 0]
    steps = [line["step"] for line in lines(folder / "killed", "train")]
    assert steps == list(range(1, 61))


def test_a_signal_to_one_process_stops_all_after_the_same_step(runs):
    folder, results = runs
    assert results["signalled"] == [75, 75]
    step = int(re.search(r"Stopped after step (\d+)", log_of(folder, "signalled", 0))[1])
    assert run.find_last(folder / "signalled").step == step
    assert "Stopped" not in log_of(folder, "signalled", 1)  # rank zero logs for all


def test_the_command_launches_its_processes_and_stops_them(runs):
    folder, _ = runs
    mine = folder / "command"
    command = words(folder / "facts.json", folder / "vocab.txt", mine, "trainer.devices=2", "trainer.max_epochs=100000")
    command = [sys.executable, "-m", "megabert", *command]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        wait_for_steps(mine, 3)
    finally:
        process.send_signal(signal.SIGINT)
    error = process.communicate(timeout=300)[1]
    assert process.returncode == 75, error
    assert error.count("Stopped after step") == 1
    assert "2 x cpu (data 2)" in error
    assert "Traceback" not in error
