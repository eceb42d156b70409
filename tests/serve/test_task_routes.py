"""Routes and rankings follow a run's task, whatever its name; whatever is cut is counted. Runs have random weights."""

import json

import numpy as np
import pytest
import torch

import megabert
from megabert.build import load_language_model, new_task_model
from megabert.config.parser import compose
from megabert.inference import Predictor
from megabert.serve.server_parts import LoadedRun
from megabert.tasks import registry
from megabert.tasks.text_classification import TextClassification
from megabert.torch_session import TorchSession
from tests.serve.running_server import RUNS, load_runs, running
from tests.tasks.test_dialogue_state_tracking import SCHEMA, TURNS
from tests.training.test_loop import TINY


class Spam(TextClassification):
    """A task of one's own, of another name and file."""

    @classmethod
    def name(cls):
        return "spam"


SHORT = {
    registry.find("multiple_choice"): ("model.dataset.max_qa_length=16",),
    registry.find("bioasq"): ("model.dataset.max_query_length=16", "model.dataset.doc_stride=8"),
}


def new_predictor(kind, vocab_file, **state):
    words = ["model.language_model.pretrained_model_name=null", TINY, f"model.tokenizer.vocab_file={vocab_file}",
             "model.dataset.max_seq_length=32", *SHORT.get(kind, ())]  # fmt: skip
    task = kind(compose(kind.settings_type, words, owner="a task")[0])
    if state:
        task.restore_state({**task.state(), **state})
    language_model = load_language_model(task.settings.model, home=None, seed=1)
    model = new_task_model(task, language_model, seed=1).eval()
    return Predictor(task, language_model.tokenizer, TorchSession(model, task.loss, torch.device("cpu")))


@pytest.fixture(scope="module")
def tasks(vocab_file):
    from megabert.tasks.dialogue_state_tracking import schema_of

    kinds = {"ranker": "text_ranking", "embedder": "text_embedding", "linker": "entity_linking",
             "choices": "multiple_choice", "bioasq": "bioasq", "masks": "masked_language_model"}  # fmt: skip
    predictors = {name: new_predictor(registry.find(task), vocab_file) for name, task in kinds.items()}
    predictors["embedder"].task.settings.model.dataset.query_prompt = "who is "
    predictors["spam"] = new_predictor(Spam, vocab_file, labels=["no", "spam", "unclear"], weights=[1.0] * 3)
    predictors["states"] = new_predictor(registry.find("dialogue_state_tracking"), vocab_file)
    predictors["states"].task.schema = schema_of(SCHEMA, "the schema")
    predictors["next"] = megabert.load(RUNS / "causal_language_model" / "run", accelerator="cpu")
    with running([LoadedRun(*item) for item in predictors.items()] + load_runs("pairs")) as found:
        yield found


def test_a_cross_encoder_ranks(tasks):
    texts = ["the seine", "a river in paris", "radium"]
    scores = [next(iter(tasks.runs["ranker"].predict(query="who", passage=text).scores.values())) for text in texts]
    answer = tasks.post("/models/ranker/rerank", query="who", texts=texts)
    assert [item["index"] for item in answer] == np.argsort(-np.array(scores), kind="stable").tolist()
    probabilities = 1 / (1 + np.exp(-np.array(scores)))
    assert {item["index"]: item["score"] for item in answer} == pytest.approx(dict(enumerate(probabilities)), abs=1e-5)
    raw = tasks.post("/models/ranker/rerank", query="who", texts=texts, raw_scores=True)
    assert {item["index"]: item["score"] for item in raw} == pytest.approx(dict(enumerate(scores)), abs=1e-5)
    assert "reranker" in tasks.call("GET", "/models/ranker/info")[2]["model_type"]
    ranked_by = {item["id"]: item["ranked_by"] for item in tasks.call("GET", "/v1/models")[2]["data"]}
    labels = tasks.runs["pairs"].task.labels
    assert ranked_by == {"ranker": "score", "embedder": None, "linker": None, "spam": None, "states": None,
                         "choices": None, "bioasq": None, "masks": None, "next": None,
                         "pairs": "1" if "1" in labels else labels[1]}  # fmt: skip
    assert tasks.call("POST", "/models/spam/rerank", {"query": "a", "texts": ["b"]})[0] == 422


def test_a_text_s_role_chooses_its_prompt(tasks):
    run = tasks.runs["embedder"]
    for more, role in (({}, "passage"), ({"prompt_name": "query"}, "query"), ({"prompt_name": "document"}, "passage")):
        vectors = tasks.post("/models/embedder/embed", inputs=["marie"], **more)
        np.testing.assert_allclose(vectors, run.embed(["marie"], role=role), atol=1e-5)
    assert not np.allclose(run.embed(["marie"], role="query"), run.embed(["marie"]), atol=1e-3)
    status, _, error = tasks.call("POST", "/models/embedder/embed", {"inputs": "a", "prompt_name": "s2p"})
    assert (status, error["field"]) == (422, "prompt_name")


