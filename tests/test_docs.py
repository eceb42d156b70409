"""README.md and docs/: short table cells, links that resolve, names that exist, an example that prints the result."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from megabert.config.listing import list_settings
from megabert.tasks import registry

ROOT = Path(__file__).parents[1]
# docs/site has the front page of the site, whose links are checked when it is built
PAGES = [ROOT / "README.md", *sorted(set((ROOT / "docs").rglob("*.md")) - set((ROOT / "docs" / "site").rglob("*.md")))]
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


def test_names_in_the_glossary_exist():
    sources = [file.read_text(encoding="utf-8") for file in (ROOT / "megabert").rglob("*.py")]
    words = set(re.findall(r"[\w.]+", "\n".join(sources))) | set(re.findall(r"\w+", "\n".join(sources)))
    classes = members_of_classes(sources)
    settings = {setting.key for task in registry.NAMES for setting in list_settings(registry.find(task).settings_type)}
    column = where_in_the_glossary()
    names = re.findall(r"`([^`]+)`", column)
    assert len(names) > 100
    for name in names:
        if "/" in name or name.endswith(".py"):
            assert (ROOT / name).exists() or (ROOT / "megabert" / name).exists(), name
        elif re.match(r"[A-Z]\w+\.", name):
            owner, _, member = name.partition(".")
            assert member in classes[owner], name
        elif re.match(r"[A-Z][a-z]", name):
            assert name in classes, name
        else:
            assert name in words or any(key == name or key.endswith(f".{name}") for key in settings), name
    for name, path in re.findall(r"`([\w.]+)` in `([\w/]+\.py)`", column):
        source = (ROOT / "megabert" / path).read_text(encoding="utf-8")
        assert re.search(rf"\b{name.rpartition('.')[2]}\b", source), f"{name} is not in {path}"


def where_in_the_glossary() -> str:
    """Read the glossary's last column: where in the code a term is."""
    rows = [
        line for line in (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8").splitlines() if line[:1] == "|"
    ]
    return "\n".join(row.rsplit("|", 2)[1] for row in rows)


def members_of_classes(sources: list[str]) -> dict[str, set[str]]:
    """Map each class to its methods and annotated fields."""
    members: dict[str, set[str]] = {}
    for source in sources:
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ClassDef):
                names = {
                    getattr(item, "name", None) or getattr(getattr(item, "target", None), "id", "")
                    for item in node.body
                }
                members.setdefault(node.name, set()).update(names)
    return members
