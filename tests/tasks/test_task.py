"""Every task has a page in the docs, and recipes and examples whose overrides are valid; predictions match by id."""

import ast
import shlex
from pathlib import Path

import pytest

from megabert.config.parser import compose
from megabert.errors import InputError
from megabert.formats.rows import Row
from megabert.tasks import registry
from megabert.tasks.prediction_rows import rows_by_id
from megabert.tasks.sequence_classification import Example

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", registry.NAMES)
def test_a_task_s_page_is_generated_from_its_docstring_and_settings(name):
    page = ROOT / "docs" / "tasks" / f"{name}.md"
    assert page.is_file(), "create it: touch the file, then ./dev docs"
    assert page.read_text(encoding="utf-8") == registry.page(name), "regenerate it: ./dev docs"


def test_there_is_no_page_without_a_task():
    assert sorted(page.stem for page in (ROOT / "docs" / "tasks").glob("*.md")) == list(registry.NAMES)


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_recipe_s_command_is_valid_as_written(recipe):
    head = recipe.read_text(encoding="utf-8").replace("\n# ", " ").replace("\\", "")
    command = head[head.index("megabert train") :].partition("\n")[0]
    words = [word for word in shlex.split(command) if word != "-m" and not word.startswith("seed=")]
    overrides = words[words.index("--config") + 2 :]
    kind = registry.find(words[2])
    settings, _ = compose(kind.settings_type, overrides, owner=words[2], file=recipe)
    task = kind(settings)
    assert task.files(settings.model.train_ds)
    assert task.files(settings.model.validation_ds)


@pytest.mark.parametrize("script", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.stem)
def test_an_example_s_overrides_are_valid_as_written(script):
    tree = ast.parse(script.read_text(encoding="utf-8"))
    words = shlex.split((ast.get_docstring(tree) or "").partition("\n\n")[2].replace("\\\n", " "))
    assert words[:2] == ["python", f"examples/{script.name}"]
    (call,) = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "main"]
    command = [item.value for item in call.args[0].elts if isinstance(item, ast.Constant)]
    if command[0] == "train":
        kind = registry.find(command[1])
        settings, _ = compose(kind.settings_type, [*command[2:], *words[2:]], owner=command[1])
        data = settings.model.train_ds if settings.do_training else settings.model.test_ds
        assert kind(settings).files(data)


EXAMPLES = [Example(name, "text", None, None, "here") for name in "abc"]


def rows(*names):
    return [Row({"id": name}, f"x:{number}") for number, name in enumerate(names, start=1)]


def test_rows_of_predictions_are_matched_by_id():
    assert [row.location for row in rows_by_id(EXAMPLES, rows("c", "a", "b"), Path("x"))] == ["x:2", "x:3", "x:1"]
    lines = [Row({"label": "1"}, "x:1")] * 3
    assert rows_by_id(EXAMPLES, lines, Path("x")) == lines  # without ids, in their order


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("ab", "x has no prediction for id 'c'"),
        ("abcd", "x has unknown id 'd'"),
        ("abca", "x:4: the id 'a' is that of x:1"),
    ],
)
def test_rows_that_do_not_match_are_refused(names, message):
    with pytest.raises(InputError, match=message):
        rows_by_id(EXAMPLES, rows(*names), Path("x"))
    with pytest.raises(InputError, match="x has 2 predictions for 3 examples"):
        rows_by_id(EXAMPLES, [Row({}, "x:1")] * 2, Path("x"))