def test_hugging_face_s_client_embeds_compares_and_fills(tasks):
    hub = pytest.importorskip("huggingface_hub")
    client = hub.InferenceClient(base_url=f"{tasks.url}/models/embedder")
    vectors = tasks.runs["embedder"].embed(["marie", "paris"])
    np.testing.assert_allclose(client.feature_extraction("marie")[0], vectors[0], atol=1e-5)
    (similarity,) = client.sentence_similarity("marie", other_sentences=["paris"])
    assert similarity == pytest.approx(float(vectors[0] @ vectors[1]), abs=1e-5)
    found = hub.InferenceClient(base_url=f"{tasks.url}/models/masks").fill_mask("marie [MASK] radium", top_k=2)
    (place,) = tasks.post("/v1/predict", model="masks", text="marie [MASK] radium")["results"][0]["places"]
    assert [(item.token_str, item.score) for item in found] == [
        (item["token"], pytest.approx(item["probability"])) for item in place["guesses"][:2]
    ]
    assert found[0].sequence == f"marie {found[0].token_str} radium"
    assert tasks.runs["masks"].tokenizer.tokens[found[0].token] == found[0].token_str
    with pytest.raises(hub.errors.TextGenerationError, match="generates no text"):
        hub.InferenceClient(base_url=f"{tasks.url}/models/next").text_generation("marie", max_new_tokens=2)


def test_a_wrong_method_is_told_which_there_are(tasks):
    for method, path, allowed in (("GET", "/embed", "POST"), ("OPTIONS", "/embed", "GET, HEAD, POST")):
        status, headers, _ = tasks.call(method, path)
        assert (status, headers["allow"]) == (405, allowed)


def test_a_task_of_one_s_own_has_the_route_of_its_parent(tasks):
    row = tasks.post("/v1/classes", model="spam", text="radium")["results"][0]
    assert set(row["probabilities"]) == {"no", "spam", "unclear"}
    assert tasks.post("/v1/linking", text="radium")["model"] == "linker"
    assert tasks.call("POST", "/v1/linking", {"model": "spam", "text": "radium"})[0] == 422


@pytest.mark.parametrize(
    ("model", "routes", "fields"),
    [("choices", ["choices", "predict"],
      {"question": "who found _", "choices": ["radium", "france"], "passage": "marie found it"}),
     ("bioasq", ["predict"], {"question": "who found radium", "context": "marie found radium", "type": "list"})],
)  # fmt: skip
def test_questions_are_answered(model, routes, fields, tasks):
    predictor = tasks.runs[model]
    wanted = json.loads(json.dumps(predictor.task.to_json(predictor.predict(id="1", **fields))))
    for route in routes:
        (row,) = tasks.post(f"/v1/{route}", model=model, **fields)["results"]
        assert {name: row[name] for name in wanted} | {"windows": 1} == wanted  # there, of all sequences


def test_dialogues_are_tracked(tasks):
    predictor, services = tasks.runs["states"], ["Trips_1", "Homes_1"]
    task = predictor.task
    for turns in (["the seine in paris", "warsaw is a city", "who"], TURNS):
        example = task.example(id="1", turns=turns, services=services)
        wanted = json.loads(json.dumps(task.to_json(predictor.predict_examples([example])[0])))
        for route in ("/v1/dialogues", "/v1/predict"):
            answer = tasks.post(route, model="states", turns=turns, services=services)
            row = answer["results"][0]
            assert (row.pop("windows"), row.pop("truncated", 0)) == (answer["usage"]["windows"], 0)
            assert row == wanted
    tensor = {"datatype": "BYTES", "shape": [1]}
    inputs = [{**tensor, "name": name, "data": [json.dumps(value)]} for name, value in (("turns", turns), ("services", services))]  # fmt: skip  # noqa: E501
    answer = tasks.post("/v2/models/states/infer", inputs=inputs)
    assert json.loads(answer["outputs"][0]["data"][0])["turns"] == wanted["turns"]
    status, _, error = tasks.call("POST", "/v1/dialogues", {"turns": ["a"], "services": ["Nowhere_1"]})
    assert status == 422 and "Nowhere_1" in error["error"]


def test_whatever_is_cut_is_counted(tasks):
    long = "river " * 50  # of a pair the longer is read in windows, with the half of the room for the shorter
    (row,) = tasks.post("/v1/classes", model="pairs", text=long * 4, text_b=long * 9)["results"]
    room = tasks.runs["pairs"].task.row_length - 3
    assert row["truncated"] == 200 - room // 2
    status, headers, _ = tasks.call("POST", "/models/pairs/rerank", {"query": long * 4, "texts": [long * 9, "a"]})
    assert (status, headers["x-truncated-tokens"]) == (200, str(200 - room // 2))
    assert tasks.call("POST", "/models/embedder/embed", {"inputs": [long, "a"]})[1]["x-truncated-tokens"] == "20"
    assert tasks.call("POST", "/models/ranker/rerank", {"query": "a", "texts": [long]})[1]["x-truncated-tokens"] == "22"
    (row,) = tasks.post("/v1/linking", text=long)["results"]
    assert row["truncated"] == 20
    assert "truncated" not in tasks.post("/v1/linking", text="river")["results"][0]
    turns = [long, "a", "who"]
    answer = tasks.post("/v1/dialogues", turns=turns, services=["Homes_1"])
    assert answer["results"][0]["truncated"] > 20
