"""Which files are read as lines of text."""

import pytest

from megabert.errors import InputError
from megabert.formats.text_lines import require_raw_text

OBJECT = '{"text": "a"}'


@pytest.mark.parametrize("lines", [[], ["", " "], ["a"], [OBJECT, "a"], ["a", OBJECT], ["{a}"]])
def test_texts_and_files_without_lines_are_no_json(lines, tmp_path):
    require_raw_text(tmp_path / "x.txt", lines)


@pytest.mark.parametrize("lines", [[OBJECT], ["", OBJECT], [OBJECT, OBJECT, "a"]])
def test_lines_of_json_are_no_texts(lines, tmp_path):
    with pytest.raises(InputError, match=r"has JSON objects, no lines of text\. Name it x\.jsonl"):
        require_raw_text(tmp_path / "x.txt", lines)
