"""`megabert doctor`: what is missing for what, and the exit code."""

import importlib.metadata
import json
import os
import subprocess
import sys

from megabert import cli
from megabert.diagnostics import installation
from megabert.diagnostics.installation import EXTRAS, examine, to_text


def test_a_missing_and_an_old_package_are_problems_and_an_extra_is_not(tmp_path):
    wanted = ["numpy>=2.0", "not-a-package>=1", "safetensors>=99", "also-missing>=2; extra == 'track'",
              "never; python_version < '3'", "numpy>=1; extra == \"documents\""]  # fmt: skip
    found = examine(tmp_path, tmp_path, wanted)
    problems = [finding.what for finding in found.findings if finding.exit_code]
    version = importlib.metadata.version("safetensors")
    assert problems == ["not-a-package>=1 is needed and is not installed.",
                        f"safetensors>=99 is needed and {version} is installed."]  # fmt: skip
    assert found.exit_code == 64 and found.versions["not-a-package"] is None
    assert found.extras["track"] == {"for": EXTRAS["track"], "missing": ["also-missing>=2"]}
    assert found.extras["documents"]["missing"] == [] and "never" not in found.versions
    text = to_text(found)
    assert 'pip install "megabert[track]"' in text and "PROBLEM    not-a-package" in text
    assert examine(tmp_path, tmp_path, wanted[:1]).exit_code == 0


def test_every_extra_has_a_purpose():
    extras = importlib.metadata.metadata("megabert").get_all("Provides-Extra")
    assert set(extras) == set(EXTRAS)


def test_a_folder_that_cannot_be_written_and_a_full_disk_have_their_exit_codes(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    assert examine(tmp_path / "file" / "cache", tmp_path, []).exit_code == 73
    usage = installation.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(installation.shutil, "disk_usage", lambda path: usage._replace(free=3_000_000_000))
    found = examine(tmp_path, tmp_path, [])
    assert found.exit_code == 0 and "3.0 GB left" in to_text(found)
    monkeypatch.setattr(installation.shutil, "disk_usage", lambda path: usage._replace(free=1))
    assert examine(tmp_path, tmp_path, []).exit_code == 74


def test_the_command_prints_text_or_json(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("MEGABERT_HOME", str(tmp_path))
    code = cli.main(["doctor"])
    assert capsys.readouterr().out.startswith("versions   megabert ")
    assert cli.main(["doctor", "--json"]) == code
    report = json.loads(capsys.readouterr().out)
    assert report["cache"]["folder"] == str(tmp_path) and report["versions"]["torch"]
    assert report["is_usable"] is (code == 0)


def test_it_works_without_torch(tmp_path):
    blocked = "import sys; sys.modules['torch'] = None; from megabert.cli import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", blocked, "doctor"],
        capture_output=True,
        text=True,
        env={**os.environ, "MEGABERT_HOME": str(tmp_path)},
        check=False,
    )
    assert done.returncode == 64 and "torch cannot be imported" in done.stdout, done.stderr
