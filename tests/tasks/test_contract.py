"""What every task must do: overfit a few examples, predict the same in a fresh process; refuse malformed files."""

import json
import subprocess
import sys
from dataclasses import dataclass

import pytest
import torch

from megabert.cli import main
from megabert.config.parser import compose
from megabert.errors import InputError
from megabert.tasks import registry
from tests.conftest import squad_document
from tests.test_first_round_runs import PREDICTING, PRETRAINING, assert_same

TINY = (
    "model.language_model.config={hidden_size: 64, num_layers: 2, num_attention_heads: 4, max_position_embeddings: 64}"
)


@dataclass
class Case:
    """A task, a data file to overfit, overrides, the metric that must be 99 or more, an example to predict."""

    task: str
    file: str
    content: str
    words: tuple[str, ...]
    score: str
    fields: tuple[str, ...]


COLUMNS = "marie B-PER\ncurie I-PER\nwas O\nborn O\nin O\nwarsaw B-LOC\n\nthe O\nseine B-LOC\nis O\nin O\nparis B-LOC\n"
SEARCHES = "".join(
    json.dumps({"query": query, "positive": positive, "negatives": negatives}) + "\n"
    for query, positive, negatives in (
        ("who was born", "marie curie was born", ["paris", "seine is a river"]),
        ("the river", "seine is a river", ["marie curie was born"]),
        ("city", "paris", ["found radium", "seine is a river"]),
        ("when", "found radium", ["paris"]),
    )
)
CASES = {
    "question_answering": Case(
        "question_answering",
        "x.json",
        json.dumps(squad_document()),
        ("model.dataset.max_query_length=24", "model.dataset.doc_stride=16", "model.optim.lr=1e-3",
         "trainer.max_epochs=150"),
        "f1",
        ("question=Where was Marie Curie born?", "context=Marie Curie was born in Warsaw."),
    ),
    "entity_linking": Case(
        "entity_linking", "x.txt", "D000001||the river|river seine\nD000002||marie|marie curie\nD000003||paris|city\n",
        ("model.optim.lr=1e-3",), "acc@1", ("text=river seine",),
    ),
    "text_classification": Case(
        "text_classification", "x.tsv", "marie was born\tyes\nthe river in paris\tno\nradium in france\tmaybe\na\tno\n",
        (), "accuracy", ("text=the river in paris",),
    ),
    "pairs": Case(
        "text_classification", "x.jsonl",
        "".join(json.dumps({"sentence1": a, "sentence2": b, "label": label}) + "\n"
                for a, b, label in (("marie", "paris", 1), ("paris", "marie", 0), ("river", "city", 1), ("a", "b", 0))),
        (), "accuracy", ("text=marie", "text_b=paris"),
    ),
    "several labels": Case(
        "text_classification", "x.tsv", "marie was born\ta,b\nthe river in paris\tb\nradium in france\tc\nwho\ta\n",
        ("model.dataset.problem=multi_label",), "exact_match", ("text=marie was born",),
    ),
    "a number": Case(
        "text_classification", "x.tsv", "marie was born\t0.5\nthe river in paris\t2\nradium in france\t-1\nwho\t1\n",
        ("model.dataset.problem=regression",), "pearson", ("text=marie was born",),
    ),
    "token_classification": Case(
        "token_classification", "x.conll", COLUMNS, (), "f1", ("text=Marie Curie was born in Warsaw.",),
    ),
    "constrained": Case(
        "token_classification", "x.conll", COLUMNS, ("model.dataset.constrained_decoding=true",), "f1",
        ("text=Marie Curie was born in Warsaw.",),
    ),
    "relation_extraction": Case(
        "relation_extraction", "x.jsonl",
        "".join(json.dumps({"text": text, "head": {"start": 0, "end": 5, "type": "drug"},
                            "tail": {"start": len(text) - 5, "end": len(text), "type": "gene"}, "label": label}) + "\n"
                for text, label in (("marie was born in paris", "CPR:3"), ("curie found the seine", "false"),
                                    ("seine is a river of paris", "CPR:4"), ("paris who what curie", "CPR:3"))),
        ("model.dataset.entity_marking=markers",), "f1",
        ("text=marie was born in paris", "head=marie", "tail=paris"),
    ),
    "glue": Case(
        "glue", "x.tsv", "sentence\tlabel\nmarie was born\t1\nthe river\t0\nradium in france\t1\nwho\t0\n",
        ("model.task_name=sst-2",), "glue", ("text=the river",),
    ),
    "glue, a number": Case(
        "glue", "x.tsv", "index\tsentence1\tsentence2\tscore\n0\tmarie\tparis\t1.5\n1\tparis\tmarie\t4\n2\ta\tb\t0\n",
        ("model.task_name=sts-b", "trainer.max_epochs=90"), "pearson", ("text=marie", "text_b=paris"),
    ),
    "intent_slot": Case(
        "intent_slot", "x.jsonl",
        "".join(json.dumps({"tokens": words.split(), "tags": tags.split(), "intent": intent}) + "\n"
                for words, tags, intent in (
                    ("who was born in paris", "O O O O B-city", "ask"), ("the river seine", "O O B-river", "tell"),
                    ("found radium in the city", "O B-what O O O", "tell"),
                    ("when was curie born", "O O B-who O", "ask"))),
        ("trainer.max_epochs=150",), "exact_match", ("text=who was born in paris",),
    ),
    "several intents": Case(
        "intent_slot", "x.jsonl",
        "".join(json.dumps({"tokens": words.split(), "tags": tags.split(), "intent": intent}) + "\n"
                for words, tags, intent in (
                    ("who was born in paris", "O O O O city", "ask#city"), ("the river seine", "O O river", "tell"),
                    ("found radium in the city", "O what O O O", "tell"), ("when was curie born", "O O who O", "ask"))),
        ("model.dataset.multi_label=true", "trainer.max_epochs=90"), "exact_match", ("text=who was born in paris",),
    ),
    "punctuation_capitalization": Case(
        "punctuation_capitalization", "x.txt",
        "Marie Curie was born in Warsaw. Who found radium?\nThe river Seine is in Paris, France.\n",
        (), "f1", ("text=marie curie was born in warsaw who found radium",),
    ),
    "masked_language_model": Case(
        "masked_language_model", "x.txt",
        "marie curie found radium\n\nthe river seine\n\nparis in france\n\nwho was born when\n",
        ("model.dataset.sentence_order=false", "model.dataset.mask_share=1", "model.dataset.random_share=0",
         "model.dataset.short_seq_prob=0", "trainer.max_epochs=150"),
        "lm_accuracy", ("text=marie curie [MASK] radium",),
    ),
    "causal_language_model": Case(
        "causal_language_model", "x.txt",
        "marie curie found radium\n\nthe river seine\n\nparis in france\n\nwho was born when\n",
        (), "lm_accuracy", ("text=marie curie found",),
    ),
    "text_embedding": Case(
        "text_embedding", "x.jsonl", SEARCHES, ("model.embedding.matryoshka_dimensions=[32]",), "ndcg@10",
        ("text=the river", "role=query"),
    ),
    "two encoders": Case(
        "text_embedding", "x.jsonl", SEARCHES,
        ("model.embedding.num_encoders=2", "trainer.accumulate_grad_batches=2", "model.optim.lr=1e-3"),
        "ndcg@10", ("text=the river", "role=query"),
    ),
    "text_ranking": Case(
        "text_ranking", "x.jsonl", SEARCHES, ("trainer.max_epochs=120", "model.optim.lr=1e-3"), "ndcg@10",
        ("query=the river", "passage=seine is a river"),
    ),
    "multiple_choice": Case(
        "multiple_choice", "x.jsonl",
        "".join(json.dumps({"question": question, "choices": choices, "passage": passage, "label": label}) + "\n"
                for question, choices, passage, label in (
                    ("where was marie born", ["paris", "warsaw"], "marie curie was born in warsaw", 1),
                    ("who found _", ["radium", "france", "the seine"], "marie curie found radium in paris", 0),
                    ("the river is", ["marie", "curie", "who", "the seine"], "the seine is a river", 3))),
        ("model.dataset.max_qa_length=16", "trainer.max_epochs=90"), "accuracy",
        ("question=who found _", 'choices=["radium", "france"]', "passage=marie found radium"),
    ),
    "dialogue_state_tracking": Case(
        "dialogue_state_tracking", "x.json",
        json.dumps([{"dialogue_id": "1", "services": ["city"], "schema": [
            {"service_name": "city", "description": "a city",
             "slots": [{"name": "river", "description": "the river", "is_categorical": False},
                       {"name": "what", "description": "radium", "is_categorical": True,
                        "possible_values": ["radium", "born"]}],
             "intents": [{"name": "find", "description": "who", "required_slots": ["river", "what"]}]}],
            "turns": [
                {"speaker": "USER", "utterance": "the seine and radium", "frames": [
                    {"service": "city", "state": {"active_intent": "find", "requested_slots": [], "slot_values": {
                        "river": ["seine"], "what": ["radium"]}}}]},
                {"speaker": "SYSTEM", "utterance": "it is in france", "frames": []},
                {"speaker": "USER", "utterance": "who was born in paris", "frames": [
                    {"service": "city", "state": {"active_intent": "NONE", "requested_slots": ["river"],
                                                  "slot_values": {"river": ["seine"], "what": ["born"]}}}]}]}]),
        ("model.train_ds.batch_size=16", "trainer.max_epochs=90", "model.encoder.dropout=0"), "joint_goal_accuracy",
        ('turns=["the seine and radium", "it is in france", "who was born in paris"]', "services=city"),
    ),
    "bioasq": Case(
        "bioasq", "x.json",
        json.dumps({"questions": [
            {"id": name, "type": kind, "body": question, "snippets": [{"text": text} for text in texts],
             "exact_answer": answer}
            for name, kind, question, texts, answer in (
                ("1", "yesno", "was marie born in warsaw", ["marie was born in warsaw"], "yes"),
                ("2", "yesno", "is the seine a city", ["the seine is a river", "a river in france"], "no"),
                ("3", "factoid", "who found radium", ["marie curie found radium in paris"], [["marie curie", "curie"]]),
                ("4", "list", "what is in france", ["paris is in france", "the seine is, too"], [["paris"], ["seine"]]),
            )]}),
        ("model.dataset.max_query_length=16", "model.dataset.doc_stride=16", "trainer.max_epochs=150"), "bioasq",
        ("question=who found radium", "context=marie curie found radium"),
    ),
    "zero_shot": Case(
        "zero_shot", "x.tsv",
        "premise\thypothesis\tlabel\nmarie was born\tborn\tentailment\nthe river\tborn\tcontradiction\n"
        "the river\triver\tentailment\nmarie was born\triver\tcontradiction\n",
        ("trainer.max_epochs=120", "model.dataset.hypothesis_template='{}'"), "accuracy",
        ("text=the river", "labels=born,river"),
    ),
}  # fmt: skip


