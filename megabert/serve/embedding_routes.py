"""Routes of other servers for embeddings and classes: Text Embeddings Inference (TEI) and OpenAI.

Sources: huggingface/text-embeddings-inference, router/src/http/types.rs; OpenAI's API reference. A
client whose base URL is /models/NAME reaches TEI's routes of that model.
"""

import base64
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import __version__
from .hosted_models import HostedModel
from .http_application import Call, Endpoint, Reply, json_rows
from .model_queue import Work
from .refusals import Refusal, invalid
from .request_fields import RequestField
from .task_routes import MODEL, check_number

DIRECTION = RequestField(
    "truncation_direction", "string", "Which end is cut.", "right", ("left", "right", "Left", "Right")
)
CUT = (
    RequestField("truncate", "boolean", "Cut long texts to one sequence instead of reading windows.", False),
    DIRECTION,
)
INPUTS = RequestField("inputs", "any", "A string, a list of strings, token ids, or a list of token ids.")
DIMENSIONS = RequestField("dimensions", "integer", "Keep the first so many dimensions.", None)
NORMALIZE = RequestField("normalize", "boolean", "Vectors of length 1.", True)
PROMPT = RequestField("prompt_name", "string", "The texts' role.", None, ("query", "passage", "document"))
EMBED = (INPUTS, MODEL, NORMALIZE, DIMENSIONS, PROMPT, *CUT)
RAW = RequestField("raw_scores", "boolean", "Logits instead of probabilities.", False)


def embedding_endpoints() -> list[Endpoint]:
    """Return the routes, TEI's also below /models/NAME."""
    tei = [
        ("POST", "/embed", embed_texts, "Embed texts.", "embed", EMBED, "[[number]]"),
        ("POST", "/embed_all", _embed_all, "Embed each token.", "embed", (INPUTS, MODEL, *CUT), "[[[number]]]"),
        ("POST", "/predict", _predict, "Classify texts; [a, b] is a pair.", "predict", (INPUTS, MODEL, RAW, *CUT),
         "[{score, label}], of a list of lists a list of these"),
        ("POST", "/similarity", compare_texts, "Compare a sentence with others.", "embed", SIMILARITY, "[number]"),
        ("POST", "/tokenize", _tokenize, "Tokenize texts.", "tokenize", TOKENIZE, "[[{id, text, start, stop}]]"),
        ("POST", "/decode", _decode, "Join tokens.", "tokenize", DECODE, "[string]"),
        ("GET", "/info", _info, "Describe a model.", "other", (), "model_id, model_type, limits"),
    ]  # fmt: skip
    routes = [
        Endpoint(method, prefix + path, handler, summary, group, fields, answer=answer)
        for prefix in ("", "/models/{model}")
        for method, path, handler, summary, group, fields, answer in tei
    ]
    routes += [
        Endpoint("POST", path, _openai, "Embed texts, with OpenAI's JSON.", "embed", OPENAI, answer="OpenAI's")
        for path in ("/v1/embeddings", "/models/{model}/v1/embeddings")
    ]
    return routes


def model_of(call: Call, suits: Any = None) -> HostedModel:
    """Return the model that a call names, or the only one that suits."""
    return call.catalog.find(call.path.get("model") or call.fields.get("model"), (), suits)


