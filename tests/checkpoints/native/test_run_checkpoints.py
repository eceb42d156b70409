import json
import os
import threading

import pytest
import torch

from megabert.checkpoints.native import run_checkpoints
from megabert.checkpoints.native.run_folder import lock_run_folder
from megabert.errors import CheckpointError, CheckpointWarning, MegabertError
from megabert.json_documents import sealed


def contents(value=1.0):
    return run_checkpoints.Contents(
        tensors={"model": {"w": torch.full((3,), value)}, "optimizer": {"w/step": torch.tensor(2.0)}},
        documents={"run": {"mode": "max", "task": "question_answering"}},
        texts={"vocab.txt": "[PAD]\nä\n"},
    )


def write(folder, step, figure=None, is_end=False, value=1.0, loss=None):
    return run_checkpoints.write(folder, step, contents(value), figure=figure, is_end=is_end, loss=loss)


def test_what_is_written_is_read_back(tmp_path):
    read = run_checkpoints.read(write(tmp_path, 5), groups=("model", "optimizer"))
    assert torch.equal(read.tensors["model"]["w"], torch.ones(3))
    assert read.documents["run"]["task"] == "question_answering"
    assert read.texts["vocab.txt"] == "[PAD]\nä\n"


def test_only_the_requested_groups_are_read(tmp_path):
    assert set(run_checkpoints.read(write(tmp_path, 5), groups=("model",)).tensors) == {"model"}


def test_every_flipped_bit_is_detected(tmp_path):
    folder = write(tmp_path, 1)
    for file in sorted(folder.iterdir()):
        data = bytearray(file.read_bytes())
        for position in range(0, len(data), max(1, len(data) // 40)):
            data[position] ^= 1 << (position % 8)
            file.write_bytes(data)
            if file.name == run_checkpoints.MANIFEST:
                # a readable manifest is compared with the files; metric and step have no second copy
                try:
                    changed = run_checkpoints.read(folder, groups=("model", "optimizer"))
                    assert torch.equal(changed.tensors["model"]["w"], torch.ones(3))
                except CheckpointError:
                    pass
            else:
                with pytest.raises(CheckpointError):
                    run_checkpoints.read(folder, groups=("model", "optimizer"))
            data[position] ^= 1 << (position % 8)
        file.write_bytes(data)


def test_equal_scores_are_decided_by_the_loss_then_by_the_later_step(tmp_path):
    for step, loss in ((10, 0.5), (20, 0.25), (30, 0.25), (40, None), (50, 0.75)):
        write(tmp_path, step, 0.0, loss=loss)
    assert run_checkpoints.find_best(tmp_path, "max").step == run_checkpoints.find_best(tmp_path, "min").step == 30
    run_checkpoints.prune(tmp_path, "max", -1)
    assert len(run_checkpoints.list_checkpoints(tmp_path)) == 5
    run_checkpoints.prune(tmp_path, "max", 3)
    assert [entry.step for entry in run_checkpoints.list_checkpoints(tmp_path)] == [10, 20, 30, 50]


def test_the_last_the_best_and_the_end(tmp_path):
    for step, figure in ((10, 50.0), (20, 70.0), (30, 70.0), (40, None)):
        write(tmp_path, step, figure, is_end=step == 40)
    assert run_checkpoints.find_last(tmp_path).step == 40
    assert run_checkpoints.find_best(tmp_path, "max").step == 30  # the latest of equals
    assert run_checkpoints.find_best(tmp_path, "min").step == 10
    assert run_checkpoints.find_last(tmp_path).is_end
    assert run_checkpoints.open_best(tmp_path, groups=())[0].name == "step-00000030"


def test_pruning_keeps_the_best_and_the_last(tmp_path):
    for step, figure in ((10, 50.0), (20, 70.0), (30, 60.0), (40, 10.0)):
        write(tmp_path, step, figure)
    run_checkpoints.prune(tmp_path, "max", keep_best=2)
    assert [entry.step for entry in run_checkpoints.list_checkpoints(tmp_path)] == [20, 30, 40]


def test_an_incomplete_checkpoint_is_ignored_and_removed(tmp_path, monkeypatch):
    write(tmp_path, 10)
    calls = []

    def full_disk(descriptor):
        calls.append(descriptor)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        write(tmp_path, 20)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000010"]
    (tmp_path / "checkpoints" / "step-00000030.tmp-abc").mkdir()  # a process that was killed
    assert run_checkpoints.find_last(tmp_path).step == 10
    monkeypatch.undo()
    run_checkpoints.prune(tmp_path, "max", keep_best=1)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000010"]


def test_a_step_written_again_is_replaced(tmp_path):
    write(tmp_path, 10, value=1.0)
    folder = write(tmp_path, 10, value=2.0)
    assert torch.equal(run_checkpoints.read(folder, groups=("model",)).tensors["model"]["w"], torch.full((3,), 2.0))
    assert len(list((tmp_path / "checkpoints").iterdir())) == 1


def test_files_follow_the_umask(tmp_path):
    before = os.umask(0o022)
    try:
        folder = write(tmp_path, 1)
    finally:
        os.umask(before)
    assert {oct(path.stat().st_mode & 0o777) for path in folder.iterdir()} == {"0o644"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 99}, "format 99"),
        ({"files": {"../x": {}}}, "outside its folder"),
        ({"files": 3}, "lists no files"),
        ({"files": {"model.safetensors": 3}}, "cannot be read"),
        ({"step": "1"}, "lacks"),
    ],
)
def test_a_manifest_of_another_kind_is_refused_even_with_a_right_sum(tmp_path, change, message):
    folder = write(tmp_path, 1)
    file = folder / run_checkpoints.MANIFEST
    document = json.loads(file.read_text()) | change
    del document["sha256"]
    file.write_bytes(sealed(document))
    with pytest.raises(CheckpointError, match=message):
        run_checkpoints.read_entry(folder)
        run_checkpoints.read(folder, groups=("model",))
    file.write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match=r"damaged|format 99"):
        run_checkpoints.read(folder, groups=("model",))


