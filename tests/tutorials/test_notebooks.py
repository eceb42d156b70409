"""The notebooks: all run, and assert their scores; the committed outputs are of the present text; data of one's own."""

import json
import sys
from pathlib import Path

import nbformat
import pytest
import torch

import megabert
from megabert.checkpoints.files.lazy_tensor import in_memory
from megabert.checkpoints.native.manifest_folder import Contents, write_manifest_folder
from megabert.checkpoints.tensor_names import encoder_shapes
from megabert.cli import main
from megabert.model.config import EncoderConfig
from tests.conftest import _unpack

TUTORIALS = Path(__file__).parents[2] / "tutorials"
sys.path.insert(0, str(TUTORIALS))

from execute import NAMES, check_complete, execute, read_source, replace  # noqa: E402

OWN_DATA = "biomegatron-bert-345m-uncased"


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs_and_asserts_its_scores(name):
    notebook = execute(read_source(name))
    assert any("assert " in cell.source for cell in notebook.cells if cell.cell_type == "code")
    assert (
        sum("image/png" in output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", ())) >= 1
    )


def test_every_notebook_of_the_folder_is_listed():
    assert {file.stem for file in TUTORIALS.glob("*.ipynb")} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_committed_notebook_is_executed_and_has_the_text_of_its_source(name):
    committed, source = nbformat.read(TUTORIALS / f"{name}.ipynb", as_version=4), read_source(name)
    # `./dev notebooks` makes it again
    assert [(cell.cell_type, cell.source) for cell in committed.cells] == [
        (cell.cell_type, cell.source) for cell in source.cells
    ]
    check_complete(committed)


@pytest.mark.parametrize("fault", ["skipped", "failed"])
def test_a_skipped_or_failed_cell_is_an_error(fault):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1"), nbformat.v4.new_code_cell("2")])
    for number, cell in enumerate(notebook.cells, start=1):
        cell.execution_count = number
    check_complete(notebook)
    if fault == "skipped":
        notebook.cells[1].execution_count = None
    else:
        notebook.cells[1].outputs = [nbformat.v4.new_output("error", ename="E", evalue="", traceback=[])]
    with pytest.raises(ValueError, match="not every cell" if fault == "skipped" else "error"):
        check_complete(notebook)


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory):
    """A checkpoint of one layer in Megatron-LM's format in place of BioMegatron's, so that scores mean nothing."""
    folder = tmp_path_factory.mktemp("checkpoint")
    config = EncoderConfig(
        vocabulary_size=12288, num_layers=1, hidden_size=32, num_heads=2, ffn_size=64, max_positions=512
    )
    torch.manual_seed(0)
    tensors = {name: in_memory(torch.randn(shape) / 50) for name, shape in encoder_shapes(config).items()}
    shipped = Path(megabert.__file__).parent / "encoders" / "biomegabert-mini-uncased"
    documents = {"encoder": config.to_dict(), "tokenizer": json.loads((shipped / "tokenizer.json").read_text())}
    texts = {"vocab.txt": (shipped / "vocab.txt").read_text(encoding="utf-8")}
    write_manifest_folder(folder / "source", Contents({"model": tensors}, documents, texts), {})
    assert main(["convert", str(folder / "source"), str(folder / "biomegatron"), "--to", "megatron"]) == 0
    return folder / "biomegatron"


def execute_here(name: str, replacements: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Execute the code of a notebook in this process, which has imported torch; a kernel is not what is tested."""
    from matplotlib import pyplot

    monkeypatch.chdir(TUTORIALS)
    monkeypatch.setattr(pyplot, "show", lambda: pyplot.close("all"))
    code = [cell.source for cell in replace(read_source(name), replacements).cells if cell.cell_type == "code"]
    assert code
    namespace: dict[str, object] = {"__name__": "__main__"}
    for source in code:
        exec(source, namespace)


def lines_of(source: Path, destination: Path, count: int) -> None:
    """Copy the first lines of a file."""
    with source.open(encoding="utf-8") as file:
        destination.write_text("".join(line for _, line in zip(range(count), file, strict=False)), encoding="utf-8")


def test_named_entities_of_ncbi_disease_with_a_checkpoint_of_megatron(
    stand_in, tmp_path, tmp_path_factory, monkeypatch
):
    data = _unpack("ncbi_disease", tmp_path_factory.mktemp("data"))
    lines_of(data / "train.tsv", tmp_path / "train.tsv", 600)
    lines_of(data / "dev.tsv", tmp_path / "dev.tsv", 300)
    own = {"DATASET = None": f"DATASET = {str(tmp_path)!r}", OWN_DATA: str(stand_in)}
    execute_here(NAMES[0], own, monkeypatch)


def test_relations_of_chemprot_with_a_checkpoint_of_megatron(stand_in, tmp_path, tmp_path_factory, monkeypatch):
    data = _unpack("chemprot_cpr", tmp_path_factory.mktemp("data"))
    lines_of(data / "train.tsv", tmp_path / "train.tsv", 65)
    lines_of(data / "dev.tsv", tmp_path / "dev.tsv", 33)
    own = {"DATASET = None": f"DATASET = {str(tmp_path)!r}", OWN_DATA: str(stand_in)}
    execute_here(NAMES[1], own, monkeypatch)


def test_questions_of_squad_with_a_checkpoint_of_megatron(squad_v1, stand_in, tmp_path, monkeypatch):
    for split in ("train", "dev"):
        document = json.loads((squad_v1 / f"{split}.json").read_text(encoding="utf-8"))
        document["data"] = [document["data"][0] | {"paragraphs": document["data"][0]["paragraphs"][:3]}]
        (tmp_path / f"{split}.json").write_text(json.dumps(document), encoding="utf-8")
    own = {"DATASET = None": f"DATASET = {str(tmp_path)!r}", OWN_DATA: str(stand_in)}
    execute_here(NAMES[2], own, monkeypatch)


def test_pretraining_on_text_with_a_checkpoint_of_megatron(stand_in, tmp_path, monkeypatch):
    from planted import documents, write_documents

    write_documents(tmp_path / "text.txt", documents("train", 60))
    own = {"CORPUS = None": f"CORPUS = {str(tmp_path / 'text.txt')!r}", OWN_DATA: str(stand_in)}
    execute_here(NAMES[3], own, monkeypatch)
