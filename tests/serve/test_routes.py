"""Every route's answer is that of the Predictor; the protocols of other servers, field by field."""

import base64
import json
import re
import socket

import numpy as np
import pytest

from megabert.annotate.annotator import EntityAnnotator, annotate
from megabert.formats.documents.convert_documents import read_documents
from megabert.serve.hosted_models import logit

INPUTS = {
    "entities": ("ner", {"text": "Peter lives in Paris " * 30}),
    "answers": ("qa", {"question": "Where?", "context": "Peter lives in Paris. " * 20}),
    "classes": ("classes", {"text": "what a day " * 40}),
    "relations": ("relations", {"text": "Peter saw Anna", "head": "Peter", "tail": "Anna"}),
    "intents": ("intents", {"text": "play music"}),
    "punctuation": ("marks", {"text": "play music then stop"}),
    "zero-shot": ("zero", {"text": "a b c", "labels": ["sport", "politics"], "template": "It is {}."}),
}


def same(first, second):
    """Compare plain values: numbers to 1e-4, all else exactly."""
    if isinstance(first, float):
        return second == pytest.approx(first, abs=1e-4)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


@pytest.mark.parametrize("route", INPUTS)
def test_a_task_route_answers_like_the_predictor(server, route):
    name, fields = INPUTS[route]
    predictor = server.runs[name]
    task = predictor.task
    example = task.example(id="1", **fields)
    wanted = json.loads(json.dumps(task.to_json(predictor.predict_examples([example])[0])))
    features = task.features([example], predictor.tokenizer, with_targets=False)
    for body in (fields, {"inputs": [fields, fields]}):
        answer = server.post(f"/v1/{route}", model=name, **body)
        row = answer["results"][0]
        assert row.pop("windows") == wanted.get("windows", len(features))
        row.pop("truncated", None)
        assert same({key: value for key, value in wanted.items() if key != "windows"}, row)
        assert answer["usage"]["windows"] == len(features) * len(answer["results"])
    assert answer["results"][1]["id"] == "2"


def test_truncation_happens_on_request_only_and_is_reported(server):
    text = "Peter lives in Paris " * 30
    (row,) = server.post("/v1/entities", model="ner", text=text, truncate=True)["results"]
    count = len(server.runs["ner"].tokenizer.encode([text])[0].token_ids)
    assert row["windows"] == 1
    assert row["truncated"] == count - (server.runs["ner"].task.row_length - 2)
    question = "where " * 200
    (row,) = server.post("/v1/answers", question=question, context="Peter lives in Paris.")["results"]
    (ids,) = server.runs["qa"].tokenizer.encode_ids(["where " * 200])
    assert row["truncated"] == len(ids) - server.runs["qa"].task.dataset.max_query_length


def test_documents_are_annotated_as_the_command_does(server, tmp_path):
    content = "1|t|Peter lives in Paris\n1|a|Anna left for Rome.\n\n2|t|Anna\n2|a|\n\n"
    (tmp_path / "a.pubtator").write_text(content)
    documents = list(read_documents([tmp_path / "a.pubtator"]))
    wanted = [item.document for item in annotate([EntityAnnotator(server.runs["ner"])], documents)]
    answer = server.post("/v1/documents", models=["ner"], content=content, format="pubtator")
    (tmp_path / "b.pubtator").write_text(answer["content"])
    again = list(read_documents([tmp_path / "b.pubtator"]))
    assert [[entity.fragments for entity in item.entities] for item in again] == [
        [entity.fragments for entity in item.entities] for item in wanted
    ]
    for name in ("bioc", "bioc-json", "jsonl", "brat", "conll", "csv"):
        assert server.post("/v1/documents", models=["ner"], content=content, format="pubtator", output_format=name)[
            "content"
        ]
    xml = server.post("/v1/documents", models=["ner"], content=content, format="pubtator", output_format="bioc")[
        "content"
    ]
    back = server.post("/v1/documents", models=["ner"], content=xml, format="bioc", existing="replace")
    assert [item["id"] for item in back["documents"]] == ["1", "2"]
    related = server.post(
        "/v1/documents", models=["ner", "relations"], pairs=["PER:LOC", "LOC:PER"], content="Peter lives in Paris"
    )
    assert all(len(item["arguments"]) == 2 for item in related["documents"][0]["relations"])
    status, _, error = server.call(
        "POST", "/v1/documents", {"content": "1|t|a\n1\t0\t9\tzzz\tX\n", "format": "pubtator"}
    )
    assert (status, error["field"]) == (422, "content")


