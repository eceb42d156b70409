"""Training on four questions with a tiny network: overfitting, resuming, interruption, and bit-identical results."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future

import pytest
import torch

import megabert
from megabert.checkpoints.native import run_checkpoints as run
from megabert.cli import main
from megabert.config.parser import compose
from megabert.errors import CheckpointError, CheckpointWarning, ConfigError, InputError
from megabert.parallel.execution import find_obstacle
from megabert.tasks.question_answering import QuestionAnsweringSettings
from megabert.training import loop, saver
from megabert.training import run as training_run
from megabert.training.intervals import Intervals
from tests.conftest import squad_document

TINY = (
    "model.language_model.config={hidden_size: 32, num_layers: 2, num_attention_heads: 4, max_position_embeddings: 64}"
)


def settings_words(squad_file, vocab_file, folder):
    return [
        f"model.train_ds.file={squad_file}", f"model.validation_ds={squad_file}",
        "model.language_model.pretrained_model_name=null", TINY, f"model.tokenizer.vocab_file={vocab_file}",
        "model.dataset.max_seq_length=64", "model.dataset.max_query_length=24", "model.dataset.doc_stride=16",
        "model.train_ds.batch_size=2", "model.optim.lr=3e-3", "model.optim.sched.name=WarmupPolicy",
        "trainer.accelerator=cpu", "trainer.enable_progress_bar=false", "trainer.log_every_n_steps=1",
        "exp_manager.create_tensorboard_logger=false", f"exp_manager.explicit_log_dir={folder}",
    ]  # fmt: skip


def settings(squad_file, vocab_file, folder, *more):
    words = [*settings_words(squad_file, vocab_file, folder), *more]
    return compose(QuestionAnsweringSettings, words, owner="question_answering")[0]


def train(*arguments):
    lines = []
    outcome = training_run.train(
        "question_answering", settings(*arguments), home=arguments[2].parent / "home", log=lines.append
    )
    return outcome, lines


def weights(folder):
    last = run.find_last(folder)
    return run.read(last.path, groups=("model", "optimizer")).tensors


def assert_same(first, second):
    for group in first:
        assert first[group].keys() == second[group].keys()
        for name in first[group]:
            assert torch.equal(first[group][name], second[group][name]), name


def losses(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if line["split"] == "train"}


def test_training_overfits_four_questions_and_the_run_loads_in_a_fresh_process(squad_file, vocab_file, tmp_path):
    folder = tmp_path / "run"
    more = (
        TINY.replace("hidden_size: 32", "hidden_size: 64"),
        "model.language_model.hidden_dropout=0", "model.language_model.attention_dropout=0",
        "trainer.max_epochs=120", "trainer.val_check_interval=0", "trainer.gradient_clip_val=1.0",
        "model.train_ds.batch_size=4", "model.optim.lr=3e-3", "model.optim.sched.name=WarmupAnnealing",
        "model.optim.sched.warmup_ratio=0.1",
    )  # fmt: skip
    outcome, lines = train(squad_file, vocab_file, folder, *more)
    assert outcome.best.figure == 100.0
    assert any("not pre-trained" in line for line in lines)
    squad_file.unlink()  # inference needs neither data nor base weights
    script = (
        f"import megabert; reader = megabert.load({str(folder)!r}, accelerator='cpu'); "
        "print(reader.predict(question='Where was Marie Curie born?', "
        "context='Marie Curie was born in Warsaw. She found radium in the city of Paris.').text)"
    )
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "Warsaw"
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    facts = json.loads((folder / "run.json").read_text())
    assert facts["versions"]["torch"] == torch.__version__
    assert facts["settings"]["model"]["optim"]["lr"] == 3e-3
    assert facts["seed"] == 1234


def test_the_same_settings_give_the_same_numbers(squad_file, vocab_file, tmp_path):
    for name in ("a", "b"):
        train(squad_file, vocab_file, tmp_path / name, "trainer.max_epochs=2")
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    assert_same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    train(squad_file, vocab_file, tmp_path / "c", "trainer.max_epochs=2", "seed=5")
    assert losses(tmp_path / "a") != losses(tmp_path / "c")


COSINE = ("trainer.max_steps=7", "trainer.max_epochs=9", "model.optim.sched.name=CosineAnnealing")


@pytest.fixture(scope="module")
def facts(tmp_path_factory):
    """The file of `squad_file`, for runs that several tests share."""
    file = tmp_path_factory.mktemp("facts") / "facts.json"
    file.write_text(json.dumps(squad_document()), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def every_step(facts, vocab_file, tmp_path_factory):
    """A run, and the same with a checkpoint at every step."""
    folder, original = tmp_path_factory.mktemp("runs"), saver.prune
    train(facts, vocab_file, folder / "whole", *COSINE)
    saver.prune = lambda *arguments, **more: None
    try:
        save = "exp_manager.checkpoint_callback_params.every_n_train_steps=1"
        train(facts, vocab_file, folder / "parts", *COSINE, save)
    finally:
        saver.prune = original
    return folder / "whole", folder / "parts"


@pytest.mark.parametrize("stop_at", [1, 3, 4])  # mid-epoch, mid-epoch of the second, between epochs
def test_a_resumed_run_is_bit_identical_to_an_uninterrupted_one(facts, vocab_file, every_step, tmp_path, stop_at):
    whole, parts = every_step[0], tmp_path / "parts"
    shutil.copytree(every_step[1], parts)
    # Later ones are removed, as if the run had been killed at stop_at.
    for entry in run.list_checkpoints(parts):
        if entry.step > stop_at:
            shutil.rmtree(entry.path)
    assert run.find_last(parts).step == stop_at
    train(facts, vocab_file, parts, *COSINE, "exp_manager.resume_if_exists=true")
    assert_same(weights(whole), weights(parts))
    assert losses(whole) == losses(parts)


def test_control_c_saves_a_checkpoint_to_resume_from(squad_file, vocab_file, tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    more = ("trainer.max_epochs=40", "trainer.val_check_interval=0")
    train(squad_file, vocab_file, whole, *more)
    words = ["train", "question_answering"]
    values = [*settings_words(squad_file, vocab_file, stopped), *more]
    process = subprocess.Popen([sys.executable, "-m", "megabert", *words, *values], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while not (stopped / "metrics.jsonl").exists() or len((stopped / "metrics.jsonl").read_text()) < 200:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    stderr = process.communicate(timeout=300)[1]
    if run.find_last(stopped).is_end:
        pytest.skip("the run came to its end before the signal did")
    assert process.returncode == 75, stderr
    assert "Traceback" not in stderr
    assert f"--resume {stopped}" in stderr
    assert main([*words, "--resume", str(stopped)]) == 0
    assert_same(weights(whole), weights(stopped))


def test_training_on_cached_features_gives_the_same_losses(squad_file, vocab_file, tmp_path):
    for name in ("first", "second"):
        train(squad_file, vocab_file, tmp_path / name, "trainer.max_epochs=2")
        assert len(list((tmp_path / "home" / "texts").iterdir())) == 1
    assert losses(tmp_path / "first") == losses(tmp_path / "second")
    train(squad_file, vocab_file, tmp_path / "third", "trainer.max_epochs=1", "model.dataset.doc_stride=8")
    assert len(list((tmp_path / "home" / "texts").iterdir())) == 2
    train(squad_file, vocab_file, tmp_path / "4", "trainer.max_epochs=1", "model.train_ds.use_cache=false", "seed=3")
    assert len(list((tmp_path / "home" / "texts").iterdir())) == 2


def test_gradient_accumulation_does_not_change_the_losses(squad_file, vocab_file, tmp_path):
    common = (
        "trainer.max_epochs=3",
        "model.language_model.hidden_dropout=0",
        "model.language_model.attention_dropout=0",
    )
    train(squad_file, vocab_file, tmp_path / "one", *common, "model.train_ds.batch_size=4")
    train(squad_file, vocab_file, tmp_path / "two", *common, "trainer.accumulate_grad_batches=2")
    first, second = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert first.keys() == second.keys()
    for step, loss in first.items():
        assert loss == pytest.approx(second[step], abs=1e-4)


def test_a_finished_run_is_resumed_only_with_resume_past_end(squad_file, vocab_file, tmp_path):
    common = (squad_file, vocab_file, tmp_path / "run")
    train(*common, "trainer.max_epochs=1")
    with pytest.raises(ConfigError, match="holds a run already"):
        train(*common, "trainer.max_epochs=1")
    with pytest.raises(ConfigError, match="is complete at step 2"):
        train(*common, "trainer.max_epochs=2", "exp_manager.resume_if_exists=true")
    outcome, _ = train(
        *common, "trainer.max_epochs=2", "exp_manager.resume_if_exists=true", "exp_manager.resume_past_end=true"
    )
    assert run.find_last(outcome.folder).step == 4


def test_resuming_with_other_settings_or_data_is_refused(squad_file, vocab_file, tmp_path):
    common = (squad_file, vocab_file, tmp_path / "run")
    more = ("trainer.max_epochs=2", "exp_manager.resume_if_exists=true", "exp_manager.resume_past_end=true")
    train(*common, "trainer.max_epochs=1")
    with pytest.raises(ConfigError, match=r"model\.optim\.lr: 0\.003 -> 1\.0"):
        train(*common, *more, "model.optim.lr=1.0")
    with pytest.raises(ConfigError, match="accumulate_grad_batches"):
        train(*common, *more, "trainer.accumulate_grad_batches=2")
    squad_file.write_text(squad_file.read_text().replace("Seine", "Rhine"))
    with pytest.raises(CheckpointError, match="training data is not what"):
        train(*common, *more)


def test_loss_that_is_not_finite_stops_before_the_update(squad_file, vocab_file, tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(InputError, match="nothing was updated"):
        train(squad_file, vocab_file, folder, "model.optim.lr=1e30", "model.optim.name=sgd", "trainer.max_epochs=9")


def flip_a_bit(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


SAVE_OFTEN = (
    "trainer.max_steps=6",
    "trainer.max_epochs=9",
    "exp_manager.checkpoint_callback_params.every_n_train_steps=2",
    "exp_manager.checkpoint_callback_params.save_top_k=9",
)


@pytest.fixture(scope="module")
def often_saved(facts, vocab_file, tmp_path_factory):
    """A run with three checkpoints."""
    folder = tmp_path_factory.mktemp("often") / "run"
    train(facts, vocab_file, folder, *SAVE_OFTEN)
    return folder


@pytest.mark.parametrize("name", ["manifest.json", "optimizer.safetensors"])
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(facts, vocab_file, often_saved, tmp_path, name):
    common = (facts, vocab_file, tmp_path / "run", *SAVE_OFTEN)
    shutil.copytree(often_saved, tmp_path / "run")
    expected, last = losses(tmp_path / "run"), run.find_last(tmp_path / "run").path
    whole = weights(tmp_path / "run")
    flip_a_bit(last / name)
    with pytest.warns(CheckpointWarning, match=f"step-00000006.{name} is damaged"):
        _, lines = train(*common, "exp_manager.resume_if_exists=true")
    assert any(line.endswith("from step 4.") for line in lines)
    assert len(list(last.parent.glob("step-00000006.damaged-*"))) == 1
    assert_same(whole, weights(tmp_path / "run"))
    assert losses(tmp_path / "run") == expected


def test_a_run_is_resumed_from_a_chosen_step(often_saved, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(often_saved, folder)
    expected, whole = losses(folder), weights(folder)
    command = ["train", "question_answering", "--resume", str(folder)]
    assert main([*command, "--step", "3"]) == 64
    assert main([*command[:2], "--step", "4"]) == 64
    assert len(run.list_checkpoints(folder)) == 3
    assert main([*command, "--step", "2"]) == 0
    assert losses(folder) == expected
    assert_same(whole, weights(folder))
    assert len(list((folder / "checkpoints").glob("step-*.superseded-*"))) == 2


def test_a_resumed_run_does_not_write_its_checkpoint_again(facts, vocab_file, often_saved, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    shutil.copytree(often_saved, folder)
    for entry in run.list_checkpoints(folder)[1:]:
        shutil.rmtree(entry.path)
    written = []
    write = saver.write

    def counted(run, step, *rest, **more):
        written.append(step)
        return write(run, step, *rest, **more)

    monkeypatch.setattr(saver, "write", counted)
    train(facts, vocab_file, folder, *SAVE_OFTEN, "exp_manager.resume_if_exists=true")
    assert written == [4, 6]


def test_a_failed_background_write_stops_at_the_next_step(squad_file, vocab_file, tmp_path, monkeypatch):
    class FailedSaver(saver.Saver):
        """Fails once it has written the checkpoint of step 2."""

        def save(self, contents, write, *, is_last=False):
            super().save(contents, write, is_last=is_last)
            self._last = Future()
            self._last.set_exception(OSError(28, "No space left on device"))

    monkeypatch.setattr(loop, "Saver", FailedSaver)
    with pytest.raises(OSError, match="No space"):
        train(squad_file, vocab_file, tmp_path / "run", *SAVE_OFTEN[:3], "trainer.val_check_interval=0")
    assert max(losses(tmp_path / "run")) == 2


def test_advice_about_a_loss_that_is_not_finite_fits_the_run(squad_file, vocab_file, tmp_path):
    common = (squad_file, vocab_file, tmp_path / "run", "model.optim.lr=1e30", "model.optim.name=sgd")
    with pytest.raises(InputError, match=r"lower model\.optim\.lr\.") as raised:
        train(*common, "trainer.max_epochs=9", "trainer.precision=32", "trainer.gradient_clip_val=1.0")
    assert "precision" not in str(raised.value)
    assert "gradient_clip_val" not in str(raised.value)


@pytest.mark.parametrize("precision", ["bf16", "16"])
def test_lower_precision_reduces_the_loss(squad_file, vocab_file, tmp_path, precision):
    outcome, _ = train(
        squad_file, vocab_file, tmp_path / "run", f"trainer.precision={precision}", "trainer.max_epochs=8",
        "trainer.val_check_interval=0", "trainer.gradient_clip_val=1.0",
    )  # fmt: skip
    seen = losses(outcome.folder)
    assert seen[max(seen)] < 0.8 * seen[1]


def test_training_from_another_run_starts_with_its_head(squad_file, vocab_file, tmp_path):
    train(squad_file, vocab_file, tmp_path / "first", "trainer.max_epochs=1")
    outcome, lines = train(
        squad_file, vocab_file, tmp_path / "second", "trainer.max_steps=0", f"pretrained_model={tmp_path / 'first'}"
    )
    assert any("its head included" in line for line in lines)
    first, second = weights(tmp_path / "first")["model"], weights(outcome.folder)["model"]
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_test_data_is_scored_with_the_best_checkpoint(squad_file, vocab_file, tmp_path):
    outcome, _ = train(squad_file, vocab_file, tmp_path / "run", "trainer.max_epochs=1", f"model.test_ds={squad_file}")
    assert outcome.test["f1"] == pytest.approx(outcome.best.figure)
    assert json.loads((outcome.folder / "test.json").read_text())["f1"] == outcome.test["f1"]


def test_two_processes_do_not_train_in_one_folder(squad_file, vocab_file, tmp_path):
    import fcntl

    folder = tmp_path / "run"
    folder.mkdir()
    descriptor = os.open(folder / ".lock", os.O_CREAT | os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        with pytest.raises(ConfigError, match="Another process"):
            train(squad_file, vocab_file, folder)
    finally:
        os.close(descriptor)


def test_training_works_in_a_thread(squad_file, vocab_file, tmp_path):
    # As notebooks and servers do; signal handlers cannot be set outside the main thread.
    thread = threading.Thread(target=train, args=(squad_file, vocab_file, tmp_path / "run", "trainer.max_epochs=1"))
    thread.start()
    thread.join()
    assert run.find_last(tmp_path / "run").is_end
    assert megabert.load(tmp_path / "run", accelerator="cpu").task.name() == "question_answering"


def intervals(**changes):
    values = {
        "total_steps": 10, "accumulate": 2, "validate_every": 0, "save_every": 0, "steps_per_epoch": 5,
    } | changes  # fmt: skip
    return Intervals(**values)


@pytest.mark.parametrize(
    ("every", "expected"),
    [(0, [10]), (4, [2, 4, 6, 8, 10]), (5.0, [3, 5, 8, 10]), (1, list(range(1, 11))), (2.5, [2, 3, 4, 5, 7, 8, 9, 10])],
)
def test_a_validation_is_due_at_the_first_step_after_each_interval(every, expected):
    due = [step for step in range(11) if intervals(validate_every=every).validates_after(step)]
    assert due == expected


def test_epochs_are_counted_from_steps():
    assert intervals().epoch(5) == 1.0
    assert intervals().epoch(7) == 1.4


@pytest.mark.parametrize(
    ("words", "precision", "has_kernel", "expected"),
    [
        ([], "bf16", True, None),
        ([], "bf16", False, "no attention kernel for heads of 48"),
        ([], "16", True, "the host reads the loss scale"),
        (["model.optim.name=sgd"], "bf16", True, "the optimizer sgd cannot be captured; adam, adamw can"),
    ],
)
def test_the_obstacle_to_cuda_graph_capture_is_reported(words, precision, has_kernel, expected):
    composed = compose(QuestionAnsweringSettings, words, owner="question_answering")[0]
    actual = find_obstacle(composed.parallel, composed.model.optim.name, precision, 48, has_kernel=has_kernel)
    assert actual is None if expected is None else expected in actual


def test_cached_features_do_not_depend_on_batch_size_or_file_path(squad_file, vocab_file, tmp_path, monkeypatch):
    home = tmp_path / "home"
    monkeypatch.setenv("MEGABERT_HOME", str(home))
    moved = tmp_path / "moved.json"
    moved.write_bytes(squad_file.read_bytes())
    for number, more in enumerate([(), ("model.train_ds.batch_size=1",), (f"model.train_ds.file={moved}",)]):
        changed = settings(squad_file, vocab_file, tmp_path / str(number), "trainer.max_epochs=1", *more)
        training_run.train("question_answering", changed, home=home, log=lambda line: None)
    assert len(list((home / "texts").iterdir())) == 1
    changed = settings(squad_file, vocab_file, tmp_path / "3", "trainer.max_epochs=1", "model.dataset.doc_stride=15")
    training_run.train("question_answering", changed, home=home, log=lambda line: None)
    assert len(list((home / "texts").iterdir())) == 2
