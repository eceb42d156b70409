"""PubMed and MEDLINE XML: title and abstracts of each citation; structured abstracts, inline markup, other languages.

The last version of a PMID wins, over all files in their order, and DeleteCitation removes one: `Versions`, made in a
first pass, has the place of each PMID's last version. Source: NLM's pubmed_190101.dtd and later.
"""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any
from xml.etree import ElementTree

from .document import Document, passages_of
from .sources import ReadOptions
from .xml_records import XmlRecord, flat_text, xml_records

FORMAT = "pubmed"
ROOTS = ("PubmedArticleSet", "MedlineCitationSet", "PubmedArticle", "MedlineCitation")
RECORDS = ("PubmedArticle", "MedlineCitation", "PubmedBookArticle", "BookDocument", "DeleteCitation")


@dataclass
class Versions:
    """Of each PMID the version and number of the citation that wins, in pages of an array: 9 bytes a PMID."""

    pages: "dict[int, array[int]]" = field(default_factory=dict)
    num_read: int = 0
    num_replaced: int = 0
    num_deleted: int = 0

    def add(self, path: Path, file: IO[bytes]) -> None:
        """Read a file's PMIDs; files are given in the order in which they are read afterwards."""
        for record in xml_records(path, file, RECORDS):
            if record.element.tag == "DeleteCitation":
                for element in record.element.iter("PMID"):
                    self._delete(_number(element))
                continue
            self.num_read += 1
            number, version = _pmid(record.element)
            if number is None:
                continue
            page, index = self._place(number)
            self.num_replaced += page[index] > 0
            page[index] = max(page[index], version << 40 | self.num_read)

    def _place(self, number: int) -> "tuple[array[int], int]":
        if number >> 8 not in self.pages:
            self.pages[number >> 8] = array("Q", bytes(8 * 256))
        return self.pages[number >> 8], number & 255

    def _delete(self, number: int | None) -> None:
        if number is not None:
            page, index = self._place(number)
            self.num_deleted += page[index] > 0
            page[index] = 0

    def wins(self, number: int | None, order: int) -> bool:
        """Whether the citation that was read as the order-th is the one that stands."""
        if number is None:
            return True
        page, index = self._place(number)
        return page[index] & (2**40 - 1) == order


def _number(element: ElementTree.Element | None) -> int | None:
    text = "" if element is None else (element.text or "").strip()
    return int(text) if text.isdecimal() and len(text) <= 9 else None


def _pmid(element: ElementTree.Element) -> tuple[int | None, int]:
    found = element.find("PMID") if element.tag == "MedlineCitation" else element.find("./*/PMID")
    version = "1" if found is None else found.get("Version", "1")
    return _number(found), int(version) if version.isdecimal() and len(version) < 6 else 1


def read(path: Path, file: IO[bytes], options: ReadOptions, versions: Versions | None = None) -> Iterator[Document]:
    """Stream the citations of a file; with `versions`, whose count goes on, only those that win."""
    for record in xml_records(path, file, RECORDS):
        if record.element.tag == "DeleteCitation":
            continue
        if versions is not None:
            versions.num_read += 1
            if not versions.wins(_pmid(record.element)[0], versions.num_read):
                continue
        document = _document(record, path)
        if document.id:
            yield document
        else:
            options.faults(f"{document.location}: a citation without a PMID.")


def _document(record: XmlRecord, path: Path) -> Document:
    root = record.element
    citation = root if root.tag in ("MedlineCitation", "BookDocument") else root[0] if len(root) else root
    found = citation.find("PMID")
    article = citation.find("Article")
    article = citation if article is None else article
    infons = {key: text for key, text in _infons(citation, article, root) if text}
    return Document(
        "" if found is None else (found.text or "").strip(),
        passages_of(_texts(citation, article)),
        infons=infons,
        location=f"{path}:{record.line}",
    )


def _texts(citation: ElementTree.Element, article: ElementTree.Element) -> Iterator[tuple[str, dict[str, Any]]]:
    title = flat_text(article.find("ArticleTitle"))
    yield title, {"type": "title"}
    vernacular = flat_text(article.find("VernacularTitle"))
    if vernacular:
        yield vernacular, {"type": "vernacular title"}
    yield from _abstract(article.find("Abstract"), {"type": "abstract"})
    for other in citation.iter("OtherAbstract"):
        kinds = {"type": "other abstract", "source": other.get("Type", ""), "language": other.get("Language", "")}
        yield from _abstract(other, {key: value for key, value in kinds.items() if value})


def _abstract(abstract: ElementTree.Element | None, infons: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Return the parts of an abstract; a label is written before its text, as in PubMed and PubTator."""
    for part in () if abstract is None else abstract.iter("AbstractText"):
        label, text = part.get("Label", ""), flat_text(part)
        if text:
            more = {"label": label} if label else {}
            yield f"{label}: {text}" if label else text, infons | more


def _infons(
    citation: ElementTree.Element, article: ElementTree.Element, root: ElementTree.Element
) -> Iterator[tuple[str, str]]:
    yield "journal", flat_text(article.find("./Journal/Title"))
    date = article.find("./Journal/JournalIssue/PubDate")
    if date is not None:
        yield "year", flat_text(date.find("Year")) or flat_text(date.find("MedlineDate"))[:4]
    for identifier in root.findall("./PubmedData/ArticleIdList/ArticleId"):
        if identifier.get("IdType") in ("doi", "pmc"):
            yield str(identifier.get("IdType")), flat_text(identifier)
    yield "language", flat_text(article.find("Language"))


def read_texts(path: Path, file: IO[bytes], max_bytes: int, remedy: str) -> Iterator[str]:
    """Stream title and abstract of each citation, those without a PMID included, as a corpus for pre-training."""
    for record in xml_records(path, file, RECORDS, max_bytes, remedy):
        if record.element.tag != "DeleteCitation" and (texts := _plain_texts(_document(record, path))):
            yield "\n".join(texts)


def _plain_texts(document: Document) -> Sequence[str]:
    """Return title and abstract without labels and other languages."""
    kept = [passage for passage in document.passages if passage.infons["type"] in ("title", "abstract")]
    labels = [f"{passage.infons['label']}: " if "label" in passage.infons else "" for passage in kept]
    return [passage.text.removeprefix(label) for passage, label in zip(kept, labels, strict=True) if passage.text]
