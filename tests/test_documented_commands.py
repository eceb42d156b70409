"""Every command in README.md and docs/ is executed, as written, on small files with the names that it uses.

A published checkpoint is replaced by a network of two layers, and a training ends after one step. Commands that need
several GPUs or a network are listed in NOT_EXECUTED with the reason; of a training the settings are read all the same.
"""

import json
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from megabert.checkpoints.published import published_checkpoints
from megabert.cli import main
from megabert.config.parser import compose
from megabert.tasks import registry
from tests.documented_commands import ROOT, Command, documented_commands
from tests.workshop import TINY, furnish

COMMANDS = documented_commands()
# The beginning of a command -> why it is not executed here
NOT_EXECUTED = {
    "megabert serve": "runs until it is stopped; tests/serve has it",
    "megabert review": "runs until it is stopped; tests/serve/test_review_page.py has it",
    "pip install .[serve]": "installs packages",
    "python -m benchmarks.serving": "loads the machine for a minute",
    "python -m tests.fuzz.serving": "loads the machine for an hour; tests/serve/test_faults.py has small counts",
    "./dev": "runs this very test, or longer than it may; tests/test_sample.py and CI run its parts",
    "torchrun": "needs 32 GPUs",
    "srun": "needs 32 GPUs",
    "megabert train question_answering ... trainer.devices=8": "needs 8 GPUs",
    "megabert train ... trainer.devices=8": "needs 8 GPUs",
    "megabert fetch NAME --from": "needs a published file of 670 MB; tests/checkpoints/test_catalog.py has small ones",
    "megabert fetch NAME --sha256": "needs a download; tests/checkpoints/test_catalog.py has a server of its own",
}
NETWORK = json.dumps(TINY).replace('"', "")
QUICK = ("trainer.max_steps=1", "trainer.accelerator=cpu", "exp_manager.create_tensorboard_logger=false")
SMALL = ("model.language_model.pretrained_model_name=null", f"model.language_model.config={NETWORK}")
VOCABULARY = {
    "causal_language_model": ("model.tokenizer.vocab_file=vocab.json", "model.tokenizer.merges_file=merges.txt")
}
PRETRAINING = ("masked_language_model", "causal_language_model")
DATA = {
    "question_answering": ("model.train_ds.file=TRAIN.json", "model.validation_ds.file=DEV.json"),
    "text_classification": ("model.train_ds.file=train.tsv", "model.validation_ds.file=dev.tsv"),
}  # where a page leaves them out


def reason_not_to_execute(command: Command) -> str | None:
    return next((why for start, why in NOT_EXECUTED.items() if " ".join(command.words).startswith(start)), None)


@pytest.mark.parametrize("page", sorted({command.page for command in COMMANDS}))
def test_the_documented_commands_of_a_page_work(page, tmp_path, monkeypatch, capfd):
    """One test a page, since commands build upon those before them."""
    furnish(tmp_path, page)
    monkeypatch.chdir(tmp_path)
    prepare(page)
    tasks: list[str] = []
    for command in (command for command in COMMANDS if command.page == page):
        if reason_not_to_execute(command):
            check_settings(command)
            continue
        if is_training(command.words):
            tasks.append(re.sub("_evaluate|_train", "", command.words[2 if command.words[0] == "megabert" else 1]))
            if tasks[-1] != tasks[0]:  # RUN is the first run of the task that the page has come to
                for run_folder in Path().glob("RUN*"):
                    shutil.rmtree(run_folder)
                tasks = tasks[-1:]
        capfd.readouterr()
        expected = 64 if any(line.startswith("megabert: ") for line in command.output) else 0
        printed = ""
        for words in variants(command, "RUN" if len(tasks) < 2 else f"RUN-{len(tasks)}"):
            assert run(words, monkeypatch) == expected, (words, "".join(capfd.readouterr()))
            printed += "".join(capfd.readouterr())
        for line in (line for line in command.output if not line.startswith("[")):  # [options] continue a command
            assert resembles(line, printed), f"{command.line}: {line!r} is not in the output:\n{printed[-3000:]}"


def test_the_reasons_not_to_execute_a_command_are_needed():
    lines = [" ".join(command.words) for command in COMMANDS]
    assert [start for start in NOT_EXECUTED if not any(line.startswith(start) for line in lines)] == []
    assert len(lines) > 80