def test_bern2_has_its_fields(server):
    text = "Peter lives in Paris"
    answer = server.post("/plain", text=text)
    assert answer["text"] == text
    for item in answer["annotations"]:
        assert set(item) == {"id", "is_neural_normalized", "mention", "obj", "prob", "span"}
        assert text[item["span"]["begin"] : item["span"]["end"]] == item["mention"]


def test_embeddings_are_those_of_the_predictor(server):
    texts = ["a b", "c d e f " * 60]
    vectors = server.runs["ner"].embed(texts)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    assert np.allclose(server.post("/models/ner/embed", inputs=texts), unit, atol=1e-5)
    assert np.allclose(server.post("/embed", model="ner", inputs=texts[0], normalize=False), vectors[:1], atol=1e-5)
    short = vectors[:, :5] / np.linalg.norm(vectors[:, :5], axis=1, keepdims=True)
    assert np.allclose(server.post("/models/ner/embed", inputs=texts, dimensions=5), short, atol=1e-5)
    ids = [server.runs["ner"].tokenizer.encode_ids([text])[0].tolist() for text in texts]
    assert np.allclose(server.post("/models/ner/embed", inputs=ids), unit, atol=1e-5)
    assert np.allclose(server.post("/models/ner/embed", inputs=ids[0]), unit[:1], atol=1e-5)
    (states,) = server.post("/models/ner/embed_all", inputs=texts[0])
    assert np.allclose(np.mean(states, axis=0), vectors[0], atol=1e-5)
    (similarity,) = server.post("/models/ner/similarity", inputs={"source_sentence": texts[0], "sentences": texts[1:]})
    assert similarity == pytest.approx(float(unit[0] @ unit[1]), abs=1e-5)
    status, headers, _ = server.call("POST", "/models/ner/embed", {"inputs": texts})
    assert status == 200 and int(headers["x-windows"]) > 2
    _, headers, _ = server.call(
        "POST", "/models/ner/embed", {"inputs": texts, "truncate": True, "truncation_direction": "Left"}
    )
    assert headers["x-windows"] == "2" and int(headers["x-truncated-tokens"]) > 0
    assert {"x-compute-type", "x-compute-time", "x-compute-characters", "x-compute-tokens", "x-total-time",
            "x-tokenization-time", "x-queue-time", "x-inference-time", "x-request-id"} <= set(headers)  # fmt: skip


def test_two_strings_for_predict_are_a_pair_and_lists_a_batch(server):
    pair = server.post("/models/pairs/predict", inputs=["a b", "c"])
    predictor = server.runs["pairs"]
    wanted = predictor.predict(text="a b", text_b="c").probabilities
    assert {item["label"]: item["score"] for item in pair} == pytest.approx(wanted, abs=1e-5)
    assert [item["score"] for item in pair] == sorted((item["score"] for item in pair), reverse=True)
    batch = server.post("/models/pairs/predict", inputs=[["a b"], ["a b", "c"]])
    assert same(batch[1], pair)
    assert len(batch) == 2
    assert isinstance(server.post("/models/classes/predict", inputs="a")[0], dict)
    raw = server.post("/models/pairs/predict", inputs=["a b", "c"], raw_scores=True)
    assert np.allclose(np.exp([item["score"] for item in raw]), [item["score"] for item in pair], atol=1e-5)


