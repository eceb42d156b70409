"""Build the documentation site: `./dev site` runs `python docs/site/build_site.py [FOLDER]` (default: build/site).

Pages are the repository's own: README.md, CONTRIBUTING.md, docs/, the executed notebooks, and pages made from the
code (`reference.py`). They are copied to one folder with a table of contents, Sphinx turns them into HTML, and every
link of the HTML is checked. Warnings are errors. The site needs no network: search runs in the browser.
"""

import os
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

from sphinx.cmd.build import build_main

sys.path.insert(0, str(Path(__file__).parent))
import reference

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
# Diataxis: https://diataxis.fr. A page of docs/ that is not listed is a how-to guide.
CONTENTS = {
    "Tutorials": [
        "README.md",
        "docs/first_hour.md",
        "tutorials/Token_Classification-BioMegatron.ipynb",
        "tutorials/Relation_Extraction-BioMegatron.ipynb",
        "tutorials/Question_Answering.ipynb",
        "tutorials/Documents_to_Linked_Facts.ipynb",
        "tutorials/Pretraining_On_Your_Own_Corpus.ipynb",
    ],
    "Coming from elsewhere": [
        "docs/from_nemo.md", "docs/from_transformers.md", "docs/from_flair_and_spacy.md",
        "docs/from_bern2_and_pubtator.md",
    ],
    "How-to guides": [
        "docs/how-to/install.md", "docs/how-to/annotate.md", "docs/how-to/link.md", "docs/how-to/*.md",
        "docs/export.md", "docs/pretraining.md", "docs/parallel.md", "docs/custom_task.md",
    ],
    "Tasks": ["docs/tasks/*"],
    "Reference": [
        "reference/settings.md", "docs/settings.md", "reference/commands.md", "reference/index.md", "docs/formats.md",
        "docs/documents.md", "docs/checkpoints.md", "docs/glossary.md",
    ],
    "Explanation": [
        "docs/results.md", "docs/performance.md", "docs/training.md", "docs/question_answering.md", "docs/scaling.md",
        "docs/serving.md", "docs/reliability.md", "docs/architecture.md", "docs/decisions.md", "CONTRIBUTING.md",
    ],
}  # fmt: skip
TITLES = {"README": "Install and first commands", "CONTRIBUTING": "How we write the code"}
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^()\s#]+)(#[^()\s]*)?\)")


def prepare(folder: Path) -> None:
    """Copy and make all pages; links to files that are no pages become plain text."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / "docs", folder / "docs", ignore=shutil.ignore_patterns("site"))
    for name in ("README.md", "CONTRIBUTING.md"):
        shutil.copy(ROOT / name, folder / name)
    (folder / "tutorials").mkdir()
    for notebook in (ROOT / "tutorials").glob("*.ipynb"):
        shutil.copy(notebook, folder / "tutorials" / notebook.name)
    (folder / "reference").mkdir()
    pages = reference.api_pages() | {"settings": reference.settings_page(), "commands": reference.commands_page()}
    for name, text in pages.items():
        (folder / "reference" / f"{name}.md").write_text(text, encoding="utf-8")
    (folder / "index.md").write_text(
        (HERE / "index.md").read_text(encoding="utf-8") + contents(folder), encoding="utf-8"
    )
    _append_contents(folder / "reference" / "index.md", [name for name in pages if name.startswith("python")])
    for page in folder.rglob("*.md"):
        page.write_text(_without_foreign_links(page, folder), encoding="utf-8")


def contents(folder: Path) -> str:
    """Write the table of contents; pages of docs/ that it does not name are how-to guides."""
    listed = {
        name: list(dict.fromkeys(page for pattern in patterns for page in sorted(folder.glob(pattern))))
        for name, patterns in CONTENTS.items()
    }
    named = {page for pages in listed.values() for page in pages}
    listed["How-to guides"] += [page for page in sorted((folder / "docs").glob("*.md")) if page not in named]
    blocks = []
    for caption, pages in listed.items():
        names = [str(page.relative_to(folder).with_suffix("")) for page in pages]
        lines = "\n".join(f"{TITLES[name]} <{name}>" if name in TITLES else name for name in names)
        blocks.append(f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n:maxdepth: 1\n\n{lines}\n```\n")
    return "".join(blocks)


def _append_contents(page: Path, names: list[str]) -> None:
    lines = "\n".join(names)
    with page.open("a", encoding="utf-8") as file:
        file.write(f"\n```{{toctree}}\n:hidden:\n\n{lines}\n```\n")


def _without_foreign_links(page: Path, folder: Path) -> str:
    """Replace links to files of the repository that are not on the site by their text."""

    def replace(match: re.Match[str]) -> str:
        text, target, _ = match.groups()
        is_here = re.match(r"\w+:", target) or (page.parent / target).resolve().is_file()
        original = ROOT / page.parent.relative_to(folder) / target
        return match.group() if is_here or not original.exists() else text

    return LINK.sub(replace, page.read_text(encoding="utf-8"))


class _Links(HTMLParser):
    """The ids of a page, and what it links to or loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.targets: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.ids |= {value for name in ("id", "name") if (value := values.get(name))}
        self.targets |= {value for name in ("href", "src") if (value := values.get(name))}


def broken_links(site: Path) -> list[str]:
    """List links between pages that lead nowhere, and anything that a page would load from the network."""
    pages = {page: _Links(page.read_text(encoding="utf-8")) for page in sorted(site.rglob("*.html"))}
    broken = []
    for page, links in pages.items():
        for target in sorted(links.targets):
            path, fragment = urldefrag(target)
            file = (page.parent / unquote(path.partition("?")[0])).resolve() if path else page
            if re.match(r"(https?|mailto|data):", target):
                continue
            anchored = not fragment or file not in pages or unquote(fragment) in pages[file].ids
            if not file.exists() or not anchored:
                broken.append(f"{page.relative_to(site)}: {target}")
    return broken


def loads_from_network(site: Path) -> list[str]:
    """List scripts, styles and pictures with an address on the network: the site must work without one."""
    pattern = re.compile(r'<(?:script|img)[^>]*\bsrc="https?:[^"]*"|<link[^>]*rel="stylesheet"[^>]*href="https?:[^"]*"')
    return [
        f"{page.relative_to(site)}: {found}"
        for page in sorted(site.rglob("*.html"))
        for found in pattern.findall(page.read_text(encoding="utf-8"))
    ]


def main(destination: Path) -> int:
    """Build and check the site; returns an exit code."""
    pages = ROOT / "build" / "site-pages"
    prepare(pages)
    shutil.rmtree(destination, ignore_errors=True)
    options = [
        "-q",
        "-W",
        "--keep-going",
        "-j",
        str(os.cpu_count() or 1),
        "-c",
        str(HERE),
        "-d",
        str(ROOT / "build" / "site-cache"),
    ]
    code = build_main([*options, str(pages), str(destination)])
    problems = broken_links(destination) + loads_from_network(destination)
    print("".join(f"broken: {problem}\n" for problem in problems), end="", file=sys.stderr)
    if code or problems:
        return code or 1
    print(f"The site is in {destination}: open {destination / 'index.html'}.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "build" / "site"))
