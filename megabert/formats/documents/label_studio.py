"""Label Studio JSON: a list of tasks; labels on spans of text and relations between them; all else is kept.

Offsets are characters as its text editor counts them: UTF-16 code units in a browser, so emoji shift them; the check of
mentions recognizes that (`--offsets utf-16`). Source: Label Studio's JSON format, result type `labels`.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from ...errors import InputError
from .document import Argument, Document, Entity, Original, Passage, Relation
from .losses import Losses
from .sources import ReadOptions, read_whole, text_of

FORMAT = "label-studio"
SEPARATOR = b",\n"
TAIL = b"\n]\n"
_ANNOTATIONS = ("annotations", "completions")  # before version 1 the latter


def read(path: Path, file: IO[bytes], options: ReadOptions) -> Iterator[Document]:
    """Read the tasks of an export as JSON (JSON-MIN has no offsets of its relations)."""
    content = text_of(path, read_whole(path, file)).removeprefix("\ufeff")
    try:
        tasks = json.loads(content)
    except (json.JSONDecodeError, RecursionError) as error:
        place = getattr(error, "lineno", 1)
        raise InputError(f"{path}:{place}: not JSON. Export from Label Studio as JSON.") from None
    for number, task in enumerate(tasks if isinstance(tasks, list) else [tasks], start=1):
        try:
            yield _document(task, f"{path}, task {number}", number, options)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            options.faults(f"{path}, task {number}: no task of Label Studio: {type(error).__name__}: {error}.")


def _document(task: dict[str, Any], location: str, number: int, options: ReadOptions) -> Document:
    data = task["data"]
    key = options.text_column or _text_key(task, data)
    if not isinstance(data.get(key), str):
        raise ValueError(f"its data have no string under {key!r} (--text-column)")
    items: list[Entity | Relation | None] = [
        _item(result, data[key], index) for index, result in enumerate(_results(task))
    ]
    items = _distinct(items)
    passages = (Passage(0, data[key]),)
    infons = {name: value for name, value in data.items() if name != key}
    name = str(task.get("id", infons.pop("id", number)))
    original = Original(FORMAT, task, tuple(items), passages, infons)
    entities = tuple(item for item in items if isinstance(item, Entity))
    relations = tuple(item for item in items if isinstance(item, Relation))
    return Document(name, passages, entities, relations, infons, location, original)


def _text_key(task: dict[str, Any], data: dict[str, Any]) -> str:
    """Return the key of the labelled text: results name it as $text or text."""
    names = [str(result.get("to_name", "")).removeprefix("$") for result in _results(task)]
    return next((name for name in [*names, "text"] if isinstance(data.get(name), str)), "text")


def _results(task: dict[str, Any]) -> list[dict[str, Any]]:
    """List the results of annotations that were not cancelled, or else those of predictions."""
    kept = [item for key in _ANNOTATIONS for item in task.get(key) or [] if not item.get("was_cancelled")]
    return [result for part in kept or task.get("predictions") or [] for result in part.get("result") or []]


def _item(result: dict[str, Any], text: str, index: int) -> Entity | Relation | None:
    value = result.get("value") or {}
    if result.get("type") == "relation":
        arguments = (Argument("from", str(result["from_id"])), Argument("to", str(result["to_id"])))
        labels = result.get("labels") or ["relation"]
        return Relation(f"R{index}", str(labels[0]), arguments, None, None, _direction(result))
    if "start" not in value or result.get("type") not in ("labels", "hypertextlabels", None):
        return None
    start, end = int(value["start"]), int(value["end"])
    labels = value.get("labels") or value.get("hypertextlabels") or [""]
    infons = {"labels": labels} if len(labels) > 1 else {}
    score = result.get("score") if result.get("score") is not None else value.get("score")
    shown = str(value.get("text") or text[start:end])
    return Entity(str(result.get("id", f"T{index}")), ((start, end),), shown, str(labels[0]), "", score, None, infons)


def _direction(result: dict[str, Any]) -> dict[str, str]:
    return {"direction": result["direction"]} if result.get("direction", "right") != "right" else {}


def _distinct(items: list[Entity | Relation | None]) -> list[Entity | Relation | None]:
    """Leave out what a second annotator or a choice at the same span repeats: its identifier, or type and place."""
    names: dict[str, str] = {}
    seen: dict[Any, str] = {}
    kept: list[Entity | Relation | None] = [None] * len(items)
    for index in sorted(range(len(items)), key=lambda index: isinstance(items[index], Relation)):
        item = items[index]
        if isinstance(item, Relation):
            ends = tuple(replace(end, entity=names.get(str(end.entity), end.entity)) for end in item.arguments)
            item = replace(item, arguments=ends)
        if item is None:
            continue
        key = (item.type, item.fragments if isinstance(item, Entity) else item.arguments)
        kept[index] = None if key in seen or item.id in names else item
        names.setdefault(item.id, seen.setdefault(key, item.id))
    return kept


def head(document: Document | None) -> bytes:
    """Return what stands before the tasks."""
    return b"[\n"


def render(document: Document, losses: Losses) -> bytes:
    """Write a task; one that was read keeps all that it had, what is new is a prediction."""
    original = document.original_of(FORMAT)
    losses["identifiers"] += sum(bool(entity.identifier) for entity in document.entities)
    if original is None:
        losses.infons(document, of_document=False)
        if len(document.passages) > 1:
            losses["borders of passages (a line end is written)"] += 1
        data = {**document.infons, "id": document.id, "text": document.text()}
        entities, relations = list(document.entities), list(document.relations)
        task: dict[str, Any] = {"data": data, "annotations": [], "predictions": []}
        is_predicted = any(entity.source or entity.score is not None for entity in entities)
        part = "predictions" if is_predicted else "annotations"
        task[part] = [{"result": _new_results(document, entities, relations, "text", losses)}]
        return json.dumps(task, ensure_ascii=False).encode()
    kept, entities, relations = document.changes(original)
    task = original.content
    if kept != list(original.items) or entities or relations:
        task = json.loads(json.dumps(task))
        states = {
            id(result): state
            for result, state in zip(_results(task), zip(original.items, kept, strict=True), strict=True)
        }
        for part in [part for key in (*_ANNOTATIONS, "predictions") for part in task.get(key) or []]:
            # A result that has changed is removed, and written anew among the predictions.
            part["result"] = [item for item in part.get("result") or [] if _stands(states.get(id(item)))]
        changed = [new for old, new in zip(original.items, kept, strict=True) if new is not None and new != old]
        entities = [*(item for item in changed if isinstance(item, Entity)), *entities]
        relations = [*(item for item in changed if isinstance(item, Relation)), *relations]
        if entities or relations:
            results = _new_results(document, entities, relations, _text_key(task, task["data"]), losses)
            task["predictions"] = [*(task.get("predictions") or []), {"result": results}]
    return json.dumps(task, ensure_ascii=False).encode()


def _stands(state: tuple[Any, Any] | None) -> bool:
    return state is None or state[0] is None or state[0] == state[1]


def _new_results(
    document: Document, entities: list[Entity], relations: list[Relation], key: str, losses: Losses
) -> list[dict[str, Any]]:
    results: list[dict[str, Any]] = []
    text = document.text()
    for entity in entities:
        start, end = losses.fragments(entity)
        value = {"start": start, "end": end, "text": text[start:end], "labels": [entity.type]}
        result = {"id": entity.id, "from_name": "label", "to_name": key, "type": "labels", "value": value}
        results.append(result | ({"score": entity.score} if entity.score is not None else {}))
    for relation in relations:
        ends = [item.entity for item in relation.arguments if item.entity is not None]
        if len(ends) != 2 or len(relation.arguments) != 2:
            losses["relations other than between two mentions"] += 1
            continue
        pair = {"from_id": ends[0], "to_id": ends[1]}
        results.append({**pair, "type": "relation", "direction": "right", "labels": [relation.type]})
    return results
