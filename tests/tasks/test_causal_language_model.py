"""Megatron-LM's zero-shot evaluations of GPT-2: WikiText's overlapping sequences and LAMBADA's cloze accuracy."""

import json
import math

import pytest
import torch
import torch.nn.functional as F

from megabert.build import load_run
from megabert.cli import main
from megabert.tasks.causal_language_model import wikitext_detokenized

LENGTH = 12
TEXT = (
    " the river in paris is the seine . \n marie curie was born in warsaw \n who found radium in the city of paris ? "
)
TINY = "{hidden_size: 32, num_layers: 1, num_attention_heads: 2, max_position_embeddings: 16}"


@pytest.fixture(scope="module")
def trained(tmp_path_factory, vocab_file):
    folder = tmp_path_factory.mktemp("causal")
    (folder / "text.txt").write_text(TEXT)
    words = [
        f"model.train_ds.file={folder / 'c'}", f"model.validation_ds.file={folder / 'text.txt'}",
        "model.language_model.pretrained_model_name=null", f"model.language_model.config={TINY}",
        f"model.tokenizer.vocab_file={vocab_file}", f"model.dataset.max_seq_length={LENGTH}",
        "model.train_ds.batch_size=2", "model.optim.lr=1e-2", "trainer.max_epochs=30",
        "trainer.val_check_interval=0", "trainer.accelerator=cpu",
        "trainer.enable_progress_bar=false", f"exp_manager.explicit_log_dir={folder / 'run'}",
        "exp_manager.create_tensorboard_logger=false",
    ]  # fmt: skip
    build = ["corpus", "build", str(folder / "text.txt"), "-o", str(folder / "c"), "--vocab_file", str(vocab_file)]
    assert main([*build, "--workers", "1"]) == 0
    assert main(["train", "causal_language_model", *words]) == 0
    return folder / "run"


def evaluate(run, file, capsys, *words):
    capsys.readouterr()
    assert main(["evaluate", str(run), f"file={file}", "accelerator=cpu", *words]) == 0
    return json.loads(capsys.readouterr().out)


def next_token_logits(predictor, ids):
    with torch.no_grad():
        hidden = predictor.session.model.encoder(torch.as_tensor(ids)[None])[0]
        return predictor.session.model.head.language_model(hidden)


@pytest.mark.parametrize("stride", [3, 12])
def test_overlapping_sequences_count_each_token_once_with_the_longest_context(trained, tmp_path, capsys, stride):
    file = tmp_path / "wiki.txt"
    file.write_text(TEXT * 3)
    predictor = load_run(trained, accelerator="cpu")
    ids = predictor.tokenizer.encode_ids([TEXT * 3])[0]
    total, counted = 0.0, []
    for start in range(0, len(ids), stride):  # Megatron-LM's _LMDataset
        window = ids[start : start + LENGTH + 1]
        if len(window) < 2:
            continue
        losses = F.cross_entropy(
            next_token_logits(predictor, window[:-1]), torch.as_tensor(window[1:]), reduction="none"
        )
        first = 0 if start == 0 or stride == LENGTH else LENGTH - stride
        total += float(losses[first:].sum())
        counted += range(start + first + 1, start + len(window))
    assert counted == list(range(1, len(ids)))
    scores = evaluate(trained, file, capsys, f"model.dataset.overlapping_eval={stride}")
    assert scores["total"] == len(ids) - 1
    assert scores["lm_loss"] == pytest.approx(total / (len(ids) - 1), rel=1e-5)
    num_words = len((TEXT * 3).strip().split(" "))
    assert scores["word_perplexity"] == pytest.approx(math.exp(total / (num_words - 1)), rel=1e-4)


def test_too_long_a_stride_is_refused(trained, tmp_path, capsys):
    file = tmp_path / "wiki.txt"
    file.write_text(TEXT * 3)
    assert (
        main(["evaluate", str(trained), f"file={file}", "accelerator=cpu", "model.dataset.overlapping_eval=13"]) == 64
    )
    assert "more than max_seq_length=12" in capsys.readouterr().err


@pytest.mark.parametrize("cloze", ["loose", "strict"])
def test_cloze_accuracy_counts_texts_whose_every_last_token_is_most_likely(trained, tmp_path, capsys, cloze):
    texts = ["the river in paris is the seine", "marie curie was born in warsaw", "who found radium in the warsaws"]
    file = tmp_path / "lambada.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    predictor = load_run(trained, accelerator="cpu")
    right = []
    for text in texts:
        ids = predictor.tokenizer.encode_ids([text])[0].tolist()
        last = len(predictor.tokenizer.encode_ids([text.split()[-1]])[0]) if cloze == "strict" else 1
        found = next_token_logits(predictor, ids[:-1]).argmax(1).tolist()
        right.append(found[-last:] == ids[-last:])
    scores = evaluate(trained, file, capsys, f"model.dataset.cloze={cloze}")
    assert scores == {"cloze_accuracy": pytest.approx(100 * sum(right) / 3), "total": 3.0}


def test_a_text_of_one_word_has_no_context(trained, tmp_path, capsys):
    file = tmp_path / "lambada.jsonl"
    file.write_text('{"text": "seine"}\n')
    assert main(["evaluate", str(trained), f"file={file}", "accelerator=cpu", "model.dataset.cloze=strict"]) == 65
    assert "nothing before its end" in capsys.readouterr().err


def test_wikitext_is_detokenized():
    text = ' = Robert = \n \n In 2 @,@ 000 @-@ odd ( or 1 @.@ 5 ) cases , the " play " ; N years : it \'s [ x ] . \n'
    expected = ' = Robert =\n\nIn 2,000-odd (or 1.5) cases, the "play"; 1 years: it\'s [x].\n'
    assert wikitext_detokenized(text) == expected
