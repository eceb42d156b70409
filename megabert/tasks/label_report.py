"""Report of the labels of a training: their counts, and warnings about labels that look like something else."""

import re
import unicodedata
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

MAX_SHOWN, MAX_LENGTH = 20, 40
# So many labels of one or two examples each are texts or identifiers rather than classes.
MIN_LABELS, MAX_SHARE = 5, 0.5
MAX_WORDS = 2
_HEADER = (
    "label labels gold_label class category target sentiment intent slot relation tag tags ner ner_tag ner_tags pos "
    "text sentence word token words tokens"
)
HEADER_WORDS = frozenset(_HEADER.split())


@dataclass(frozen=True)
class LabelReport:
    """Number of examples or words of each label, by kind of label, most frequent first; warnings about them."""

    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @classmethod
    def from_document(cls, values: Mapping[str, Any]) -> "LabelReport":
        """Read what `to_document` returned."""
        return cls(values["counts"], tuple(values["warnings"]))

    def to_document(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self) | {"warnings": list(self.warnings)}

    def lines(self) -> list[str]:
        """Format the counts, a line for each kind, and the warnings."""
        lines = []
        for kind, counts in self.counts.items():
            shown = [f"{_short(label)} {count:,}" for label, count in list(counts.items())[:MAX_SHOWN]]
            more = len(counts) - len(shown)
            lines.append(f"Labels ({kind}, {len(counts)}): {', '.join(shown)}{f', and {more} more' if more else ''}")
        return lines + [f"WARNING: {warning}" for warning in self.warnings]


def label_warnings(
    kind: str, counts: Mapping[str, int], outside: str | None, words: Collection[str] | None
) -> list[str]:
    """Warn about labels of one kind; `words` are those that the data's words are, None where words have no labels."""
    labels = [label for label in counts if label != outside]
    total = sum(counts[label] for label in labels)
    warnings = []
    if len(labels) >= MIN_LABELS and len(labels) > MAX_SHARE * total:
        warnings.append(f"{len(labels)} different labels ({kind}) for {total} of them. Are they texts or ids?")
    if sum(len(label.split()) > MAX_WORDS for label in labels) > MAX_SHARE * max(len(labels), 2):
        warnings.append(f"the labels ({kind}) are texts: {_list(labels)}. Is this the column of labels?")
    if words is not None and sum(label in words for label in labels) > MAX_SHARE * max(len(labels), 2):
        warnings.append(f"the labels ({kind}) are words of the data: {_list(labels)}. Are the columns swapped?")
    if labels and all(map(_is_number, labels)) and (words is not None or any("." in label for label in labels)):
        more = " Values to be predicted as such: model.dataset.problem=regression." if words is None else ""
        warnings.append(f"the labels ({kind}) are numbers: {_list(labels)}. Is this the column of labels?{more}")
    headers = [label for label in labels if label.lower() in HEADER_WORDS and counts[label] == 1 and len(labels) > 1]
    if headers:
        warnings.append(f"the label {headers[0]!r} ({kind}) occurs once. Is it a header line? Remove it.")
    joined = [label for label in labels if len(parts := _parts(label)) > 1 and parts <= set(labels)]
    if joined:
        warnings.append(
            f"the label {joined[0]!r} ({kind}) joins others. Several labels (model.dataset.problem=multi_label) are "
            "separated by commas, or a JSON list."
        )
    for names in _look_alikes(labels):
        shown = ", ".join(f"{name!r} ({counts[name]:,})" for name in names)
        warnings.append(f"labels ({kind}) that look alike are different labels: {shown}. Write them in one way.")
    return warnings


def _parts(label: str) -> set[str]:
    return {part.strip() for part in re.split("[;|]", label)}


def _look_alikes(labels: Collection[str]) -> list[list[str]]:
    """Group labels that differ in case, white space, punctuation, width or the spelling of a number only."""
    groups: dict[str, list[str]] = {}
    for label in labels:
        plain = unicodedata.normalize("NFKC", label).casefold()
        letters = "".join(letter for letter in plain if letter.isalnum() or letter in "+-.#")
        key = str(float(plain)) if _is_number(plain) else letters
        groups.setdefault(key, []).append(label)
    return [names for key, names in groups.items() if len(names) > 1 and key]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _short(label: str) -> str:
    shown = label if label.isprintable() and label == label.strip() and "," not in label[1:] else repr(label)
    return shown if len(shown) <= MAX_LENGTH else f"{shown[:MAX_LENGTH]}..."


def _list(labels: Collection[str]) -> str:
    return ", ".join(_short(label) for label in list(labels)[:MIN_LABELS])
