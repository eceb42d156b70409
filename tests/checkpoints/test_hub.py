"""Names of the Hugging Face hub, from a local mirror: what is downloaded, and what is said where there is none."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from megabert.checkpoints.hub import is_hub_name

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FETCH = """
import sys
from megabert.checkpoints.hub import fetch_from_hub
from megabert.errors import CheckpointError
try:
    print(*sorted(path.name for path in fetch_from_hub(sys.argv[1]).iterdir()))
except CheckpointError as error:
    print("error:", error)
"""


@contextmanager
def mirror(files):
    """Serve a repository `org/tiny` as the hub does."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            name = self.path.rpartition("/")[2]
            if "/tree/" in self.path:
                sizes = {name: len(content) for name, content in files.items()}
                rows = [{"type": "file", "path": name, "size": size, "oid": "0" * 40} for name, size in sizes.items()]
                self.answer(json.dumps(rows).encode())
            elif self.path.startswith("/api/models/org/tiny"):
                self.answer(json.dumps({"id": "org/tiny", "sha": COMMIT, "siblings": siblings}).encode())
            elif self.path.startswith("/org/tiny/resolve/") and name in files:
                self.answer(files[name], ETag=f'"{hashlib.sha1(files[name]).hexdigest()}"')  # as git names contents
            else:
                self.send_error(404)

        do_HEAD = do_GET

        def answer(self, content, **headers):
            self.send_response(200)
            length = {"Content-Length": str(len(content)), "X-Repo-Commit": COMMIT}
            for key, value in (length | headers).items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def log_message(self, *_):
            pass

    siblings = [{"rfilename": name} for name in files]
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def fetch(name, home, endpoint, **environment):
    environment = {
        **os.environ, "HF_HOME": str(home), "HF_ENDPOINT": endpoint, "no_proxy": "*", "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1", **environment,
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", FETCH, name], capture_output=True, text=True, check=True, env=environment
    )
    return done.stdout.strip()


def test_what_is_needed_of_a_name_is_downloaded_once_and_found_without_network(tmp_path):
    pytest.importorskip("huggingface_hub")
    files = {"config.json": b"{}", "vocab.txt": b"[PAD]\n", "pytorch_model.bin": b"abc", "tf_model.h5": b"no"}
    with mirror(files) as endpoint:
        assert fetch("org/tiny", tmp_path / "bin", endpoint) == "config.json pytorch_model.bin vocab.txt"
        files["model.safetensors"] = b"defg"
        assert fetch("org/tiny", tmp_path / "home", endpoint) == "config.json model.safetensors vocab.txt"
        unknown = fetch("org/other", tmp_path / "home", endpoint)
    assert "org/other is no file or folder here" in unknown and "hf download org/other" in unknown
    assert fetch("org/tiny", tmp_path / "home", endpoint) == "config.json model.safetensors vocab.txt"
    offline = fetch("org/tiny", tmp_path / "empty", endpoint, HF_HUB_OFFLINE="1")
    assert "is not in the cache of huggingface_hub (HF_HOME)" in offline


def test_a_hub_s_name_has_an_organization_or_is_well_known():
    assert all(map(is_hub_name, ("org/name", "emilyalsentzer/Bio_ClinicalBERT", "bert-base-uncased")))
    assert not any(map(is_hub_name, ("name", "a/b/c", "../x", "/abs/x", "./x", "~/x", "https://a/b", "a/", "é/x")))