def test_missing_and_empty_folders_are_distinguished(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        run_checkpoints.open_best(tmp_path / "nowhere", groups=())
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        run_checkpoints.open_best(tmp_path, groups=())


def together(folder, parts, *, step=5, spoil=None):
    """Write a checkpoint in as many threads as there are parts, as processes do; returns what each raised."""
    barrier = threading.Barrier(len(parts))
    texts, raised = [""] * len(parts), [None] * len(parts)

    def write_part(part):
        def exchange(text):
            texts[part] = text
            barrier.wait(timeout=120)
            answers = list(texts)
            barrier.wait(timeout=120)
            return answers

        tensors = {"model": parts[part], "optimizer": {}}
        own = run_checkpoints.Contents(tensors, {"run": {"mode": "max"}}, {"vocab.txt": "[PAD]\n"})
        try:
            run_checkpoints.write_together(
                folder, step, own, figure=None, is_end=False, part=part, num_parts=len(parts), all_gather_text=exchange
            )
        except Exception as error:
            raised[part] = error

    threads = [threading.Thread(target=write_part, args=(part,)) for part in range(len(parts))]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    return raised


def test_several_processes_write_one_checkpoint(tmp_path):
    assert together(tmp_path, [{"a": torch.ones(2)}, {"b": torch.zeros(3, 2)}, {}]) == [None] * 3
    read = run_checkpoints.read(run_checkpoints.find_last(tmp_path).path, groups=("model",))
    assert torch.equal(read.tensors["model"]["a"], torch.ones(2))
    assert torch.equal(read.tensors["model"]["b"], torch.zeros(3, 2))
    files = sorted(file.name for file in run_checkpoints.find_last(tmp_path).path.glob("*.safetensors"))
    assert files == ["model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors"]


class Unreadable:
    """A tensor that cannot be written, as on a full disk."""

    dtype, shape = torch.float32, (2,)

    def read(self):
        raise OSError(28, "No space left on device", "here")


def test_a_failed_write_raises_on_all_processes_and_leaves_nothing(tmp_path):
    raised = together(tmp_path, [{"a": torch.ones(2)}, {"b": Unreadable()}])
    assert [error.errno for error in raised] == [28, 28]
    assert run_checkpoints.list_checkpoints(tmp_path) == []
    assert list((tmp_path / "checkpoints").iterdir()) == []


class Invalid(Unreadable):
    """A tensor whose reading is a bug."""

    def read(self):
        raise ValueError("shapes differ")


def test_any_error_of_one_process_raises_on_all(tmp_path):
    own, others = together(tmp_path, [{"a": Invalid()}, {"b": torch.ones(2)}])
    assert type(own) is ValueError
    assert type(others) is MegabertError
    assert str(others) == "process 1 of 2 failed: ValueError: shapes differ"
    assert list((tmp_path / "checkpoints").iterdir()) == []


def damage(folder, name):
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)


