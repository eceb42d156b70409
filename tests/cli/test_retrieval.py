"""The commands of retrieval on a small collection: what they write, and one message for each bad input."""

import json

import pytest

from megabert.cli import main

PASSAGES = "p1\tMarie Curie found radium.\np2\tThe Seine is a river in Paris.\np3\tWarsaw is a city.\n"
QUERIES = "q1\twho found radium\nq2\trivers of paris\n"
QRELS = "q1 0 p1 1\nq2 0 p2 2\n"
TUNE = ["index", "build", "c.tsv", "-o", "X", "--tune", "q.tsv", "qrels.txt"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name, content in (("c.tsv", PASSAGES), ("q.tsv", QUERIES), ("qrels.txt", QRELS)):
        (tmp_path / name).write_text(content)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def message(words, code, capsys):
    capsys.readouterr()
    assert main(words) == code
    return capsys.readouterr().err


def test_a_collection_is_indexed_searched_and_scored(folder, capsys):
    embedder = ["--run", "megabert-mini-uncased", "--accelerator", "cpu"]
    assert main(["index", "build", "c.tsv", "-o", "INDEX", "--tune", "q.tsv", "qrels.txt", *embedder]) == 0
    for method in ("bm25", "dense", "hybrid"):
        assert (
            main(["search", "INDEX", "q.tsv", "--method", method, "-o", f"{method}.trec", "--accelerator", "cpu"]) == 0
        )
        capsys.readouterr()
        assert main(["score", "retrieval", "qrels.txt", f"{method}.trec"]) == 0
        scores = json.loads(capsys.readouterr().out)
        assert scores["mrr@10"] == scores["recall_10"] == 1
        assert scores["retrieved_queries_only"]["num_q"] == 2
    assert main(["index", "info", "INDEX"]) == 0
    assert json.loads(capsys.readouterr().out)["dense"]["rows"] == 3
    assert main(["search", "INDEX", "radium", "--method", "bm25", "-k", "1"]) == 0
    assert json.loads(capsys.readouterr().out)["passages"][0]["id"] == "p1"
    other = ["search", "INDEX", "q.tsv", "--run", "biomegabert-mini-uncased", "--accelerator", "cpu"]
    assert "embeddings of another run" in message(other, 65, capsys)
    shard = folder / "INDEX" / "dense" / "shard-00000.npy"
    shard.write_bytes(shard.read_bytes()[:-9])
    assert "shard-00000.npy is cut short" in message(["index", "info", "INDEX"], 65, capsys)


def test_a_folder_of_beir_is_read(folder, capsys):
    (folder / "BEIR" / "qrels").mkdir(parents=True)
    for name, lines in (("corpus", PASSAGES), ("queries", QUERIES)):
        rows = (dict(zip(("_id", "text"), line.split("\t"), strict=True)) for line in lines.splitlines())
        (folder / "BEIR" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "BEIR" / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\tp1\t1\nq2\tp2\t2\n")
    assert main(["index", "build", "BEIR", "-o", "INDEX", "--tune", "BEIR", "BEIR/qrels/test.tsv"]) == 0
    assert main(["search", "INDEX", "BEIR", "-o", "r.trec"]) == 0
    capsys.readouterr()
    assert main(["score", "retrieval", "BEIR/qrels/test.tsv", "r.trec"]) == 0
    assert json.loads(capsys.readouterr().out)["mrr@10"] == 1
    (folder / "BEIR" / "queries.jsonl").unlink()
    assert "without BEIR's queries.jsonl; it has corpus.jsonl." in message(["search", "INDEX", "BEIR"], 65, capsys)


def test_passages_with_answers_are_counted(folder, capsys):
    (folder / "r.trec").write_text("q1 Q0 p2 1 3 a\nq1 Q0 p1 2 2 a\nq2 Q0 p3 1 1 a\n")
    rows = [{"id": "q1", "answers": ["Maria", "marie curie"]}, {"id": "q2", "answers": ["Seine"]}]
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["score", "retrieval", "qrels.txt", "r.trec", "answers=a.jsonl"]
    assert main([*words, "collection=c.tsv"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert [scores[f"answer@{k}"] for k in (1, 5, 20, 100)] == [0, 50, 50, 50]
    assert "both or neither" in message(words, 64, capsys)
    (folder / "a.jsonl").write_text('{"id": "q1", "answers": "Maria"}\n')
    assert 'a.jsonl:1: expected {"id": ..., "answers"' in message([*words, "collection=c.tsv"], 65, capsys)


@pytest.mark.parametrize(
    ("file", "content", "words", "expected"),
    [
        ("c.tsv", "p1\ta\np1\tb\n", ["index", "build", "c.tsv", "-o", "X"], "c.tsv:2: the id 'p1' stands above"),
        ("c.tsv", "p1 a\n", ["index", "build", "c.tsv", "-o", "X"], "c.tsv:1: there is no id or no text"),
        ("c.jsonl", '{"text": "a"}\n', ["index", "build", "c.jsonl", "-o", "X"], "c.jsonl:1: there is no id"),
        ("r.trec", "q1 Q0 p1 1 high a\n", ["score", "retrieval", "qrels.txt", "r.trec"], "r.trec:1: the score is"),
        ("r.trec", "q1 Q0 p1 1 nan a\n", ["score", "retrieval", "qrels.txt", "r.trec"], "r.trec:1: the score is 'nan'"),
        ("r.trec", "q1 Q0 p1 1 2 a\n" * 2, ["score", "retrieval", "qrels.txt", "r.trec"], "r.trec:2: document 'p1'"),
        ("r.trec", "q9 Q0 p1 1 2 a\n", ["score", "retrieval", "qrels.txt", "r.trec"], "none of the queries"),
        ("r.trec", "q1 Q0 p9 1 2 a\n", ["rerank", "RUN", "r.trec", "--queries", "q.tsv", "--collection", "c.tsv"],
         "document 'p9' of query 'q1' is not in the collection"),
        ("qrels.txt", "q1 p1\n", ["score", "retrieval", "qrels.txt", "q.tsv"], "qrels.txt:1: 2 fields"),
        ("x", "", ["search", "nowhere", "q.tsv"], "nowhere is no complete index"),
        ("x", "", ["search", "q.tsv", "q.tsv"], "q.tsv is no complete index"),
        ("x", "", ["embed", "RUN", "none.tsv", "-o", "X"], "none.tsv cannot be read"),
        ("x", "\n \n", ["embed", "RUN", "x", "-o", "X"], "x is empty"),
        ("c.tsv", "p1\ta\np1\tb\n", ["embed", "megabert-mini-uncased", "c.tsv", "-o", "X"], "c.tsv:2: the id"),
        ("qrels.txt", "q1 0 p7 1\n", [*TUNE], "qrels.txt: no judged passage is known, such as 'p7'"),
        ("qrels.txt", "q7 0 p1 1\n", [*TUNE], "qrels.txt: no judged query is known, such as 'q7'"),
        ("qrels.txt", "q1 0 p1\n", [*TUNE, "--run", "none"], "qrels.txt:1: the grade is 'p1'; expected a whole"),
    ],
)  # fmt: skip
def test_bad_input_has_one_message_with_place_and_remedy(folder, file, content, words, expected, capsys):
    (folder / file).write_text(content)
    error = message(words, 65, capsys)
    assert expected in error and error.count("\n") == 1
    assert not (folder / "X").exists()


def test_a_query_is_given_itself(folder, capsys):
    assert main(["index", "build", "c.tsv", "-o", "INDEX"]) == 0
    capsys.readouterr()
    assert main(["search", "INDEX", "radium " * 50, "-k", "1"]) == 0
    assert json.loads(capsys.readouterr().out)["passages"][0]["id"] == "p1"
    assert "the query is blank" in message(["search", "INDEX", " "], 64, capsys)
    assert "--batch_size 0" in message(
        ["embed", "megabert-mini-uncased", "c.tsv", "-o", "X", "--batch_size", "0"], 64, capsys
    )
    (folder / "qrels.txt").write_text(QRELS + "q1 0 p9 1\n")
    assert "1 of 3 judged passage ids are unknown, such as 'p9'" in message(TUNE, 0, capsys)
