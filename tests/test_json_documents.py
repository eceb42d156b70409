import json

import pytest

from megabert.errors import CheckpointError, InputError
from megabert.json_documents import (
    LARGEST_DOCUMENT,
    parse_json,
    parse_json_object,
    parse_sealed,
    read_json_object,
    sealed,
)

INVALID = {
    b"": "Expecting value",
    b"{": "Expecting property name",
    b"\xff\xfe{\0}\0": "codec can't decode",
    b"\0": "Expecting value",
    b"[" * 100_000: "nested too deeply",
    b'{"a":' * 100_000: "nested too deeply",
    b"1" * 5_000: "Exceeds the limit",
    b" " * LARGEST_DOCUMENT + b"1": "16777217 bytes",
}


@pytest.mark.parametrize("data", INVALID, ids=lambda data: repr(data[:8]))
def test_whatever_is_wrong_is_one_error_with_the_source(data):
    with pytest.raises(InputError, match=f"^a.json .*{INVALID[data]}.*Do this."):
        parse_json(data, "a.json", error=InputError, hint="Do this.")


@pytest.mark.parametrize("data", ["[1]", "null", '"text"', "1e999"])
def test_another_value_than_an_object_is_an_error(data):
    with pytest.raises(CheckpointError, match=r"a\.json holds no JSON object but"):
        parse_json_object(data, "a.json")


def test_a_missing_file_and_a_folder_are_errors(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(CheckpointError, match="cannot be read"):
            read_json_object(path)


def test_any_changed_bit_of_a_sealed_document_is_detected():
    data = sealed({"text": "é", "numbers": [1, 2.5, None], "nested": {"a": {}}})
    assert parse_sealed(data, "a.json")["text"] == "é"
    for offset in range(len(data)):
        for bit in range(8):
            damaged = bytearray(data)
            damaged[offset] ^= 1 << bit
            with pytest.raises(CheckpointError, match=r"^a\.json "):
                parse_sealed(bytes(damaged), "a.json")


@pytest.mark.parametrize("content", [{"a": float("nan")}, {"a": "\ud800"}, {}])
def test_a_document_that_is_never_sealed_is_refused(content):
    with pytest.raises(CheckpointError, match="its own SHA-256"):
        parse_sealed(json.dumps(content | {"sha256": 1}).encode(), "a.json")
