"""The formats of documents by name, and which of them a file has: by its ending, and where this is open, its start."""

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from xml.parsers import expat

from ...errors import ConfigError, InputError
from . import (
    bioc_json,
    bioc_xml,
    brat,
    conll_columns,
    doccano,
    document_lines,
    i2b2,
    jats,
    label_studio,
    mention_table,
    pair_xml,
    plain_text,
    pubmed_xml,
    pubtator,
    row_documents,
)
from .document import Document
from .losses import Losses
from .sources import ReadOptions, has_ending, peek

Reader = Callable[[Path, IO[bytes], ReadOptions], Iterator[Document]]


@dataclass(frozen=True)
class DocumentFormat:
    """A format: how it is read and written; None where it is not.

    Formats of one stream write `head`, documents with `separator` between, `tail`; others a few files a document.
    """

    name: str
    endings: tuple[str, ...]
    read: Reader | None = None
    render: Callable[[Document, Losses], bytes] | None = None
    files: Callable[[Document, Losses], dict[str, bytes]] | None = None
    head: Callable[[Document | None], bytes] = lambda _: b""
    separator: bytes = b""
    tail: bytes = b""


FORMATS = {
    item.name: item
    for item in (
        DocumentFormat("pubtator", (".pubtator", ".pubtator.txt"), pubtator.read, pubtator.render),
        DocumentFormat(
            "bioc",
            (".bioc.xml", ".bioc", ".biocxml"),
            bioc_xml.read,
            bioc_xml.render,
            head=bioc_xml.head,
            tail=bioc_xml.TAIL,
        ),
        DocumentFormat(
            "bioc-json",
            (".bioc.json", ".biocjson"),
            bioc_json.read,
            bioc_json.render,
            head=bioc_json.head,
            separator=bioc_json.SEPARATOR,
            tail=bioc_json.TAIL,
        ),
        DocumentFormat("brat", brat.ANNOTATION_ENDINGS, brat.read, files=brat.files),
        DocumentFormat("jsonl", (".jsonl", ".ndjson"), document_lines.read, document_lines.render),
        DocumentFormat("doccano", (".doccano.jsonl",), document_lines.read, doccano.render),
        DocumentFormat(
            "label-studio",
            (".label-studio.json",),
            label_studio.read,
            label_studio.render,
            head=label_studio.head,
            separator=label_studio.SEPARATOR,
            tail=label_studio.TAIL,
        ),
        DocumentFormat("pubmed", (".pubmed.xml",), pubmed_xml.read),
        DocumentFormat("jats", (".nxml", ".jats.xml"), jats.read),
        DocumentFormat("i2b2", (i2b2.ENDING,), i2b2.read),
        DocumentFormat("pair-xml", (".pairs.xml",), pair_xml.read),
        DocumentFormat("text", (".txt",), plain_text.read, files=plain_text.files),
        DocumentFormat("csv", (".csv",), row_documents.read_csv, mention_table.render, head=mention_table.head),
        DocumentFormat("tsv", (".tsv",), row_documents.read_tsv),
        DocumentFormat("parquet", (".parquet",), row_documents.read_parquet),
        DocumentFormat("conll", (".conll", ".iob"), None, conll_columns.render),
    )
}
WRITABLE = tuple(name for name, item in FORMATS.items() if item.render or item.files or name == "parquet")
READABLE = tuple(name for name, item in FORMATS.items() if item.read)
INPUT_ENDINGS = (
    *(ending for item in FORMATS.values() if item.read for ending in item.endings),
    ".xml",
    ".json",
)
# Endings of documents alone, for settings that take other data, too.
_DOCUMENT_ENDINGS = (".pubtator", ".pubtator.txt", ".bioc.xml", ".bioc", ".biocxml", ".bioc.json", ".biocjson",
                     ".doccano.jsonl", ".label-studio.json", ".documents.jsonl", ".pairs.xml",
                     ".ann", ".a1", ".a2", ".con")  # fmt: skip

_OTHER_TEXT = {
    rb"#FORMAT=WebAnno": "is WebAnno's and INCEpTION's TSV, which is not read. Export brat, BioC or CoNLL 2003.",
    rb"\s*PMID- *\d": "is PubMed's own text format, which is not read. Save the records as XML (efetch -format xml).",
    rb"[^|\s]+\t\d+\t\d+\t[^\t\n]+\t\w": "has mentions in PubTator's lines without their texts (ID|t|TITLE).",
}
_EXPORTS = "Export BioC, brat, PubTator, or JSON lines with text and spans"
_OTHER_FILES = {
    ".spacy": "is spaCy's DocBin, which is not read", ".xmi": "is a UIMA CAS, which is not read",
    "xmi:XMI": "is a UIMA CAS, which is not read", "GateDocument": "is GATE's XML, which is not read",
    "annotations": "is Knowtator's XML, which is not read",
}  # fmt: skip
"""By ending or by root element."""
# What a file of these formats' endings may have instead.
_ALSO = {"text": ("pubtator",), "jsonl": ("bioc-json",)}


