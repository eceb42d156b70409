"""Pre-training with the commands: metrics of a run, resuming, continued pre-training, prediction, what is refused."""

import json
import math
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from megabert.build import load_language_model, load_run, new_task_model
from megabert.cli import main
from megabert.config.parser import compose
from megabert.data.packing import NO_TARGET
from megabert.tasks import registry
from tests.tokenizers.test_bpe import files  # noqa: F401  (a fixture)

TINY = "model.language_model.config={hidden_size: 32, num_layers: 2, num_attention_heads: 2}"
SENTENCES = [
    "Marie Curie was born in Warsaw.", "The river in Paris is the Seine.", "Radium was found in France.",
    "Who was born in Poland?", "The city of Paris is in France.", "What was found in the year 1898?",
]  # fmt: skip


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, vocab_file):
    """A corpus of 40 documents of two to five sentences, as text and as token files."""
    folder = tmp_path_factory.mktemp("corpus")
    random = np.random.default_rng(0)
    documents = [
        "\n".join(f"{SENTENCES[place]} {number}." for place in random.permutation(6)[: random.integers(2, 6)])
        for number in range(40)
    ]
    (folder / "text.txt").write_text("\n\n".join(documents) + "\n")
    words = ["corpus", "build", str(folder / "text.txt"), "-o", str(folder / "c"), "--vocab_file", str(vocab_file)]
    assert main([*words, "--workers", "1"]) == 0
    return folder


def train(folder, corpus, vocab_file, *more, task="masked_language_model"):
    words = [
        f"model.dataset.data_prefix=[{corpus / 'c'}]", "model.dataset.splits_string='8,2,0'",
        "model.language_model.pretrained_model_name=null", TINY, f"model.tokenizer.vocab_file={vocab_file}",
        "model.dataset.max_seq_length=64", "model.train_ds.batch_size=8", "model.optim.lr=1e-3",
        "trainer.accelerator=cpu", "trainer.enable_progress_bar=false", f"exp_manager.explicit_log_dir={folder}",
        "exp_manager.create_tensorboard_logger=false", *more,
    ]  # fmt: skip
    return main(["train", task, *words])


@pytest.mark.parametrize("task", ["masked_language_model", "causal_language_model"])
def test_validation_metrics_are_those_of_the_plain_network(task, tmp_path, corpus, vocab_file, capsys):
    assert train(tmp_path / "run", corpus, vocab_file, "trainer.max_steps=3", task=task) == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    stored = next(row for row in rows if row["split"] == "validation")
    predictor = load_run(tmp_path / "run", accelerator="cpu")
    model, made = predictor.session.model, predictor.task
    features = made.features(made.read_data(made.settings.model.validation_ds), predictor.tokenizer, with_targets=True)
    sums, num_predicted, orders = 0.0, 0, []
    for item in features:  # one sequence at a time, logits over the whole vocabulary
        hidden_TD = model.encoder(torch.tensor(item.token_ids)[None], segment_ids=torch.tensor(item.segment_ids)[None])[
            0
        ]
        targets = torch.tensor(item.token_targets["token"])
        sums += float(F.cross_entropy(model.head.language_model(hidden_TD), targets, reduction="sum"))
        num_predicted += int((targets != NO_TARGET).sum())
        if item.token_targets.get("order", [NO_TARGET])[0] != NO_TARGET:
            logits = model.head.sentence_order(hidden_TD[:1])
            orders.append(float(F.cross_entropy(logits, torch.tensor(item.token_targets["order"][:1]))))
    assert stored["total"] == num_predicted
    assert stored["lm_loss"] == pytest.approx(sums / num_predicted, abs=1e-5)
    assert stored["perplexity"] == pytest.approx(math.exp(sums / num_predicted), rel=1e-5)
    if task == "masked_language_model":
        assert len(orders) > 3
        assert stored["order_loss"] == pytest.approx(sum(orders) / len(orders), abs=1e-5)
    else:
        assert "order_loss" not in stored
        assert stored["val_loss"] == pytest.approx(stored["lm_loss"], abs=1e-5)


