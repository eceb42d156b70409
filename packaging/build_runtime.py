"""Build the wheel of megabert-runtime: the same package, without PyTorch among its requirements and without encoders.

usage: python packaging/build_runtime.py [FOLDER]     (default: dist)
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path

from hatchling.build import build_wheel

REPOSITORY = Path(__file__).resolve().parents[1]
LEFT_OUT = ("encoders", "sample", "__pycache__")


def build(folder: Path) -> Path:
    """Build the wheel from a copy of the tree; returns its path."""
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        tree = Path(name)
        shutil.copytree(REPOSITORY / "megabert", tree / "megabert", ignore=shutil.ignore_patterns(*LEFT_OUT))
        for file in (REPOSITORY / "LICENSE", REPOSITORY / "packaging" / "runtime" / "pyproject.toml"):
            shutil.copy(file, tree)
        before = Path.cwd()
        os.chdir(tree)  # the build backend's interface takes the current folder
        try:
            return folder / build_wheel(str(folder))
        finally:
            os.chdir(before)


if __name__ == "__main__":
    print(build(Path(sys.argv[1] if len(sys.argv) > 1 else "dist")))