def is_document_path(path: Path) -> bool:
    """Whether a path is one of annotated documents: an ending that only these have, or a folder of brat's or i2b2's."""
    if path.is_dir():
        return any(any(path.glob(pattern)) for pattern in ("*.ann", "*.a1", "*.con", "*/*.con"))
    return has_ending(path, _DOCUMENT_ENDINGS)


def is_pubtator(start: bytes) -> bool:
    """Whether a file that starts so has documents in PubTator's format."""
    return re.match(rb"[^|\t\r\n]+\|(t|title)\|", start) is not None


def find_format(name: str) -> DocumentFormat:
    """Return a format by its name."""
    if name not in FORMATS:
        raise ConfigError(f"{name} is no format of documents; there are {', '.join(FORMATS)}.")
    return FORMATS[name]


def format_by_ending(path: Path) -> DocumentFormat | None:
    """Return the format of the longest ending that a name has."""
    endings = [(end, item) for item in FORMATS.values() for end in item.endings if has_ending(path, (end,))]
    return max(endings, key=lambda found: len(found[0]))[1] if endings else None


def detect_format(path: Path, file: IO[bytes]) -> DocumentFormat:
    """Find out which format an opened file has; the ending decides, and the content where several have it."""
    by_ending = format_by_ending(path)
    if by_ending is not None and by_ending.name == "tsv":
        _refuse_other_text(path, peek(file))
    if by_ending is not None and by_ending.name not in _ALSO:
        return by_ending
    if by_ending is not None and any(path.with_suffix(end).is_file() for end in brat.ANNOTATION_ENDINGS):
        return FORMATS["brat"]
    if by_ending is not None and by_ending.name == "text" and path.with_suffix(i2b2.ENDING).is_file():
        return FORMATS["i2b2"]
    start = peek(file)
    found = _by_content(start)
    if by_ending is not None and by_ending.name == "text":
        _refuse_other_text(path, start)
    if by_ending is not None and found not in _ALSO[by_ending.name]:
        found = by_ending.name
    if found is None:
        root = _root_name(start) if start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<") else None
        what = _OTHER_FILES.get(root or path.suffix.lower(), "shows its format neither by name nor by content")
        raise InputError(f"{path} {what}{f' (<{root}>)' if root else ''}. {_EXPORTS}, or name it: --input-format.")
    return FORMATS[found]


def _refuse_other_text(path: Path, start: bytes) -> None:
    """Raise InputError where a .txt or .tsv file is neither what its ending says nor read."""
    for pattern, reason in _OTHER_TEXT.items():
        if re.match(pattern, start):
            raise InputError(f"{path} {reason} As plain text all the same: --input-format text.")


def _by_content(start: bytes) -> str | None:
    content = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    if content.startswith(b"<"):
        return {
            "collection": "bioc",
            **dict.fromkeys(pubmed_xml.ROOTS, "pubmed"),
            **dict.fromkeys(jats.ROOTS, "jats"),
            **dict.fromkeys(pair_xml.ROOTS, "pair-xml"),
        }.get(_root_name(content) or "")
    if content[:1] in (b"{", b"["):
        return _json_format(content)
    if is_pubtator(content):
        return "pubtator"
    return None


def _root_name(content: bytes) -> str | None:
    """Return the name of the root element of the start of an XML file."""
    names: list[str] = []
    parser = expat.ParserCreate()
    parser.StartElementHandler = lambda name, _: names.append(name)
    with suppress(expat.ExpatError):  # its reader has the message
        parser.Parse(content, False)
    return names[0] if names else None


def _json_format(content: bytes) -> str:
    keys = set(re.findall(rb'"(\w+)"\s*:', content))
    if b"passages" in keys and b"offsets" in keys:  # BigBio
        return "jsonl"
    if b"passages" in keys or b"documents" in keys or b"PubTator3" in keys:
        has_annotations = b"annotations" in keys or b"sentences" in keys or b"documents" in keys
        return "bioc-json" if has_annotations or content.startswith(b"[") else "jsonl"
    if b"data" in keys and keys & {b"annotations", b"predictions", b"result"}:
        return "label-studio"
    return "jsonl"