def test_training_data_may_be_a_file_and_validation_is_optional(tmp_path, corpus, vocab_file, capsys):
    own = ("model.dataset.data_prefix=[]", f"model.train_ds.file={corpus / 'c'}", "trainer.max_steps=1")
    assert train(tmp_path / "run", corpus, vocab_file, *own) == 0
    assert "nothing is validated" in capsys.readouterr().err
    more = f"model.validation_ds.file={corpus / 'text.txt'}"
    assert train(tmp_path / "other", corpus, vocab_file, *own, more) == 0
    assert '"lm_loss"' in (tmp_path / "other" / "metrics.jsonl").read_text()


def test_a_resumed_run_has_the_weights_of_an_uninterrupted_one(tmp_path, corpus, vocab_file):
    blend = f"model.dataset.data_prefix=[0.7,{corpus / 'c'},0.3,{corpus / 'c'}]"
    common = (blend, "trainer.max_epochs=-1", "exp_manager.resume_if_exists=true", "exp_manager.resume_past_end=true",
              "model.optim.sched.name=WarmupPolicy", "model.optim.sched.min_lr=0")  # fmt: skip
    assert train(tmp_path / "whole", corpus, vocab_file, "trainer.max_steps=14", *common) == 0
    for steps in (5, 14):  # 14 steps are more than an epoch
        assert train(tmp_path / "cut", corpus, vocab_file, f"trainer.max_steps={steps}", *common) == 0
    whole, cut = (
        (tmp_path / name / "checkpoints" / "step-00000014" / "model.safetensors").read_bytes()
        for name in ("whole", "cut")
    )
    assert whole == cut


def test_continued_pre_training_starts_from_the_checkpoint_s_heads(genuine_checkpoints, tmp_path):
    from safetensors.torch import load_file

    source = genuine_checkpoints / "v1.0_tp2"
    words = [f"model.language_model.pretrained_model_name={source}", "model.dataset.max_seq_length=24"]
    words.append(f"model.tokenizer.vocab_file={next(genuine_checkpoints.rglob('vocab.txt'))}")
    kind = registry.find("masked_language_model")
    made = kind(compose(kind.settings_type, words, owner="masked_language_model")[0])
    model = new_task_model(made, load_language_model(made.settings.model, home=tmp_path, seed=0), seed=0).eval()
    oracle = load_file(next(source.rglob("oracle.safetensors")))
    length = int(oracle["attention_mask"][0].sum())
    hidden_TD = model.encoder(oracle["input_ids"][:1, :length], segment_ids=oracle["tokentype_ids"][:1, :length])[0]
    logits_TV = model.head.language_model(hidden_TD)
    torch.testing.assert_close(logits_TV, oracle["lm_logits"][0, :length, : logits_TV.shape[1]], atol=1e-5, rtol=1e-5)
    order_N2 = model.head.sentence_order(hidden_TD[:1])
    torch.testing.assert_close(order_N2, oracle["binary_logits"][:1], atol=1e-5, rtol=1e-5)


def test_another_task_starts_from_a_pre_training_run(tmp_path, corpus, vocab_file):
    assert train(tmp_path / "run", corpus, vocab_file, "trainer.max_steps=2") == 0
    words = [f"model.language_model.pretrained_model_name={tmp_path / 'run'}"]
    kind = registry.find("text_classification")
    made = kind(compose(kind.settings_type, words, owner="text_classification")[0])
    made.labels = ["a", "b"]
    model = new_task_model(made, load_language_model(made.settings.model, home=tmp_path, seed=0), seed=0)
    trained = load_run(tmp_path / "run", accelerator="cpu").session.model
    assert torch.equal(model.encoder.layers[1].mlp.up.weight, trained.encoder.layers[1].mlp.up.weight)
    assert torch.equal(model.head.hidden[0].weight, trained.head.sentence_order.pooler.weight)


