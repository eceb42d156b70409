"""Runs exported for transformers open there with equal logits and labels, and here with equal answers."""

import json
import shutil
from itertools import islice

import numpy as np
import pytest
import torch
import yaml

import megabert
from megabert.cli import main
from megabert.formats.documents.convert_documents import read_documents
from megabert.storage import file_sha256
from tests.test_first_round_runs import FIELDS, PREDICTING, PRETRAINING, RUNS, input_of

transformers = pytest.importorskip("transformers")

TEXT = "marie [MASK] curie (was) born\u00ad in PARIS, [SEP] \U0001d11e \u0645\u0631\u062d\u0628\u0627 caf\u00e9"
# The latter's head has one layer.
REFUSED = {"intent_slot": "intents are read at", "text_classification_pairs": "none can be merged"}
EXPORTED = [name for name in (*PREDICTING, *PRETRAINING) if name not in REFUSED]
QUESTION = {"question": "Where was she born?", "context": "Marie Curie [SEP] was born in Warsaw. " * 9}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A function that returns the run of a task, and the folder that it is exported to, once."""
    folder, done = tmp_path_factory.mktemp("exported"), {}

    def export(name):
        if name not in done:
            run, done[name] = RUNS / name / "run", folder / name
            assert main(["export", str(run), "-o", str(done[name]), "--to", "huggingface"]) == 0
        return RUNS / name / "run", done[name]

    return export


def read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", EXPORTED)
def test_an_exported_folder_answers_as_its_run_does(exported, name):
    run, folder = exported(name)
    ours, theirs = (megabert.load(path, accelerator="cpu") for path in (run, folder))
    assert theirs.task.state() == ours.task.state()
    assert theirs.labels == ours.labels
    assert theirs.tokenizer.to_document() == ours.tokenizer.to_document()
    given = QUESTION if name == "question_answering" else {"text": TEXT}
    for fields in (given, {"text": "marie was born"} | FIELDS.get(name, {}), {"text": TEXT * 20}):
        if name == "question_answering":
            fields = given
        fields = {**({"labels": "a,b"} if name == "zero_shot" else {}), **fields}
        assert theirs.predict(**fields) == ours.predict(**fields)


@pytest.mark.parametrize("name", ["question_answering", "relation_extraction", "punctuation_capitalization"])
def test_the_command_compares_with_transformers_and_scores(tmp_path, capsys, name):
    words = ["export", str(RUNS / name / "run"), "-o", str(tmp_path / "hub"), "--to", "huggingface"]
    assert main([*words, "--file", str(input_of(name))]) == 0
    lines = capsys.readouterr().err
    assert "computes the run's logits within" in lines
    assert "before" in lines


def test_the_pipeline_finds_the_entities_that_the_run_finds(exported):
    run, folder = exported("token_classification")
    text = "marie curie found radium in paris . curie was born in warsaw"
    entities = transformers.pipeline("token-classification", model=str(folder), aggregation_strategy="first")(text)
    expected = megabert.load(run, accelerator="cpu").predict(text=text).spans
    assert [(item["entity_group"], item["start"], item["end"]) for item in entities] == [
        (span.type, span.start, span.end) for span in expected
    ]
    assert expected
    scores = [float(item["score"]) for item in entities]
    assert scores == pytest.approx([span.score for span in expected], abs=1e-5)


def test_the_pipeline_of_texts_has_the_labels_and_probabilities(exported):
    run, folder = exported("text_classification")
    classify = transformers.pipeline("text-classification", model=str(folder), top_k=None)
    (rows,) = classify(["marie was born"])
    expected = megabert.load(run, accelerator="cpu").predict(text="marie was born").probabilities
    assert {row["label"]: row["score"] for row in rows} == pytest.approx(expected, abs=1e-5)
    config = transformers.AutoConfig.from_pretrained(exported("text_classification_multi_label")[1])
    assert config.problem_type == "multi_label_classification"


@pytest.mark.parametrize("name", ["token_classification", "question_answering"])
def test_the_fast_tokenizer_gives_the_ids_of_the_run(exported, name):
    run, folder = exported(name)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert tokenizer.is_fast
    ours = megabert.load(run, accelerator="cpu").tokenizer
    plain = TEXT.replace("[MASK]", "").replace("[SEP]", "")
    ids = [ours.cls_id, *ours.encode_ids([plain])[0], ours.sep_id]
    assert tokenizer(plain)["input_ids"] == ids
    assert tokenizer("a", "b")["token_type_ids"] == [0, 0, 0, 1, 1]
    # tokenizer.json alone, as other programs read it
    alone = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    assert alone(plain)["input_ids"] == ids


def test_marks_and_cases_are_one_label_there(exported):
    run, folder = exported("punctuation_capitalization")
    config = read_json(folder / "config.json")
    task = megabert.load(run, accelerator="cpu").task
    assert list(config["id2label"].values()) == [mark + case for mark in task.marks for case in task.cases]


@pytest.mark.parametrize(
    ("name", "reason"), [*zip(REFUSED, ("intents are read at", "none can be merged"), strict=True)]
)
def test_a_head_without_a_class_is_refused_with_the_reason(tmp_path, capsys, name, reason):
    words = ["export", str(RUNS / name / "run"), "-o", str(tmp_path / "hub"), "--to", "huggingface"]
    assert main(words) == 64
    assert reason in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.iterdir())


def test_a_folder_that_was_trained_further_elsewhere_is_not_taken_for_the_run(exported, tmp_path, capsys):
    shutil.copytree(exported("token_classification")[1], tmp_path / "hub")
    config = read_json(tmp_path / "hub" / "config.json")
    config["id2label"] = {number: f"B-{number}" for number in config["id2label"]}
    (tmp_path / "hub" / "config.json").write_text(json.dumps(config))
    assert main(["predict", str(tmp_path / "hub"), "text=paris"]) == 66
    assert "remove megabert.json" in capsys.readouterr().err
    (tmp_path / "hub" / "megabert.json").unlink()
    assert megabert.load(tmp_path / "hub", accelerator="cpu").labels == {"tag": list(config["id2label"].values())}


def test_a_run_s_card_has_data_scores_and_spread(tmp_path, monkeypatch):
    monkeypatch.setenv("MEGABERT_HOME", str(tmp_path / "home"))
    data = input_of("token_classification")
    run = tmp_path / "sweep" / "a"
    shutil.copytree(RUNS / "token_classification" / "run", run)
    (run / "validation").mkdir()
    scores = {"f1": 91.5, "PER/f1": 90.0, "PER/precision": 88.0, "LOC/f1": 93.0, "LOC/precision": 94.0, "total": 4}
    (run / "validation" / "scores.json").write_text(json.dumps(scores))
    settings = {"seed": 7, "model": {"language_model": {"pretrained_model_name": "org/base"}, "optim": {"lr": 2e-05}}}
    record = {"task": "token_classification", "settings": settings, "device": "cpu", "labels": {"tag": {"O": 9}}}
    record["data"] = [{"split": "validation", "file": str(data), "sha256": file_sha256(data)}]
    (run / "run.json").write_text(json.dumps(record))
    sweep = {"runs": [str(run), "b"], "scores": {"f1": {"mean": 90.25, "deviation": 1.767, "values": [91.5, 89.0]}}}
    (run.parent / "sweep.json").write_text(json.dumps(sweep))
    assert main(["convert", str(run), str(tmp_path / "hub"), "--to", "huggingface"]) == 0
    card = (tmp_path / "hub" / "README.md").read_text(encoding="utf-8")
    head = yaml.safe_load(card.split("---")[1])
    assert head["base_model"] == "org/base"
    assert head["pipeline_tag"] == "token-classification"
    (result,) = head["model-index"][0]["results"]
    assert result["dataset"]["revision"] == file_sha256(data)
    assert {"type": "f1", "name": "f1", "value": 91.5} in result["metrics"]
    for line in (
        "| f1 | 91.50 | 90.25 ± 1.77 |",
        "| PER | 90 | 88 |",
        "| `model.optim.lr` | 2e-05 |",
        "| `seed` | 7 |",
    ):
        assert line in card
    assert "To be written by whoever publishes" in card
    assert str(tmp_path) not in card
    assert str(data.parent) not in card


# --- Folders that transformers wrote ---

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
         "max_position_embeddings": 40}  # fmt: skip
CLASSES = {"bert": "Bert", "megatron-bert": "MegatronBert"}
LABELS = ["B-PER", "I-PER", "O", "B-LOC", "I-LOC"]


def foreign(folder, vocab_file, architecture, end, model_max_length=32, **config):
    """Write a folder as transformers' Trainer does: model and tokenizer by save_pretrained; returns the model."""
    prefix = CLASSES[architecture]
    tokenizer = transformers.BertTokenizer(str(vocab_file), model_max_length=model_max_length)
    settings = getattr(transformers, f"{prefix}Config")(vocab_size=len(tokenizer), **{**SIZES, **config})
    torch.manual_seed(1)
    model = getattr(transformers, prefix + end)(settings).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def named(labels):
    return {"id2label": dict(enumerate(labels)), "label2id": {label: number for number, label in enumerate(labels)}}


