"""The scores of linking: documents with identifiers, or candidates of mentions."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigError, InputError


def score_linking(gold: Path, predictions: Path, words: Sequence[str]) -> dict[str, Any]:
    """Score documents with identifiers, or the candidates that `megabert link --mentions GOLD` wrote.

    Settings: type=TYPE[,TYPE] of mentions; train=FILE for scores of unseen ones; dictionary=DICT, whose further
    identifiers of a concept count as equal in documents, and which shows what a linker can know.
    """
    given = dict(word.split("=", 1) for word in words if "=" in word)
    unknown = [word for word in words if word.partition("=")[0] not in ("type", "dictionary", "train", "prefix")]
    if unknown:
        raise ConfigError(f"{unknown[0]!r} is no setting of `score linking`: type, dictionary, train, prefix.")
    types = tuple(filter(None, given.get("type", "").split(",")))
    with predictions.open("rb") if predictions.is_file() else _missing(predictions) as file:
        is_ranking = file.read(1) == b"{" and b'"candidates"' in file.readline()
    if is_ranking:
        return _score_rankings(gold, predictions, types, given)
    return _score_documents(gold, predictions, types, given)


def _missing(path: Path) -> Any:
    raise InputError(f"{path} does not exist. Give the predictions: documents, or the lines of `megabert link`.")


def _score_rankings(gold: Path, predictions: Path, types: Sequence[str], given: dict[str, str]) -> dict[str, float]:
    from ..formats.dictionaries.curies import single_identifiers
    from ..formats.dictionaries.gold_mentions import read_gold
    from ..formats.json_lines import read_json_lines
    from ..linking.dictionary import Dictionary
    from ..linking.name_keys import normalized
    from ..metrics.linking import RankedMention, accuracy_scores
    from ..tasks.prediction_rows import rows_by_id

    mentions = [item for item in read_gold([gold], types, given.get("prefix")) if item.identifiers]
    ids = {item.id for item in mentions}
    rows = [row for row in read_json_lines(predictions) if str(row.values.get("id")) in ids]
    known = None
    if "dictionary" in given:
        opened = Dictionary.open(given["dictionary"])
        opened.require_any(name for item in mentions for name in item.identifiers)
        known = opened.equivalents().keys()
    train = list(read_gold([Path(given["train"])], types, given.get("prefix"))) if "train" in given else []
    names = {normalized(item.text) for item in train}
    concepts = {name for item in train for name in item.identifiers}
    ranked = []
    for item, row in zip(mentions, rows_by_id(mentions, rows, predictions), strict=True):
        subsets = ["known"] if known is not None and item.identifiers <= known else []
        if train:
            subsets += ["unseen_mention"] if normalized(item.text) not in names else []
            subsets += ["unseen_concept"] if not item.identifiers & concepts else []
        parts = [
            [single_identifiers(candidate["identifiers"]) for candidate in part]
            for part in (part["candidates"] for part in row.get("parts"))
        ]
        ranked.append(RankedMention(item.identifiers, parts, subsets))
    return accuracy_scores(ranked)


def _score_documents(gold: Path, predictions: Path, types: Sequence[str], given: dict[str, str]) -> dict[str, Any]:
    from ..formats.dictionaries.gold_mentions import require_types
    from ..formats.documents.convert_documents import read_documents
    from ..formats.documents.document_scores import warn_of_other_types
    from ..linking.dictionary import Dictionary
    from ..linking.linked_documents import linked_mentions, named_as
    from ..metrics.linking import linked_scores

    prefix = given.get("prefix")
    documents = list(read_documents([gold]))
    require_types(Counter(entity.type for item in documents for entity in item.entities), types, [gold])
    golds = {item.id: linked_mentions(item, types, prefix) for item in documents}
    found = {item.id: linked_mentions(item, types, prefix) for item in read_documents([predictions])}
    warn_of_other_types(*({item.type for own in side.values() for item in own} for side in (golds, found)))
    if "dictionary" in given:
        equivalents = Dictionary.open(given["dictionary"]).equivalents()
        found = {name: named_as(golds.get(name, []), mentions, equivalents) for name, mentions in found.items()}
    if unknown := found.keys() - golds.keys():
        raise InputError(f"{predictions} has document {min(unknown)}, which {gold} lacks. Give the same documents.")
    return linked_scores(list(golds.values()), [found.get(name, []) for name in golds])
