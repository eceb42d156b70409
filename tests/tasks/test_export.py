"""A fine-tuned run that is converted for transformers predicts the same labels with the same probabilities there."""

import json

import pytest
import torch

import megabert
from megabert.cli import main
from tests.tasks.test_contract import CASES, Case, train


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("MEGABERT_HOME", str(tmp_path_factory.mktemp("home")))


@pytest.mark.parametrize("name", ["text_classification", "a number", "token_classification"])
def test_transformers_predicts_the_same_labels(name, tmp_path, vocab_file):
    transformers = pytest.importorskip("transformers")
    case: Case = CASES[name]
    run, _ = train(case, tmp_path / "a", vocab_file, "trainer.max_epochs=3")
    assert main(["convert", str(run), str(tmp_path / "hub"), "--to", "huggingface"]) == 0
    config = json.loads((tmp_path / "hub" / "config.json").read_text())
    theirs = getattr(transformers, config["architectures"][0]).from_pretrained(tmp_path / "hub").eval()
    ours = megabert.load(run, accelerator="cpu")
    (feature,) = ours.task.features([ours.task.example(text="marie was born")], ours.tokenizer, with_targets=False)
    with torch.inference_mode():
        logits = theirs(torch.from_numpy(feature.token_ids)[None]).logits[0]
        hidden = ours.session.model.encoder(torch.from_numpy(feature.token_ids)[None])[0]
        expected = ours.session.model.head(hidden, torch.tensor([0]))
    torch.testing.assert_close(logits, expected.reshape(logits.shape), atol=1e-4, rtol=1e-4)
    if ours.task.labels:
        assert [theirs.config.id2label[number] for number in range(len(ours.task.labels))] == ours.task.labels


def test_another_activation_is_refused(tmp_path, vocab_file, capsys):
    more = ("trainer.max_epochs=1", "model.classifier_head.activation=relu")
    run, _ = train(CASES["text_classification"], tmp_path / "a", vocab_file, *more)
    assert main(["convert", str(run), str(tmp_path / "hub"), "--to", "huggingface"]) == 64
    assert "activation=tanh" in capsys.readouterr().err