@pytest.mark.parametrize("architecture", CLASSES)
@pytest.mark.parametrize(
    ("end", "config"),
    [
        ("ForTokenClassification", named(LABELS)),
        ("ForSequenceClassification", named(["yes", "no", "maybe"])),
        ("ForSequenceClassification", {**named(["a", "b"]), "problem_type": "multi_label_classification"}),
        ("ForSequenceClassification", {"num_labels": 1}),
        ("ForQuestionAnswering", {}),
    ],
)
def test_a_head_of_transformers_gives_its_logits_here(tmp_path, vocab_file, architecture, end, config):
    theirs = foreign(tmp_path, vocab_file, architecture, end, **config)
    ours = megabert.load(tmp_path, accelerator="cpu")
    is_qa = end == "ForQuestionAnswering"
    fields = {"question": "who found radium?", "context": "marie found radium"} if is_qa else {"text": "marie found it"}
    (feature,) = ours.task.features([ours.task.example(**fields)], ours.tokenizer, with_targets=False)
    ids, segments = (torch.from_numpy(item)[None] for item in (feature.token_ids, feature.segment_ids))
    with torch.inference_mode():
        output = theirs(ids, token_type_ids=segments)
    expected = output.logits[0] if not is_qa else torch.stack([output.start_logits, output.end_logits], -1)[0]
    (actual,) = ours.run([feature]).logits
    np.testing.assert_allclose(actual, expected.numpy(), atol=1e-5, rtol=1e-5)
    assert ours.task.row_length == 32
    assert any("model_max_length" in note for note in ours.notes)
    if len(config.get("id2label", {})) > 1:
        (labels,) = ours.labels.values()
        assert labels == list(config["id2label"].values())
    if end == "ForSequenceClassification":
        problem = {"problem_type": "multi_label", "num_labels": "regression"}
        assert ours.task.problem == next((value for key, value in problem.items() if key in config), "single_label")
        assert any("problem_type is not stated" in note for note in ours.notes) == ("problem_type" not in config)
    ours.predict(**fields)