def test_the_python_of_the_page_on_transformers_computes_the_same_hidden_states(tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    page = "docs/from_transformers.md"
    furnish(tmp_path, page)
    monkeypatch.chdir(tmp_path)
    prepare(page)
    (code,) = re.findall(r"^```python\n(.*?)^```$", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
    theirs, ours = ({}, {})
    first, _, second = code.partition("# megabert\n")
    exec(first, theirs)
    exec(second, ours)
    assert (theirs["hidden"] - ours["hidden"]).abs().max() < 1e-5


def prepare(page: str) -> None:
    """Make the checkpoints and corpora that a page takes as given, in the working folder."""
    text = (ROOT / page).read_text(encoding="utf-8")
    if page.endswith("custom_task.md"):
        Path("spam.py").write_text(re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)[0])
    if not re.search(r"CHECKPOINT|SOURCE|release/|FOLDER|\[corpus\]", text):
        return
    tiny = ("train", "masked_language_model", *SMALL, *QUICK, "model.tokenizer.vocab_file=vocab.txt")
    assert main(["corpus", "build", "TEXT.txt", "-o", "corpus", "--workers", "1", "--vocab_file", "vocab.txt"]) == 0
    assert main([*tiny, "model.train_ds.file=corpus", "exp_manager.explicit_log_dir=TINY", *no_split()]) == 0
    for name in ("CHECKPOINT", "SOURCE"):
        assert main(["convert", "TINY", name, "--to", "megatron"]) == 0
    shutil.copytree("SOURCE/release", "release")
    if "from_" in page:
        shutil.rmtree("FOLDER")
        assert main(["convert", "TINY", "FOLDER", "--to", "huggingface"]) == 0


def no_split() -> tuple[str, str]:
    return "model.validation_ds.split=null", "model.dataset.max_seq_length=64"


def is_training(words: Sequence[str]) -> bool:
    if list(words[:2]) == ["megabert", "suspects"]:
        return words[2] in registry.NAMES
    return "train" in words[:2] or (words[0] == "python" and not re.search("import_|prepare_", words[1]))


def variants(command: Command, folder: str) -> list[list[str]]:
    """Fill in what a reader would: names for placeholders, one command for each of several alternatives."""
    words = [placeholder(word) for word in command.words]
    if is_training(words):
        words = training(words, folder)
    for place, word in enumerate(words):
        if re.fullmatch(r"[\w-]+(\|[\w-]+)+", word):
            return [[*words[:3], f"{words[3]}-{choice}", *words[4:place], choice] for choice in word.split("|")]
    if words[1] == "corpus" and words[2] == "build":
        shutil.rmtree("corpus.work", ignore_errors=True)
        for name in ("corpus.bin", "corpus.idx"):
            Path(name).unlink(missing_ok=True)
        words += ["--workers", "1"]
    if words[1] == "convert":
        shutil.rmtree(words[3], ignore_errors=True)
    return [words]


def placeholder(word: str) -> str:
    fixed = {"NAME": "megabert-mini-uncased", "TEXT...": "TEXT.txt", "[TEXT_OR_FILE]": "TEXT.txt"}
    fixed["30000"] = "1500"  # the text has no more tokens
    return fixed.get(word, word)


def training(words: list[str], folder: str) -> list[str]:
    """Complete a training: data where the page leaves them out, a small network, one step, a run folder."""
    is_resumed = "--resume" in words
    words = [word for word in words if word != "..."]
    task = words[2] if words[0] == "megabert" else ""
    extra: list[str] = []
    if task in DATA and not is_resumed and not any(word.startswith("model.train_ds") for word in words):
        extra += DATA[task]
    name = next((word.partition("=")[2] for word in words if "pretrained_model_name=" in word), None)
    if (
        "--bert_checkpoint" not in words
        and not is_resumed
        and not any(word.startswith("pretrained_model=") for word in words)
    ):
        if name is None or name in published_checkpoints() or name == "null" or not Path(name, "config.json").is_file():
            words = [word for word in words if "pretrained_model_name=" not in word]
            words = [word for word in words if not word.startswith("model.language_model.config=")]
            extra += SMALL
        if not any("vocab_file=" in word for word in words):
            extra += VOCABULARY.get(task, ("model.tokenizer.vocab_file=vocab.txt",))
    if "--bert_checkpoint" in words:
        extra.append("model.tokenizer.vocab_file=vocab.txt")
    if task in PRETRAINING:
        extra += no_split()
    if is_resumed:
        return [*words, "trainer.accelerator=cpu", "trainer.max_steps=2", "exp_manager.resume_past_end=true"]
    words = [word for word in words if not word.startswith("trainer.max_steps=")]
    return [*words, *extra, *QUICK, f"exp_manager.explicit_log_dir={folder}"]


def run(words: list[str], monkeypatch) -> int:
    """Run a command in this process and return its exit code."""
    if words[0] == "megabert":
        return main(words[1:])
    monkeypatch.setattr(sys, "argv", words[1:])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / words[1]), run_name="__main__")
    return int(ended.value.code or 0)


def check_settings(command: Command) -> None:
    """Read the settings of a training that is not executed, and look for the options of other commands."""
    words = [word for word in command.words if word != "..."]
    if "train" not in words:
        program = ["./dev", "help"]
        if words[0] == "megabert":
            program = [sys.executable, "-m", "megabert", words[1], "--help"]
        elif words[0] == "python":
            program = [sys.executable, *words[1:3], "--help"]
        help_text = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        wanted = [word for word in words if word.startswith("--")] or words[1:2]
        assert all(word in help_text for word in wanted)
        return
    words = words[words.index("train") + 1 :]
    task = words[0] if words[0] in registry.NAMES else "question_answering"
    settings, _ = compose(registry.find(task).settings_type, [word for word in words if "=" in word], owner=task)
    assert settings.trainer.devices == 8


def resembles(expected: str, printed: str) -> bool:
    """Whether a line of the page is in the output: the same words, any numbers; of JSON the same keys."""
    if expected.startswith("{"):
        return all(key in printed for key in re.findall(r'"\w+":', expected))
    parts = [re.escape(part) for part in re.split(r"\d[\d,.]*\d|\d", expected.replace("...", "\0"))]
    pattern = r"[\d,.]+".join(parts).replace(re.escape("\0"), ".*").replace("\0", ".*")
    return re.search(pattern.replace(r"\ ", r"\s+").replace(" ", r"\s+"), printed) is not None
