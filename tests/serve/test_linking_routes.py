"""Dictionaries behind the server: mentions, entities and documents get identifiers, as the linker gives them."""

import json
import pickle
from pathlib import Path

import pytest

import megabert
from megabert.annotate.entity_linker import EntityLinker
from megabert.cli.serving import _check_linkers, _parse
from megabert.errors import ConfigError
from megabert.linking.dense import embed_names
from megabert.serve.hosted_linkers import HostedLinker, linker_lanes
from megabert.serve.hosted_models import ModelCatalog
from megabert.serve.model_queue import ModelQueue
from megabert.serve.server import _without_network
from tests.linking.conftest import build
from tests.serve.browser import open_page
from tests.serve.running_server import RUNS, load_runs, running
from tests.serve.test_examples import LINKING
from tests.serve.test_page import compute

PLACES = "Q90||Paris|City of Light\nQ220||Rome|Roma\nQ84||London\n"
RUN = next((RUNS / "text_classification" / "run" / "checkpoints").iterdir())


@pytest.fixture(scope="module")
def linkers(tmp_path_factory):
    diseases = build(tmp_path_factory.mktemp("diseases"))
    places = build(tmp_path_factory.mktemp("places"), PLACES, prefix="wikidata")
    embed_names(diseases, RUN, accelerator="cpu")
    dense = megabert.load_linker(diseases.folder, RUN, accelerator="cpu")
    return EntityLinker("LOC", megabert.load_linker(places.folder)), EntityLinker("Disease", dense)


@pytest.fixture(scope="module")
def server(linkers):
    with running(load_runs("ner"), linkers=linkers) as found:
        yield found


def test_mentions_get_identifiers_names_scores_and_candidates(server, linkers):
    texts = ["breast cancers", "asthma", "a river in the north"]
    answer = server.post("/v1/linking", model="Disease", inputs=texts, k=3)
    wanted = linkers[1].linker.link(texts, k=3)
    assert [row["identifier"] for row in answer["results"]] == [link.identifier for link in wanted]
    assert answer["results"][1]["identifier"] == "mesh:D001249" and answer["results"][1]["name"] == "Asthma"
    assert [row["is_nil"] for row in answer["results"]] == [False, False, True]
    assert answer["results"][2]["identifier"] == "-"
    assert [len(row["parts"][0]["candidates"]) for row in answer["results"]] == [3, 3, 3]
    assert [row["score"] for row in answer["results"]] == pytest.approx([link.score for link in wanted], abs=1e-3)
    text = "Women with breast cancer (BC) were treated."
    row = server.post("/v1/linking", model="Disease", text="BC", context=text)["results"][0]
    assert row["identifier"].startswith("mesh:D001943")
    row = server.post("/v1/linking", model="LOC", inputs=[{"text": "Roma", "context": ""}])["results"][0]
    assert (row["text"], row["identifier"], row["name"]) == ("Roma", "wikidata:Q220", "Roma")


def test_the_request_of_the_documentation_is_answered(server):
    (words,) = LINKING
    assert server.post("/v1/linking", **json.loads(words[5]))["results"][0]["identifier"].startswith("mesh:D001943")


def test_the_page_shows_identifiers(server, tmp_path):
    text = "Peter lives in Paris"
    with open_page(server.url, tmp_path) as page:
        compute(page, "ner", "entities", {"text": text})
        titles = page.run("[...document.querySelectorAll('mark')].map(mark => mark.title)")
        for span in server.post("/v1/entities", text=text)["results"][0]["entities"]:
            if link := span.get("link"):
                wanted = "in no dictionary" if link["is_nil"] else f"{span['identifiers'][0]}: {link['name']}"
                assert any(
                    f"{span['start']} to {span['end']}; {wanted} ({link['score']:.3f})" in item for item in titles
                )
        context = "Women with breast cancer (BC) were treated."
        shown = compute(page, "Disease", "linking", {"text": "BC", "context": context})
        assert "mesh:D001943" in shown and "Breast Cancer" in shown
        assert page.run("document.querySelectorAll('#output tbody tr').length") == 5
        assert "in no dictionary" in compute(page, "Disease", "linking", {"text": "a river in the north"})


