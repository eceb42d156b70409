"""Routes of the Open Inference Protocol (KServe v2, Triton) and of Hugging Face's inference client.

Sources: kserve/open-inference-protocol, specification/protocol; Triton's extension for binary tensor data;
huggingface_hub's InferenceClient, which posts {inputs, parameters} to a model's address.
"""

import json
import struct
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from .. import __version__
from .embedding_routes import EMBED, compare_texts, embed_texts
from .hosted_models import ANSWERS, CLASSES, ENTITIES, HostedModel
from .http_application import Call, Endpoint, Reply
from .refusals import Refusal, invalid
from .request_fields import RequestField, parse_body
from .task_routes import check_number

BINARY_LENGTH = "inference-header-content-length"


def inference_endpoints() -> list[Endpoint]:
    """Return the routes."""
    routes = [
        Endpoint("GET", "/v2", _server_metadata, "Describe the server.", answer="name, version, extensions"),
        Endpoint("GET", "/v2/health/live", _live, "Whether the server runs.", answer="live"),
        Endpoint("GET", "/v2/health/ready", _ready, "Whether it takes requests.", answer="ready"),
    ]
    for version in ("", "/versions/{version}"):
        path = f"/v2/models/{{model}}{version}"
        routes += [
            Endpoint("GET", path, _model_metadata, "Describe a model.", answer="name, platform, inputs, outputs"),
            Endpoint("GET", f"{path}/ready", _model_ready, "Whether a model is ready.", answer="name, ready"),
            Endpoint("POST", f"{path}/infer", _infer, "Infer with tensors of bytes.", "infer", INFER, reads_json=False,
                     answer="model_name, id, outputs: predictions (a JSON object each) or embedding"),
        ]  # fmt: skip
    return routes + [
        Endpoint("POST", path, _hub, "Hugging Face's inference client.", "predict", HUB, answer="as its task has it")
        for path in ("/", "/models/{model}", "/invocations")
    ]


INFER = ()
# Of the parameters of Hugging Face's client those that a task's route or a task takes; others are refused
_PARAMETERS: Mapping[str, tuple[str, ...]] = {
    ENTITIES: ("aggregation_strategy",),
    CLASSES: ("top_k",),
    ANSWERS: ("top_k",),
    "zero-shot": ("candidate_labels", "hypothesis_template", "multi_label"),
    "masked_language_model": ("top_k",),
}
_STRATEGIES = ("simple", "first", "average", "max")
HUB = (
    RequestField("inputs", "any", "What the task takes."),
    RequestField("parameters", "object", "top_k, candidate_labels, hypothesis_template, as the task has them.", None),
    *EMBED[1:],
)


def _find(call: Call) -> HostedModel:
    model: HostedModel = call.catalog.find(call.path.get("model"))
    version = model.predictor.digest
    if call.path.get("version", version) != version:
        raise Refusal(404, f"{model.name} has no such version; it has {version}.", field="version")
    return model


async def _server_metadata(call: Call) -> Reply:
    return Reply({"name": "megabert", "version": __version__, "extensions": ["binary_tensor_data"]})


async def _live(call: Call) -> Reply:
    return Reply({"live": True})


async def _ready(call: Call) -> Reply:
    is_ready = not call.app.admission.is_draining
    return Reply({"live": True, "ready": is_ready}, status=200 if is_ready else 503)


async def _model_ready(call: Call) -> Reply:
    is_ready = not call.app.admission.is_draining
    return Reply({"name": _find(call).name, "ready": is_ready}, status=200 if is_ready else 503)


async def _model_metadata(call: Call) -> Reply:
    model = _find(call)
    names = list(model.fields) or ["text"]
    return Reply(
        {
            "name": model.name,
            "versions": [model.predictor.digest],
            "platform": "pytorch",
            "inputs": [{"name": name, "datatype": "BYTES", "shape": [-1]} for name in names],
            "outputs": [
                {"name": "predictions", "datatype": "BYTES", "shape": [-1]},
                {"name": "embedding", "datatype": "FP32", "shape": [-1, -1]},
            ],
        }
    )


