"""Our own routes: one for each task, whole documents, and BERN2's /plain."""

import datetime
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..annotate.annotator import Annotator, annotate, without_annotations
from ..errors import MegabertError
from ..formats.documents.convert_documents import DocumentWriter
from ..formats.documents.document import Document, Entity, Passage
from ..formats.documents.document_formats import find_format
from ..formats.documents.losses import Losses
from ..formats.documents.offsets import check_offsets
from ..formats.documents.sources import ReadOptions
from ..formats.documents.training_examples import PairOptions
from .hosted_linkers import HostedLinker, entity_link, link_rows
from .hosted_models import ANSWERS, CLASSES, ENTITIES, RELATIONS, HostedModel
from .http_application import Call, Endpoint, Handler, Reply
from .model_queue import Work
from .refusals import invalid, too_large
from .request_fields import RequestField

TASK_ROUTES: Mapping[str, str] = {
    ENTITIES: "Find the entities of texts: spans with type, offsets and score.",
    RELATIONS: "Classify the relation between head and tail in texts.",
    ANSWERS: "Find the answer to a question in a context.",
    CLASSES: "Classify texts, or pairs of texts.",
    "intents": "Find the intent and the slots of utterances.",
    "punctuation": "Restore punctuation marks and capital letters.",
    "zero-shot": "Classify texts by labels that the request names.",
    "choices": "Choose among the answers to a question.",
    "linking": "Link mentions to a dictionary's concepts, or embed them as its names are embedded.",
    "dialogues": "Track the states of dialogues.",
    "predict": "Predict with a run of any task.",
}
READ_FORMATS = ("text", "pubtator", "bioc", "bioc-json", "jsonl", "pubmed", "jats")
WRITTEN_FORMATS = ("pubtator", "bioc", "bioc-json", "jsonl", "brat", "conll", "csv")
MODEL = RequestField("model", "string", "Name of the run; may be left out where only one run suits.", None)
INPUTS = RequestField("inputs", "list", "Inputs: objects with the task's fields, or strings for its first field.", None)
TASK_FIELDS = tuple(
    RequestField(name, "any", f"{help_}, of a single input.", None)
    for name, help_ in {
        "text": "The text", "text_b": "The second text of a pair", "tokens": "The words instead of a text",
        "question": "The question", "context": "The text with the answer", "head": "The first argument",
        "tail": "The second argument", "head_type": "Its type", "tail_type": "Its type", "labels": "Candidate labels",
        "template": "The hypothesis with {} for a label", "choices": "Answers to choose from", "id": "Its identifier",
        "query": "The query", "passage": "The passage", "role": "query or passage, of an embedding",
        "turns": "Utterances, the user's first", "services": "Names of services", "schema": "Their descriptions",
        "type": "The kind of a question",
    }.items()
)  # fmt: skip
TRUNCATE = RequestField("truncate", "boolean", "Cut long texts to one sequence instead of reading windows.", False)


LINKERS = RequestField(
    "linkers", "list of strings", "Dictionaries that give entities of their types identifiers; default: all.", None
)
MORE_FIELDS: Mapping[str, Sequence[RequestField]] = {
    ENTITIES: (LINKERS,),
    "linking": (
        RequestField("k", "integer", "Candidates of each mention.", 1),
        RequestField("species", "list", "Taxa of the concepts that may be meant; context: its abbreviations.", None),
    ),
}


def task_endpoints() -> list[Endpoint]:
    """Return the routes of the tasks."""
    routes = [
        Endpoint(
            "POST", f"/v1/{name}", _task_handler(() if name == "predict" else (name,)), summary, "tasks",
            (MODEL, INPUTS, TRUNCATE, *TASK_FIELDS, *MORE_FIELDS.get(name, ())), are_all_fields=True,
            answer="model, results (a row for each input, as `megabert predict` writes it, and windows), usage",
        )
        for name, summary in TASK_ROUTES.items()
    ]  # fmt: skip
    routes.append(
        Endpoint("POST", "/v1/documents", _documents, "Annotate whole documents.", "documents", DOCUMENT_FIELDS, True,
                 answer="content in the wanted format, documents (spans, windows), what the format could not hold")
    )  # fmt: skip
    text = RequestField("text", "string", "The text.")
    routes.append(
        Endpoint("POST", "/plain", _bern2, "Find entities, with BERN2's JSON.", "documents", (text,), answer="BERN2's")
    )
    return routes


