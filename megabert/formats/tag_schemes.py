"""Tagging schemes: recognize IOB1, IOB2, IOBES, BILOU, BMES and their spellings, and convert tags to IOB2."""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from ..errors import InputError
from ..metrics import tagging

# The letters of all schemes as those of IOBES: last and unit of BILOU, middle of BMES, whole of BMEWO.
MAX_SEEN = 2**16
LETTERS = {"B": "B", "I": "I", "E": "E", "S": "S", "L": "E", "U": "S", "M": "I", "W": "S"}


@dataclass(frozen=True)
class TagScheme:
    """A spelling of tags; `pattern` has the groups `letter` and `type`."""

    name: str
    pattern: re.Pattern[str]
    opens: re.Pattern[str]
    """One of the tags must match it, so that labels such as e-mail are not read as tags."""

    def is_tag(self, tag: str) -> bool:
        """Return whether a tag is spelled so; the outside tag is not."""
        return self.pattern.fullmatch(tag) is not None

    def standard(self, tag: str) -> str:
        """Convert a tag to IOBES with the letter first; a tag without a type has the type _."""
        match = self.pattern.fullmatch(tag)
        return tag if match is None else f"{LETTERS[match['letter'].upper()]}-{match['type'] or '_'}"


PREFIX = TagScheme("prefix", re.compile(r"(?P<letter>[BIESLUMW])(-(?P<type>.+))?"), re.compile(r"[BI]|[BISU]-.+"))
LOWER_CASE = TagScheme(
    "prefix in lower case", re.compile(r"(?P<letter>[bieslumw])-(?P<type>.+)"), re.compile("[bi]-.+")
)
SCHEMES = (
    PREFIX,
    LOWER_CASE,
    TagScheme("suffix", re.compile(r"(?P<type>.+)-(?P<letter>[BIESLUMW])"), re.compile(".+-[BI]")),
)


def find_scheme(tags: Iterable[str], outside: str) -> TagScheme | None:
    """Find the scheme that all tags have but the outside one; also where some begin with B- or I-. None: no scheme."""
    possible, opened, is_entity = list(SCHEMES), set(), False
    for tag in _distinct(tags):
        if tag != outside:
            possible = [item for item in possible if item.is_tag(tag) or (item is LOWER_CASE and tag == "o")]
            opened |= {item.name for item in possible if item.opens.fullmatch(tag)}
            is_entity = is_entity or is_entity_tag(tag)
    found = next((scheme for scheme in possible if scheme.name in opened), None)
    return PREFIX if found is None and is_entity else found


def _distinct(values: Iterable[str]) -> Iterator[str]:
    """Leave out values that were among the last distinct ones; any number of them takes bounded memory."""
    seen: set[str] = set()
    for value in values:
        if value not in seen:
            if len(seen) == MAX_SEEN:
                seen.clear()
            seen.add(value)
            yield value


def other_scheme(labels: Collection[str], outside: str) -> TagScheme | None:
    """Return the scheme of a head's labels if it is neither IOB2 nor IOB1, such as IOBES, else None."""
    scheme = find_scheme(labels, outside)
    inside = set(labels) - {outside}
    if scheme is None or not all(map(scheme.is_tag, inside)):
        return None
    is_iob = all(map(is_entity_tag, inside)) and any(label.startswith("B-") for label in inside)
    return None if is_iob else scheme


def is_entity_tag(tag: str) -> bool:
    """Return whether a tag is an IOB2 tag other than the outside one."""
    return tag[:2] in ("B-", "I-")


def standard_tags(tags: Sequence[str], scheme: TagScheme | None, outside: str, location: str) -> tuple[str, ...]:
    """Convert tags to IOBES; raises InputError for one of another kind. Without a scheme they stay as they are."""
    if scheme is None:
        return tuple(tags)
    converted = [_standard(scheme.name, tag, outside) for tag in tags]
    if None in converted:
        tag = tags[converted.index(None)]
        setting = f"\"'{tag}'\"" if tag.lower() in ("null", "true", "false") else tag
        raise InputError(
            f"{location}: the tag {tag!r} is neither {outside} nor one such as B-TYPE or I-TYPE. If it stands for "
            f"words outside, set model.dataset.pad_label={setting}."
        )
    return tuple(tag for tag in converted if tag is not None)


def are_tags(values: Iterable[str], scheme: TagScheme, outside: str) -> bool:
    """Return whether `standard_tags` converts all values."""
    return all(_standard(scheme.name, value, outside) is not None for value in values)


@lru_cache(maxsize=2**12)
def _standard(name: str, tag: str, outside: str) -> str | None:
    """Convert a tag of the scheme with a name to IOBES; None for one of another kind."""
    scheme = next(scheme for scheme in SCHEMES if scheme.name == name)
    if tag == outside or (scheme is LOWER_CASE and tag == "o" and not scheme.is_tag(tag)):
        return outside
    return scheme.standard(tag) if scheme.is_tag(tag) else None


def to_iob2(tags: Sequence[str], scheme: TagScheme | None, outside: str, location: str) -> tuple[str, ...]:
    """Convert tags to IOB2, as `standard_tags` does."""
    if scheme is None or tags.count(outside) == len(tags):
        return tuple(tags)
    converted = [outside] * len(tags)
    for kind, start, end in tagging.entities(standard_tags(tags, scheme, outside, location)):
        converted[start:end] = [f"B-{kind}", *[f"I-{kind}"] * (end - start - 1)]
    return tuple(converted)


def chosen_tags(tags: Sequence[str], types: Mapping[str, str], outside: str) -> tuple[str, ...]:
    """Rename the types of tags in IOB2 (* is any other, new names stay); words of no chosen type are outside."""

    def renamed(tag: str) -> str:
        kind = types.get(tag[2:], tag[2:] if tag[2:] in types.values() else types.get("*"))
        return tag if not is_entity_tag(tag) else outside if kind is None else f"{tag[:2]}{kind}"

    return tuple(map(renamed, tags)) if types else tuple(tags)


def single_word_tags(tags: Sequence[str], outside: str) -> tuple[str, ...]:
    """Convert tags without prefixes so that each word with one is an entity, as conlleval's option -r does."""
    return tuple(tag if tag == outside else f"B-{tag}" for tag in tags)


def add_prefixes(tags: Sequence[str], outside: str) -> tuple[str, ...]:
    """Convert slots without B- and I- to IOB2: equal neighbours are one slot."""
    before = [outside, *tags[:-1]]
    return tuple(
        tag if tag == outside else f"{'I' if tag == last else 'B'}-{tag}"
        for tag, last in zip(tags, before, strict=True)
    )


def has_entities(labels: Collection[str], outside: str) -> bool:
    """Return whether labels mark entities of several words; if not, each word with a label stands for itself."""
    inside = set(labels) - {outside}
    return not inside or any(map(is_entity_tag, inside))