async def _infer(call: Call) -> Reply:
    model = _find(call)
    size = _json_size(call)
    body = parse_body(call.body[:size])
    if not isinstance(body.get("id", ""), str):
        raise invalid("id is no string.", "id")
    tensors = _tensors(body.get("inputs"), call.body[size:])
    wanted = _outputs(body.get("outputs"))
    rows = [dict(zip(tensors, values, strict=True)) for values in zip(*tensors.values(), strict=True)]
    check_number(rows, call)
    outputs = []
    if "predictions" in wanted:
        inputs = [_typed(row, model) for row in rows]
        found = await call.compute(lambda work: model.predict(inputs, work))
        data = [json.dumps(row, ensure_ascii=False) for row in found]
        outputs.append({"name": "predictions", "datatype": "BYTES", "shape": [len(data)], "data": data})
    if "embedding" in wanted:
        texts = [next(iter(row.values())) for row in rows]
        vectors = await call.compute(lambda work: model.embed(texts, work))
        shape, data = list(vectors.shape), vectors.ravel().tolist()
        outputs.append({"name": "embedding", "datatype": "FP32", "shape": shape, "data": data})
    name = {"id": body["id"]} if "id" in body else {}
    return Reply({"model_name": model.name, "model_version": model.predictor.digest, **name, "outputs": outputs})


def _json_size(call: Call) -> int:
    """Return the number of bytes before binary tensors."""
    given = call.headers.get(BINARY_LENGTH)
    if given is None:
        return len(call.body)
    if not given.isdecimal() or len(given) > 9 or int(given) > len(call.body):
        raise invalid(f"{BINARY_LENGTH} is {given:.20}; the body has {len(call.body)} bytes.", BINARY_LENGTH)
    return int(given)


def _outputs(value: Any) -> list[str]:
    items = value or [{"name": "predictions"}]
    names = [item.get("name") if isinstance(item, dict) else None for item in items] if isinstance(items, list) else []
    if not names or any(names.count(name) > 1 or name not in ("predictions", "embedding") for name in names):
        raise invalid("the outputs are a list of predictions and embedding, each once.", "outputs")
    return [str(name) for name in names]


def _tensors(inputs: Any, binary: bytes) -> dict[str, list[str]]:
    """Return the strings of each input; raises Refusal for other types, or tensors of different lengths."""
    if not isinstance(inputs, list) or not inputs or not all(isinstance(item, dict) for item in inputs):
        raise invalid("inputs is no list of tensors.", "inputs")
    tensors: dict[str, list[str]] = {}
    for item in inputs:
        name, shape = item.get("name"), item.get("shape")
        if not isinstance(name, str) or item.get("datatype") != "BYTES":
            raise invalid("an input has a name and the datatype BYTES.", "inputs")
        if name in tensors:
            raise invalid(f"the input {name[:40]} is there twice.", "inputs")
        parameters = item.get("parameters") if isinstance(item.get("parameters"), dict) else {}
        size = parameters.get("binary_data_size")
        if size is None:
            values = _flat(item.get("data"), name)
        else:
            if not isinstance(size, int) or not 0 <= size <= len(binary):
                raise invalid(f"binary_data_size of {name[:40]} is not that of the body.", "inputs")
            values, binary = _unpacked(binary[:size], name), binary[size:]
        is_shape = isinstance(shape, list) and all(type(length) is int and length >= 0 for length in shape)
        if not is_shape or prod(shape) != len(values):
            raise invalid(f"the shape of {name[:40]} is not that of its {len(values)} values.", "inputs")
        tensors[name] = values
    if binary:
        raise invalid(f"{len(binary)} bytes of the body belong to no input.", "inputs")
    if len({len(values) for values in tensors.values()}) > 1:
        raise invalid("the inputs have different lengths.", "inputs")
    return tensors


def _flat(data: Any, name: str) -> list[str]:
    values: list[Any] = data if isinstance(data, list) else [None]
    while values and all(isinstance(item, list) for item in values):
        values = [value for item in values for value in item]
    if not all(isinstance(value, str) for value in values):
        raise invalid(f"data of {name[:40]} is no list of strings.", "inputs")
    return values


def _unpacked(data: bytes, name: str) -> list[str]:
    """Read Triton's BYTES: a little-endian length of four bytes before each string."""
    values, place = [], 0
    try:
        while place < len(data):
            (length,) = struct.unpack_from("<I", data, place)
            if place + 4 + length > len(data):
                raise ValueError
            values.append(data[place + 4 : place + 4 + length].decode("utf-8"))
            place += 4 + length
    except (struct.error, ValueError):
        raise invalid(f"the binary data of {name[:40]} are no strings in UTF-8.", "inputs") from None
    return values


