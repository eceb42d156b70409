import io
import json
import math
import os
import re
import struct
import subprocess
import sys

import pytest

from megabert.analysis.metrics_file import read_metrics
from megabert.analysis.plots import plot_curves
from megabert.errors import CheckpointError
from megabert.training.log import RunLog


class Clock:
    """A clock that the test advances."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


def open_log(folder, *, total_steps=100, first_step=0, progress_bar=False, tensorboard=False, clock=None):
    return RunLog(
        folder,
        total_steps=total_steps,
        first_step=first_step,
        progress_bar=progress_bar,
        tensorboard=tensorboard,
        clock=clock or Clock(),
    )


def train(log, steps, *, clock=None, seconds=1.0, tokens=500):
    for step in steps:
        if clock is not None:
            clock.now += seconds
        log.step(step, loss=0.5, lr=3e-5, tokens=tokens, grad_norm=1.5, epoch=step / 50)


def write_steps(folder, steps, *, first_step=0, clock=None):
    with open_log(folder, first_step=first_step, clock=clock) as log:
        for step in steps:
            if clock is not None:
                clock.now += 2.0
            log.write(step, {"split": "train", "loss": step / 8})
    return folder / "metrics.jsonl"


# -- metrics.jsonl -----------------------------------------------------------------------------------------


def test_metrics_are_json_lines_that_are_flushed_at_once(tmp_path):
    clock = Clock()
    with open_log(tmp_path / "new" / "run", clock=clock) as log:
        train(log, (1, 2), clock=clock)
        log.write(2, {"split": "train", "loss": 0.5, "lr": 3e-5})
        clock.now += 0.5
        log.write(2, {"split": "validation", "val_loss": 0.25, "f1": 80.0, "total": 7})
        lines = (tmp_path / "new" / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": 2, "seconds": 2.0, "split": "train", "loss": 0.5, "lr": 3e-5, "tokens_per_second": 500.0},
        {"step": 2, "seconds": 2.5, "split": "validation", "val_loss": 0.25, "f1": 80.0, "total": 7},
    ]


def test_metrics_that_are_not_finite_are_null_and_missing_ones_are_left_out(tmp_path):
    with open_log(tmp_path) as log:
        metrics = {"loss": math.nan, "a": math.inf, "b": -math.inf, "c": None}
        log.write(1, {"split": "validation", **metrics})
    text = (tmp_path / "metrics.jsonl").read_text()
    (line,) = [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]
    assert line == {"step": 1, "seconds": 0.0, "split": "validation", "loss": None, "a": None, "b": None}


def test_a_resumed_run_appends_without_duplicate_steps(tmp_path):
    clock = Clock()
    write_steps(tmp_path, (1, 2, 3, 4), clock=clock)
    clock.now += 1000.0  # between the two sessions
    file = write_steps(tmp_path, (3, 4), first_step=2, clock=clock)
    actual = [(line["step"], line["seconds"]) for line in read_metrics(file)]
    assert actual == [(1, 2.0), (2, 4.0), (3, 6.0), (4, 8.0)]


def test_a_new_run_removes_old_lines(tmp_path):
    write_steps(tmp_path, (0, 1, 2))
    assert [line["step"] for line in read_metrics(write_steps(tmp_path, (1,)))] == [1]


@pytest.mark.parametrize("rest", [b'{"step": 3, "seconds": 1.0, "spl', b"\x00\x00\x00", b'{"a": "\xc3'])
def test_a_truncated_last_line_is_dropped(tmp_path, rest):
    file = write_steps(tmp_path, (1, 2))
    file.write_bytes(file.read_bytes() + rest)
    assert [line["step"] for line in read_metrics(file)] == [1, 2]
    write_steps(tmp_path, (3,), first_step=2)
    assert [json.loads(line)["step"] for line in file.read_bytes().splitlines()] == [1, 2, 3]


@pytest.mark.parametrize("damaged", ["{'step': 1}", "", "7", '{"loss": 1.0}'])
def test_a_damaged_line_before_the_last_is_refused_by_number(tmp_path, damaged):
    file = write_steps(tmp_path, (1, 2))
    first, second = file.read_text().splitlines()
    file.write_text(f"{first}\n{damaged}\n{second}\n")
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl:2 is not a line of metrics"):
        open_log(tmp_path, first_step=2)


def test_a_failure_while_the_file_is_truncated_leaves_it_unchanged(tmp_path, monkeypatch):
    file = write_steps(tmp_path, (1, 2, 3))
    before = file.read_bytes()

    def fail(descriptor):
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no space left"):
        open_log(tmp_path, first_step=1)
    assert file.read_bytes() == before


def test_steps_logged_together_share_one_throughput(tmp_path, capsys):
    clock = Clock()
    with open_log(tmp_path, clock=clock, total_steps=400, progress_bar=True) as log:
        for number in range(4):
            clock.now += 10.0
            for step in range(100 * number + 1, 100 * number + 101):
                clock.now += 1e-6
                log.step(step, loss=0.5, lr=1.0, tokens=500, grad_norm=1.5, epoch=0.0)
    rates = [int(item.replace(",", "")) for item in re.findall(r"([\d,]+) tokens/s", capsys.readouterr().err)]
    assert rates and rates[-1] == pytest.approx(5000, rel=0.01)
    assert max(rates) < 6000


def test_tokens_per_second_leave_out_validations(tmp_path):
    clock = Clock()
    with open_log(tmp_path, clock=clock) as log:
        train(log, (1, 2), clock=clock, seconds=2.0, tokens=1000)
        log.write(2, {"split": "train"})
        with log.validation():
            clock.now += 60.0
        train(log, (3, 4), clock=clock, seconds=1.0, tokens=1000)
        log.write(4, {"split": "train"})
    actual = [(line["seconds"], line["tokens_per_second"]) for line in read_metrics(tmp_path / "metrics.jsonl")]
    assert actual == [(4.0, 500.0), (66.0, 1000.0)]


# -- the terminal ------------------------------------------------------------------------------------------


def test_without_a_terminal_each_tenth_of_the_run_prints_a_line(tmp_path, capsys):
    clock = Clock()
    with open_log(tmp_path, progress_bar=True, clock=clock) as log:
        train(log, range(1, 101), clock=clock)
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert [int(re.match(r"step (\d+)/100 ", line)[1]) for line in lines] == [1, *range(10, 101, 10)]
    assert lines[2] == (
        "step 20/100 (20%)  epoch 0.40  smoothed loss 0.5000  lr 3.00e-05  norm 1.50  500 tokens/s  "
        "0:00:20 elapsed, 0:01:20 left"
    )


def test_without_a_terminal_a_slow_run_prints_a_line_every_half_minute(tmp_path, capsys):
    clock = Clock()
    with open_log(tmp_path, total_steps=10_000, first_step=5000, progress_bar=True, clock=clock) as log:
        train(log, range(5001, 5006), clock=clock, seconds=20.0)
        with log.validation() as show:
            for done in range(1, 5):
                clock.now += 20.0
                show(done, 4)
        log.write(5005, {"split": "validation", "epoch": 1.0, "val_loss": 1.25, "f1": 88.126, "total": 10570})
    actual = [line.split("  ")[0] for line in capsys.readouterr().err.splitlines()]
    assert actual == [
        "step 5001/10000 (50%)",
        "step 5003/10000 (50%)",
        "step 5005/10000 (50%)",
        "validation 2/4",
        "validation 4/4",
        "step 5005",
    ]


def test_validation_metrics_are_shown_without_counts(tmp_path, capsys):
    with open_log(tmp_path, progress_bar=True) as log:
        log.write(5, {"split": "validation", "epoch": 1.0, "val_loss": 1.25, "f1": 88.126, "total": 10570})
    assert capsys.readouterr().err == "step 5  validation: epoch 1  val_loss 1.25  f1 88.13\n"


def test_without_the_progress_bar_only_messages_are_shown(tmp_path, capsys):
    clock = Clock()
    with open_log(tmp_path, total_steps=2, clock=clock) as log:
        train(log, (1, 2), clock=clock, seconds=100.0)
        with log.validation() as show:
            show(1, 1)
        log.write(2, {"split": "validation", "f1": 1.0})
        log.message("the end")
    assert capsys.readouterr().err == "the end\n"


def test_on_a_terminal_messages_are_printed_above_the_progress_bar(tmp_path, monkeypatch):
    terminal = Terminal()
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "stderr", terminal)
    clock = Clock()
    with open_log(tmp_path, progress_bar=True, first_step=10, clock=clock) as log:
        train(log, range(11, 21), clock=clock)
        with log.validation() as show:
            show(2, 8)
            log.message("a [line] of 80 columns is not [bold]broken[/bold]: " + "x" * 80)
        log.write(20, {"split": "validation", "f1": 88.0})
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
    rows = [row.rstrip() for row in text.replace("\r", "\n").split("\n")]
    assert any(re.fullmatch(r"epoch 0\.40 ━\S* +20/100 0:00:\d\d left \S+", row) for row in rows)
    assert any(re.fullmatch(r"validation ━\S* +2/8 .*", row) for row in rows)
    assert any(re.fullmatch(r"smoothed loss 0\.5000  lr 3\.00e-05  norm 1\.50  500 tokens/s", row) for row in rows)
    assert "a [line] of 80 columns is not [bold]broken[/bold]: " + "x" * 80 in rows
    assert "step 20  validation: f1 88" in rows
    assert max(len(row) for row in rows if "left" in row) <= 80


def test_the_shown_loss_is_a_running_mean_and_survives_nan(tmp_path, capsys):
    with open_log(tmp_path, total_steps=4, progress_bar=True) as log:
        for step, loss in enumerate((1.0, 2.0, math.nan, 3.0), start=1):
            log.step(step, loss=loss, lr=1.0, tokens=1, grad_norm=1.0, epoch=0.0)
    # (0.98 * 1 + 2) / (0.98 + 1); NaN is shown and not averaged: (0.9604 + 0.98 * 2 + 3) / (0.9604 + 0.98 + 1)
    assert re.findall(r"loss (\S+)", capsys.readouterr().err) == ["1.0000", "1.5051", "nan", "2.0135"]


# -- TensorBoard -------------------------------------------------------------------------------------------


def test_tensorboard_has_the_same_metrics_and_drops_repeated_steps(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for first_step, shift in ((0, 0.0), (2, 10.0)):
        with open_log(tmp_path, first_step=first_step, tensorboard=True) as log:
            for step in range(first_step + 1, 5):
                log.write(step, {"split": "train", "loss": step + shift})
            log.write(4, {"split": "validation", "f1": 80.0, "val_loss": math.nan, "none": None})
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert sorted(events.Tags()["scalars"]) == [
        "train/loss",
        "train/tokens_per_second",
        "validation/f1",
        "validation/val_loss",
    ]
    actual = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert actual == [(1, 1.0), (2, 2.0), (3, 13.0), (4, 14.0)]


def test_without_tensorboard_one_message_names_the_extra(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    for name in [name for name in sys.modules if name.startswith("tensorboard.")]:
        monkeypatch.setitem(sys.modules, name, None)
    with open_log(tmp_path, tensorboard=True) as log:
        log.write(1, {"split": "train", "loss": 1.0})
        log.write(2, {"split": "train", "loss": 1.0})
    assert capsys.readouterr().err.count('pip install "megabert[track]"') == 1
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 2


IN_A_CHILD = """
import sys
import megabert.training.log, megabert.analysis.plots
print(sorted({name.partition(".")[0] for name in sys.modules} & {"tensorboard", "matplotlib", "torch"}))
from pathlib import Path
with megabert.training.log.RunLog(
    Path(sys.argv[1]), total_steps=1, first_step=0, progress_bar=False, tensorboard=True
) as log:
    log.write(1, {"split": "train", "loss": 1.0})