def test_ranking_orders_texts_by_the_probability_of_relevance(server):
    texts = ["b c", "a", "zebra city", "the river"]
    answer = server.post("/models/pairs/rerank", query="a b", texts=texts, return_text=True)
    scores = {item["index"]: item["score"] for item in answer}
    predictions = server.runs["pairs"].predict(text=["a b"] * 4, text_b=texts)
    label = list(predictions[0].probabilities)[1]
    assert scores == pytest.approx({i: item.probabilities[label] for i, item in enumerate(predictions)}, abs=1e-5)
    assert [item["score"] for item in answer] == sorted(scores.values(), reverse=True)
    assert all(item["text"] == texts[item["index"]] for item in answer)
    raw = server.post("/models/pairs/rerank", query="a b", texts=texts, raw_scores=True)
    assert raw[0]["score"] == pytest.approx(logit(answer[0]["score"]), abs=1e-3)
    best = server.post("/v1/rerank", model="pairs", query="a b", documents=[texts[0], {"text": texts[1]}, *texts[2:]],
                       top_n=2, return_documents=True)["results"]  # fmt: skip
    assert [item["index"] for item in best] == [item["index"] for item in answer[:2]]
    assert best[0]["document"] == {"text": answer[0]["text"]}
    assert best[0]["relevance_score"] == pytest.approx(answer[0]["score"], abs=1e-5)
    status, _, error = server.call("POST", "/models/ner/rerank", {"query": "a", "texts": ["b"]})
    assert (status, error["error_type"]) == (422, "Validation")


def test_tokens_have_their_characters(server):
    (row,) = server.post("/models/ner/tokenize", inputs="paris a")
    assert [item["text"] for item in row[1:-1]] == [
        *["paris"[item["start"] : item["stop"]] or "a" for item in row[1:-1]][:-1],
        "a",
    ]
    assert row[0] == {
        "id": server.runs["ner"].tokenizer.cls_id,
        "text": "[CLS]",
        "special": True,
        "start": None,
        "stop": None,
    }
    (plain,) = server.post("/models/ner/tokenize", inputs=["paris a"], add_special_tokens=False)
    assert plain == row[1:-1]
    assert server.post("/models/ner/decode", ids=[item["id"] for item in row]) == ["paris a"]
    assert server.call("POST", "/models/ner/decode", {"ids": [10**9]})[0] == 422


def test_openai_embeddings_are_base64_of_little_endian_float32(server):
    plain = server.post("/v1/embeddings", model="ner", input=["a b", "c"], user="somebody")
    coded = server.post("/v1/embeddings", model="ner", input=["a b", "c"], encoding_format="base64")
    assert [item["index"] for item in coded["data"]] == [0, 1]
    for first, second in zip(plain["data"], coded["data"], strict=True):
        assert np.allclose(np.frombuffer(base64.b64decode(second["embedding"]), "<f4"), first["embedding"], atol=1e-6)
    assert plain["usage"]["prompt_tokens"] == plain["usage"]["total_tokens"] > 2
    status, _, error = server.call("POST", "/v1/embeddings", {"model": "ner", "input": 5})
    assert status == 422 and set(error["error"]) == {"message", "type", "param", "code"}