def train(case, folder, vocab_file, *more):
    folder.mkdir(exist_ok=True)
    file = folder / case.file
    file.write_text(case.content, encoding="utf-8")
    words = [
        f"model.train_ds.file={file}", f"model.validation_ds.file={file}",
        "model.language_model.pretrained_model_name=null", TINY, f"model.tokenizer.vocab_file={vocab_file}",
        "model.dataset.max_seq_length=64", "model.train_ds.batch_size=4", "model.optim.lr=3e-3",
        "model.optim.sched.name=WarmupPolicy", "model.language_model.hidden_dropout=0",
        "model.language_model.attention_dropout=0", "trainer.max_epochs=60", "trainer.val_check_interval=0",
        "trainer.accelerator=cpu", "trainer.enable_progress_bar=false",
        f"exp_manager.explicit_log_dir={folder / 'run'}",
        "exp_manager.create_tensorboard_logger=false", "model.optim.sched.warmup_ratio=null", *case.words, *more,
    ]  # fmt: skip
    assert main(["train", case.task, *words]) == 0
    return folder / "run", file


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("MEGABERT_HOME", str(tmp_path_factory.mktemp("home")))


FRESH = """
import contextlib, io, json, sys
from megabert.cli import main
for line in sys.stdin:
    with contextlib.redirect_stdout(io.StringIO()) as output:
        code = main(json.loads(line))
    print(json.dumps([code, output.getvalue()]), flush=True)
"""


