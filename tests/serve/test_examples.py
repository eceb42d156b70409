"""The commands of docs/how-to/serve.md and of the deployment examples do what they say."""

import json
import re
import shlex
from pathlib import Path

import pytest

from megabert.cli.serving import _parse

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/how-to/serve.md").read_text(encoding="utf-8")
REQUESTS = [shlex.split(line) for line in PAGE.splitlines() if line.startswith("curl ")]
LINKING = [words for words in REQUESTS if words[1].endswith("/v1/linking")]
"""Of a server with a dictionary."""


@pytest.mark.parametrize(
    "words", [words for words in REQUESTS if words not in LINKING], ids=lambda words: words[1].partition("/")[2]
)
def test_the_requests_of_the_page_are_answered(server, words):
    assert words[2:4] == ["-H", "Content-Type: application/json"]
    assert server.post(words[1].removeprefix("127.0.0.1:8000"), **json.loads(words[5]))


def test_the_python_of_the_page_works(server):
    for name in ("openai", "tritonclient.http", "gevent"):
        pytest.importorskip(name)
    (code,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    names = {}
    exec(code.replace("127.0.0.1:8000", server.url.removeprefix("http://")), names)
    assert len(names["vectors"]) == 2 and len(names["rows"]) == 1


def test_the_options_of_the_examples_exist(tmp_path):
    (toml,) = re.findall(r"^```toml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    file = tmp_path / "serve.toml"
    file.write_text(toml)
    unit = (ROOT / "examples/serve/megabert.service").read_text()
    words = shlex.split(re.search(r"^ExecStart=\S+/megabert serve (.*)$", unit, re.MULTILINE)[1])
    words[words.index("--config") + 1] = str(file)
    assert _parse(words).models == ["ner=runs/ner", "qa=runs/qa"]
    assert _parse(words).links == [("Disease", Path("MEDIC.dict"), Path("runs/names"), None)]
    docker = (ROOT / "examples/serve/Dockerfile").read_text()
    entry = json.loads(re.search(r"^ENTRYPOINT (.*)$", docker, re.MULTILINE)[1])
    assert entry[:2] == ["megabert", "serve"]
    arguments = _parse([*entry[2:], "ner=/runs/ner"])
    assert (arguments.host, arguments.port) == ("0.0.0.0", 8000)
    assert float(re.search(r"TimeoutStopSec=(\d+)", unit)[1]) > 18
