"""Real documents, if the datasets are beside the checkout, and small helpers."""

import pytest

from megabert.formats.documents.convert_documents import read_documents, write_documents
from megabert.formats.documents.losses import Losses
from megabert.formats.documents.sources import Faults, ReadOptions
from tests.conftest import _unpack


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
    """Return the folder of a dataset by its name."""
    folders = {}

    def find(name):
        if name not in folders:
            folders[name] = _unpack(name, tmp_path_factory.mktemp("data"))
        return folders[name]

    return find


@pytest.fixture
def read_all():
    """Read documents with what was wrong in them."""

    def read(path, **options):
        faults = []
        documents = list(read_documents([path], ReadOptions(Faults(faults.append), **options)))
        return documents, faults

    return read


@pytest.fixture
def written(tmp_path):
    """Write documents to a new file or folder and return its path and what the format does not hold."""
    paths = iter(range(1000))

    def write(documents, name, ending=""):
        losses = Losses()
        path = tmp_path / f"out{next(paths)}{ending}"
        write_documents(documents, path, name, losses)
        return path, {what for what, count in losses.items() if count}

    return write
