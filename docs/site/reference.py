"""Reference pages made from the code: the Python API from docstrings, settings from dataclasses, commands from --help.

Docstrings are read as Markdown from the source (`ast`), so that nothing of the package is imported for the API pages.
"""

import ast
import contextlib
import inspect
import io
from collections.abc import Iterator
from pathlib import Path

from megabert.cli import COMMANDS, main
from megabert.config.listing import list_settings, show
from megabert.config.nemo_keys import IGNORED, RENAMED
from megabert.config.schema import Settings
from megabert.tasks import registry

PACKAGE = Path(inspect.getfile(main)).parents[1]
Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def api_pages() -> dict[str, str]:
    """Make a page for the package's public names, one for each room, and the list of them: name -> Markdown."""
    rooms = sorted({file.relative_to(PACKAGE).parts[0] for file in PACKAGE.glob("*/**/*.py")} - {"encoders"})
    pages = {"python": _page("megabert", [file for file in sorted(PACKAGE.glob("*.py")) if file.stem != "__main__"])}
    for room in rooms:
        files = sorted((PACKAGE / room).rglob("*.py"), key=lambda file: (file.stem != "__init__", str(file)))
        pages[f"python_{room}"] = _page(f"megabert.{room}", files)
    lines = [f"- [{name.replace('_', '.', 1).replace('python', 'megabert', 1)}]({name}.md)" for name in pages]
    pages["index"] = "\n".join(["# Python API", "", "Public names first, then the rooms of the code.", "", *lines, ""])
    return pages


def _page(title: str, files: list[Path]) -> str:
    sections = [f"# {title}"]
    for file in files:
        module = ast.parse(file.read_text(encoding="utf-8"))
        name = ".".join(("megabert", *file.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
        public = [node for node in module.body if isinstance(node, Definition) and not node.name.startswith("_")]
        docstring = _docstring(module)
        if public or docstring:
            sections += [f"## {name}", docstring, *(part for node in public for part in _describe(node, "###"))]
    return "\n\n".join(sections) + "\n"


def _describe(node: Definition, level: str, owner: str = "") -> Iterator[str]:
    """List heading, signature and docstring of a class or function, and of a class its methods."""
    yield f"{level} {owner}{node.name}"
    yield f"```python\n{_signature(node)}\n```"
    if docstring := _docstring(node):
        yield docstring
    if isinstance(node, ast.ClassDef):
        methods = [item for item in node.body if isinstance(item, Definition) and not item.name.startswith("_")]
        for method in methods:
            if ast.get_docstring(method):
                yield from _describe(method, "####", f"{node.name}.")


def _docstring(node: Definition | ast.Module) -> str:
    """Get a docstring as Markdown; links in it are written for docs/tasks, where the tasks' pages are."""
    return (ast.get_docstring(node) or "").replace("](../", "](../docs/")


def _signature(node: Definition) -> str:
    if isinstance(node, ast.ClassDef):
        fields = [item for item in node.body if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)]
        head = f"class {node.name}({', '.join(ast.unparse(base) for base in node.bases)})".replace("()", "")
        return "\n".join([f"{head}:", *(f"    {ast.unparse(item)}" for item in fields)] if fields else [head])
    result = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    decorators = [f"@{ast.unparse(item)}\n" for item in node.decorator_list]
    line = f"def {node.name}({ast.unparse(node.args)}){result}"
    return "".join(decorators) + (line if len(line) < 100 else line.replace(", ", ",\n    ", 99))


def settings_page() -> str:
    """List the settings that all tasks share, each task's page for its own, and NeMo's names."""
    shared = list(list_settings(Settings))
    rows = [
        f"| `{setting.key}` | `{show(setting.default)}` | {' , '.join(setting.choices) or setting.type_name} "
        f"| {_cell(setting.help)} |"
        for setting in shared
    ]
    tasks = [f"- [{name}](../docs/tasks/{name}.md)" for name in registry.NAMES]
    renamed = [f"| `{theirs}` | `{ours}` |" for theirs, ours in RENAMED.items()]
    ignored = [f"| `{theirs}` | {_cell(reason)} |" for theirs, reason in IGNORED.items()]
    return "\n".join([
        "# All settings", "", "Settings that every task has; defaults may differ, see the task's page. "
        "How they are written is in [Settings](../docs/settings.md).", "",
        "| setting | default | type | |", "|---|---|---|---|", *rows, "", "## Settings of the tasks", "", *tasks, "",
        "## NeMo's names with another name here", "", "| NeMo 1.x | here |", "|---|---|", *renamed, "",
        "## NeMo's names without effect here", "", "| NeMo 1.x | why |", "|---|---|", *ignored, "",
    ])  # fmt: skip


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*")


def commands_page() -> str:
    """Print the help of every command."""
    parts = ["# Commands", f"```\n{_help([])}```"]
    for name in COMMANDS:
        parts += [f"## megabert {name}", f"```\n{_help([name])}```"]
    return "\n\n".join(parts) + "\n"


def _help(words: list[str]) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as output, contextlib.suppress(SystemExit):
        main([*words, "--help"])
    return output.getvalue()