def _texts(value: Any, model: HostedModel, call: Call, field: str = "inputs") -> list[str]:
    """Return the texts of an input of any of the shapes; token ids are decoded."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        raise invalid(f"{field} is neither a string nor a list.", field)
    if value and all(_is_id(item) for item in value):
        return [_decoded(value, model, field)]
    check_number(value, call, field)
    texts = [_decoded(item, model, field) if isinstance(item, list) else item for item in value]
    if not all(isinstance(item, str) for item in texts):
        raise invalid(f"{field} has items that are neither strings nor token ids.", field)
    return texts


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _decoded(ids: Sequence[Any], model: HostedModel, field: str) -> str:
    tokenizer = model.predictor.tokenizer
    if not ids or not all(_is_id(item) and 0 <= item < len(tokenizer) for item in ids):
        raise invalid(f"{field} has token ids that are none of 0 to {len(tokenizer) - 1}.", field)
    return tokenizer.decode([item for item in ids if item not in _special_ids(model)])


def _special_ids(model: HostedModel) -> set[int]:
    tokenizer = model.predictor.tokenizer
    return {tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id}


def cut_texts(texts: list[str], model: HostedModel, call: Call) -> list[str]:
    """Cut texts if the client wants it; the header x-truncated-tokens counts what was cut."""
    if not call.fields.get("truncate"):
        return texts
    pairs = [model.cut(text, call.fields["truncation_direction"]) for text in texts]
    call.cut_tokens = sum(count for _, count in pairs)
    return [text for text, _ in pairs]


def _shaped(vectors: NDArray[np.float32], dimensions: int | None, *, is_normalized: bool) -> NDArray[np.float32]:
    if dimensions is not None:
        if not 1 <= dimensions <= vectors.shape[1]:
            raise invalid(f"dimensions is not between 1 and {vectors.shape[1]}.", "dimensions")
        vectors = vectors[:, :dimensions]
    if is_normalized:
        vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return vectors


def _check_blank(texts: Sequence[str], field: str) -> None:
    if any(not text.strip() for text in texts):
        raise Refusal(400 if field == "inputs" else 422, f"{field} has an empty text.", kind="Empty", field=field)


async def embed_texts(call: Call) -> Reply:
    """Embed the inputs of a call that has the fields of EMBED."""
    model = model_of(call)
    role = "query" if call.fields["prompt_name"] == "query" else "passage"
    texts = cut_texts(_texts(call.fields["inputs"], model, call), model, call)
    _check_blank(texts, "inputs")
    dimensions, is_normalized = call.fields["dimensions"], call.fields["normalize"]

    def work_on(work: Work) -> bytes:
        return json_rows(_shaped(model.embed(texts, work, role), dimensions, is_normalized=is_normalized))

    return Reply(await call.compute(work_on))


async def _embed_all(call: Call) -> Reply:
    model = model_of(call)
    texts = cut_texts(_texts(call.fields["inputs"], model, call), model, call)
    _check_blank(texts, "inputs")
    return Reply(await call.compute(lambda work: json_rows(model.token_states(texts, work))))


async def _predict(call: Call) -> Reply:
    model = model_of(call, lambda item: "text" in item.fields and "tokens" not in item.fields)
    inputs, is_batch = _predict_inputs(call.fields["inputs"])
    check_number(inputs, call)
    texts = cut_texts([item["text"] for item in inputs], model, call)
    inputs = [{**item, "text": text} for item, text in zip(inputs, texts, strict=True)]
    predictions = await call.compute(lambda work: model.predictions(inputs, work))
    rows = [_class_scores(prediction, model, is_raw=call.fields["raw_scores"]) for _, prediction in predictions]
    return Reply(rows if is_batch else rows[0])


def _predict_inputs(value: Any) -> tuple[list[dict[str, str]], bool]:
    """Return the inputs of TEI's /predict, and whether they are a batch: a list of two strings is a pair."""
    is_batch = isinstance(value, list) and not all(isinstance(item, str) for item in value)
    items = value if is_batch else [value]
    inputs = []
    for item in items:
        parts = [item] if isinstance(item, str) else item
        if not (isinstance(parts, list) and len(parts) in (1, 2) and all(isinstance(part, str) for part in parts)):
            raise invalid("inputs is a string, a pair [a, b], or a list of [a] and [a, b].", "inputs")
        inputs.append(dict(zip(("text", "text_b"), parts, strict=False)))
    return inputs, is_batch


def _class_scores(prediction: Any, model: HostedModel, *, is_raw: bool) -> list[dict[str, Any]]:
    probabilities: Mapping[str, float] | None = getattr(prediction, "probabilities", None)
    if not probabilities:
        if getattr(prediction, "value", None) is None:
            raise Refusal(424, f"{model.name} ({model.task.name()}) has no classes.", kind="Backend")
        return [{"score": prediction.value, "label": "LABEL_0"}]
    scores = {label: math.log(max(value, 1e-12)) if is_raw else value for label, value in probabilities.items()}
    return [{"score": scores[label], "label": label} for label in sorted(scores, key=lambda label: -scores[label])]


SIMILARITY = (
    RequestField("inputs", "object", "source_sentence, a string, and sentences, a list of strings."),
    RequestField("parameters", "object", "truncate, truncation_direction.", None),
    MODEL,
)