def test_gpt_is_trained_evaluated_and_predicts_with_its_own_vocabulary(tmp_path, corpus, files, capsys):  # noqa: F811
    words = ["corpus", "build", str(corpus / "text.txt"), "-o", str(tmp_path / "c"), "--workers", "1"]
    assert main([*words, "--vocab_file", str(files / "vocab.json")]) == 0
    assert (
        train(tmp_path / "run", tmp_path, files / "vocab.json", "trainer.max_steps=2", task="causal_language_model")
        == 0
    )
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "run"), f"file={corpus / 'text.txt'}", "accelerator=cpu"]) == 0
    scores = json.loads(capsys.readouterr().out)
    text = (corpus / "text.txt").read_text().removesuffix("\n").split("\n\n")
    tokenizer = load_run(tmp_path / "run", accelerator="cpu").tokenizer
    # Of each document all tokens but the first, and the end of text.
    assert scores["total"] == sum(len(ids) for ids in tokenizer.encode_ids(text))
    assert scores["word_perplexity"] == pytest.approx(
        math.exp(scores["lm_loss"] * scores["total"] / sum(len(item.split()) for item in text)), rel=1e-6
    )
    assert main(["predict", str(tmp_path / "run"), "text=Marie Curie", "accelerator=cpu"]) == 0
    (place,) = json.loads(capsys.readouterr().out)["places"]
    shares = [guess["probability"] for guess in place["guesses"]]
    assert place["start"] == place["end"] == 11
    assert shares == sorted(shares, reverse=True) and len(shares) == 5


def test_masks_of_long_texts_are_filled_in_by_windows(tmp_path, corpus, vocab_file, capsys):
    assert train(tmp_path / "run", corpus, vocab_file, "trainer.max_steps=1") == 0
    capsys.readouterr()
    text = "[MASK] " + "the river of paris " * 40 + "is [MASK] " + "in france " * 30 + "[MASK]"
    assert main(["predict", str(tmp_path / "run"), f"text={text}", "accelerator=cpu"]) == 0
    places = json.loads(capsys.readouterr().out)["places"]
    assert [text[place["start"] : place["end"]] for place in places] == ["[MASK]"] * 3
    assert [place["start"] for place in places] == [0, text.index("is [MASK]") + 3, len(text) - 6]


@pytest.mark.parametrize(
    ("words", "task", "code", "message"),
    [
        (["model.dataset.splits_string='1,2'"], "masked_language_model", 64, "give three shares"),
        (["model.dataset.data_prefix=[0.3]"], "masked_language_model", 64, r"give \[PREFIX"),
        (["model.dataset.data_prefix=[nowhere]"], "masked_language_model", 65, "nowhere.bin does not exist"),
        (["model.dataset.data_prefix=[]"], "masked_language_model", 64, "model.train_ds.file is not given"),
        (["model.dataset.masked_lm_prob=2"], "masked_language_model", 64, "no share"),
        (["model.dataset.max_ngram=0"], "masked_language_model", 64, "at least 1"),
        (["model.dataset.splits_string='0,1,0'"], "masked_language_model", 65, "makes no sequence"),
        (["trainer.max_epochs=-1"], "masked_language_model", 64, "would have no end"),
        (["model.language_model.config={hidden_size: 32, num_layers: 1, num_attention_heads: 2, is_causal: true}"],
         "masked_language_model", 64, "Use causal_language_model"),
        (["model.language_model.config={hidden_size: 32, num_layers: 1, num_attention_heads: 2, is_causal: false}"],
         "causal_language_model", 64, "Use masked_language_model"),
    ],
)  # fmt: skip
def test_mistakes_are_reported(words, task, code, message, tmp_path, corpus, vocab_file, capsys):
    assert train(tmp_path / "run", corpus, vocab_file, *words, task=task) == code
    assert re.search(message, capsys.readouterr().err)


def test_a_text_without_a_mask_is_refused(tmp_path, corpus, vocab_file, capsys):
    assert train(tmp_path / "run", corpus, vocab_file, "trainer.max_steps=1") == 0
    assert main(["predict", str(tmp_path / "run"), "text=the river", "accelerator=cpu"]) == 65
    assert "text has no [MASK]" in capsys.readouterr().err
    assert main(["score", "masked_language_model", "a", "b"]) == 64


def test_gpt_s_vocabulary_is_refused_for_bert(tmp_path, corpus, files, capsys):  # noqa: F811
    assert train(tmp_path / "run", corpus, files / "vocab.json", "trainer.max_steps=1") == 64
    assert "a vocabulary of GPT-2" in capsys.readouterr().err
