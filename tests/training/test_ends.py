"""Beginnings and ends of trainings: what settings may change, signals outside of the loop, missing results, sweeps."""

import json
import os
import shutil
import signal

import pytest
import torch

from megabert.checkpoints.native import run_checkpoints
from megabert.cli import main
from megabert.config.parser import compose
from megabert.config.schema import Settings, TrainerSettings
from megabert.errors import ConfigError
from megabert.parallel.process_group import check_device_ids, count_processes
from megabert.training import run as training_run
from tests.training.test_loop import settings_words


@pytest.fixture(scope="module")
def trained(tmp_path_factory, vocab_file):
    """A run of two steps with validation and test data; its words."""
    from tests.conftest import squad_document

    folder = tmp_path_factory.mktemp("ends")
    data = folder / "facts.json"
    data.write_text(json.dumps(squad_document()))
    words = [*settings_words(data, vocab_file, folder / "run"), "trainer.max_epochs=1", f"model.test_ds={data}"]
    assert main(["train", "question_answering", *words]) == 0
    return folder / "run", words


def files_of(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def replaced(words, folder):
    return [word for word in words if "explicit_log_dir" not in word] + [f"exp_manager.explicit_log_dir={folder}"]


@pytest.mark.parametrize("missing", [["README.md"], ["README.md", "test.json", "validation"]])
def test_a_training_killed_after_its_last_checkpoint_is_completed_on_resuming(trained, tmp_path, missing):
    folder = tmp_path / "run"
    shutil.copytree(trained[0], folder)
    before = {name: data for name, data in files_of(folder).items() if name.name not in ("run.json", "curves.png")}
    for name in missing:
        shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()
    # It had not been pruned: an older one, and one that was being deleted or replaced
    older = run_checkpoints.write(folder, 1, run_checkpoints.Contents({}, {}), figure=-1.0, is_end=False)
    shutil.copytree(older, older.with_name("step-00000001.tmp-0a9fcfb1"))
    assert main(["train", "question_answering", "--resume", str(folder)]) == 0
    after = {name: data for name, data in files_of(folder).items() if name.name not in ("run.json", "curves.png")}
    assert {name for name in before.keys() | after.keys() if after.get(name) != before.get(name)} == set()
    assert main(["train", "question_answering", "--resume", str(folder)]) == 64  # now it is complete


@pytest.mark.parametrize("place", ["set_up", "write_evaluation", "evaluate_test_data"])
def test_sigterm_outside_of_the_loop_ends_with_75_and_the_run_resumes(trained, tmp_path, monkeypatch, capsys, place):
    original = getattr(training_run, place)

    def interrupted(*arguments, **more):
        os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments, **more)

    words = ["train", "question_answering", *replaced(trained[1], tmp_path / "run")]
    monkeypatch.setattr(training_run, place, interrupted)
    assert main(words) == 75
    assert "nterrupted" in capsys.readouterr().err
    monkeypatch.undo()
    assert main([*words, "exp_manager.resume_if_exists=true"]) == 0
    names = {name for name in files_of(trained[0]) if name.parts[0] != "checkpoints"}
    assert names == {name for name in files_of(tmp_path / "run") if name.parts[0] != "checkpoints"}


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("model.language_model.config.hidden_size=64", "hidden_size is 64, of the run 32"),
        ("model.language_model.config.num_layers=4", "num_layers is 4, of the run 2"),
        ("model.language_model.hidden_dropout=0", "hidden_dropout is 0"),
        ("model.tokenizer.do_lower_case=false", "do_lower_case is False, of the run True"),
        ("model.tokenizer.vocab_file={other}", "is not the vocabulary of"),
        ("model.language_model.attention_dropout=1.0", "from 0 to below 1"),
    ],
)
def test_a_resumed_run_refuses_another_network(trained, vocab_file, tmp_path, capsys, word, message):
    other = tmp_path / "other.txt"
    other.write_text(vocab_file.read_text().replace("radium", "barium"))
    words = ["train", "question_answering", "--resume", str(trained[0]), word.format(other=other)]
    assert main([*words, "trainer.max_epochs=2", "exp_manager.resume_past_end=true"]) == 64
    assert message in capsys.readouterr().err