async def compare_texts(call: Call) -> Reply:
    """Compare the source_sentence with the sentences of a call's inputs."""
    model = model_of(call)
    given = call.fields["inputs"]
    source = RequestField("source_sentence", "string", "").read(given)
    sentences = RequestField("sentences", "list of strings", "").read(given)
    check_number(sentences, call, "sentences")
    _check_blank([source, *sentences], "inputs")
    vectors = await call.compute(lambda work: model.embed([source, *sentences], work))
    unit = _shaped(vectors, None, is_normalized=True)
    return Reply((unit[1:] @ unit[0]).tolist())


TOKENIZE = (INPUTS, RequestField("add_special_tokens", "boolean", "With the first and the last token.", True), MODEL)
DECODE = (
    RequestField("ids", "any", "Token ids, or a list of them."),
    RequestField("skip_special_tokens", "boolean", "Without special tokens.", True),
    MODEL,
)


async def _tokenize(call: Call) -> Reply:
    model = model_of(call)
    texts = _texts(call.fields["inputs"], model, call)
    is_special = call.fields["add_special_tokens"]

    def work_on(work: Work) -> bytes:
        tokenizer = model.predictor.tokenizer
        rows = []
        for text, encoded in zip(texts, tokenizer.encode(texts), strict=True):
            row: list[dict[str, Any]] = [
                {"id": token, "text": text[start:stop], "special": False, "start": start, "stop": stop}
                for token, (start, stop) in zip(encoded.token_ids.tolist(), encoded.offsets.tolist(), strict=True)
            ]
            ends = [
                {"id": token, "text": tokenizer.tokens[token], "special": True, "start": None, "stop": None}
                for token in (tokenizer.cls_id, tokenizer.sep_id)
            ]
            rows.append([ends[0], *row, ends[1]] if is_special else row)
        return json_rows(rows)

    return Reply(await call.compute(work_on))


async def _decode(call: Call) -> Reply:
    model, ids = model_of(call), call.fields["ids"]
    if not isinstance(ids, list) or not ids:
        raise invalid("ids is no list of token ids.", "ids")
    lists = ids if isinstance(ids[0], list) else [ids]
    check_number(lists, call, "ids")
    if not all(isinstance(item, list) for item in lists):
        raise invalid("ids mixes token ids and lists.", "ids")
    return Reply([_decoded(item, model, "ids") for item in lists])


async def _info(call: Call) -> Reply:
    models = list(call.catalog.models.values())
    model = model_of(call) if "model" in call.path else models[0]
    limits = call.app.admission.limits
    labels = {str(index): label for index, label in enumerate(next(iter(model.predictor.labels.values()), []))}
    own = getattr(model.task, "embedding", model.task.settings.model.dataset)
    pooling = getattr(own, "pooling", "mean")
    kind = {"classifier": {"id2label": labels, "label2id": {label: int(index) for index, label in labels.items()}}}
    return Reply(
        {
            "model_id": model.name,
            "model_sha": model.predictor.digest,
            "model_dtype": "float32" if getattr(model.predictor.session, "precision", "32") == "32" else "bfloat16",
            "model_type": kind
            if labels
            else {"reranker": {}}
            if model.ranking
            else {"embedding": {"pooling": pooling}},
            "max_concurrent_requests": limits.max_concurrent_requests,
            "max_input_length": model.task.row_length,
            "max_batch_tokens": model.part_tokens,
            "max_client_batch_size": limits.max_inputs,
            "auto_truncate": False,
            "version": __version__,
            "models": [item.name for item in models],
        }
    )


OPENAI = (
    RequestField("input", "any", "A string, a list of strings, token ids, or a list of token ids."),
    MODEL,
    RequestField(
        "encoding_format", "string", "float, or base64 of little-endian float32.", "float", ("float", "base64")
    ),
    DIMENSIONS,
    RequestField("user", "string", "Ignored.", None),
)


async def _openai(call: Call) -> Reply:
    model = model_of(call)
    texts = _texts(call.fields["input"], model, call, "input")
    _check_blank(texts, "input")
    vectors = await call.compute(lambda work: model.embed(texts, work))
    vectors = _shaped(vectors, call.fields["dimensions"], is_normalized=True)
    assert call.work is not None
    data = [
        {"object": "embedding", "index": index, "embedding": _encoded(vector, call.fields["encoding_format"])}
        for index, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": call.work.tokens, "total_tokens": call.work.tokens}
    return Reply({"object": "list", "data": data, "model": model.name, "usage": usage})


def _encoded(vector: NDArray[np.float32], encoding: str) -> Any:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode() if encoding == "base64" else vector.tolist()
