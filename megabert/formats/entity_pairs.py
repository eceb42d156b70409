"""Sentences with a pair of entities, as TACRED and OpenNRE write them, to text, head and tail in characters.

TACRED, and corpora in its form (Re-TACRED, SemEval): `token`, a list of words; `subj_start` and `subj_end`, numbers of
words from 0, the end inclusive; `subj_type`; the same of `obj_`; `relation`. OpenNRE: `token`, or `text`; `h` and `t`
with `pos`, numbers of words (of a text characters), the end exclusive; `relation`. Sources: Zhang et al. 2017
(aclanthology.org/D17-1004); Han et al. 2019 (aclanthology.org/D19-3029).
"""

from collections.abc import Sequence
from typing import Any

from ..errors import InputError
from .rows import Row

_PARSES = ("stanford_pos", "stanford_ner", "stanford_head", "stanford_deprel")


def entity_pair(row: Row) -> Row:
    """Return a row with `text`, `head`, `tail` and `label` in place of those of TACRED or OpenNRE; others stay."""
    if "token" in row.values and "subj_start" in row.values and "obj_start" in row.values:
        entities = {role: _of_tacred(row, name) for role, name in (("head", "subj"), ("tail", "obj"))}
        names = [f"{name}_{part}" for name in ("subj", "obj") for part in ("start", "end", "type")]
        return _converted(row, entities, *names, *_PARSES)
    # Columns of a table may have these names, too.
    if "h" in row.values and "t" in row.values and ("token" in row.values or isinstance(row.values["h"], dict)):
        return _converted(
            row, {role: _of_opennre(row, name) for role, name in (("head", "h"), ("tail", "t"))}, "h", "t"
        )
    return row


def _converted(row: Row, entities: dict[str, dict[str, Any]], *names: str) -> Row:
    values = row.others("token", "relation", *names)
    if "token" in row.values:
        values["text"] = " ".join(row.strings("token"))
    if "relation" in row.values:
        values["label"] = row.values["relation"]
    return Row(values | entities, row.location)


def _of_tacred(row: Row, name: str) -> dict[str, Any]:
    start, end = row.get(f"{name}_start"), row.get(f"{name}_end")
    given = {"type": row.values.get(f"{name}_type")}
    return given | _characters(row, (start, end + 1 if isinstance(end, int) else end), f"{name}_start and {name}_end")


def _of_opennre(row: Row, name: str) -> dict[str, Any]:
    given = row.get(name)
    place = given.get("pos") if isinstance(given, dict) else None
    if not isinstance(place, list) or len(place) != 2:
        raise InputError(f"{row.location}: {name} is {str(given)[:60]}; expected an object with pos, start and end.")
    kind = {"type": given.get("type")}
    if "token" in row.values:
        return kind | _characters(row, place, f"pos of {name}")
    return kind | {"start": place[0], "end": place[1], "text": given.get("name")}


def _characters(row: Row, place: Sequence[Any], name: str) -> dict[str, int]:
    """Return the characters of words [start, end) in the words joined by blanks."""
    words = row.strings("token")
    start, end = place
    if not (isinstance(start, int) and isinstance(end, int) and 0 <= start < end <= len(words)):
        raise InputError(f"{row.location}: {name} are no words of the {len(words)} of token, counted from 0.")
    first = sum(len(word) + 1 for word in words[:start])
    return {"start": first, "end": first + len(" ".join(words[start:end]))}