def test_impossible_dropout_is_refused(trained, tmp_path, capsys):
    words = ["train", "question_answering", *replaced(trained[1], tmp_path / "run")]
    for word in ("model.language_model.hidden_dropout=-0.1", "model.token_classifier.dropout=1"):
        assert main([*words, word]) == 64
        assert "from 0 to below 1" in capsys.readouterr().err


def test_evaluation_without_training_uses_the_settings_of_the_command(trained, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(trained[0], folder)
    data = next(word for word in trained[1] if word.startswith("model.test_ds"))
    words = ["train", "question_answering", "do_training=false", f"pretrained_model={folder}", data]
    scores = []
    for more in ([], ["model.dataset.version_2_with_negative=true", "model.dataset.null_score_diff_threshold=-1000"]):
        assert main([*words, *more, "trainer.accelerator=cpu"]) == 0
        scores.append(json.loads(capsys.readouterr().out))
    assert scores[0] == {name: value for name, value in json.loads((trained[0] / "test.json").read_text()).items()
                         if name != "file"}  # fmt: skip
    assert scores[1] != scores[0] and scores[1]["f1"] == 0  # every answer is empty


def test_a_new_head_on_the_encoder_of_another_task(trained, vocab_file, tmp_path, capsys):
    data = tmp_path / "x.conll"
    data.write_text("marie\tB-PER\nwas\tO\nborn\tO\n\nthe\tO\nseine\tB-LOC\n")
    words = [
        "train", "token_classification", f"model.train_ds.file={data}", f"pretrained_model={trained[0]}",
        "model.head.num_fc_layers=3", "model.dataset.max_seq_length=16", "trainer.max_epochs=1",
        "trainer.accelerator=cpu", f"exp_manager.explicit_log_dir={tmp_path / 'run'}", "trainer.max_steps=0",
    ]  # fmt: skip
    assert main(words) == 64
    assert "was trained on question_answering, not token_classification" in capsys.readouterr().err
    assert main([*words, "model.head.reset=true"]) == 0
    from megabert.checkpoints.native.run_checkpoints import read_best

    old, new = (read_best(folder, groups=("model",))[1].tensors["model"] for folder in (trained[0], tmp_path / "run"))
    encoder = {name for name in new if name.startswith("encoder.")}
    assert encoder == {name for name in old if name.startswith("encoder.")}
    assert all(torch.equal(old[name], new[name]) for name in encoder)


def test_a_sweep_with_a_failing_run_keeps_its_table(trained, tmp_path, capsys):
    words = ["train", "question_answering", *replaced(trained[1], tmp_path / "sweep"), "-m"]
    assert main([*words, "seed=1,2", "model.train_ds.batch_size=2,0"]) == 64
    captured = capsys.readouterr()
    rows = [line for line in captured.out.splitlines() if line.startswith("seed=")]
    assert ["failed: model.train_ds.batch_size=0" in row for row in rows] == [False, True, False, True]
    assert "mean ± sample deviation of 2 runs" in captured.out
    assert len(json.loads((tmp_path / "sweep" / "sweep.json").read_text())["runs"]) == 2


def test_a_list_of_devices_names_them():
    settings, _ = compose(Settings, ["trainer.gpus=[1,3]"], owner="train")
    assert (settings.trainer.devices, settings.trainer.device_ids) == (2, [1, 3])
    settings, _ = compose(Settings, ["trainer.gpus=[1,3]", "trainer.devices=1"], owner="train")
    assert (settings.trainer.devices, settings.trainer.device_ids) == (1, None)
    assert check_device_ids([1, 3], 4) == [1, 3]
    for wrong in ([4], [-1], [1, 1]):
        with pytest.raises(ConfigError, match="GPUs 0 to 3"):
            check_device_ids(wrong, 4)
    with pytest.raises(ConfigError, match="Give one of them"):
        count_processes(TrainerSettings(devices=3, device_ids=[0]))
