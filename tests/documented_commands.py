"""Find the commands in README.md and docs/: fenced or indented lines that begin with a program of the project."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCS = [page for page in (ROOT / "docs").rglob("*.md") if page.parent.name != "site"]
PAGES = ["README.md", "CONTRIBUTING.md", *sorted(str(page.relative_to(ROOT)) for page in DOCS)]
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?:^    .*\n)+", re.MULTILINE)
PROGRAM = re.compile(r"^(?:\$ )?(megabert|python|\./dev|torchrun|srun|pip|git) ")


@dataclass(frozen=True)
class Command:
    """A command of a page: its words, and the lines of output that the page shows below it."""

    page: str
    words: tuple[str, ...]
    output: tuple[str, ...] = ()

    @property
    def line(self) -> str:
        """The command as one line."""
        return shlex.join(self.words)


def documented_commands() -> list[Command]:
    """List the commands of all pages, in order; the same command of a page once."""
    found: list[Command] = []
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        blocks = [body for language, body in FENCE.findall(text) if language.strip() in ("", "sh", "console")]
        blocks += [
            "\n".join(line[4:] for line in block.splitlines()) for block in INDENTED.findall(FENCE.sub("", text))
        ]
        for block in blocks:
            found += [command for command in _commands(page, block) if command not in found]
    return found


def _commands(page: str, block: str) -> list[Command]:
    """Join continued lines; a comment, or a column of prose after two blanks or more, is no part of a command."""
    commands: list[tuple[list[str], list[str]]] = []
    lines = iter(block.splitlines())
    for line in lines:
        if not PROGRAM.match(line):
            if commands and line.strip():
                commands[-1][1].append(line.strip())
            continue
        whole = line
        while _without_remark(whole).endswith("\\"):
            whole = _without_remark(whole)[:-1] + " " + next(lines).strip()
        commands.append((shlex.split(_without_remark(whole).removeprefix("$ ")), []))
    return [Command(page, tuple(words), tuple(output)) for words, output in commands]


def _without_remark(line: str) -> str:
    return re.sub(r"(\s#\s.*|(?<=\S) {3,}\S.*)$", "", line).rstrip()
