"""README.md and docs/: short table cells, links that resolve, an example that prints the result shown."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LONGEST_CELL = 20
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^()\s]+)\)")

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def without_code(page: Path) -> str:
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """List the anchors that GitHub creates for a page's headings."""
    headings = re.findall(r"^#+ (.*)$", without_code(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_page
def test_no_table_cell_has_more_than_twenty_words(page):
    for line in without_code(page).splitlines():
        if line.startswith("|"):
            for cell in re.split(r"(?<!\\)\|", LINK.sub("]", line)):
                assert len(cell.split()) <= LONGEST_CELL, cell


@each_page
def test_relative_links_resolve(page):
    for target in LINK.findall(without_code(page)):
        if re.match(r"https?:", target):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


def test_the_readme_example_prints_what_the_readme_says(tmp_path):
    fences = FENCE.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    (number,) = (number for number, (language, _) in enumerate(fences) if language == "python")
    example, printed = fences[number][1], fences[number + 1][1]
    assert len(example.splitlines()) <= 15
    run = subprocess.run(
        [sys.executable, "-c", example],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.stdout == printed, run.stderr


@pytest.mark.parametrize("page", [page for page in PAGES if page.parent == ROOT / "docs"], ids=lambda page: page.name)
def test_files_named_on_a_page_exist(page):
    for name in re.findall(r"`((?:\w+/)+\w+\.py)`", without_code(page)):
        is_theirs = name.startswith("nemo/")  # in NeMo's repository
        assert is_theirs or (ROOT / name).is_file() or (ROOT / "megabert" / name).is_file(), name