@pytest.mark.parametrize("name", ["manifest.json", "model.safetensors", "run.json"])
def test_a_damaged_checkpoint_is_skipped_with_a_warning(tmp_path, name):
    for step, figure in ((10, 50.0), (20, 70.0), (30, 60.0)):
        folder = write(tmp_path, step, figure, value=float(step))
        if step == 20:
            damage(folder, name)
    with pytest.warns(CheckpointWarning, match=f"skipping a checkpoint: .*step-00000020.*{name} is damaged"):
        path, read = run_checkpoints.read_best(tmp_path, groups=("model",))
    assert path.name == "step-00000030"
    assert read.tensors["model"]["w"][0] == 30.0
    with pytest.raises(CheckpointError, match="is damaged"):  # a checkpoint that was chosen has no substitute
        run_checkpoints.read_best(tmp_path / "checkpoints" / "step-00000020", groups=("model",))


@pytest.mark.filterwarnings("ignore::megabert.errors.CheckpointWarning")
def test_saving_does_not_fail_on_a_damaged_manifest_and_keeps_it(tmp_path):
    damage(write(tmp_path, 10, 90.0), "manifest.json")
    write(tmp_path, 20, 50.0)
    write(tmp_path, 30, 40.0)
    run_checkpoints.prune(tmp_path, "max", keep_best=1)
    assert [folder.name[-2:] for folder in run_checkpoints.checkpoint_folders(tmp_path)] == ["10", "20", "30"]
    write(tmp_path, 10, 90.0)  # a sound one takes its place
    assert run_checkpoints.find_best(tmp_path, "max").step == 10


@pytest.mark.filterwarnings("ignore::megabert.errors.CheckpointWarning")
def test_a_run_of_damaged_checkpoints_only_is_an_error(tmp_path):
    damage(write(tmp_path, 10), "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        run_checkpoints.read_best(tmp_path, groups=("model",))
    damage(write(tmp_path, 10), "manifest.json")
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        run_checkpoints.read_best(tmp_path, groups=("model",))


def test_a_run_folder_that_an_error_leaves_empty_is_removed(tmp_path):
    def fail(folder, name=None):
        with pytest.raises(ValueError, match="x"), lock_run_folder(folder):
            if name:
                (folder / name).write_text("kept")
            raise ValueError("x")

    fail(tmp_path / "exp" / "name" / "run")
    assert list(tmp_path.iterdir()) == []
    fail(tmp_path / "exp" / "run", "metrics.jsonl")
    fail(tmp_path / "exp" / "run")
    assert (tmp_path / "exp" / "run" / "metrics.jsonl").read_text() == "kept"
    (tmp_path / "own").mkdir()
    fail(tmp_path / "own")
    assert (tmp_path / "own").is_dir()
