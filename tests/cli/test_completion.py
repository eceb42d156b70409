"""Shell completion: the scripts are run by the shells themselves, in a folder with files."""

import os
import shutil
import subprocess
import sys

import pytest

from megabert import cli
from megabert.cli.completion import SCRIPTS, contexts
from megabert.config.listing import list_settings
from megabert.tasks import registry

# The line up to the cursor -> the words that are offered, in bash's order
OFFERED = {
    "megabert tr": ["train"],
    "megabert train tok": ["token_classification"],
    "megabert train token_classification trainer.accel": ["trainer.accelerator="],
    "megabert train token_classification trainer.accelerator=": ["auto", "gpu", "cpu"],
    "megabert train -m seed=1 glue trainer.compile=f": ["false"],
    "megabert train glue model.train_ds.file=tr": ["train.conll"],
    "megabert train my_": ["my_task.py"],
    "megabert evaluate RU": ["RUN"],
    "megabert evaluate RUN prec": ["precision="],
    "megabert corpus build --voc": ["--vocab_file"],
    "megabert config --p": ["--page"],
    "megabert convert megabert-m": ["megabert-mini-uncased"],
    "megabert completion ": ["bash", "zsh", "fish"],
}


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    """The scripts by shell, in a folder beside some files."""
    folder = tmp_path_factory.mktemp("shell")
    for name in ("train.conll", "my_task.py", "other file.txt"):
        (folder / name).write_text("")
    (folder / "RUN").mkdir()
    command = (
        "import sys; from megabert.cli import main; code = main(sys.argv[1:]); "
        "print('torch' in sys.modules, file=sys.stderr); sys.exit(code)"
    )
    for shell, name in SCRIPTS.items():
        words = [sys.executable, "-c", command, "completion", shell]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        assert done.stderr.strip() == "False"
        (folder / name).write_text(done.stdout)
    return folder


BASH = """source megabert.bash
offer() { COMP_LINE="$1" COMP_POINT=${#1}; _megabert; (IFS='|'; echo "${COMPREPLY[*]}"); }
"""


def test_bash_offers_commands_tasks_settings_values_and_files(scripts):
    script = BASH + "".join(f"offer '{line}'\n" for line in OFFERED)
    # An empty PATH: a completion starts no program, so also no Python.
    done = subprocess.run(
        [shutil.which("bash"), "-c", script], cwd=scripts, capture_output=True, text=True, env={"PATH": ""}, check=True
    )
    assert [line.split("|") for line in done.stdout.splitlines()] == list(OFFERED.values()), done.stderr


def test_a_file_name_with_a_blank_is_one_word_in_bash(scripts):
    script = BASH + "offer 'megabert predict RUN file=oth'; complete -p megabert"
    done = subprocess.run(["bash", "-c", script], cwd=scripts, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["other file.txt", "complete -F _megabert megabert"]


def test_bash_completes_in_a_terminal(scripts):
    pexpect = pytest.importorskip("pexpect")
    shell = pexpect.spawn("bash", ["--norc", "-i"], cwd=scripts, encoding="utf-8", env={**os.environ, "TERM": "dumb"})
    shell.sendline("megabert() { printf '<%s>' \"$@\"; }; source megabert.bash; echo rea''dy")
    shell.expect_exact("ready\r\n", timeout=120)
    shell.send("megabert tra\ttoken_cl\ttrainer.accel\tg\tmodel.train_ds.file=oth\t\n")
    shell.expect_exact(
        "<train><token_classification><trainer.accelerator=gpu><model.train_ds.file=other file.txt>", timeout=120
    )
    shell.close(force=True)


def test_zsh_completes_in_a_terminal(scripts):
    if shutil.which("zsh") is None:
        pytest.skip("zsh is not installed")
    pexpect = pytest.importorskip("pexpect")
    shell = pexpect.spawn("zsh", ["-f"], cwd=scripts, encoding="utf-8", env={**os.environ, "TERM": "dumb"})
    shell.sendline("autoload -Uz compinit; compinit -u -D; source megabert.zsh; unsetopt beep; echo rea''dy")
    shell.expect_exact("ready\r\n", timeout=120)
    shell.sendline("megabert() { printf '<%s>' \"$@\"; }; echo fun''ction")
    shell.expect_exact("function\r\n", timeout=120)
    shell.send("megabert tra\ttoken_cl\ttrainer.accel\tg\tmodel.train_ds.file=oth\t\n")
    shell.expect_exact(
        "<train><token_classification><trainer.accelerator=gpu><model.train_ds.file=other file.txt>", timeout=120
    )
    shell.close(force=True)


def test_fish_offers_the_same(scripts):
    fish = shutil.which("fish")
    if fish is None:
        pytest.skip("fish is not installed")
    lines = "".join(f"string join '|' -- (complete -C '{line}') ''\n" for line in OFFERED)
    done = subprocess.run(
        [fish, "-N", "-c", f"source megabert.fish\n{lines}"], cwd=scripts, capture_output=True, text=True, check=True
    )
    offered = [line.split("|")[:-1] for line in done.stdout.splitlines()]
    # fish replaces the whole word.
    for line, found, expected in zip(OFFERED, offered, OFFERED.values(), strict=True):
        key = line.rpartition(" ")[2].partition("=")[0] + "=" if "=" in line.rpartition(" ")[2] else ""
        assert {word.rstrip("/") for word in found} == {key + word for word in expected}, line


def test_every_command_task_and_setting_is_offered():
    table = contexts(cli.COMMANDS)
    assert set(cli.COMMANDS) <= set(table[""])
    for task in registry.NAMES:
        keys = {f"{setting.key}=" for setting in list_settings(registry.find(task).settings_type)}
        assert task in table["train"] and keys <= set(table[f"train {task}"])
    for name in cli.COMMANDS:
        assert "--help" in table[name], name
