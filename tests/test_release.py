"""What a release must have: a sound wheel, one version, exported types, valid files beside the code."""

import re
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
import yaml

import megabert
from tests.release import ROOT, check_types, check_wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built by the backend itself, without another environment."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    build = f"from hatchling.build import build_wheel; print(build_wheel({str(folder)!r}))"
    done = subprocess.run([sys.executable, "-c", build], cwd=ROOT, capture_output=True, text=True, check=True)
    return folder / done.stdout.split()[-1]


def test_the_wheel_holds_the_package_and_is_small(wheel):
    check_wheel(wheel)


def test_mypy_sees_the_types_of_the_installed_wheel(wheel, tmp_path):
    pytest.importorskip("mypy")
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    (packages,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
    check_types(python, tmp_path)


def test_there_is_one_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "version" in project["dynamic"] and "version" not in project
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == megabert.__version__
    assert citation["cff-version"] == "1.2.0" and {"title", "authors", "message"} <= citation.keys()
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == "Unreleased" and headings[1].split(" - ")[0] == megabert.__version__


def test_issue_forms_have_the_fields_that_github_needs():
    forms = [file for file in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if file.name != "config.yml"]
    assert len(forms) == 3
    for file in forms:
        form = yaml.safe_load(file.read_text())
        assert form["name"] and form["description"] and form["body"], file
        for item in form["body"]:
            assert item["type"] in ("textarea", "input") and item["attributes"]["label"], file
        assert len({item["id"] for item in form["body"]}) == len(form["body"])


def test_files_that_the_security_policy_names_exist():
    text = (ROOT / "SECURITY.md").read_text()
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert links and all((ROOT / link).is_file() for link in links if not link.startswith("http"))
    assert "megabert doctor" in text and Path(ROOT / "megabert" / "py.typed").exists()