def test_kserve_echoes_ids_and_takes_strings_as_json_and_bytes(server):
    tensor = {"name": "text", "datatype": "BYTES", "shape": [2], "data": ["Peter", "Paris"]}
    answer = server.post("/v2/models/ner/infer", id="my id", inputs=[tensor])
    assert answer["id"] == "my id"
    assert [json.loads(item)["text"] for item in answer["outputs"][0]["data"]] == ["Peter", "Paris"]
    packed = b"".join(len(word).to_bytes(4, "little") + word for word in (b"Peter", b"Paris"))
    head = json.dumps({"inputs": [{**{k: tensor[k] for k in ("name", "datatype", "shape")}, "parameters": {"binary_data_size": len(packed)}}]}).encode()  # fmt: skip  # noqa: E501
    status, _, binary = server.call(
        "POST", "/v2/models/ner/infer", head + packed, inference_header_content_length=str(len(head))
    )
    assert status == 200 and binary["outputs"][0]["data"] == answer["outputs"][0]["data"]
    vectors = server.post("/v2/models/ner/infer", inputs=[tensor], outputs=[{"name": "embedding"}])["outputs"][0]
    assert np.allclose(
        np.reshape(vectors["data"], vectors["shape"]), server.runs["ner"].embed(["Peter", "Paris"]), atol=1e-5
    )
    assert server.call("GET", "/v2/health/live")[2] == {"live": True}
    assert server.call("GET", "/v2/models/ner/ready")[2] == {"name": "ner", "ready": True}
    assert server.call("GET", "/v2/models/ner")[2]["inputs"][0] == {"name": "text", "datatype": "BYTES", "shape": [-1]}
    assert set(server.call("POST", "/v2/models/ner/infer", {"inputs": [{**tensor, "shape": [3]}]})[2]) == {"error"}


def test_errors_have_the_protocols_shape_and_name_the_field(server):
    for body, status, kind, field in (
        ({"inputs": 5}, 422, "Validation", "inputs"),
        ({"inputs": ""}, 400, "Empty", "inputs"),
        ({"inputs": ["a"] * 33}, 413, "Validation", "inputs"),
        ({"inputs": []}, 422, "Validation", "inputs"),
        ({"inputs": "a", "dimensions": 99}, 422, "Validation", "dimensions"),
        ({"inputs": "a", "truncation_direction": "up"}, 422, "Validation", "truncation_direction"),
        ({}, 422, "Validation", "inputs"),
    ):
        found, _, error = server.call("POST", "/models/ner/embed", body)
        assert (found, error["error_type"], error["field"]) == (status, kind, field), error
    assert server.call("POST", "/embed", {"inputs": "a"})[2]["field"] == "model"
    assert server.call("POST", "/models/nobody/embed", {"inputs": "a"})[0] == 404
    assert server.call("POST", "/v1/entities", {"text": "a", "context": "b"})[2]["field"] == "context"
    assert server.call("POST", "/v1/entities", {"text": "a", "txt": "b"})[2]["field"] == "txt"
    assert server.call("POST", "/v1/answers", {"question": "a"})[2]["field"] == "context"


def test_the_description_of_the_routes_names_every_route(server):
    description = server.call("GET", "/openapi.json")[2]
    page = server.call("GET", "/docs")[2]
    assert description["openapi"].startswith("3.1")
    for endpoint in server.server.application.endpoints:
        operation = description["paths"][endpoint.path][endpoint.method.lower()]
        names = set(operation.get("requestBody", {"content": {"application/json": {"schema": {"properties": {}}}}})["content"]["application/json"]["schema"]["properties"])  # fmt: skip  # noqa: E501
        assert names == {field.name for field in endpoint.fields}
        assert endpoint.path.replace("{", "{") in page
    assert not re.search(r"(src|href)=.?https?:", page)


def test_metrics_can_be_parsed_and_agree_with_what_was_sent(server):
    keys = ("te_request_count", "te_request_success", "te_request_failure", "megabert_requests_cancelled_total")
    before = [server.metric(key) for key in keys]
    for text in ("Peter", "Anna"):
        server.post("/v1/entities", model="ner", text=text)
    server.call("POST", "/v1/entities", {"model": "ner", "text": " "})
    after = [server.metric(key) for key in keys]
    admitted, success, failure, cancelled = (b - a for a, b in zip(before, after, strict=True))
    assert (admitted, success, failure, cancelled) == (3, 2, 1, 0)
    status, headers, text = server.call("GET", "/metrics")
    assert status == 200 and headers["content-type"].startswith("text/plain; version=0.0.4")
    for line in text.splitlines():
        assert re.fullmatch(r'# (HELP|TYPE) \w+ .+|\w+(\{\w+="[\w.+]+"\})? [\d.e+-]+', line), line
    assert server.call("GET", "/health", x_request_id="mine-1")[1]["x-request-id"] == "mine-1"
    assert server.call("GET", "/health", x_request_id="<not a word>")[1]["x-request-id"] != "<not a word>"


