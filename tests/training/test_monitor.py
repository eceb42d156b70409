"""Which validation decides: direction of a metric, early stopping, scores that say nothing."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from megabert.cli import main
from megabert.config.parser import compose
from megabert.config.schema import Settings
from megabert.errors import ConfigError
from megabert.training.monitor import advise_on_steps, record_validation, stops_early
from megabert.training.resume import Progress
from megabert.training.setup import resolve_mode
from tests.training.test_loop import run, train


@pytest.mark.parametrize(
    ("monitor", "mode"),
    [("f1", "max"), ("val_loss", "min"), ("lm_loss", "min"), ("perplexity", "min"), ("word_perplexity", "min")],
)
def test_losses_and_perplexities_are_minimized(monitor, mode):
    assert resolve_mode(monitor, None) == mode
    assert resolve_mode(monitor, "max") == "max"


def validations(values, **settings):
    """Return after how many validations early stopping ends a training with these values; None if it does not."""
    manager = Settings().exp_manager
    manager.create_early_stopping_callback = True
    for name, value in settings.items():
        setattr(manager.early_stopping_callback_params, name, value)
    setup = SimpleNamespace(settings=SimpleNamespace(exp_manager=manager), monitor="f1")
    progress = Progress()
    for number, value in enumerate(values, start=1):
        metrics = {"val_loss": -value if value is not None else None, "f1": value}
        progress = record_validation(setup, replace(progress, step=number), metrics)
        if stops_early(setup, progress):
            return number
    return None


def test_early_stopping_counts_validations_without_improvement():
    assert validations([1, 2, 3, 4, 5, 6], patience=2) is None
    assert validations([1, 2, 2, 2, 3], patience=2) == 4
    assert validations([1, 2, 1, 3, 1, 2, 4], patience=3) is None
    assert validations([1, 1.5, 2, 2.5], patience=2, min_delta=0.5) is None  # 2 is more than 0.5 above 1
    assert validations([1, 1.5, 1.5, 2.5], patience=2, min_delta=0.5) == 3
    assert validations([float("nan"), float("inf"), None], patience=3) == 3
    assert validations([1, 2, 2, 2], patience=2, monitor="val_loss") == 4


EARLY = (
    "trainer.max_epochs=9", "trainer.val_check_interval=1", "model.optim.lr=1e-9",
    "exp_manager.create_early_stopping_callback=true", "exp_manager.early_stopping_callback_params.patience=2",
    "exp_manager.checkpoint_callback_params.save_top_k=-1",
)  # fmt: skip


def test_a_run_that_stopped_early_is_complete_and_resumes_with_more_patience(squad_file, vocab_file, tmp_path):
    common = (squad_file, vocab_file, tmp_path / "run", *EARLY)
    train(*common)
    assert [entry.step for entry in run.list_checkpoints(tmp_path / "run")] == [1, 2, 3]
    assert run.find_last(tmp_path / "run").is_end
    with pytest.raises(ConfigError, match="is complete at step 3"):
        train(*common, "exp_manager.resume_if_exists=true")
    more = ("exp_manager.resume_past_end=true", "exp_manager.early_stopping_callback_params.patience=4")
    train(*common, "exp_manager.resume_if_exists=true", *more)
    assert run.find_last(tmp_path / "run").step == 5


def test_early_stopping_without_validation_data_is_refused(squad_file, vocab_file, tmp_path):
    with pytest.raises(ConfigError, match="needs validation data"):
        train(squad_file, vocab_file, tmp_path / "run", *EARLY, "model.validation_ds=null")


def test_parts_of_speech_keep_the_last_checkpoint(vocab_file, tmp_path, capsys):
    data = tmp_path / "pos.conll"
    data.write_text("the\tDET\ncity\tNOUN\nwas\tVERB\n\nthe\tDET\nriver\tNOUN\nis\tVERB\nin\tADP\nfrance\tNOUN\n")
    words = [
        f"model.train_ds.file={data}", f"model.validation_ds.file={data}", f"model.tokenizer.vocab_file={vocab_file}",
        "model.language_model.pretrained_model_name=null", "model.dataset.max_seq_length=16",
        "model.language_model.config={hidden_size: 16, num_layers: 1, num_attention_heads: 2}",
        "trainer.max_epochs=8", "model.optim.lr=1e-2", "trainer.accelerator=cpu", "model.train_ds.use_cache=false",
        f"exp_manager.explicit_log_dir={tmp_path / 'run'}", "exp_manager.create_tensorboard_logger=false",
    ]  # fmt: skip
    assert main(["train", "token_classification", *words]) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    # Tags without entities are scored word by word: their F1 is the word accuracy.
    accuracies = [line["word_accuracy"] for line in lines if line["split"] == "validation"]
    assert run.find_best(tmp_path / "run", "max").figure == max(accuracies) > accuracies[0]
    assert "validation f1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("steps", "width", "changes", "expected"),
    [
        (85, 256, {}, "trainer.max_epochs=18 model.optim.lr=0.0002"),
        (85, 1024, {}, "trainer.max_epochs=18"),
        (85, 256, {"trainer.max_steps": 85}, "trainer.max_steps=300 model.optim.lr=0.0002"),
        (85, 384, {"model.optim.lr": 1e-4}, "trainer.max_epochs=18"),
        (300, 256, {}, None),
        (85, 256, {"pretrained_model": "RUN"}, None),
        (85, 256, {"mode": "min"}, None),
    ],
)
def test_few_steps_are_reported_with_what_to_change(steps, width, changes, expected):
    words = ["model.optim.lr=5e-5", *(f"{key}={value}" for key, value in changes.items() if key != "mode")]
    setup = SimpleNamespace(
        settings=compose(Settings, words, owner="x")[0], mode=changes.get("mode", "max"),
        intervals=SimpleNamespace(total_steps=steps, steps_per_epoch=17), task=SimpleNamespace(is_embedding=False),
        model=SimpleNamespace(encoder=SimpleNamespace(config=SimpleNamespace(hidden_size=width))),
    )  # fmt: skip
    advice = advise_on_steps(setup)
    assert advice is None if expected is None else advice.endswith(f": {expected}")
