"""The task of docs/custom_task.md: its file is short, and trains, evaluates and predicts as the page describes."""

import json
from pathlib import Path

import pytest

import megabert
from megabert.cli import main
from tests.tasks.test_contract import TINY

PAGE = Path(__file__).parents[2] / "docs" / "custom_task.md"
MESSAGES = "ham\twhere was marie born\nspam\tparis paris paris\nham\tthe river seine\nspam\tfound radium in paris\n"


@pytest.fixture(scope="module")
def task_file(tmp_path_factory):
    _, _, rest = PAGE.read_text(encoding="utf-8").partition("```python\n")
    code, end, _ = rest.partition("```\n")
    assert end and len(code.splitlines()) <= 80
    file = tmp_path_factory.mktemp("task") / "spam.py"
    file.write_text(code, encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def run(task_file, tmp_path_factory, vocab_file):
    folder = tmp_path_factory.mktemp("runs")
    data = folder / "messages.tsv"
    data.write_text(MESSAGES, encoding="utf-8")
    overrides = [
        f"model.train_ds.file={data}", f"model.validation_ds.file={data}", "model.train_ds.use_cache=false",
        "model.language_model.pretrained_model_name=null", TINY, f"model.tokenizer.vocab_file={vocab_file}",
        "model.dataset.max_seq_length=64", "model.train_ds.batch_size=4", "model.optim.lr=3e-3",
        "model.optim.sched.name=WarmupPolicy", "trainer.max_epochs=60", "trainer.val_check_interval=0",
        "trainer.accelerator=cpu", "trainer.enable_progress_bar=false",
        f"exp_manager.explicit_log_dir={folder / 'run'}", "exp_manager.create_tensorboard_logger=false",
        f"model.test_ds.file={data}",
    ]  # fmt: skip
    assert main(["train", str(task_file), *overrides]) == 0
    return folder / "run", data


def test_a_custom_task_overfits_four_examples(run, task_file, capsys):
    folder, data = run
    capsys.readouterr()
    assert main(["evaluate", str(folder), "--task", str(task_file), f"file={data}", "accelerator=cpu"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["f1"] == scores["accuracy"] == 100
    assert json.loads((folder / "test.json").read_text()) == {"file": str(data), **scores}
    assert main(["predict", str(folder), "--task", str(task_file), "text=paris paris paris", "accelerator=cpu"]) == 0
    prediction = json.loads(capsys.readouterr().out)
    assert prediction["label"] == "spam" and 0.5 < prediction["probability"] <= 1
    predictor = megabert.load(folder, accelerator="cpu", task=str(task_file))
    assert predictor.predict(text="the river seine").label == "ham"


def test_a_custom_task_has_settings_of_its_own(run, task_file, capsys):
    assert main(["config", str(task_file), "--json"]) == 0
    settings = {setting["key"]: setting for setting in json.loads(capsys.readouterr().out)}
    assert settings["model.dataset.threshold"]["help"] == "Smallest probability at which a message is spam."
    words = ["--task", str(task_file), "text=paris paris paris", "accelerator=cpu"]
    assert main(["predict", str(run[0]), *words, "model.dataset.threshold=1.1"]) == 0
    assert json.loads(capsys.readouterr().out)["label"] == "ham"


def test_a_checkpoint_does_not_choose_the_code_that_is_run(run, capsys):
    assert main(["predict", str(run[0]), "text=paris", "accelerator=cpu"]) == 64
    assert "--task" in capsys.readouterr().err


def test_a_malformed_line_is_reported_with_its_number(run, task_file, tmp_path, capsys):
    (tmp_path / "x.tsv").write_text("ham\tgood\nbad\tlabel\n")
    command = ["evaluate", str(run[0]), "--task", str(task_file), f"file={tmp_path / 'x.tsv'}", "accelerator=cpu"]
    assert main(command) == 65
    assert "x.tsv:2: expected ham or spam" in capsys.readouterr().err


def test_a_task_that_cannot_read_predictions_has_none_to_score(task_file, capsys):
    assert main(["score", str(task_file), "gold.tsv", "predictions.jsonl"]) == 64
    assert "megabert evaluate RUN" in capsys.readouterr().err