def test_windows_are_those_of_the_text_and_not_of_its_labels(server):
    answer = server.post(
        "/v1/zero-shot",
        model="zero",
        inputs=[{"text": text, "labels": ["sport", "law", "food"]} for text in ("a goal", "a law")],
    )
    assert [row["windows"] for row in answer["results"]] == [1, 1]
    assert answer["usage"]["windows"] == 6  # what was computed


TENSOR = {"name": "text", "datatype": "BYTES", "shape": [1], "data": ["Anna"]}


@pytest.mark.parametrize(
    ("body", "headers", "message"),
    [
        ({"inputs": [TENSOR], "outputs": 5}, {}, "outputs"),
        ({"inputs": [TENSOR], "outputs": [{"name": "predictions"}] * 2}, {}, "outputs"),
        ({"inputs": [{**TENSOR, "shape": [-1, -1]}]}, {}, "shape"),
        ({"inputs": [{**TENSOR, "shape": [True]}]}, {}, "shape"),
        ({"inputs": [{**TENSOR, "shape": [10**400]}]}, {}, "shape"),
        ({"inputs": [TENSOR, TENSOR]}, {}, "twice"),
        ({"inputs": [TENSOR], "id": 7}, {}, "id is"),
        ({"inputs": [TENSOR]}, {"inference_header_content_length": "-5"}, "inference-header-content-length"),
        ({"inputs": [TENSOR]}, {"inference_header_content_length": "9999"}, "inference-header-content-length"),
        (json.dumps({"inputs": [TENSOR]}).encode() + b"rest", {"inference_header_content_length": "83"}, "4 bytes"),
    ],
)
def test_a_malformed_inference_is_refused_by_name(server, body, headers, message):
    status, _, error = server.call("POST", "/v2/models/ner/infer", body, **headers)
    assert status == 422 and message in error["error"]


def test_a_model_has_the_version_that_it_lists_and_no_other(server):
    (version,) = server.call("GET", "/v2/models/ner")[2]["versions"]
    for name, status in ((version, 200), ("1", 404)):
        path = f"/v2/models/ner/versions/{name}"
        assert server.call("GET", path)[0] == server.call("GET", f"{path}/ready")[0] == status
        found, _, answer = server.call("POST", f"{path}/infer", {"inputs": [TENSOR]})
        assert found == status and (status == 200 or version in answer["error"])


def test_addresses_may_end_with_a_slash(server):
    for path in ("/v1/models", "/v1/models/ner", "/v2", "/health", "/models/ner/info"):
        assert server.call("GET", path)[0] == server.call("GET", f"{path}/")[0] == 200, path
    assert server.post("/v1/entities/", model="ner", text="Anna")["model"] == "ner"
    assert server.call("GET", "/v1/models/ner")[2]["id"] == "ner"
    assert server.call("GET", "/health//")[0] == 404
    status, _, error = server.call("GET", "/v1/models/nobody")
    assert status == 404 and "there are ner" in error["error"]["message"]


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /health HTTP/1.0\r\n", b"200"),  # as load balancers look
        (b"GET http://127.0.0.1/health HTTP/1.1\r\nHost: 127.0.0.1\r\n", b"200"),
        (b"GET http://evil.example/health HTTP/1.1\r\nHost: 127.0.0.1\r\n", b"421"),
        (b"GET http://127.0.0.1/health HTTP/1.1\r\nHost: evil.example\r\n", b"421"),
        (b"GET /health HTTP/1.0\r\nOrigin: http://evil.example\r\n", b"403"),
    ],
)
def test_heads_of_old_clients_and_proxies_are_read(server, head, status):
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(head + b"\r\n")
        assert connection.recv(4096).split(b" ")[1] == status
