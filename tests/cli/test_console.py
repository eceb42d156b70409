"""Output streams that are closed, full or ASCII-only, and text that would steer a terminal."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from megabert.cli import main
from megabert.cli.console import to_json
from megabert.errors import InputError, print_message, printable
from megabert.formats.text_lines import read_text
from megabert.storage import atomic_write

NEEDS_FULL = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")


def run_shell(command, **environment):
    script = f"{sys.executable} -m megabert {command}"
    environment = {**os.environ, "PYTHONIOENCODING": "", **environment}
    return subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False, env=environment)


@NEEDS_FULL
@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        ("config evaluate >/dev/full", 74, "megabert: No space left on device: standard output\n"),
        ("config evaluate >&-", 73, "megabert: the stream is closed: standard output\n"),
        ("plan >/dev/full", 74, "megabert: No space left on device: standard output\n"),
        ("config evaluate 2>/dev/full >/dev/null", 0, ""),
        ("config nothing 2>/dev/full", 64, ""),
        ("config nothing 2>&-", 64, ""),
    ],
)
def test_a_stream_that_cannot_be_written_is_named_and_stderr_never_changes_the_exit_code(command, code, message):
    done = run_shell(command)
    assert (done.returncode, done.stderr) == (code, message)


def test_an_ascii_stream_gets_escapes_that_json_reads(tmp_path):
    script = "from megabert.cli.console import show, to_json; show(to_json({'text': 'é 日 \U0001d54f'}))"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.isascii()
    assert json.loads(done.stdout) == {"text": "é 日 \U0001d54f"}


def test_characters_that_steer_a_terminal_are_shown_escaped(capsys, tmp_path):
    assert printable("a\x1b[31m\x9b2J\u202eb\ud800\n\tc") == "a\\u001b[31m\\u009b2J\\u202eb\\ud800\n\tc"
    assert json.loads(printable(json.dumps("\x9b\u202e", ensure_ascii=False))) == "\x9b\u202e"
    print_message("name\x1b]0;x\x07")
    assert capsys.readouterr().err == "name\\u001b]0;x\\u0007\n"
    assert main(["inspect", str(tmp_path / "a\x1b[2J")]) != 0
    assert "\x1b" not in capsys.readouterr().err


def test_a_pipe_is_read_and_written_and_a_device_is_not_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    found = []
    reader = threading.Thread(target=lambda: found.append(pipe.read_bytes()))
    reader.start()
    atomic_write(pipe, "written")
    reader.join(120)
    assert found == [b"written"] and pipe.is_fifo()
    writer = threading.Thread(target=lambda: pipe.write_text("some text"))
    writer.start()
    assert read_text(pipe) == "some text"
    writer.join(120)
    with pytest.raises(InputError, match="/dev/zero is a device"):
        read_text(Path("/dev/zero"))


def test_a_link_to_a_file_stays_a_link(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "file")
    atomic_write(tmp_path / "link", "text")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "file").read_text() == "text"


@NEEDS_FULL
def test_a_full_disk_is_reported_with_the_file_s_name():
    with pytest.raises(OSError, match="/dev/full"):
        atomic_write(Path("/dev/full"), "text")


def test_a_missing_folder_is_reported_with_the_file_s_name(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere/x\.jsonl'$"):
        atomic_write(tmp_path / "nowhere" / "x.jsonl", "text")


def test_json_keeps_short_lists_on_a_line():
    document = {"a": [[0, 1], [2, 3]], "b": [], "c": [{"d": "é\n[ 1 ]"}], "e": ["x" * 60] * 2, "f": {}, "g": None}
    text = to_json(document)
    assert json.loads(text) == document
    assert text.splitlines()[:4] == ["{", '  "a": [[0, 1], [2, 3]],', '  "b": [],', '  "c": [']
    assert f'    "{"x" * 60}"' in text.splitlines()


INPUT = "7|t|Aspirin.\n7|a|It helps.\n\n"


@pytest.mark.parametrize(
    "words",
    [
        ("import", "documents", "in.pubtator", "-o", "./in.pubtator"),
        ("import", "documents", "in.*", "-o", "in.pubtator"),
        ("import", "documents", "in.pubtator", "-o", "out.jsonl", "--on-error", "skip", "--report", "in.pubtator"),
        ("import", "punctuation", "-s", "text_a.txt", "-o", ".", "--name", "a"),
        ("import", "chemprot", *(f"--{name}=in.pubtator" for name in ("abstracts", "entities", "relations", "output"))),
        ("vocabulary", "train", "in.pubtator", "--size", "100", "-o", "in.pubtator"),
        ("generate", "RUN", "file=in.pubtator", "output=in.pubtator"),
        ("select", "RUN", "in.pubtator", "--count", "1", "-o", "in.pubtator"),
        ("link", "--mentions", "in.pubtator", "--dict", "DICT", "-o", "link"),
        ("search", "INDEX", "in.pubtator", "-o", "in.pubtator"),
        ("rerank", "RUN", "in.pubtator", "--queries=q", "--collection=c", "-o", "in.pubtator"),
    ],
)
def test_a_command_never_overwrites_its_input(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("in.pubtator", "text_a.txt"):
        (tmp_path / name).write_text(INPUT, encoding="utf-8")
    (tmp_path / "link").symlink_to("in.pubtator")
    assert main(words) == 64
    assert "is read by this command, and would be overwritten" in capsys.readouterr().err
    assert {(tmp_path / name).read_text(encoding="utf-8") for name in ("in.pubtator", "text_a.txt")} == {INPUT}
