"""The table agrees with its sources; resolution runs on folders and a real server."""

import hashlib
import json
import os
import re
import socket
import string
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megabert import cli
from megabert.checkpoints import catalog
from megabert.checkpoints.catalog import cache_home, describe, find, in_cache, resolve
from megabert.checkpoints.published import File, NetworkSizes, Published, Vocabulary, published_checkpoints
from megabert.errors import CheckpointError, ConfigError
from tests.checkpoints.networks import VOCABULARY, write
from tests.checkpoints.test_convert import to
from tests.checkpoints.test_download import Server, answers, serving

CASES = ("cased", "uncased")
WORDS = b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n"
WEIGHTS = b"\x80\x02 a pickle of weights"
OTHER_WEIGHTS = WEIGHTS.swapcase()  # of the same length


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# --- the table ---


@pytest.mark.parametrize("published", published_checkpoints().values(), ids=list(published_checkpoints()))
def test_every_row_of_the_table_is_complete(published: Published) -> None:
    assert published.summary
    assert published.licence
    assert published.page.startswith("docs/" if published.is_shipped else "https://")
    assert len({file.name for file in published.files}) == len(published.files)
    has_weights = any(file.role == "weights" for file in published.files)
    is_archive = any(file.format == "nemo" for file in published.files)
    assert [file.role for file in published.files].count("vocabulary") == (
        0 if is_archive or not published.files else 1
    )
    assert published.architecture is not None or not has_weights
    assert published.note or not has_weights
    assert all(find(alias) is published for alias in published.aliases)
    for file in published.files:
        assert all(url.startswith("https://") for url in (file.url, *file.mirrors))
        assert Path(file.name).name == file.name
        assert file.sha256 is None or re.fullmatch("[0-9a-f]{64}", file.sha256)
        assert file.sha256 is not None or not file.mirrors


def test_the_names_and_casings_are_those_of_nemo() -> None:
    names_of_1_0 = {
        "megatron-bert-345m-uncased": False,
        "megatron-bert-345m-cased": True,
        "biomegatron-bert-345m-uncased": False,
        "biomegatron-bert-345m-cased": True,
        "megatron-bert-uncased": False,
        "megatron-bert-cased": True,
    }
    assert {name: published_checkpoints()[name].vocabulary.is_cased for name in names_of_1_0} == names_of_1_0
    names_of_1_6 = {
        f"biomegatron345m_biovocab_{size}_{case}": case == "cased" for size in ("30k", "50k") for case in CASES
    } | {f"megatron_bert_345m_{case}": case == "cased" for case in CASES}
    assert {name: find(name).vocabulary.is_cased for name in names_of_1_6} == names_of_1_6
    assert all(name == row.name for name, row in published_checkpoints().items())
    assert {row.vocabulary.size for row in published_checkpoints().values() if row.vocabulary.is_cased} == {
        28_996,
        50_257,
        None,
    }
    assert {row.vocabulary.size for row in published_checkpoints().values() if not row.vocabulary.is_cased} == {
        30_522,
        None,
        12_288,
    }


def test_the_parameters_are_counted_without_heads() -> None:
    # 30,522 words, 512 positions and 2 segments of 1,024; 24 layers of 12,596,224; a last norm of 2,048.
    assert find("megatron-bert-345m-uncased").num_parameters == 31_036 * 1024 + 24 * 12_596_224 + 2048
    assert find("megatron-bert-uncased").num_parameters is None


def test_the_description_is_plain_json(tmp_path: Path) -> None:
    rows = describe(tmp_path)
    assert json.loads(json.dumps(rows)) == rows
    assert [row["name"] for row in rows] == list(published_checkpoints())
    assert rows[0]["architecture"] == {
        "num_layers": 24,
        "hidden_size": 1024,
        "num_attention_heads": 16,
        "max_position_embeddings": 512,
        "num_tokentypes": 2,
    }
    assert [row["name"] for row in rows if row["in_cache"]] == [row["name"] for row in rows if row["is_shipped"]]


# --- names ---


def test_an_unknown_name_is_reported_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"Did you mean megatron-bert-345m-uncased"):
        find("megatron_bert_345m-uncased")
    with pytest.raises(ConfigError, match="There are megatron-bert-345m-uncased, "):
        find("xlnet")


