"""Unmodified clients of other servers: OpenAI's, Triton's, and Hugging Face's."""

import numpy as np
import pytest


def test_openai(server):
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    answer = client.embeddings.create(model="ner", input=["a b", "c"])  # asks for base64 by default
    vectors = server.runs["ner"].embed(["a b", "c"])
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    assert np.allclose([item.embedding for item in answer.data], unit, atol=1e-5)
    created = {item.id: item.created for item in client.models.list()}
    assert isinstance(created["ner"], int)
    assert isinstance(client.models.retrieve("ner").created, int)
    with pytest.raises(openai.UnprocessableEntityError, match="dimensions"):
        client.embeddings.create(model="ner", input="a", dimensions=10**6)
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="nobody", input="a")
    with pytest.raises(openai.NotFoundError, match="no such route"):
        client.chat.completions.create(model="ner", messages=[{"role": "user", "content": "a"}])


def test_triton(server):
    pytest.importorskip("gevent", reason="tritonclient[http] is not installed")
    triton = pytest.importorskip("tritonclient.http")
    client = triton.InferenceServerClient(server.url.removeprefix("http://"))
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("ner")
    assert client.get_model_metadata("ner")["inputs"][0]["name"] == "text"
    for is_binary in (True, False):
        tensor = triton.InferInput("text", [2], "BYTES")
        tensor.set_data_from_numpy(
            np.array([b"Peter lives", "Pari\u0301s".encode()], dtype=object), binary_data=is_binary
        )
        answer = client.infer("ner", [tensor], request_id="7")
        assert answer.get_response()["id"] == "7"
        assert len(answer.as_numpy("predictions")) == 2
        wanted = triton.InferRequestedOutput("embedding", binary_data=is_binary)
        found = client.infer("ner", [tensor], outputs=[wanted]).as_numpy("embedding")
        assert np.allclose(found, server.runs["ner"].embed(["Peter lives", "Pari\u0301s"]), atol=1e-5)


def test_hugging_face(server):
    from huggingface_hub import InferenceClient
    from huggingface_hub.errors import HfHubHTTPError

    def client(name):
        return InferenceClient(base_url=f"{server.url}/models/{name}")

    text = "Peter lives in Paris"
    spans = client("ner").token_classification(text)
    assert [(item.word, item.start, item.end) for item in spans] == [
        (span.text, span.start, span.end) for span in server.runs["ner"].predict(text=text).spans
    ]
    best = client("classes").text_classification("good")[0]
    assert best.label == server.runs["classes"].predict(text="good").labels[0]
    answer = client("qa").question_answering(question="Where?", context=text)
    assert answer.answer == server.runs["qa"].predict(question="Where?", context=text).text
    labels = [item.label for item in client("zero").zero_shot_classification("a b", candidate_labels=["x", "y"])]
    assert sorted(labels) == ["x", "y"]
    vector = InferenceClient(base_url=f"{server.url}/models/ner/embed").feature_extraction(text)
    assert np.shape(vector) == (1, 16)
    # Parameters count, or are refused
    assert len(client("classes").text_classification("good", top_k=2)) == 2
    found = client("qa").question_answering(question="Where?", context=text, top_k=2)
    best = server.runs["qa"].predict(question="Where?", context=text).n_best[:2]
    assert [item.answer for item in found] == [item.text for item in best]
    for call in (
        lambda: client("zero").zero_shot_classification("a b", candidate_labels=["x", "y"], multi_label=True),
        lambda: client("ner").token_classification(text, aggregation_strategy="none"),
        lambda: client("qa").question_answering(question="Where?", context=text, max_answer_len=3),
        lambda: client("classes").text_classification("good", top_k=0),
    ):
        with pytest.raises(HfHubHTTPError, match="422"):
            call()