def test_a_foreign_model_evaluates_annotates_and_converts(tmp_path, vocab_file, capsys):
    theirs = foreign(tmp_path / "hub", vocab_file, "bert", "ForTokenClassification", **named(LABELS))
    (tmp_path / "dev.conll").write_text("marie\tB-PER\nborn\tO\n\nparis\tB-LOC\n")
    assert main(["evaluate", str(tmp_path / "hub"), f"file={tmp_path / 'dev.conll'}"]) == 0
    captured = capsys.readouterr()
    assert "f1" in json.loads(captured.out)
    assert "not stated: the tag scheme" in captured.err
    (tmp_path / "a.txt").write_text("Marie was born in Paris.\n")
    words = ["annotate", str(tmp_path / "a.txt"), "-o", str(tmp_path / "out"), "--entities", str(tmp_path / "hub")]
    assert main([*words, "--accelerator", "cpu"]) == 0
    assert main(["convert", str(tmp_path / "hub"), str(tmp_path / "again"), "--to", "huggingface"]) == 0
    again = transformers.AutoModelForTokenClassification.from_pretrained(tmp_path / "again")
    assert torch.equal(again.classifier.weight, theirs.classifier.weight)
    assert again.config.id2label == theirs.config.id2label


def test_a_foreign_model_finds_the_entities_of_the_pipeline_in_real_documents(tmp_path, datasets):
    vocabulary = datasets("vocab") / "bert-large-uncased-vocab.txt"
    foreign(tmp_path, vocabulary, "bert", "ForTokenClassification", 512, max_position_embeddings=512, **named(LABELS))
    documents = read_documents([datasets("bc5cdr_eval") / "sample/gold/CDR_sample.gold.PubTator"])
    texts = [passage.text for document in islice(documents, 15) for passage in document.passages]
    texts.append(
        "IL-2/p53 of 5\u00b12 (x\u22651)\u2003caf\u00e9\u2013bar, \u4f60\u597d 3'-OH;x+y $4 a_b ^c~d naïve\tend."
    )
    ours = megabert.load(tmp_path, accelerator="cpu")
    texts = [text for text in texts if len(ours.tokenizer.encode_ids([text])[0]) <= 510]
    predictions = ours.predict(text=texts)
    tagger = transformers.pipeline("token-classification", model=str(tmp_path), aggregation_strategy="first")
    for text, prediction, found in zip(texts, predictions, tagger(texts), strict=True):
        spans = [(item["entity_group"], text[item["start"] : item["end"]], item["start"]) for item in found]
        assert [(span.type, span.text, span.start) for span in prediction.spans] == spans
    assert sum(len(item.spans) for item in predictions) > 500


