"""Execute the notebooks: each NAME.py, the text that is reviewed, becomes NAME.ipynb with its outputs.

    python tutorials/execute.py [NAME ...]

A cell that fails, that is skipped or that did not run is an error. Source of the text format: jupytext's py:percent.
"""

import sys
from pathlib import Path

import jupytext
import nbclient
import nbformat

FOLDER = Path(__file__).parent
NAMES = (
    "Token_Classification-BioMegatron",
    "Relation_Extraction-BioMegatron",
    "Question_Answering",
    "Pretraining_On_Your_Own_Corpus",
    "Documents_to_Linked_Facts",
)
SECONDS_PER_CELL = 600


def read_source(name: str) -> nbformat.NotebookNode:
    """Read a notebook's text as a notebook without outputs; cells are numbered, so that the same text is the same."""
    notebook = jupytext.read(FOLDER / f"{name}.py")
    notebook.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    for number, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{number}", {}
    return notebook


def replace(notebook: nbformat.NotebookNode, replacements: dict[str, str]) -> nbformat.NotebookNode:
    """Change the source code of cells, by each replacement exactly one place."""
    for old, new in replacements.items():
        cells = [cell for cell in notebook.cells if cell.cell_type == "code" and old in cell.source]
        if len(cells) != 1 or cells[0].source.count(old) != 1:
            raise ValueError(f"{old!r} is in {len(cells)} cells. Replace text that occurs once.")
        cells[0].source = cells[0].source.replace(old, new)
    return notebook


def execute(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Run all cells. Raises CellExecutionError if a cell fails and ValueError if one did not run."""
    client = nbclient.NotebookClient(
        notebook,
        timeout=SECONDS_PER_CELL,
        kernel_name="python3",
        resources={"metadata": {"path": str(FOLDER)}},
    )
    client.execute()
    check_complete(notebook)
    for cell in notebook.cells:
        cell.metadata = {}  # times of execution
    return notebook


def check_complete(notebook: nbformat.NotebookNode) -> None:
    """Raise ValueError where a code cell has not run, in order and without an error."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if not code or [cell.execution_count for cell in code] != list(range(1, len(code) + 1)):
        raise ValueError(f"{[cell.execution_count for cell in code]}: not every cell ran once, in order.")
    if any(output.output_type == "error" for cell in code for output in cell.outputs):
        raise ValueError("a cell has the output of an error.")


def main(names: list[str]) -> None:
    """Execute the named notebooks, or all."""
    for name in names or NAMES:
        print(f"executing {name}", flush=True)
        nbformat.write(execute(read_source(name)), FOLDER / f"{name}.ipynb")


if __name__ == "__main__":
    main(sys.argv[1:])
