"""Texts with ids: headers, ends of lines, and what is no text."""

import pytest

from megabert.errors import InputError, InputWarning
from megabert.formats.passages import read_texts


@pytest.mark.parametrize("header", ["id\ttext\ttitle", '"pid"\t"passage"', "\ufeffqid\tquery"])
def test_a_header_is_no_passage(header, tmp_path):
    (tmp_path / "a.tsv").write_text(f"{header}\n1\ta b\n2\tc\td\n", encoding="utf-8")
    with pytest.warns(InputWarning, match=r"a.tsv:1: the line names columns"):
        assert read_texts(tmp_path / "a.tsv") == {"1": "a b", "2": "c d"}


def test_a_passage_of_usual_words_is_no_header(tmp_path, recwarn):
    (tmp_path / "a.tsv").write_text("id\tidentity\n2\ttext\nqid\ttitle\n")
    assert read_texts(tmp_path / "a.tsv") == {"id": "identity", "2": "text", "qid": "title"}
    assert not recwarn.list


def test_lines_end_with_cr_too(tmp_path):
    (tmp_path / "a.tsv").write_bytes(b"1\ta\r2\tb\u2028c\r")
    assert list(read_texts(tmp_path / "a.tsv")) == ["1", "2"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"1\ta\0\n", r"a.tsv:1: a NUL character"),
        ("1\ta\n".encode("utf-16"), r"a.tsv:1: not UTF-8 text: byte 0xff. It is UTF-16 text"),
        (b"id\ttext\n", "has no text"),
        (b"\n\n", "is empty"),
    ],
)
def test_what_is_no_text_is_named(content, message, tmp_path):
    (tmp_path / "a.tsv").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_texts(tmp_path / "a.tsv")
