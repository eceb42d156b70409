"""Build the wheel and try it as its users do: `./dev release` runs `python -m tests.release [FOLDER]` (default: dist).

The wheel is built, checked by twine and for its size and contents, installed into a fresh environment, and used there
in an empty folder; mypy reads its types. Nothing is uploaded.
"""

import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import megabert

ROOT = Path(__file__).parents[1]
MAX_BYTES = 60_000_000
# Files beside the modules that a wheel must have
NEEDED = (
    "megabert/py.typed",
    "megabert/checkpoints/published.toml",
    "megabert/cli/completion_scripts/megabert.bash",
    "megabert/encoders/megabert-mini-uncased/model.safetensors",
    "megabert/encoders/biomegabert-mini-uncased/model.safetensors",
    "megabert/sample/squad_dev.json",
)
USE = """
import megabert, torch
encoder, tokenizer = megabert.load_encoder("megabert-mini-uncased")
token_ids = torch.tensor([[tokenizer.cls_id, *tokenizer.encode(["A river."])[0].token_ids, tokenizer.sep_id]])
print(tuple(encoder(token_ids).shape), megabert.__version__)
"""
TYPED = """
from megabert.metrics.calibration import reliability_bins
reveal_type(reliability_bins([(0.5, True)]))
reliability_bins("no pairs")
"""
# torch and numpy are not needed to see megabert's own types, and take most of mypy's time.
MYPY = "[mypy]\nignore_errors = true\n[mypy-use]\nignore_errors = false\n" + "".join(
    f"[mypy-{name}.*]\nfollow_imports = skip\nignore_missing_imports = true\n" for name in ("torch", "numpy")
)


def main(folder: Path) -> None:
    """Build and try the wheel; raises where something is wrong."""
    run([sys.executable, "-m", "build", "--wheel", "--sdist", "--outdir", str(folder)])
    version = megabert.__version__
    wheel, source = folder / f"megabert-{version}-py3-none-any.whl", folder / f"megabert-{version}.tar.gz"
    run([sys.executable, "-m", "twine", "check", "--strict", str(wheel), str(source)])
    check_wheel(wheel)
    with tempfile.TemporaryDirectory() as place:
        try_wheel(wheel, Path(place))
    print(f"{wheel} is ready: {wheel.stat().st_size / 1e6:.1f} MB")


def check_wheel(wheel: Path) -> None:
    """Check a wheel's size, and that it holds the package and nothing else."""
    size = wheel.stat().st_size
    assert size < MAX_BYTES, f"{wheel} has {size:,} bytes; at most {MAX_BYTES:,} are wanted."
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = (archive.read(name).decode() for name in names if name.endswith(".dist-info/METADATA"))
    modules = [str(file.relative_to(ROOT)) for file in (ROOT / "megabert").rglob("*.py")]
    missing = [name for name in (*NEEDED, *modules) if name not in names]
    assert not missing, f"{wheel} lacks {missing}"
    foreign = [name for name in names if not re.match(r"megabert(-[\w.]+\.dist-info)?/", name) or "__pycache__" in name]
    assert not foreign, f"{wheel} has {foreign}"
    assert f"\nVersion: {megabert.__version__}\n" in metadata


def try_wheel(wheel: Path, place: Path) -> None:
    """Install a wheel into a fresh environment and use it in an empty folder."""
    python, work = place / "venv" / "bin" / "python", place / "work"
    work.mkdir()
    run([sys.executable, "-m", "venv", str(place / "venv")])
    pip = [
        str(python),
        "-m",
        "pip",
        "install",
        "-q",
        "--disable-pip-version-check",
        "-c",
        str(ROOT / "constraints.txt"),
    ]
    run([*pip, "torch"])
    run([*pip, str(wheel)])
    command = str(python.with_name("megabert"))
    assert run([command, "--version"], cwd=work) == f"megabert {megabert.__version__}\n"
    assert "No problem found." in run([command, "doctor"], cwd=work)
    assert "_megabert_table" in run([command, "completion", "bash"], cwd=work)
    assert run([str(python), "-c", USE], cwd=work) == f"(1, 5, 320) {megabert.__version__}\n"
    check_types(python, work)


def check_types(python: Path, work: Path) -> None:
    """Check that mypy sees the types of the megabert that a Python has installed, and finds a wrong argument."""
    (work / "use.py").write_text(TYPED, encoding="utf-8")
    (work / "mypy.ini").write_text(MYPY, encoding="utf-8")
    words = [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "--python-executable", str(python), "use.py"]
    words += ["--cache-dir", os.devnull]
    done = subprocess.run(words, cwd=work, env=clean_environment(), capture_output=True, text=True, check=False)
    assert 'Revealed type is "' in done.stdout and "calibration.Bin]" in done.stdout, done.stdout + done.stderr
    assert 'has incompatible type "str"' in done.stdout, done.stdout


def clean_environment() -> dict[str, str]:
    """Leave out what would make another megabert importable."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MYPYPATH")}


def run(words: Sequence[str], cwd: Path = ROOT) -> str:
    """Run a program and return its output; raises where it fails."""
    done = subprocess.run(words, cwd=cwd, env=clean_environment(), stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "dist").absolute())
