"""The distribution megabert-runtime: the same code, without torch and encoders, with the same answers."""

import importlib.util
import json
import re
import subprocess
import sys
import urllib.request
import zipfile
from pathlib import Path

import pytest

from ..test_first_round_runs import assert_same, input_of
from .conftest import RUNS
from .test_exported_models import rows_of, run

REPOSITORY = Path(__file__).parents[2]
NAME = "token_classification"
# Runs in the wheel's files, where torch, safetensors and the Hugging Face hub cannot be imported.
PREDICT = """
import importlib.abc, sys
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "onnx", "safetensors", "transformers"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
import megabert, megabert.cli
assert megabert.__file__.startswith(sys.argv[1]), megabert.__file__
sys.exit(megabert.cli.main(sys.argv[2:]))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    pytest.importorskip("hatchling", reason="hatchling builds the wheel: pip install hatchling")
    spec = importlib.util.spec_from_file_location("build_runtime", REPOSITORY / "packaging" / "build_runtime.py")
    builder = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(builder)
    return builder.build(tmp_path_factory.mktemp("wheel"))


def test_the_wheel_has_the_code_and_neither_encoders_nor_torch(wheel):
    with zipfile.ZipFile(wheel) as archive:
        files = {name for name in archive.namelist() if name.startswith("megabert/")}
        (metadata,) = (archive.read(name).decode() for name in archive.namelist() if name.endswith("METADATA"))
    code = {str(file.relative_to(REPOSITORY)) for file in (REPOSITORY / "megabert").rglob("*.py")}
    assert {name for name in files if name.endswith(".py")} == {
        name for name in code if not name.startswith("megabert/sample/")
    }
    assert not any("encoders" in name.split("/")[1] and "safetensors" in name for name in files)
    required = set(re.findall(r"Requires-Dist: ([\w-]+)(?!.*extra ==)", metadata))
    assert required == {"onnxruntime", "numpy", "tokenizers", "hydra-core", "omegaconf", "rich"}
    assert wheel.stat().st_size < 2e6


def test_the_wheel_answers_as_the_run_does(wheel, exported, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")

    def start(*words):
        script = [sys.executable, "-c", PREDICT, str(tmp_path / "site"), *map(str, words)]
        environment = {"PYTHONPATH": ":".join([str(tmp_path / "site"), *(p for p in sys.path if p != str(REPOSITORY))])}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(script, text=True, cwd=tmp_path, env=environment, **pipes)

    def command(*words):
        process = start(*words)
        output, errors = process.communicate()
        return subprocess.CompletedProcess(words, process.returncode, output, errors)

    done = command("predict", exported(NAME), f"file={input_of(NAME)}")
    assert done.returncode == 0, done.stderr
    expected = json.loads(json.dumps(rows_of(run(NAME), input_of(NAME))))
    assert_same([json.loads(line) for line in done.stdout.splitlines()], expected, tolerance=1e-4)
    process = start("serve", f"ner={exported(NAME)}", "--port", "0", "--access-log", "none")
    found = re.search(r"at (http://127.0.0.1:\d+)", process.stderr.readline())
    body = json.dumps({"text": expected[0]["text"]}).encode()
    request = urllib.request.Request(f"{found[1]}/v1/entities", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        assert json.load(answer)["results"][0]["tagged"] == expected[0]["tagged"]
    process.terminate()
    assert process.wait(120) == 0
    for words in (["predict", RUNS / NAME / "run", "text"], ["inspect", RUNS / NAME / "run"]):
        refused = command(*words)
        assert refused.returncode == 64 and "PyTorch" in refused.stderr and "Traceback" not in refused.stderr
