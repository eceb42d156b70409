import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megabert.errors import InputError
from megabert.formats import json_reader
from megabert.formats.json_reader import JsonReader

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def entered(reader, depth):
    """Read a value, entering objects and lists down to a depth."""
    if depth and reader.peek() == "{":
        return {name: entered(reader, depth - 1) for name in reader.members()}
    if depth and reader.peek() == "[":
        return [entered(reader, depth - 1) for _ in reader.items()]
    return reader.value()


def read(text, depth=2):
    reader = JsonReader(Path("x.json"), io.BytesIO(text if isinstance(text, bytes) else text.encode()))
    value = entered(reader, depth)
    reader.end()
    return value


@given(VALUES, st.sampled_from([None, 1]), st.booleans(), st.integers(1, 30), st.integers(0, 3))
def test_parts_are_those_of_the_whole_value(value, indent, is_ascii, chunk, depth):
    text = json.dumps(value, indent=indent, ensure_ascii=is_ascii)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_reader, "CHUNK", chunk)
        assert read(text, depth) == value


@pytest.mark.parametrize(
    "text", ['{"a": [1,\n 2}', '{"a" 1}', '{"a": 1,\n}', "[1, 2", '{"a": "b', "[1]\n[2]", "nul", "[1 2]", '["\\x"]']
)
@pytest.mark.parametrize("chunk", [3, 1000])
def test_faults_are_at_the_line_and_column_where_json_finds_them(text, chunk, monkeypatch):
    monkeypatch.setattr(json_reader, "CHUNK", chunk)
    with pytest.raises(json.JSONDecodeError) as expected:
        json.loads(text)
    with pytest.raises(InputError) as caught:
        read(text)
    error = expected.value
    assert str(caught.value) == f"x.json:{error.lineno}:{error.colno}: not JSON: {error.msg}."


def test_what_is_no_text_is_named_with_its_line(monkeypatch):
    monkeypatch.setattr(json_reader, "CHUNK", 4)
    for data, message in (
        (b'{"a":\n\n\xff}', ":3: not UTF-8 text: byte 0xff"), (b"[1,\n\0]", ":2: a NUL"), (b" \n", " is empty"),
        (b'["\xe2\x82', ":1: not UTF-8 text: byte 0xe2"), (b"[" * 100_000, "nested too deeply"),
        (b'{"a": "\\ud800"}', "a lone surrogate"), (b"9" * 5000, "not JSON: Exceeds"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            read(data)