def _task_handler(routes: Sequence[str]) -> Handler:
    async def handle(call: Call) -> Reply:
        if (linker := _linker(call, routes)) is not None:
            return await _link(call, linker)
        model: HostedModel = call.catalog.find(call.fields["model"], routes)
        inputs = _inputs(call, next(iter(model.fields), "text"))
        linkers = call.catalog.find_linkers(call.fields["linkers"]) if routes == (ENTITIES,) else []
        cut = _cut(inputs, model) if call.fields["truncate"] else {}

        def predict(work: Work) -> list[dict[str, Any]]:
            rows = model.predict(inputs, work)
            link_rows(rows, linkers, work)
            return rows

        rows = await call.compute(predict)
        for number, tokens in cut.items():
            rows[number]["truncated"] = rows[number].get("truncated", 0) + tokens
        call.cut_tokens = sum(cut.values()) if call.fields["truncate"] else None
        assert call.work is not None
        usage = {"tokens": call.work.tokens, "windows": call.work.windows}
        return Reply({"model": model.name, "sha256": model.predictor.digest, "results": rows, "usage": usage})

    return handle


def _linker(call: Call, routes: Sequence[str]) -> HostedLinker | None:
    """Return the dictionary that a request of linking names, or the only one where there is no run of linking."""
    name, linkers = call.fields["model"], call.catalog.linkers
    if tuple(routes) != ("linking",) or not linkers:
        return None
    if not name and not any(model.route == "linking" for model in call.catalog.models.values()):
        if len(linkers) > 1:
            raise invalid(f"there are several dictionaries: {', '.join(linkers)}. Name one.", "model")
        return next(iter(linkers.values()))
    return linkers.get(name)


async def _link(call: Call, linker: HostedLinker) -> Reply:
    inputs, k = _inputs(call, "text", ("species",)), call.fields["k"]
    rows = await call.compute(lambda work: linker.link(inputs, k, work))
    return Reply({"model": linker.name, "sha256": linker.digest, "results": rows})