print("tensorboard" in sys.modules, "tensorflow" in sys.modules)
"""


def test_tensorboard_and_matplotlib_are_imported_on_demand_and_tensorflow_never(tmp_path):
    pytest.importorskip("tensorboard")
    (tmp_path / "tensorflow.py").write_text("raise SystemExit('TensorFlow was imported')")
    path = os.pathsep.join([str(tmp_path), *sys.path])
    child = subprocess.run(
        [sys.executable, "-c", IN_A_CHILD, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (child.stdout.splitlines(), child.stderr) == (["[]", "True False"], "")


# -- plots -------------------------------------------------------------------------------------------------


def train_line(step, loss):
    return {"step": step, "seconds": 0.5 * step, "split": "train", "epoch": 0.1, "loss": loss, "lr": 1e-5}


def validation_line(step, loss, **scores):
    return {"step": step, "seconds": 0.5 * step, "split": "validation", "val_loss": loss, **scores}


RUNS = {
    "no step": [],
    "one step": [train_line(1, 2.0), validation_line(1, 2.0, f1=50.0)],
    "one validation": [train_line(step, 1.0) for step in range(1, 20)] + [validation_line(19, 1.0, f1=5.0)],
    "no validation": [train_line(step, 1.0) for step in range(1, 20)],
    "validations without loss": [validation_line(step, None, f1=5.0) for step in (1, 2)],
    "no numbers": [train_line(1, None), validation_line(1, None, f1=None, exact_match=1.0)],
    "10,000 steps, some without a number": [
        line
        for step in range(1, 10_001)
        for line in (train_line(step, None if step % 999 == 0 else 1.0), validation_line(step, 1.0, f1=5.0))
    ],
    "many scores and counts": [
        validation_line(step, 1.0, total=7, f1_threshold=-3.5, **{f"score_{n}": 1.5 * n for n in range(12)})
        for step in (1, 2)
    ],
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("lines", RUNS.values(), ids=RUNS)
def test_the_curves_of_every_run_are_plotted(tmp_path, lines, whole_pictures):
    pytest.importorskip("matplotlib")
    file, picture = tmp_path / "metrics.jsonl", tmp_path / "curves.png"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert plot_curves(read_metrics(file), tmp_path.name, picture) is True
    data = picture.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    assert struct.unpack(">II", data[16:24]) == (1440, 720)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curves.png", "metrics.jsonl"]


def test_without_matplotlib_no_plot_is_written(tmp_path, monkeypatch, whole_pictures):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    file = write_steps(tmp_path, (1, 2))
    assert plot_curves(read_metrics(file), "run", tmp_path / "curves.png") is False
    assert not (tmp_path / "curves.png").exists()