@given(
    name=st.sampled_from(sorted(published_checkpoints())),
    position=st.integers(0, 99),
    letter=st.sampled_from(string.ascii_letters),
)
def test_one_wrong_letter_still_finds_the_name(name: str, position: int, letter: str) -> None:
    position %= len(name)
    for wrong in (name[:position] + name[position + 1 :], name[:position] + letter + name[position + 1 :]):
        if wrong not in published_checkpoints():
            with pytest.raises(ConfigError, match=rf"(mean|or) {name}\b"):
                find(wrong)


# --- the cache folder ---


@pytest.mark.skipif(os.name != "posix", reason="the paths are POSIX ones")
@pytest.mark.parametrize(
    ("environment", "home"),
    [
        ({"HOME": "/home/ada"}, "/home/ada/.cache/megabert"),
        ({"HOME": "/home/ada", "XDG_CACHE_HOME": "/scratch"}, "/scratch/megabert"),
        ({"HOME": "/home/ada", "XDG_CACHE_HOME": "scratch"}, "/home/ada/.cache/megabert"),
        ({"HOME": "/home/ada", "XDG_CACHE_HOME": "/scratch", "MEGABERT_HOME": "/models"}, "/models"),
        ({"HOME": "/home/ada", "MEGABERT_HOME": "~/models"}, "/home/ada/models"),
        ({"HOME": "/home/ada", "MEGABERT_HOME": ""}, "/home/ada/.cache/megabert"),
        ({"MEGABERT_HOME": "/models"}, "/models"),
    ],
)
def test_the_cache_folder_follows_the_environment(environment: dict[str, str], home: str) -> None:
    assert cache_home(environment) == Path(home)


def test_without_a_home_the_setting_is_named() -> None:
    with pytest.raises(ConfigError, match="MEGABERT_HOME"):
        cache_home({})


# --- resolution ---


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(WEIGHTS) as running:
        yield running


@pytest.fixture
def words_server() -> Iterator[Server]:
    with serving(WORDS) as running:
        yield running


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, server: Server, words_server: Server) -> Published:
    """A row of the table whose files are on this machine."""
    row = replace(
        published_checkpoints()["megatron-bert-345m-uncased"],
        name="tiny",
        architecture=None,
        vocabulary=Vocabulary("five words", 5, is_cased=False),
        page="https://example.org/tiny",
        note="A note.",
        files=(
            File("weights", "model_optim_rng.pt", "torch", server.url),
            File("weights", "tiny.zip", "zip", "https://example.org/tiny.zip"),
            File("vocabulary", "vocab.txt", "vocabulary", words_server.url, (), len(WORDS), sha256(WORDS)),
        ),
    )
    monkeypatch.setitem(catalog.published_checkpoints(), "tiny", row)
    return row


def put(home: Path, **contents: bytes) -> Path:
    """Place files by hand: `weights`, `vocabulary` or `archive`."""
    names = {"weights": "model_optim_rng.pt", "vocabulary": "vocab.txt", "archive": "tiny.zip"}
    (home / "tiny").mkdir(parents=True, exist_ok=True)
    for key, content in contents.items():
        (home / "tiny" / names[key]).write_bytes(content)
    return home / "tiny"


def record(home: Path) -> dict[str, dict[str, object]]:
    entries: dict[str, dict[str, object]] = json.loads((home / "tiny" / "files.json").read_text())
    return entries