def _inputs(call: Call, first: str, more: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Return the inputs of a request: those listed, or the single one of its own fields."""
    names = (*(field.name for field in TASK_FIELDS), *more)
    own = {name: call.fields[name] for name in names if call.fields[name] is not None}
    listed = call.fields["inputs"]
    if (listed is None) == (not own):
        raise invalid("give either inputs or the fields of one input.", "inputs")
    if listed is None:
        return [own]
    check_number(listed, call)
    inputs = [{first: item} if isinstance(item, str) else item for item in listed]
    wrong = next((number for number, item in enumerate(inputs) if not isinstance(item, dict)), None)
    if wrong is not None:
        raise invalid(f"inputs[{wrong}] is neither an object nor a string.", "inputs")
    return inputs


def check_number(items: Sequence[Any], call: Call, field: str = "inputs") -> None:
    """Refuse none, and more than a request may have."""
    limit = call.app.admission.limits.max_inputs
    if not items:
        raise invalid(f"{field} is empty.", field)
    if len(items) > limit:
        raise too_large(f"{field} has {len(items)} items; at most {limit} are taken in one request.", field)


def _cut(inputs: list[dict[str, Any]], model: HostedModel) -> dict[int, int]:
    """Cut the texts of inputs; returns the number of tokens cut by the inputs' numbers."""
    cut = {}
    for number, item in enumerate(inputs):
        if isinstance(item.get("text"), str):
            item["text"], tokens = model.cut(item["text"], "right")
            if tokens:
                cut[number] = tokens
    return cut


DOCUMENT_FIELDS = (
    RequestField(
        "models", "list of strings", "Runs in their order: of entities, then of relations; default: all.", None
    ),
    RequestField("content", "string", "The documents."),
    RequestField("format", "string", "Their format.", "text", READ_FORMATS),
    RequestField("output_format", "string", "Format of the answer; default: that of the input.", None, WRITTEN_FORMATS),
    RequestField("existing", "string", "What becomes of annotations.", "keep", ("keep", "replace")),
    LINKERS,
    RequestField("pairs", "list of strings", "Types HEAD:TAIL between which relations are classified.", None),
    RequestField("scope", "string", "Relations of mentions or of identifiers.", "sentence", ("sentence", "document")),
)


async def _documents(call: Call) -> Reply:
    fields = call.fields
    models, linkers = _annotating_models(call), call.catalog.find_linkers(fields["linkers"])
    documents = read_content(fields["content"], fields["format"])
    if fields["existing"] == "replace":
        documents = [without_annotations(document) for document in documents]
    pairs = _pair_options(fields, models)

    def work_on(work: Work) -> dict[str, Any]:
        items = annotate(_annotators(models, linkers, work, pairs), documents)
        wanted = fields["output_format"] or ("jsonl" if fields["format"] not in WRITTEN_FORMATS else fields["format"])
        losses = Losses()
        content = render_documents([item.document for item in items], wanted, losses)
        summary = [{**document_json(item.document), "windows": item.windows} for item in items]
        return {"format": wanted, "content": content, "documents": summary, "losses": losses.lines(wanted)}

    names = {"models": [model.name for model in models], "linkers": [linker.name for linker in linkers]}
    return Reply({**names, **await call.compute(work_on)})


def _annotators(
    models: Sequence[HostedModel], linkers: Sequence[HostedLinker], work: Work, pairs: PairOptions
) -> list[Annotator]:
    """Return what annotates: entities, their identifiers, then relations."""
    entities, relations = (
        [model.annotator(work, pairs) for model in models if (model.route == RELATIONS) is is_last]
        for is_last in (False, True)
    )
    return [*entities, *(linker.of_request(work) for linker in linkers), *relations]


def _annotating_models(call: Call) -> list[HostedModel]:
    if call.fields["models"]:
        return [call.catalog.find(name, (ENTITIES, RELATIONS)) for name in call.fields["models"]]
    models = [model for model in call.catalog.models.values() if model.route in (ENTITIES, RELATIONS)]
    if not models and not call.catalog.linkers:
        raise invalid("no model of this server annotates documents.", "models")
    return sorted(models, key=lambda model: model.route == RELATIONS)


def _pair_options(fields: Mapping[str, Any], models: Sequence[HostedModel]) -> PairOptions:
    pairs = [tuple(item.partition(":")[::2]) for item in fields["pairs"] or ()]
    if any(not all(pair) for pair in pairs):
        raise invalid("a pair of types is written HEAD:TAIL.", "pairs")
    negative = {model.task.settings.model.dataset.negative_label for model in models if model.route == RELATIONS}
    if len(negative) > 1:
        raise invalid("the relation runs have different negative labels. Name one of them.", "models")
    return PairOptions(fields["scope"], str((negative or {"false"}).pop()), pair_types=frozenset(pairs) or None)


def read_content(content: str, name: str) -> list[Document]:
    """Read the documents of a request. Nothing is opened: the content is all there is."""
    if name == "text":
        return [Document("text", (Passage(0, content),), location="content")] if content.strip() else _empty()
    form = find_format(name)
    assert form.read is not None
    options = ReadOptions()
    file = io.BufferedReader(io.BytesIO(content.encode()))
    try:
        found = [check_offsets(item, options.faults) for item in form.read(Path("content"), file, options)]
    except MegabertError as error:
        raise invalid(str(error), "content") from None
    return found or _empty()


def _empty() -> list[Document]:
    raise invalid("content has no document.", "content")


def render_documents(documents: Sequence[Document], name: str, losses: Losses) -> str:
    """Write documents in a format; brat's annotations follow each other, without the texts."""
    form = find_format(name)
    if form.files is not None:
        files = (form.files(document, losses) for document in documents)
        return "".join(data.decode() for group in files for file, data in group.items() if file.endswith(".ann"))
    stream = io.BytesIO()
    writer = DocumentWriter(form, stream, losses)
    for document in documents:
        writer.write(document)
    writer.close()
    return stream.getvalue().decode()


def document_json(document: Document) -> dict[str, Any]:
    """Return a document's text, entities and relations as plain values, offsets in code points."""
    return {
        "id": document.id,
        "text": document.text(),
        "entities": [
            {"id": item.id, "type": item.type, "text": item.text, "start": item.start, "end": item.end,
             "score": item.score, "identifiers": list(item.identifiers), "link": entity_link(item)}
            for item in document.entities
        ],
        "relations": [
            {"id": item.id, "type": item.type, "score": item.score,
             "arguments": [asdict(argument) for argument in item.arguments]}
            for item in document.relations
        ],
    }  # fmt: skip


async def _bern2(call: Call) -> Reply:
    text = call.fields["text"]
    models = [model for model in call.catalog.models.values() if model.route == ENTITIES]
    if not models:
        raise invalid("no model of this server finds entities.")
    documents, linkers = read_content(text, "text"), call.catalog.find_linkers(None)
    items = await call.compute(lambda work: annotate(_annotators(models, linkers, work, PairOptions()), documents))
    annotations = [_bern2_annotation(entity) for entity in items[0].document.entities]
    now = datetime.datetime.now(datetime.UTC).strftime("%a %b %d %H:%M:%S +0000 %Y")
    return Reply({"annotations": annotations, "text": text, "timestamp": now})


def _bern2_annotation(entity: Entity) -> dict[str, Any]:
    return {
        "id": list(entity.identifiers) or ["CUI-less"],
        "is_neural_normalized": False,
        "mention": entity.text,
        "obj": entity.type.lower(),
        "prob": entity.score,
        "span": {"begin": entity.start, "end": entity.end},
    }