@pytest.mark.parametrize(
    ("status", "field", "body"),
    [
        (422, "model", {"text": "asthma"}),  # which dictionary?
        (404, "model", {"model": "Gene", "text": "asthma"}),
        (422, "model", {"model": "ner", "text": "asthma"}),
        (422, "k", {"model": "LOC", "text": "Rome", "k": 0}),
        (422, "text", {"model": "LOC", "inputs": ["Rome", " "]}),
        (422, "inputs", {"model": "LOC", "inputs": [{"text": "Rome", "kind": "city"}]}),
        (422, "species", {"model": "LOC", "inputs": [{"text": "Rome", "species": ["man"]}]}),
        (422, None, {"model": "LOC", "text": "Rome", "species": [7]}),
        (422, "inputs", {"model": "LOC", "inputs": []}),
    ],
)
def test_what_is_wrong_is_named(server, status, field, body):
    found, _, answer = server.call("POST", "/v1/linking", body)
    assert (found, answer.get("field")) == (status, field), answer


def test_entities_and_documents_are_linked(server, linkers):
    text = "Peter lives in Paris and Anna in Rome, Paris Rome"  # what the small run takes for places
    spans = [span for span in server.post("/v1/entities", text=text)["results"][0]["entities"] if span["type"] == "LOC"]
    names = [span["text"] for span in spans]
    links = dict(zip(names, linkers[0].linker.link(names), strict=True))
    assert any(link.is_nil for link in links.values()) and not all(link.is_nil for link in links.values()), links
    for span in spans:
        link = links[span["text"]]
        assert span["identifiers"] == [item for item in [link.identifier] if item != "-"]
        assert span["link"] == {"name": link.name, "score": round(link.score, 4), "is_nil": link.is_nil}
    assert "link" not in str(server.post("/v1/entities", text=text, linkers=[])["results"])
    body = {"content": f"1|t|{text}\n1|a|\n", "format": "pubtator"}
    answer = server.post("/v1/documents", **body)
    assert answer["linkers"] == ["LOC", "Disease"]
    places = [item for item in answer["documents"][0]["entities"] if item["type"] == "LOC"]
    assert [item["identifiers"] for item in places] == [span["identifiers"] for span in spans]
    assert [item["link"] for item in places] == [span["link"] for span in spans]
    for name, link in links.items():
        assert f"\t{name}\tLOC\t{link.identifier}" in answer["content"]
    without = server.post("/v1/documents", linkers=[], **body)["documents"][0]["entities"]
    assert not any(item["identifiers"] or item["link"] for item in without)
    assert server.call("POST", "/v1/documents", {**body, "linkers": ["Gene"]})[0] == 404
    found = [item["id"] for item in server.post("/plain", text=text)["annotations"] if item["obj"] == "loc"]
    assert found == [span["identifiers"] or ["CUI-less"] for span in spans]
    listed = server.call("GET", "/v1/models")[2]["data"]
    assert [item["id"] for item in listed] == ["ner", "LOC", "Disease"]
    fields = server.call("GET", "/openapi.json")[2]["paths"]["/v1/linking"]["post"]["requestBody"]
    assert {"k", "species", "context"} <= set(fields["content"]["application/json"]["schema"]["properties"])


def test_front_ends_link_without_the_network(linkers):
    item = linkers[1]
    queue = ModelQueue(linker_lanes(linkers))
    there = HostedLinker(pickle.loads(pickle.dumps(_without_network(item))), queue, 1000)
    catalog = ModelCatalog([], [there], host_threads=1)
    rows = catalog.perform(lambda work: there.link([{"text": "ovarian cancers"}], 1, work), catalog.work())
    assert rows[0]["identifier"] == item.linker.link(["ovarian cancers"])[0].identifier == "mesh:D010051"
    queue.close()


def test_the_command_takes_dictionaries_by_words_and_by_file(tmp_path):
    file = tmp_path / "serve.toml"
    file.write_text('[models]\nner = "RUN"\n[links]\nDisease = "a.dict,RUN2"\n')
    arguments = _parse(["--config", str(file), "--link", "Gene=b.dict"])
    assert arguments.links == [("Disease", Path("a.dict"), Path("RUN2"), None), ("Gene", Path("b.dict"), None, None)]
    linkers = [EntityLinker("ner", None)]
    with pytest.raises(ConfigError, match=r"--link ner=.*another dictionary or model"):
        _check_linkers(linkers, {"ner": Path("RUN")})