@pytest.mark.usefixtures("tiny")
def test_a_name_is_downloaded_once_and_recorded(
    tmp_path: Path, server: Server, words_server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not in_cache("tiny", tmp_path)
    first = resolve("tiny", home=tmp_path)
    assert first.weights is not None
    assert first.weights.read_bytes() == WEIGHTS
    assert first.vocabulary.read_bytes() == WORDS
    assert not first.published.vocabulary.is_cased
    assert first.sha256 == {"vocab.txt": sha256(WORDS), "model_optim_rng.pt": sha256(WEIGHTS)}
    assert in_cache("tiny", tmp_path)
    assert f"{len(WEIGHTS):,} bytes, SHA-256 {sha256(WEIGHTS)}" in capsys.readouterr().err
    entry = record(tmp_path)["model_optim_rng.pt"]
    assert (entry["sha256"], entry["source"]) == (sha256(WEIGHTS), server.url)
    assert str(entry["date"]).startswith("20")
    assert resolve("tiny", home=tmp_path, download=False) == first
    assert capsys.readouterr().err == ""
    assert len(server.seen) == len(words_server.seen) == 1


@pytest.mark.usefixtures("tiny")
def test_without_weights_only_the_vocabulary_is_fetched(tmp_path: Path, server: Server) -> None:
    resolved = resolve("tiny", home=tmp_path, weights=False)
    assert resolved.weights is None
    assert resolved.vocabulary.read_bytes() == WORDS
    assert server.seen == []


def test_the_vocabularies_of_the_table_can_be_put_in_place_by_hand(tmp_path: Path) -> None:
    generic = find("megatron-bert-uncased")
    (tmp_path / generic.name).mkdir()
    (tmp_path / generic.name / "vocab.txt").write_bytes(b"word\n" * generic.vocabulary.size)
    with pytest.raises(CheckpointError, match=r"152,610 bytes, but 231,508 are expected"):
        resolve(generic.name, home=tmp_path, download=False)


@pytest.mark.usefixtures("tiny")
def test_files_put_there_by_hand_are_used_and_recorded(
    tmp_path: Path, server: Server, words_server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path, weights=WEIGHTS, vocabulary=WORDS)
    resolved = resolve("tiny", home=tmp_path)
    assert resolved.sha256["model_optim_rng.pt"] == sha256(WEIGHTS)
    assert sha256(WEIGHTS) in capsys.readouterr().err
    assert record(tmp_path)["model_optim_rng.pt"]["source"] == "found in the cache"
    assert server.seen == words_server.seen == []


@pytest.mark.usefixtures("tiny")
def test_an_existing_alternative_is_used(tmp_path: Path, server: Server) -> None:
    empty_zip = b"PK\x05\x06" + bytes(18)
    folder = put(tmp_path, archive=empty_zip, vocabulary=WORDS)
    assert resolve("tiny", home=tmp_path).weights == folder / "tiny.zip"
    assert server.seen == []


@pytest.mark.usefixtures("tiny")
def test_a_known_file_is_read_again_only_if_it_changed(tmp_path: Path) -> None:
    folder = put(tmp_path, weights=WEIGHTS, vocabulary=WORDS)
    path = folder / "model_optim_rng.pt"
    resolve("tiny", home=tmp_path)
    status = path.stat()

    path.write_bytes(OTHER_WEIGHTS)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    resolve("tiny", home=tmp_path)  # the same size and time: it was not read, which this test makes visible

    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    with pytest.raises(CheckpointError, match=f"but {sha256(WEIGHTS)} was recorded on .*remove the entry"):
        resolve("tiny", home=tmp_path)

    path.write_bytes(WEIGHTS)  # touched, but the same
    assert resolve("tiny", home=tmp_path).sha256["model_optim_rng.pt"] == sha256(WEIGHTS)
    assert record(tmp_path)["model_optim_rng.pt"]["mtime_ns"] == path.stat().st_mtime_ns


@pytest.mark.usefixtures("tiny")
def test_a_later_download_has_to_match_the_record(tmp_path: Path, server: Server) -> None:
    resolved = resolve("tiny", home=tmp_path)
    assert resolved.weights is not None
    resolved.weights.unlink()
    server.content = OTHER_WEIGHTS
    with pytest.raises(CheckpointError, match=r"(?s)SHA-256.*To take another file, remove the entry 'model_opt"):
        resolve("tiny", home=tmp_path)
    assert not resolved.weights.exists()

    (tmp_path / "tiny" / "files.json").unlink()
    assert resolve("tiny", home=tmp_path).sha256["model_optim_rng.pt"] == sha256(OTHER_WEIGHTS)


def test_a_mirror_is_tried_for_a_file_of_known_hash(
    tmp_path: Path, tiny: Published, server: Server, words_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    *others, vocabulary = tiny.files
    moved = replace(vocabulary, url=server.url, mirrors=(words_server.url,))
    monkeypatch.setitem(catalog.published_checkpoints(), "tiny", replace(tiny, files=(*others, moved)))
    server.script = [answers(410)]
    assert resolve("tiny", home=tmp_path).vocabulary.read_bytes() == WORDS
    assert record(tmp_path)["vocab.txt"]["source"] == words_server.url


WRONG = {
    "a web page for weights": (
        {"weights": b"<html>Please log in</html>"},
        "no torch file .* starts with b'<htm'",
    ),
    "nothing for weights": ({"weights": b""}, "no torch file"),
    "half an archive": ({"archive": b"PK\x03\x04 and no directory"}, "no zip file"),
    "a pickle for an archive": ({"archive": WEIGHTS}, "no zip file"),
    "a short vocabulary": ({"vocabulary": WORDS[:-7]}, "it has 24 bytes, but 31 are expected"),
    "another vocabulary": ({"vocabulary": WORDS.replace(b"MASK", b"mask")}, "it has SHA-256"),
}


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(("contents", "message"), WRONG.values(), ids=WRONG)
def test_wrong_files_put_there_by_hand_are_named(tmp_path: Path, contents: dict[str, bytes], message: str) -> None:
    put(tmp_path, **({"vocabulary": WORDS} | contents))
    with pytest.raises(CheckpointError, match=message):
        resolve("tiny", home=tmp_path)


def test_a_vocabulary_of_unknown_hash_must_have_the_right_number_of_tokens(
    tmp_path: Path, tiny: Published, words_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    *others, vocabulary = tiny.files
    unknown = replace(vocabulary, size=None, sha256=None)
    monkeypatch.setitem(catalog.published_checkpoints(), "tiny", replace(tiny, files=(*others, unknown)))
    words_server.content = WORDS + b"more\n"
    with pytest.raises(CheckpointError, match="it has 6 lines instead of 5"):
        resolve("tiny", home=tmp_path)
    put(tmp_path, vocabulary=WORDS.rstrip())
    resolve("tiny", home=tmp_path)


# --- Messages for missing files ---


def assert_tells_everything(message: str, home: Path, server: Server) -> None:
    assert f"weights, one of:\n    {server.url}\n      as {home / 'tiny' / 'model_optim_rng.pt'}\n" in message
    assert f"    https://example.org/tiny.zip\n      as {home / 'tiny' / 'tiny.zip'}\n" in message
    assert message.endswith("Published at https://example.org/tiny\nA note.")


@pytest.mark.usefixtures("tiny")
def test_without_downloads_the_files_and_their_paths_are_named(
    tmp_path: Path, server: Server, words_server: Server
) -> None:
    with pytest.raises(CheckpointError) as caught:
        resolve("tiny", home=tmp_path, download=False)
    assert_tells_everything(str(caught.value), tmp_path, server)
    assert f"vocabulary:\n    {words_server.url}\n      as {tmp_path / 'tiny' / 'vocab.txt'}\n" in str(caught.value)
    assert server.seen == words_server.seen == []
    assert not (tmp_path / "tiny").exists()


def test_without_a_network_the_files_and_their_paths_are_named(
    tmp_path: Path, tiny: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/file"
        files = tuple(replace(file, url=url) for file in tiny.files)
        monkeypatch.setitem(catalog.published_checkpoints(), "tiny", replace(tiny, files=files))
        started = time.monotonic()
        with pytest.raises(CheckpointError) as caught:
            resolve("tiny", home=tmp_path)
    assert time.monotonic() - started < 2  # no retries without a network
    message = str(caught.value)
    assert f"{url}: no connection (" in message
    for name in ("vocab.txt", "model_optim_rng.pt", "tiny.zip"):
        assert f"    {url}\n      as {tmp_path / 'tiny' / name}\n" in message
    assert "Published at https://example.org/tiny" in message


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("answer", [answers(410), answers(200, b"<html>Please log in</html>")])
def test_a_refused_download_names_only_what_is_missing(tmp_path: Path, server: Server, answer: object) -> None:
    server.script = [answer]  # type: ignore[list-item]
    with pytest.raises(CheckpointError) as caught:
        resolve("tiny", home=tmp_path)
    assert_tells_everything(str(caught.value), tmp_path, server)
    assert "vocab.txt" not in str(caught.value)
    assert not (tmp_path / "tiny" / "model_optim_rng.pt").exists()
    put(tmp_path, weights=WEIGHTS)  # as the message recommends
    resolve("tiny", home=tmp_path, download=False)


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("text", ["{", "[]", '{"vocab.txt": {}}', '{"vocab.txt": 1}'])
def test_a_damaged_record_is_named(tmp_path: Path, text: str) -> None:
    folder = put(tmp_path, weights=WEIGHTS, vocabulary=WORDS)
    (folder / "files.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"files\.json .*Remove it"):
        resolve("tiny", home=tmp_path)


def test_the_module_loads_neither_torch_nor_rich() -> None:
    program = "import sys, megabert.checkpoints.catalog; print({'torch', 'rich'} & set(sys.modules))"
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert finished.stdout.strip() == "set()"


# --- A user's own files: accepted or refused by content ---

SHAPE = NetworkSizes(4, 16, 4, 12)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Published:
    """A published network as small as those of the other tests."""
    row = replace(
        published_checkpoints()["megatron-bert-345m-uncased"],
        name="small",
        architecture=SHAPE,
        vocabulary=Vocabulary("fifty words", 50, is_cased=False),
        files=(
            File("weights", "model_optim_rng.pt", "torch", "https://example.invalid/model_optim_rng.pt"),
            File("vocabulary", "vocab.txt", "vocabulary", "https://example.invalid/vocab.txt"),
        ),
    )
    monkeypatch.setitem(catalog.published_checkpoints(), "small", row)
    return row


def small_folder(tmp_path: Path, architecture: str = "megatron-bert", num_tokens: int = 50) -> Path:
    write(tmp_path / "ours", architecture)
    source = to(tmp_path / "ours", tmp_path / "theirs", "megatron", num_tokens=num_tokens)
    folder = tmp_path / "mine"
    folder.mkdir()
    (source / "release" / "mp_rank_00" / "model_optim_rng.pt").rename(folder / "download (1).bin")
    (folder / "words").write_text(VOCABULARY)
    (folder / "notes.txt").write_text("nothing")
    return folder


@pytest.mark.usefixtures("small")
def test_files_under_any_names_are_recognized_by_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MEGABERT_HOME", str(tmp_path / "home"))
    folder = small_folder(tmp_path)
    assert cli.main(["fetch", "small", "--from", str(folder), "--json"]) == 0
    out = json.loads(capsys.readouterr().out)["small"]
    assert out["weights"] == str(tmp_path / "home" / "small" / "model_optim_rng.pt")
    assert out["sha256"]["vocab.txt"] == sha256(VOCABULARY.encode())
    assert sorted(path.name for path in (tmp_path / "home" / "small").iterdir() if path.suffix != ".lock") == [
        "files.json",
        "model_optim_rng.pt",
        "vocab.txt",
    ]
    assert cli.main(["fetch", "small", "--sha256", "0" * 64]) == 66
    assert "Do not use this file" in capsys.readouterr().err
    assert cli.main(["inspect", "small", "--quick"]) == 0
    assert "50 tokens + 78 rows of padding" in capsys.readouterr().out


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda file: file.write_bytes(file.read_bytes()[:-100]), "cut off"),
        (lambda file: file.write_text("<!DOCTYPE html><html>Sign in</html>"), "this is a web page"),
        (lambda file: file.write_bytes(b""), "the file is empty"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, change: Callable[[Path], object], reason: str) -> None:
    folder = small_folder(tmp_path)
    change(folder / "download (1).bin")
    with pytest.raises(CheckpointError, match=reason):
        catalog.put("small", folder / "download (1).bin", tmp_path / "home")
    assert not (tmp_path / "home" / "small" / "model_optim_rng.pt").exists()


@pytest.mark.parametrize(
    ("shape", "words", "reason"),
    [
        (replace(SHAPE, num_layers=24), 50, "has num_layers 4, but the catalog has 24"),
        (replace(SHAPE, hidden_size=1024), 50, "has hidden_size 16, but the catalog has 1024"),
        (replace(SHAPE, max_position_embeddings=512), 50, "has max_positions 12, but the catalog has 512"),
        (SHAPE, 30_522, "it has 128 rows for 30,522 tokens"),
    ],
)
def test_another_model_is_refused_whatever_its_name(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    small: Published,
    shape: NetworkSizes,
    words: int,
    reason: str,
) -> None:
    row = replace(small, architecture=shape, vocabulary=Vocabulary("words", words, is_cased=False))
    monkeypatch.setitem(catalog.published_checkpoints(), "small", row)
    folder = small_folder(tmp_path)
    with pytest.raises(CheckpointError, match=reason):
        catalog.put("small", folder / "download (1).bin", tmp_path / "home")
    # the same where the file was put into the cache under the right name
    folder_in_cache = tmp_path / "home" / "small"
    folder_in_cache.mkdir(parents=True, exist_ok=True)
    (folder / "download (1).bin").rename(folder_in_cache / "model_optim_rng.pt")
    (folder_in_cache / "vocab.txt").write_text("".join(f"{word}\n" for word in range(words)))
    with pytest.raises(CheckpointError, match=reason):
        resolve("small", home=tmp_path / "home", download=False)
