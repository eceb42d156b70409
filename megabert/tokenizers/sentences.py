"""Rule-based sentence splitting for English prose and scientific text."""

import re

# Abbreviations after which a sentence seldom ends, without their last full stop.
ABBREVIATIONS = frozenset(
    """
    al approx ca cf ch co corp dept dr e.g ed eds eq eqs esp est etc ex fig figs gen gov i.e inc jr lt ltd m.d mr mrs ms
    no nos nr op p ph.d pp prof ref refs resp rev sec sen sgt sp spp sr st subsp suppl tab u.k u.s u.s.a var viz vol vs
    """.split()  # noqa: SIM905  (a list to be read and added to)
)
# Sentence-final marks, closing quotes and brackets, blanks, and the first characters of a sentence.
# Possessive, and only at the first of several marks: the time is linear for any text. It begins with a mark, which is
# what the engine looks for.
_BOUNDARY = re.compile(r"""(?P<mark>[.!?](?<![.!?]{2})[.!?]*+["'”’)\]]*+)\s++(?=["'“‘(\[]*+[A-Z0-9À-ÖØ-Þ@])""")
_LONGEST_ABBREVIATION = 32  # with the brackets and quotes before it


def split_sentences(text: str) -> list[tuple[int, int]]:
    """Split text into sentences, as [start, end) characters without surrounding blanks.

    A sentence ends at a full stop, question or exclamation mark before a blank and a capital letter or digit, but not
    after an abbreviation or an initial. Line ends are not boundaries.
    """
    starts = [0]
    for match in _BOUNDARY.finditer(text):
        before = text[max(starts[-1], match.start() - _LONGEST_ABBREVIATION) : match.start()]
        if not (match["mark"] == "." and _is_abbreviation(before)):
            starts.append(match.end())
    spans = []
    for start, end in zip(starts, [*starts[1:], len(text)], strict=True):
        piece = text[start:end]
        kept = start + len(piece) - len(piece.lstrip()), start + len(piece.rstrip())
        if kept[0] < kept[1]:
            spans.append(kept)
    return spans


def _is_abbreviation(before: str) -> bool:
    words = before.split()
    word = words[-1].lstrip("(['\"“‘") if words else ""
    return word.lower() in ABBREVIATIONS or (len(word) == 1 and word.isupper() and word != "I")
