"""Draw an annotated document as an SVG for light and dark pages: text, entities with types, relations below.

python docs/site/annotated_picture.py DOCUMENTS OUT.svg draws the first document of a file of any format.
"""

import sys
from collections.abc import Iterator
from html import escape
from pathlib import Path

from megabert.formats.documents.convert_documents import read_documents
from megabert.formats.documents.document import Document, Entity

COLUMNS, CHARACTER, LINE, MARGIN = 92, 7.8, 40, 16
# A hue for each type, in the order in which they occur.
HUES = (210, 25, 130, 290, 60, 340)
STYLE = """
text { font: 13px ui-monospace, Menlo, Consolas, monospace; fill: #1f2328 }
.type { font-size: 9px; font-weight: bold } .page { fill: #ffffff }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3 } .page { fill: #0d1117 } }
"""


def lines_of(text: str) -> Iterator[tuple[int, int]]:
    """Break a text at blanks and line ends: the first and last character of each line."""
    start = 0
    for paragraph in text.split("\n"):
        end = start + len(paragraph)
        while end - start > COLUMNS:
            blank = text.rfind(" ", start, start + COLUMNS + 1)
            stop = blank if blank > start else start + COLUMNS
            yield start, stop
            start = stop + (text[stop] == " ")
        yield start, end
        start = end + 1


def picture(document: Document) -> str:
    """Return the SVG."""
    types = list(dict.fromkeys(entity.type for entity in document.entities))
    hues = {kind: HUES[number % len(HUES)] for number, kind in enumerate(types)}
    text, parts, top = document.text(), list[str](), MARGIN
    for start, end in lines_of(text):
        for entity in document.entities:
            for first, last in entity.fragments:
                if max(first, start) < min(last, end):
                    parts.append(
                        _mark(entity, hues[entity.type], max(first, start) - start, min(last, end) - start, top)
                    )
        parts.append(_text(text[start:end], top))
        top += LINE
    named = {entity.id: entity for entity in document.entities}
    by_identifier = {name: entity for entity in reversed(document.entities) for name in entity.identifiers}
    for relation in document.relations:
        ends = [named.get(item.entity or "") or by_identifier.get(item.identifier or "") for item in relation.arguments]
        words = [end.text if end else item.identifier or "" for end, item in zip(ends, relation.arguments, strict=True)]
        parts.append(_text(f"{relation.type}: " + " \u2192 ".join(words), top))
        top += LINE // 2
    width, height = round(COLUMNS * CHARACTER + 2 * MARGIN), top + MARGIN
    colours = "".join(f".hue{hue} {{ fill: hsl({hue} 80% 45% / 0.25) }}\n" for hue in hues.values())
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">\n'
        f"<title>{escape(document.id)}</title><style>{STYLE}{colours}</style>\n"
        f'<rect class="page" width="{width}" height="{height}" rx="6"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _mark(entity: Entity, hue: int, first: int, last: int, top: float) -> str:
    left, width = MARGIN + first * CHARACTER, (last - first) * CHARACTER
    label = " ".join(filter(None, (entity.type, entity.identifier if entity.identifiers else "")))
    return (
        f'<rect class="hue{hue}" x="{left:.1f}" y="{top + 10}" width="{width:.1f}" height="18" rx="3"/>'
        f'<text class="type" x="{left:.1f}" y="{top + 7}">{escape(label)}</text>'
    )


def _text(text: str, top: float) -> str:
    length = f'textLength="{len(text) * CHARACTER:.1f}"' if text else ""
    return f'<text x="{MARGIN}" y="{top + 23}" xml:space="preserve" {length}>{escape(text)}</text>'


if __name__ == "__main__":
    source, output = sys.argv[1:]
    Path(output).write_text(picture(next(read_documents([source]))), encoding="utf-8")
