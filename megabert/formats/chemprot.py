"""BioCreative VI's ChemProt corpus: its three files to one row per chemical-gene pair.

The files are tab-separated without header: abstracts (article, title, abstract), entities (article, T1, type, start,
end, text; characters of title, one blank and abstract) and relations (article, CPR:3, Y or N, name, Arg1:T1, Arg2:T2).
Source: Krallinger et al. 2017, "Overview of the BioCreative VI chemical-protein interaction track".
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..tokenizers.sentences import split_sentences
from .tables import split_rows

NEGATIVE = "false"


@dataclass(frozen=True)
class _Mention:
    name: str
    is_chemical: bool
    start: int
    end: int


@dataclass(frozen=True)
class Corpus:
    """The rows of chemical-gene pairs, and notes for the user about them."""

    rows: list[dict[str, Any]]
    notes: list[str]


def read_chemprot(abstracts: Path, entities: Path, relations: Path | None) -> Corpus:
    """Make a row of each chemical and gene in one sentence, and of each related pair in any sentences.

    A row has `text`, `head` (the chemical) and `tail` (the gene) as characters in it, and `label`: the group of an
    evaluated relation (CPR:3, 4, 5, 6, 9), else "false"; without relations there is no label.
    Raises InputError with file and line for rows that do not fit the format, and for mentions whose text differs.
    """
    texts: dict[str, str] = {}
    for (article, title, abstract), location in _rows(abstracts, 3):
        if article in texts:
            raise InputError(f"{location}: article {article} appears twice. Keep it once.")
        texts[article] = f"{title} {abstract}"
    mentions = _read_mentions(entities, texts)
    labels = {} if relations is None else _read_relations(relations, mentions)
    rows: list[dict[str, Any]] = []
    num_distant = 0
    for article, text in texts.items():
        in_article = list(mentions.get(article, {}).values())
        sentences = _split_around_mentions(text, in_article)
        for chemical, gene in _pairs(in_article):
            label = labels.get((article, chemical.name, gene.name), [])
            start, end = _enclosing_sentences(sentences, chemical, gene)
            is_distant = (start, end) not in sentences
            num_distant += is_distant and bool(label)
            if is_distant and not label:
                continue
            row = {
                "id": f"{article}.{chemical.name}.{gene.name}",
                "text": text[start:end],
                "head": {"start": chemical.start - start, "end": chemical.end - start, "type": "CHEMICAL"},
                "tail": {"start": gene.start - start, "end": gene.end - start, "type": "GENE"},
            }
            rows.append(row if relations is None else row | {"label": label[0] if label else NEGATIVE})
    num_ambiguous = sum(len(set(groups)) > 1 for groups in labels.values())
    notes = [f"{len(texts)} articles, {len(rows)} pairs of a chemical and a gene."]
    if num_distant:
        notes.append(
            f"{num_distant} related pairs are in different sentences; their rows include the sentences between."
        )
    if num_ambiguous:
        notes.append(f"{num_ambiguous} pairs have relations of several groups; the first of each is used.")
    return Corpus(rows, notes)


def _rows(path: Path, width: int) -> Iterator[tuple[list[str], str]]:
    for fields, location in split_rows(path):
        if len(fields) != width:
            raise InputError(f"{location}: {len(fields)} columns where ChemProt's file has {width}. Is it that file?")
        yield fields, location


def _read_mentions(path: Path, texts: Mapping[str, str]) -> dict[str, dict[str, _Mention]]:
    mentions: dict[str, dict[str, _Mention]] = {}
    for (article, name, kind, start, end, mention), location in _rows(path, 6):
        if article not in texts:
            raise InputError(f"{location}: article {article} is not among the abstracts. Give the files of one set.")
        if not (start.isdecimal() and end.isdecimal()) or texts[article][int(start) : int(end)] != mention:
            raise InputError(f"{location}: {mention!r} is not at characters {start} to {end} of article {article}.")
        if name in mentions.setdefault(article, {}):
            raise InputError(f"{location}: {name} appears twice in article {article}. Keep it once.")
        if kind != "CHEMICAL" and not kind.startswith("GENE"):
            raise InputError(f"{location}: the type {kind!r} is neither CHEMICAL nor GENE-Y or GENE-N.")
        mentions[article][name] = _Mention(name, kind == "CHEMICAL", int(start), int(end))
    return mentions


def _read_relations(
    path: Path, mentions: Mapping[str, Mapping[str, _Mention]]
) -> dict[tuple[str, str, str], list[str]]:
    """Map article, chemical and gene to the evaluated groups of their relations."""
    groups: dict[tuple[str, str, str], list[str]] = {}
    for (article, group, is_evaluated, _, first, second), location in _rows(path, 6):
        names = [argument.partition(":")[2] for argument in (first, second)]
        in_article = mentions.get(article, {})
        unknown = [name for name in names if name not in in_article]
        if unknown:
            raise InputError(f"{location}: article {article} has no entity {unknown[0]!r}. Give the files of one set.")
        if in_article[names[1]].is_chemical:
            names.reverse()
        if is_evaluated.strip() == "Y":
            groups.setdefault((article, names[0], names[1]), []).append(group)
    return groups


def _pairs(mentions: Sequence[_Mention]) -> Iterator[tuple[_Mention, _Mention]]:
    for chemical in mentions:
        for gene in mentions:
            if chemical.is_chemical and not gene.is_chemical:
                yield chemical, gene


def _split_around_mentions(text: str, mentions: Sequence[_Mention]) -> list[tuple[int, int]]:
    """Split a text into sentences, joining two whose boundary would be inside a mention."""
    sentences: list[tuple[int, int]] = []
    for start, end in split_sentences(text):
        cuts = sentences and any(item.start < sentences[-1][1] and item.end > start for item in mentions)
        sentences[-1:] = [(sentences[-1][0], end)] if cuts else [*sentences[-1:], (start, end)]
    return sentences


def _enclosing_sentences(sentences: Sequence[tuple[int, int]], first: _Mention, second: _Mention) -> tuple[int, int]:
    inside = [(start, end) for start, end in sentences if any(start <= item.start < end for item in (first, second))]
    return inside[0][0], inside[-1][1]
