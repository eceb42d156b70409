"""The check of the documentation site: broken links, missing headings and network addresses are found."""

import sys
from pathlib import Path

import pytest

pytest.importorskip("sphinx")
sys.path.insert(0, str(Path(__file__).parents[1] / "docs" / "site"))

from build_site import CONTENTS, ROOT, broken_links, loads_from_network
from reference import api_pages, commands_page, settings_page

from megabert.cli import COMMANDS
from megabert.config.listing import list_settings
from megabert.config.schema import Settings


def test_links_to_missing_pages_and_headings_are_found(tmp_path):
    (tmp_path / "a.html").write_text('<h1 id="top"><a href="b.html#here">b</a><a href="#top">top</a><img src="c.png">')
    (tmp_path / "b.html").write_text('<p id="there"><a href="https://example.org/x">x</a><a href="../d.html">d</a>')
    assert broken_links(tmp_path) == ["a.html: b.html#here", "a.html: c.png", "b.html: ../d.html"]


def test_pages_that_load_from_the_network_are_found(tmp_path):
    (tmp_path / "a.html").write_text('<a href="https://example.org">a link may</a><script src="local.js"></script>')
    assert loads_from_network(tmp_path) == []
    (tmp_path / "a.html").write_text('<script src="https://example.org/x.js"></script>')
    assert len(loads_from_network(tmp_path)) == 1


def test_every_page_of_the_contents_exists():
    for pattern in (name for names in CONTENTS.values() for name in names if not name.startswith("reference/")):
        assert list(ROOT.glob(pattern)), pattern


def test_reference_pages_have_every_setting_command_and_public_name():
    settings, commands, pages = settings_page(), commands_page(), api_pages()
    assert all(f"`{setting.key}`" in settings for setting in list_settings(Settings))
    assert all(f"## megabert {name}\n" in commands for name in COMMANDS)
    assert "### load_encoder" in pages["python"] and "#### Predictor.predict" in pages["python"]
    assert "### Encoder\n" in pages["python_model"] and "_Links" not in "".join(pages.values())
