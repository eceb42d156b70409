"""The commands from the user's side: output, exit codes and messages, never a traceback."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from megabert import cli
from tests.training.test_loop import settings_words

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, vocab_file):
    """A trained run folder and its data file."""
    from tests.conftest import squad_document

    folder = tmp_path_factory.mktemp("trained")
    data = folder / "facts.json"
    data.write_text(json.dumps(squad_document()))
    assert cli.main(["train", "question_answering", *settings_words(data, vocab_file, folder / "run")]) == 0
    return folder / "run", data


def run(capsys, *words):
    code = cli.main(words)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_help_lists_every_command_without_importing_torch_hydra_or_numpy(capsys):
    code, out, _ = run(capsys, "--help")
    assert code == 0
    assert all(f"megabert {name}" in out for name in cli.COMMANDS)
    script = (
        "import sys; from megabert.cli import main; main(['--help']); "
        "print(*(name in sys.modules for name in ('torch', 'hydra', 'numpy')))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False False False"


@pytest.mark.parametrize("command", [name for name in cli.COMMANDS if name != "models"])
def test_each_command_has_help(capsys, command):
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    assert stop.value.code == 0
    assert f"megabert {command}" in capsys.readouterr().out


def test_a_misspelt_command_or_task_gets_a_suggestion(capsys):
    assert run(capsys, "trian")[0] == 64
    assert "Did you mean train?" in run(capsys, "trian")[2]
    assert "Did you mean question_answering?" in run(capsys, "train", "question_answerin")[2]
    assert run(capsys)[0] == 64


def test_evaluate_prints_scores_and_writes_predictions_for_the_official_scorer(capsys, trained, tmp_path):
    folder, data = trained
    code, out, _ = run(
        capsys, "evaluate", str(folder), f"file={data}", f"output_dir={tmp_path / 'out'}", "accelerator=cpu"
    )
    assert code == 0
    scores = json.loads(out)
    predictions = tmp_path / "out" / "predictions.json"
    code, out, _ = run(capsys, "score", "question_answering", str(data), str(predictions))
    assert code == 0
    assert json.loads(out) == scores


def test_predict_answers_a_question_or_a_file(capsys, trained, tmp_path):
    folder, data = trained
    context = 'Says "the Seine": a river (in France), isn\'t it?'
    code, out, _ = run(capsys, "predict", str(folder), "question=Where is it?", f"context={context}", "accelerator=cpu")
    assert code == 0
    answer = json.loads(out)
    assert context[answer["start"] : answer["end"]] == answer["answer"]
    output = tmp_path / "answers.jsonl"
    assert run(capsys, "predict", str(folder), f"file={data}", f"output={data}", "accelerator=cpu")[0] == 64
    assert run(capsys, "predict", str(folder), f"file={data}", f"output={output}", "accelerator=cpu")[0] == 0
    assert [json.loads(line)["id"] for line in output.read_text().splitlines()] == ["0.0", "0.1", "1.0", "1.1"]


def test_a_setting_of_the_run_can_be_overridden_for_inference(capsys, trained):
    folder, _data = trained
    words = ("predict", str(folder), "question=Where?", "context=The Seine is in France.", "accelerator=cpu")
    code, out, _ = run(
        capsys, *words, "model.dataset.version_2_with_negative=true", "model.dataset.null_score_diff_threshold=-100"
    )
    assert (code, json.loads(out)["answer"]) == (0, "")
    assert run(capsys, *words, "model.dataset.n_best=3")[0] == 64


def test_a_sweep_trains_once_per_value_and_prints_a_table(capsys, squad_file, vocab_file, tmp_path):
    words = settings_words(squad_file, vocab_file, tmp_path / "sweep")
    code, out, _ = run(capsys, "train", "question_answering", *words, "trainer.max_epochs=1", "-m", "seed=1,2")
    assert code == 0
    assert len(list((tmp_path / "sweep").glob("*/checkpoints/step-*"))) == 2
    assert "seed=1" in out
    assert "±" in out


def test_config_lists_every_setting(capsys):
    code, out, _ = run(capsys, "config", "question_answering")
    assert code == 0
    assert "model.dataset.max_seq_length=384" in out
    rows = json.loads(run(capsys, "config", "question_answering", "--json")[1])
    assert {"key", "default", "help"} <= rows[0].keys()


def test_models_lists_the_published_names(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("MEGABERT_HOME", str(tmp_path))
    code, out, _ = run(capsys, "models")
    assert code == 0
    assert "biomegatron-bert-345m-cased" in out
    rows = json.loads(run(capsys, "models", "--json")[1])
    assert {row["name"]: row["in_cache"] for row in rows}["megatron-bert-345m-uncased"] is False


BAD_DATA = {
    "empty.json": ("", "is empty"),
    "broken.json": ('{"data": [', "broken.json:1:"),
    "other.json": ('{"rows": []}', "not a SQuAD file"),
    "answer.json": (
        '{"data": [{"paragraphs": [{"context": "abc", "qas": [{"id": "1", "question": "?", '
        '"answers": [{"text": "x", "answer_start": 0}]}]}]}]}',
        "not at character 0 of its context",
    ),
}


@pytest.mark.parametrize("name", BAD_DATA)
def test_invalid_training_data_is_one_message_and_exit_code_65(capsys, tmp_path, vocab_file, name):
    content, message = BAD_DATA[name]
    (tmp_path / name).write_text(content)
    words = settings_words(tmp_path / name, vocab_file, tmp_path / "run")
    code, _, err = run(capsys, "train", "question_answering", *words)
    assert (code, message in err) == (65, True), err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["train"], 64, "The task is missing"),
        (["train", "question_answering"], 64, "model.train_ds.file is not given"),
        (["train", "question_answering", "model.train_ds.file=nowhere.json"], 65, "nowhere.json does not exist"),
        (["train", "question_answering", "model.train_ds.fiel=x"], 64, "Did you mean model.train_ds.file?"),
        (["train", "question_answering", "trainer.num_nodes=2"], 64, "start the command on each machine"),
        (["train", "question_answering", "--bert_confg", "x"], 64, "--bert_confg"),
        (["train", "./my_task.py"], 64, "does not exist"),
        (["evaluate", "nowhere", "file=x"], 66, "nowhere does not exist"),
        (["evaluate", "."], 64, "file=FILE"),
        (["evaluate", ".", "fiel=x"], 64, "Did you mean file? `megabert config evaluate` lists them all"),
        (["evaluate", ".", "file=x"], 66, "no complete checkpoint"),
        (["predict", "."], 64, "Give either file=FILE or one example"),
        (["score", "question_answering", "a.json", "b.json"], 65, "a.json cannot be read"),
    ],
)
def test_an_error_is_one_message_and_an_exit_code(capsys, words, code, message):
    exit_code, _, err = run(capsys, *words)
    assert (exit_code, message in err) == (code, True), err
    assert len(err.strip().splitlines()) == 1


def test_a_vocabulary_of_another_size_is_an_error(capsys, squad_file, vocab_file, genuine_checkpoints, tmp_path):
    larger = tmp_path / "larger.txt"
    larger.write_text(vocab_file.read_text() + "".join(f"word{number}\n" for number in range(500)))
    words = [word for word in settings_words(squad_file, larger, tmp_path / "run") if "language_model" not in word]
    small = ["model.dataset.max_seq_length=40", "model.dataset.max_query_length=16", "model.dataset.doc_stride=8"]
    checkpoint = ["model.language_model.pretrained_model_name=megatron-bert-uncased",
                  "--bert_checkpoint", str(genuine_checkpoints / "v2.0_tp2")]  # fmt: skip
    code, _, err = run(capsys, "train", "question_answering", *words, *small, *checkpoint)
    assert code == 66
    assert "512 word vectors" in err


def test_the_documented_command_fine_tunes_a_genuine_megatron_checkpoint(
    squad_v1, genuine_checkpoints, tmp_path, tmp_path_factory
):
    data = tmp_path_factory.mktemp("squad")
    for split in ("train", "dev"):  # an article of each: the whole files take seconds to read
        document = json.loads((squad_v1 / f"{split}.json").read_text(encoding="utf-8"))
        (data / f"{split}.json").write_text(json.dumps(document | {"data": document["data"][:1]}), encoding="utf-8")
    config = tmp_path / "bert_config.json"
    config.write_text(json.dumps({"hidden-size": 64, "num-layers": 2, "num-attention-heads": 4, "max-seq-length": 40}))
    words = [
        f"model.train_ds.file={data / 'train.json'}",
        f"model.validation_ds={data / 'dev.json'}",
        "model.language_model.pretrained_model_name=megatron-bert-uncased",
        "--bert_config", str(config),
        "--bert_checkpoint", str(genuine_checkpoints / "v1.0_tp2"),
        f"model.tokenizer.vocab_file={genuine_checkpoints / 'vocab.txt'}",
        "model.dataset.max_seq_length=40", "model.dataset.max_query_length=16", "model.dataset.doc_stride=12",
        "model.train_ds.num_samples=8", "model.validation_ds.num_samples=4", "trainer.max_epochs=1",
        "trainer.accelerator=cpu", f"exp_manager.exp_dir={tmp_path / 'runs'}",
    ]  # fmt: skip
    script = ROOT / "examples" / "question_answering_squad.py"
    done = subprocess.run([sys.executable, script, *words], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "query-key-value rows: 3_heads_dim (no checkpoint_version: version 0)" in done.stderr
    assert "validation" in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"bert_config.json", "runs"}


def test_a_file_that_is_no_checkpoint_is_an_error(capsys, squad_file, vocab_file, tmp_path):
    file = tmp_path / "model_optim_rng.pt"
    file.write_text("<html>404 Not Found</html>")
    words = [*settings_words(squad_file, vocab_file, tmp_path / "run"), f"model.language_model.lm_checkpoint={file}"]
    code, _, err = run(capsys, "train", "question_answering", *words)
    assert code == 66
    assert "model_optim_rng.pt" in err
    assert "Traceback" not in err


def test_an_unreachable_published_checkpoint_names_the_folder_for_its_files(squad_file, tmp_path):
    words = ["train", "question_answering", f"model.train_ds.file={squad_file}"]
    environment = {
        "MEGABERT_HOME": str(tmp_path / "home"),
        "PATH": "/usr/bin:/bin",
        "https_proxy": "http://127.0.0.1:9",
    }
    done = subprocess.run(
        [sys.executable, "-m", "megabert", *words, f"exp_manager.exp_dir={tmp_path / 'runs'}"],
        capture_output=True, text=True, check=False, env=environment, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 66
    assert "Traceback" not in done.stderr
    assert str(tmp_path / "home" / "megatron-bert-345m-uncased") in done.stderr


def test_plan_prints_the_best_layout_and_its_settings(capsys):
    code, out, _ = run(capsys, "plan", "model=1.3b", "gpus=8")
    assert code == 0
    assert "Best: trainer.devices=8" in out and "1,281 million" in out
    code, out, _ = run(capsys, "plan", "model=345m", "gpus=1", "task=finetune", "length=165", "--json")
    document = json.loads(out)
    assert document["best"]["settings"]["model.train_ds.batch_size"] == 32
    assert document["best"]["memory"]["total"] == sum(
        value for name, value in document["best"]["memory"].items() if name != "total"
    )
    assert [point["gpus"] for point in document["scaling"]["weak"]] == [1, 8, 64, 512]


def test_plan_accepts_a_configuration_a_checkpoint_or_a_published_name(capsys, tmp_path, trained):
    config = tmp_path / "a config.json"
    config.write_text(json.dumps({"hidden_size": 64, "num_layers": 2, "num_attention_heads": 4, "vocab_size": 1000}))
    for model in (config, trained[0], "megatron-bert-345m-cased"):
        code, out, _ = run(capsys, "plan", f"model={model}", "gpus=2", "batch=64", "length=32", "--json")
        assert code == 0
        assert json.loads(out)["best"]["fits"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model=346m"], "Did you mean 345m?"),
        (["gpus=12"], "multiple of 8"),
        (["gpus=8", "tensor=3"], "is not divisible by tensor=3"),
        (["gpus=7", "tensor=7", "model=1.3b"], "attention heads, 32"),
        (["gpu=v100"], "precision=bf16"),
        (["length=1000"], "512 positions"),
        (["fsdp=0"], "-1 for all"),
        (["gpu=b200"], "h100"),
        (["overlap=2"], "0 to 1"),
    ],
)
def test_plan_rejects_impossible_settings_with_the_reason(capsys, words, message):
    code, _, err = run(capsys, "plan", *words)
    assert code == 64
    assert message in err


def test_help_may_be_written_as_a_command(capsys):
    assert run(capsys, "help") == run(capsys, "--help")
    with pytest.raises(SystemExit) as stop:
        cli.main(["help", "predict"])
    assert stop.value.code == 0 and "megabert predict" in capsys.readouterr().out


def test_a_file_without_its_key_gets_the_key(capsys, trained):
    folder, data = trained
    assert f"model.train_ds.file={data}" in run(capsys, "train", "question_answering", str(data))[2]
    assert f"Write file={data}" in run(capsys, "evaluate", str(folder), str(data))[2]


def test_a_folder_of_runs_is_not_a_run_and_its_runs_are_named(capsys, trained):
    folder, data = trained
    code, _, err = run(capsys, "evaluate", str(folder.parent), f"file={data}")
    assert code == 66 and f"There are runs in it: {folder}." in err


def test_a_run_is_resumed_without_the_name_of_its_task(capsys, trained):
    folder, _ = trained
    code, _, err = run(capsys, "train", "--resume", str(folder))
    assert code == 64 and "is complete" in err
