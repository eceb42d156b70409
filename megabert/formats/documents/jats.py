"""JATS (PMC full text): title, abstract, headings, paragraphs, captions and tables as passages, typed as in BioC-PMC.

References, formulas' markup and the back matter but acknowledgements and appendices are left out. Source: JATS 1.3.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any
from xml.etree import ElementTree

from .document import Document, passages_of
from .sources import ReadOptions
from .xml_records import flat_text, xml_records

FORMAT = "jats"
ROOTS = ("article", "pmc-articleset")
_PARAGRAPHS = frozenset(("p", "disp-quote", "verse-group", "def-list"))
_CAPTIONED = {"fig": "fig", "table-wrap": "table", "boxed-text": "boxed_text", "supplementary-material": "suppl"}
_SKIPPED = frozenset(("ref-list", "tex-math", "graphic", "media", "object-id", "alternatives"))
# Blocks within a paragraph, which are passages of their own.
_BLOCKS = frozenset((*_CAPTIONED, "list", "ref-list"))


def read(path: Path, file: IO[bytes], options: ReadOptions) -> Iterator[Document]:
    """Stream the articles of a file."""
    for number, record in enumerate(xml_records(path, file, ("article",)), start=1):
        meta = record.element.find("./front/article-meta")
        found = (
            {} if meta is None else {item.get("pub-id-type", ""): flat_text(item) for item in meta.iter("article-id")}
        )
        names = [found[kind] for kind in ("pmc", "pmcid", "pmid", "doi") if found.get(kind)]
        infons = {kind: value for kind, value in found.items() if kind and value}
        location = f"{path}:{record.line}"
        passages = passages_of(_passages(record.element))
        yield Document(names[0] if names else f"{path.stem}-{number}", passages, infons=infons, location=location)


def _passages(article: ElementTree.Element) -> Iterator[tuple[str, dict[str, Any]]]:
    title = article.find("./front/article-meta/title-group/article-title")
    yield flat_text(title), {"type": "title", "section_type": "TITLE"}
    for abstract in article.findall("./front/article-meta/abstract"):
        yield from _texts(abstract, "abstract", "ABSTRACT", 1)
    for part, section in (("./body", "BODY"), ("./back/ack", "ACK"), ("./back/app-group", "APPENDIX")):
        for element in article.findall(part):
            yield from _texts(element, "paragraph", section, 1)
    for element in article.findall("./floats-group"):
        yield from _texts(element, "paragraph", "FIG", 1)


def _texts(element: ElementTree.Element, kind: str, section: str, level: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Return headings, paragraphs and captions in their order."""
    for child in element:
        if not isinstance(child.tag, str) or child.tag in _SKIPPED:
            continue
        name = section
        if child.tag == "sec":
            name = (child.get("sec-type") or section).upper() if level == 1 else section
            yield from _texts(child, kind, name, level + 1)
        elif child.tag == "title":
            prefix = "abstract_" if kind == "abstract" else ""
            yield from _passage(flat_text(child), f"{prefix}title_{min(level, 6)}", section)
        elif child.tag in _CAPTIONED:
            yield from _captioned(child, _CAPTIONED[child.tag], section)
        elif child.tag in _PARAGRAPHS:
            yield from _passage(_without_blocks(child), kind, section)
            for block in child:
                if block.tag in _BLOCKS:
                    yield from _texts(_holder(block), kind, section, level)
        else:
            yield from _texts(child, kind, section, level)


def _holder(block: ElementTree.Element) -> ElementTree.Element:
    holder = ElementTree.Element("holder")
    holder.append(block)
    return holder


def _without_blocks(element: ElementTree.Element) -> str:
    parts = [element.text or ""]
    for child in element:
        if child.tag not in _BLOCKS and isinstance(child.tag, str):
            parts.append("".join(child.itertext()) if child.tag not in _SKIPPED else "")
        parts.append(child.tail or "")
    return " ".join("".join(parts).split())


def _captioned(element: ElementTree.Element, kind: str, section: str) -> Iterator[tuple[str, dict[str, Any]]]:
    label, caption = flat_text(element.find("label")), element.find("caption")
    parts = [label, *(flat_text(part) for part in (() if caption is None else caption))]
    yield from _passage(" ".join(part for part in parts if part), f"{kind}_caption", section)
    for row in element.iter("tr"):
        cells = [flat_text(cell) for cell in row if cell.tag in ("td", "th")]
        yield from _passage(" | ".join(cell for cell in cells if cell), "table", section)
    if kind == "boxed_text":
        inside = [child for child in element if child.tag not in ("label", "caption")]
        for child in inside:
            yield from _texts(_holder(child), "paragraph", section, 2)


def _passage(text: str, kind: str, section: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if text:
        yield text, {"type": kind, "section_type": section}