def test_tags_of_iobes_become_spans(tmp_path, vocab_file):
    foreign(tmp_path, vocab_file, "bert", "ForTokenClassification", **named(["S-PER", "O", "B-PER", "I-PER", "E-PER"]))
    task = megabert.load(tmp_path, accelerator="cpu").task
    example = task.example(tokens=["a", "b", "c", "d"])
    (feature,) = task.features([example], megabert.load(tmp_path, accelerator="cpu").tokenizer, with_targets=False)
    logits = np.full((6, 5), -9.0, dtype=np.float32)
    logits[[1, 2, 3, 4], [0, 1, 2, 4]] = 9
    (prediction,) = task.decode([example], [feature], [logits])
    assert prediction.tags == ("B-PER", "O", "B-PER", "I-PER")
    assert [(span.start, span.end) for span in prediction.spans] == [(0, 1), (4, 7)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id2label": {"0": "O", "1": "B"}}, "id2label has 2 labels"),
        ({"id2label": dict.fromkeys("01234", "O")}, "several outputs one label"),
        ({"architectures": ["BertForNextSentencePrediction"]}, "names no class for the head that the weights hold"),
        ({"architectures": ["BertForQuestionAnswering"]}, "is missing"),
    ],
)
def test_a_head_that_does_not_fit_is_refused_but_its_encoder_loads(tmp_path, vocab_file, changes, message, capsys):
    foreign(tmp_path, vocab_file, "bert", "ForTokenClassification", **named(LABELS))
    config = read_json(tmp_path / "config.json")
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    assert main(["predict", str(tmp_path), "text=paris"]) == 66
    assert message in capsys.readouterr().err
    assert megabert.load_encoder(tmp_path)[0].config.hidden_size == 16
