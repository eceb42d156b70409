"""The rooms of the package (docs/architecture.md): order of imports, names, sizes, imports that are forbidden."""

import ast
import re
import subprocess
import sys
from collections import Counter, defaultdict
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import megabert

PACKAGE = Path(megabert.__file__).parent
ARCHITECTURE = PACKAGE.parent / "docs" / "architecture.md"
LINES = [  # lowest first; those of one line do not import each other
    {"errors", "kernels"},
    {"storage", "json_documents"},
    {"config", "tokenizers", "metrics", "model"},
    {"formats", "planner"},
    {"data", "analysis"},
    {"pretraining", "checkpoints", "parallel"},
    {"tasks"},
    {"inference"},
    {"captured_batches"},
    {"torch_session", "onnx_session"},
    {"weights", "measured_precision"},
    {"adapters"},
    {"build", "exported_folder"},
    {"distillation", "evaluation", "initial_model", "load_predictor"},
    {"training", "diagnostics", "generation", "retrieval"},
    {"linking"},
    {"annotate"},
    {"correction"},
    {"export"},
    {"serve"},
    {"merging"},
    {"cli"},
    {"sample", "__main__"},
]
HEIGHT = {name: height for height, line in enumerate(LINES) for name in line}
TORCH_FREE = (
    "errors",
    "storage",
    "json_documents",
    "config",
    "tokenizers",
    "formats",
    "data",
    "metrics",
    "planner",
    "analysis",
    "tasks",
    "inference",
    "onnx_session",
)
MODULE_NAMES_OF_TWO_ROOMS = {
    "squad": {"formats", "metrics"},  # a format and its scorer
    "bioasq": {"formats", "metrics", "tasks"},  # likewise, and the task that is named for it
    "attention": {"model", "kernels"},  # a layer and its kernel
    "fp8": {"model", "kernels"},
    # Named like a room:
    "linking": {"linking", "metrics", "cli"},
    "retrieval": {"retrieval", "metrics", "cli"},
    "config": {"config", "model"},
    "checkpoints": {"checkpoints", "cli"},
    "correction": {"correction", "cli"},
    "training": {"training", "cli"},
}
# megabert/__init__.py may import from everywhere, inside its functions.
FILES = sorted(file for file in PACKAGE.rglob("*.py") if file != PACKAGE / "__init__.py")


def room_of(file):
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(file):
    """List the rooms that a file imports from, at module level or inside functions."""
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
            name = [part for part in name if part]
            if name[0] == "megabert" and len(name) > 1 and name[1] in HEIGHT:
                yield name[1]


def test_every_room_has_a_line():
    assert {room_of(file) for file in FILES} == set(HEIGHT)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_a_module_imports_from_lower_lines_only(file):
    room = room_of(file)
    for other in imported_rooms(file):
        assert other == room or HEIGHT[other] < HEIGHT[room], f"{file.name} imports {other}"


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


def test_the_architecture_page_quotes_the_order_of_imports():
    block = ARCHITECTURE.read_text(encoding="utf-8").partition("lowest first")[2].split("```")[1]
    assert [set(line.split(" | ")) for line in block.strip().splitlines()] == LINES


def test_the_architecture_page_names_every_module():
    tree = ARCHITECTURE.read_text(encoding="utf-8").split("```")[1]
    named = Counter(re.findall(r"\w+\.py\b", tree))
    modules = Counter(file.name for file in FILES if file.name != "__init__.py")
    assert named >= modules, f"the page lacks {sorted((modules - named).elements())}"
    assert named.keys() <= modules.keys() | {"__init__.py"}, f"there is no {sorted(named.keys() - modules.keys())}"


def test_a_class_name_is_used_once():
    files_by_name = defaultdict(list)
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and not is_task_local(file, node.name):
                files_by_name[node.name].append(str(file.relative_to(PACKAGE)))
    assert {name: files for name, files in files_by_name.items() if len(files) > 1} == {}


def is_task_local(file, name):
    """Whether a class is always read with its module, as in question_answering.Example."""
    if file == PACKAGE / "formats" / "squad.py":
        return name == "Example"
    return room_of(file) == "tasks" and (name in ("Example", "Prediction") or name.endswith("Settings"))


def test_a_module_name_is_used_once_in_its_room():
    modules = Counter((room_of(file), file.stem) for file in FILES if file.stem != "__init__")
    assert [module for module, count in modules.items() if count > 1] == []


def test_a_module_name_is_used_in_one_room_apart_from_listed_pairs():
    rooms = defaultdict(set)
    for file in FILES:
        # __init__.py stands for its folder.
        rooms[file.parent.name if file.stem == "__init__" else file.stem].add(room_of(file))
    assert {name: files for name, files in rooms.items() if len(files) > 1} == MODULE_NAMES_OF_TWO_ROOMS


@pytest.mark.parametrize("room", TORCH_FREE)
def test_a_room_that_does_not_compute_imports_without_torch(room):
    files = [file for file in FILES if room_of(file) == room]
    imports = "; ".join(f"import {module_name(file)}" for file in files)
    script = f"import sys; {imports}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "False", f"{room} imports torch"


def test_the_model_does_not_use_torch_distributed():
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
