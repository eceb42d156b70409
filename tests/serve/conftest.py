"""One server for the tests that do not change it."""

import pytest

pytest.importorskip("uvicorn", reason="the extra serve is not installed")

from tests.serve.running_server import load_runs, running


@pytest.fixture(scope="session")
def server():
    with running(load_runs("ner", "qa", "classes", "pairs", "value", "relations", "marks", "intents", "zero")) as found:
        yield found