def _typed(row: Mapping[str, str], model: HostedModel) -> dict[str, Any]:
    """Parse the fields that are lists: their strings are JSON."""
    values: dict[str, Any] = dict(row)
    for name, text in row.items():
        if model.fields.get(name) is list:
            try:
                values[name] = json.loads(text)
            except (ValueError, RecursionError):
                raise invalid(f"{name} is a JSON list in a string.", "inputs") from None
    return values


async def _hub(call: Call) -> Reply:
    """Answer as Hugging Face's inference endpoints do for the task of the model."""
    inputs, model = call.fields["inputs"], call.catalog.find(call.path.get("model") or call.fields["model"])
    parameters = _parameters(call.fields["parameters"] or {}, model)
    if isinstance(inputs, dict) and "source_sentence" in inputs:
        return await compare_texts(call)
    if model.task.is_embedding:
        return await embed_texts(call)
    rows: Sequence[Any] = inputs if isinstance(inputs, list) else [inputs]
    check_number(rows, call)
    first = next(iter(model.fields), "text")
    items = [dict(item) if isinstance(item, dict) else {first: item} for item in rows]
    if "candidate_labels" in parameters:
        template = parameters.get("hypothesis_template")
        more = {"labels": parameters["candidate_labels"], **({"template": template} if template else {})}
        items = [{**item, **more} for item in items]
    predictions = await call.compute(lambda work: model.predictions(items, work))
    answers = [_hub_answer(model, prediction, row, parameters.get("top_k")) for row, prediction in predictions]
    is_nested = isinstance(inputs, list) or model.route == CLASSES  # the client takes the first of a list
    return Reply(answers if is_nested else answers[0])


def _parameters(given: Mapping[str, Any], model: HostedModel) -> dict[str, Any]:
    """Return the parameters that are not null; raises Refusal for one that would not count."""
    name = model.task.name()
    if name == "causal_language_model":
        raise invalid(f"{model.name} generates no text here (`megabert generate` does); /v1/predict has next tokens.")
    known = _PARAMETERS.get(model.route, _PARAMETERS.get(name, ()))
    parameters = {key: value for key, value in given.items() if value is not None}
    if unknown := next((key for key in parameters if key not in known), None):
        raise invalid(f"{unknown[:40]} is no parameter of {name}; it has {', '.join(known) or 'none'}.", "parameters")
    top_k = parameters.get("top_k", 1)
    if not isinstance(top_k, int) or isinstance(top_k, bool) or top_k < 1:
        raise invalid("top_k is a number from 1.", "parameters")
    if parameters.get("aggregation_strategy", "simple") not in _STRATEGIES:
        raise invalid(f"entities are whole: aggregation_strategy is one of {', '.join(_STRATEGIES)}.", "parameters")
    own = getattr(model.task.settings.model.dataset, "multi_label", None)
    if parameters.get("multi_label", own) is not own:
        raise invalid(f"multi_label is {str(own).lower()} in {model.name}: its run sets it.", "parameters")
    return parameters


def _hub_answer(model: HostedModel, prediction: Any, row: dict[str, Any], top_k: int | None) -> Any:
    if model.route == ENTITIES:
        return [
            {"entity_group": span.type, "score": span.score, "word": span.text, "start": span.start, "end": span.end}
            for span in prediction.spans
        ]
    if model.route == ANSWERS:
        best = prediction.n_best[: top_k or 1] if (top_k or 1) > 1 else [prediction]
        answers = [
            {"answer": item.text, "score": item.probability, "start": item.start, "end": item.end} for item in best
        ]
        return answers if (top_k or 1) > 1 else answers[0]
    if model.task.name() == "masked_language_model":
        masks = [_fillings(model, row["text"], place, top_k) for place in row["places"]]
        return masks[0] if len(masks) == 1 else masks
    probabilities = getattr(prediction, "probabilities", None)
    if probabilities:
        ordered = sorted(probabilities.items(), key=lambda item: -item[1])
        return [{"label": label, "score": score} for label, score in ordered[:top_k]]
    return row


def _fillings(model: HostedModel, text: str, place: Mapping[str, Any], top_k: int | None) -> list[dict[str, Any]]:
    """Return a mask's tokens, best first, each with the text that has it in the mask's place."""
    if (top_k or 1) > len(place["guesses"]):
        raise invalid(f"top_k is at most {len(place['guesses'])}.", "parameters")
    before, after, tokens = text[: place["start"]], text[place["end"] :], model.predictor.tokenizer.tokens
    return [
        {
            "score": item["probability"],
            "token": tokens.index(item["token"]),
            "token_str": item["token"],
            "sequence": before + item["token"] + after,
        }
        for item in place["guesses"][:top_k]
    ]