@pytest.fixture(scope="module")
def fresh_process():
    """A function that runs a command in a process that has trained nothing; one process, since it imports torch."""
    with subprocess.Popen(
        [sys.executable, "-c", FRESH], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:

        def run(words):
            process.stdin.write(json.dumps(words) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        yield run
        process.stdin.close()


def check_predictions(folder, case, file, capsys):
    """The predictions of an evaluation have input and gold labels, and score as they did."""
    rows = [json.loads(row) for row in (folder / "predictions.jsonl").read_text().splitlines()]
    assert rows
    # Losses cannot be scored; embeddings are by their own commands.
    if case.task.endswith("language_model") or registry.find(case.task).is_embedding:
        return
    if case.task == "text_embedding":  # passages follow the judged queries
        rows = [row for row in rows if "gold" in row]
    assert all(row["gold"] and row["gold"].keys() <= {*row, "answers", "grades"} for row in rows)
    assert all("text" in row or {"question", "context"} <= row.keys() for row in rows)
    assert main(["score", case.task, str(file), str(folder / "predictions.jsonl")]) == 0
    found, expected = json.loads(capsys.readouterr().out), json.loads((folder / "scores.json").read_text())
    assert {name: found[name] for name in expected} == pytest.approx(expected)


@pytest.mark.parametrize("name", CASES)
def test_a_task_overfits_its_examples_and_predicts_the_same_in_a_fresh_process(
    name, tmp_path, vocab_file, capsys, fresh_process, request
):
    case = CASES[name]
    run, file = train(case, tmp_path / "a", vocab_file)
    capsys.readouterr()
    assert main(["evaluate", str(run), f"file={file}", "accelerator=cpu"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores[case.score] >= 99
    check_predictions(run / "validation", case, file, capsys)
    file.unlink()  # a run needs no data
    assert main(["predict", str(run), *case.fields, "accelerator=cpu"]) == 0
    here = json.loads(capsys.readouterr().out)
    code, there = fresh_process(["predict", str(run), *case.fields, "accelerator=cpu"])
    assert (code, json.loads(there)) == (0, here)
    if case.task in {*PREDICTING, *PRETRAINING} or name == "two encoders":  # tests/export has runs of these
        return
    request.getfixturevalue("quick_exporter")
    assert main(["export", str(run), "-o", str(tmp_path / "exported"), "--to", "onnx"]) == 0
    code, there = fresh_process(["predict", str(tmp_path / "exported"), *case.fields])
    assert code == 0
    assert_same(json.loads(there), here, tolerance=1e-4)


def test_a_new_set_of_labels_on_a_trained_run(tmp_path, vocab_file, capsys):
    run, _ = train(CASES["text_classification"], tmp_path / "a", vocab_file, "trainer.max_epochs=2")
    other = Case("text_classification", "y.tsv", "marie\tleft\nparis\tright\n", (), "accuracy", ())
    start = (f"pretrained_model={run}", "trainer.max_epochs=1")
    (tmp_path / "b").mkdir()
    file = tmp_path / "b" / "y.tsv"
    file.write_text(other.content)
    words = [f"model.train_ds.file={file}", *start, "trainer.accelerator=cpu", "model.dataset.max_seq_length=64"]
    refused = main(["train", "text_classification", *words, f"exp_manager.explicit_log_dir={tmp_path / 'c'}"])
    assert refused == 65
    assert "y.tsv:1: 'left' is not one of the trained labels (maybe, no, yes)" in capsys.readouterr().err
    train(other, tmp_path / "d", vocab_file, *start, "model.head.reset=true")
    assert main(["predict", str(tmp_path / "d" / "run"), "text=marie", "accelerator=cpu"]) == 0
    assert set(json.loads(capsys.readouterr().out)["probabilities"]) == {"left", "right"}


def test_a_sequence_head_starts_from_the_pre_trained_pooler(minilm, tmp_path):
    from safetensors.torch import load_file

    from megabert.build import load_language_model, new_task_model

    words = [f"model.language_model.pretrained_model_name={minilm}"]
    pooler = load_file(minilm / "model.safetensors")["pooler.dense.weight"]
    for more, is_same in (([], True), (["model.classifier_head.activation=relu"], False)):
        kind = registry.find("text_classification")
        task = kind(compose(kind.settings_type, [*words, *more], owner="text_classification")[0])
        task.labels = ["a", "b"]
        model = new_task_model(task, load_language_model(task.settings.model, home=tmp_path, seed=0), seed=0)
        assert torch.equal(model.head.hidden[0].weight, pooler) == is_same


BALANCED = {
    "text_classification": "model.dataset.class_balancing=weighted_loss",
    "token_classification": "model.dataset.class_balancing=weighted_loss",
    "intent_slot": "model.class_balancing=weighted_loss",
}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: only there steps are captured")
@pytest.mark.parametrize("name", CASES)
def test_every_loss_can_be_captured_in_a_cuda_graph(name, tmp_path, vocab_file, capsys):
    more = (
        "trainer.accelerator=gpu",
        "trainer.max_epochs=5",
        "trainer.compile=false",
        *filter(None, [BALANCED.get(name)]),
    )
    run, _ = train(CASES[name], tmp_path / "a", vocab_file, *more)
    assert "val_loss" in (run / "metrics.jsonl").read_text()


@pytest.mark.parametrize("name", ["text_classification", "several labels", "token_classification", "intent_slot"])
def test_labels_without_training_examples_are_scored_as_errors(name, tmp_path, vocab_file, capsys):
    case = CASES[name]
    dev = tmp_path / f"dev-{case.file}"
    changed = {"\tmaybe": "\tnever", "\tc\n": "\tnever\n", "B-LOC\n\nthe": "B-NEVER\n\nthe", "B-river": "B-never"}
    content = case.content
    for old, new in changed.items():
        content = content.replace(old, new)
    dev.write_text(content)
    run, _ = train(case, tmp_path / "a", vocab_file, f"model.validation_ds.file={dev}")
    assert "labels of the validation data that the training data lack" in capsys.readouterr().err
    scores = json.loads((run / "validation" / "scores.json").read_text())
    assert 0 < scores[case.score] < 99


@pytest.mark.parametrize(
    ("name", "gold", "content", "message"),
    [
        ("text_classification", "a\tx\n", '{"label": \n', ":1: not JSON"),
        ("text_classification", "a\tx\n", '{"text": "a"}\n', ":1: there is no 'label'"),
        ("token_classification", "a B-X\n", "[]\n", ":1: a JSON list"),
        ("token_classification", "a B-X\n", '{"text": "a"}\n', ":1: there is no 'tags'"),
    ],
)
def test_predictions_that_cannot_be_scored_are_reported_with_their_location(name, gold, content, message, tmp_path):
    file = tmp_path / ("gold.conll" if name == "token_classification" else "gold.tsv")
    file.write_text(gold)
    (tmp_path / "found.jsonl").write_text(content)
    with pytest.raises(InputError, match=message):
        registry.find(name).score_files(file, tmp_path / "found.jsonl")
