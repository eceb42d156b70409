"""Who may import whom (docs/architecture.md): a module imports from lower lines and from its own folder only."""

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import megabert

PACKAGE = Path(megabert.__file__).parent
LINES = [  # lowest first; those of one line do not import each other
    {"errors", "kernels"},
    {"storage"},
    {"config", "tokenizers", "metrics", "model"},
    {"formats", "planner"},
    {"data"},
    {"pretraining", "checkpoints", "parallel"},
    {"tasks"},
    {"inference"},
    {"torch_session"},
    {"build"},
    {"training", "diagnostics"},
    {"cli"},
    {"sample", "__main__"},
]
HEIGHT = {name: height for height, line in enumerate(LINES) for name in line}
# infer and assemble know three of the lines below them; the package's own front may import from anywhere, lazily.
FILES = sorted(file for file in PACKAGE.rglob("*.py") if file != PACKAGE / "__init__.py")


def part_of(file):
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_parts(file):
    """List the parts of the package that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            package = ["megabert", *file.relative_to(PACKAGE).parts[:-1]]
            base = package[: len(package) - node.level + 1] if node.level else []
            module = [*base, *(node.module or "").split(".")] if node.module or base else []
            names = [[*module, alias.name] for alias in node.names] if module == ["megabert"] else [module]
        elif isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        else:
            continue
        for name in names:
            name = [piece for piece in name if piece]
            if name[0] == "megabert" and len(name) > 1 and name[1] in HEIGHT:
                yield name[1]


def test_every_module_has_a_line():
    assert {part_of(file) for file in FILES} == set(HEIGHT)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_a_module_imports_from_lower_lines_only(file):
    own = part_of(file)
    for other in imported_parts(file):
        assert other == own or HEIGHT[other] < HEIGHT[own], f"{file.name} imports {other}"


def module_name(file):
    return ".".join(("megabert", *file.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")


def imported_modules(file, modules):
    """List the package's modules that a file imports, also inside functions and for type checking."""
    package = ["megabert", *file.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, node.module or ""]).removesuffix(".")
            # `from .room import file` imports the file, `from .file import name` the file that has the name.
            names = [f"{module}.{alias.name}" for alias in node.names]
            yield from {name if name in modules else module for name in names} & modules
        elif isinstance(node, ast.Import):
            yield from {alias.name for alias in node.names} & modules


def test_modules_do_not_import_each_other_in_cycles():
    files = {module_name(file): file for file in FILES}
    graph = {name: set(imported_modules(file, set(files))) - {name} for name, file in files.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"import cycle: {' <- '.join(error.args[1])}")


def test_the_model_knows_nothing_of_processes():
    for file in (PACKAGE / "model").glob("*.py"):
        assert not re.search(r"torch\.distributed|import distributed", file.read_text(encoding="utf-8")), file


def test_files_stay_short():
    tables = {"open_megatron.py"}
    for file in FILES:
        lines = len(file.read_text(encoding="utf-8").splitlines())
        assert lines <= 450 or file.name in tables, f"{file} has {lines} lines"
    assert len((PACKAGE / "training" / "loop.py").read_text(encoding="utf-8").splitlines()) <= 300


def test_checkpoint_files_are_never_unpickled():
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                assert not any(alias.name in ("pickle", "dill", "cloudpickle") for alias in node.names), file
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert (node.value.id, node.attr) != ("torch", "load"), file
