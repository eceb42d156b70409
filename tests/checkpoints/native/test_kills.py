"""Kills before every file operation of a save: afterwards a run resumes with nothing lost."""

import os
import sys

import pytest
import torch

from megabert import storage
from megabert.checkpoints.native import run_checkpoints
from megabert.checkpoints.native.run_folder import find_resume_point
from megabert.config.schema import ExperimentSettings
from megabert.errors import CheckpointError, ConfigError

FILE_OPERATIONS = {"open", "os.rename", "os.mkdir", "os.rmdir", "os.remove"}
KILLED = 9
RESUME = ExperimentSettings(resume_if_exists=True)


def write(folder, step, value=1.0, figure=None):
    contents = run_checkpoints.Contents(
        tensors={"model": {"w": torch.full((3,), value)}, "optimizer": {"w/step": torch.tensor(2.0)}},
        documents={"run": {"mode": "max"}, "progress": {"step": step}},
        texts={"vocab.txt": "[PAD]\n"},
    )
    return run_checkpoints.write(folder, step, contents, figure=figure, is_end=False)


def killed_before(number, folder, work):
    """Run work() in a fork that exits at once before its file operation of this number; returns whether it did."""
    child = os.fork()
    if child == 0:
        count = 0

        def operate(*ignored):
            nonlocal count
            if count == number:
                os._exit(KILLED)
            count += 1

        def audit(event, arguments):
            if (event in FILE_OPERATIONS and str(folder) in str(arguments)) or event in ("os.rmdir", "os.remove"):
                operate()

        def counted(function):
            return lambda *arguments: (operate(), function(*arguments))[1]

        os.fsync, storage._exchange = counted(os.fsync), counted(storage._exchange)
        sys.addaudithook(audit)
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, KILLED)
    return code == KILLED


def resume(folder):
    """Resume as a training does; returns the step and the value of the weights."""
    point = find_resume_point(RESUME, folder, lambda line: None)
    return point and (point.entry.step, float(point.contents.tensors["model"]["w"].read()[0]))


def check_every_kill(tmp_path, prepare, save, check):
    """Run save(folder) on a prepared folder with a kill before each operation, then check(folder, resumed)."""
    for number in range(1000):
        folder = tmp_path / str(number)
        prepare(folder)
        was_killed = killed_before(number, folder, lambda folder=folder: save(folder))
        check(folder, resume(folder))
        # The next save cleans up.
        write(folder, 90)
        run_checkpoints.prune(folder, "max", keep_best=1)
        assert not run_checkpoints.list_leftovers(folder)
        if not was_killed:
            return number
    raise AssertionError("the save does not end")


def test_a_kill_during_a_save_loses_nothing(tmp_path):
    def prepare(folder):
        write(folder, 10, 10.0, figure=5.0)
        write(folder, 20, 20.0, figure=1.0)

    def save(folder):
        write(folder, 30, 30.0, figure=2.0)
        run_checkpoints.prune(folder, "max", keep_best=1)

    def check(folder, resumed):
        assert resumed in [(20, 20.0), (30, 30.0)]
        steps = [entry.step for entry in run_checkpoints.list_checkpoints(folder)]
        assert 10 in steps  # the best one
        assert steps[-1] == resumed[0]

    assert check_every_kill(tmp_path, prepare, save, check) > 30


@pytest.mark.parametrize("has_exchange", [True, False])
def test_a_kill_while_a_step_is_written_again_loses_nothing(tmp_path, monkeypatch, has_exchange):
    if not has_exchange:
        monkeypatch.setattr(storage, "_exchange", lambda first, second: False)

    def save(folder):
        write(folder, 10, 2.0)
        run_checkpoints.prune(folder, "max", keep_best=1)

    found = set()

    def check(folder, resumed):
        found.add(resumed)

    assert check_every_kill(tmp_path, lambda folder: write(folder, 10, 1.0), save, check) > 20
    assert found == {(10, 1.0), (10, 2.0)}


def test_a_kill_during_the_first_save_starts_anew_or_resumes(tmp_path):
    found = set()
    check_every_kill(
        tmp_path, lambda folder: None, lambda folder: write(folder, 10), lambda folder, resumed: found.add(resumed)
    )
    assert found == {None, (10, 1.0)}


def test_two_complete_temporary_folders_are_restored(tmp_path):
    # As a kill between two renames left them: the old one renamed aside, the new one not renamed yet.
    folder = write(tmp_path, 10, 1.0)
    folder.rename(folder.with_name("step-00000010.tmp-bbbb"))
    folder = write(tmp_path / "other", 10, 2.0)
    folder.rename(tmp_path / "checkpoints" / "step-00000010.tmp-aaaa")
    with pytest.raises(ConfigError, match="holds a run already"):
        find_resume_point(ExperimentSettings(), tmp_path, lambda line: None)
    assert resume(tmp_path) == (10, 2.0)


def test_remains_without_a_checkpoint_stop_the_run(tmp_path):
    folder = write(tmp_path, 10)
    (folder / "vocab.txt").unlink()
    with pytest.raises(CheckpointError, match=r"No checkpoint of .* can be resumed from"):
        resume(tmp_path)
    folder.rename(folder.with_name("step-00000010.tmp-aaaa"))
    with pytest.raises(CheckpointError, match=r"no checkpoint to resume from, but .* step-00000010\.tmp-aaaa"):
        resume(tmp_path)
    assert (tmp_path / "checkpoints" / "step-00000010.tmp-aaaa" / "model.safetensors").exists()


def test_a_damaged_folder_gives_way_to_a_complete_one_of_the_same_step(tmp_path):
    folder = write(tmp_path, 10, 1.0)
    folder.rename(folder.with_name("step-00000010.tmp-aaaa"))
    (write(tmp_path, 10, 2.0) / "model.safetensors").write_bytes(b"")
    # write removes the leftovers of its step, so it is put back
    write(tmp_path / "other", 10, 1.0).rename(tmp_path / "checkpoints" / "step-00000010.tmp-aaaa")
    assert resume(tmp_path) == (10, 1.0)
    assert len(list((tmp_path / "checkpoints").glob("*.damaged-*"))) == 1


def test_an_unknown_step_lists_those_of_the_run(tmp_path):
    for step in (10, 20):
        write(tmp_path, step, float(step))
    with pytest.raises(ConfigError, match=r"--step 15: .* of: 10, 20"):
        find_resume_point(RESUME, tmp_path, lambda line: None, step=15)
    assert find_resume_point(RESUME, tmp_path, lambda line: None, step=10).entry.step == 10
