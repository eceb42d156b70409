"""Likely label errors: folds, out-of-fold losses, and planted errors that the command finds."""

import json
import math
import random
import shutil
from dataclasses import dataclass

import pytest

from megabert.analysis.error_cases import CORRECT, Case, cases
from megabert.analysis.error_report import in_turn
from megabert.cli import main
from megabert.errors import ConfigError, InputError
from megabert.tasks.folds import fold_numbers, parse_fold, without_fold
from tests.conftest import WORDS

NETWORK = "{hidden_size: 32, num_layers: 1, num_attention_heads: 2, max_position_embeddings: 32}"
NAMES = ("curie", "paris", "warsaw")


@dataclass(frozen=True)
class Text:
    text: str


def test_folds_are_balanced_and_keep_equal_texts_together():
    examples = [Text(word) for word in "abcabcdefgh"]
    numbers = fold_numbers(examples, 3)
    assert numbers == [1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2]
    parts = [without_fold(examples, f"{number}/3") for number in (1, 2, 3)]
    assert [len(part) for part in parts] == [7, 7, 8]
    assert without_fold(examples, None) is examples
    for word in ("0/3", "4/3", "1/1", "1", "a/b", "-1/3"):
        with pytest.raises(ConfigError, match="held_out_fold"):
            parse_fold(word)
    with pytest.raises(InputError, match="too few"):
        fold_numbers(examples[:2], 3)


def test_the_cost_of_an_entity_is_the_smallest_loss_of_the_words_that_are_tagged_otherwise():
    def entity(start, end, kind="D"):
        return {"type": kind, "text": "ab cd ef gh"[start:end], "start": start, "end": end, "score": 0.5}

    def costs(gold, found):
        row = {"id": "1", "text": "ab cd ef gh", "words": [[0, 2], [3, 5], [6, 8], [9, 11]],
               "losses": [0.25, 2.5, 7.0, 1.5], "entities": found, "gold": {"entities": gold}}  # fmt: skip
        return [(case.kind, case.cost) for case in cases([row])]

    assert costs([entity(0, 2), entity(3, 5)], [entity(3, 8, "G")]) == [("missed", 0.25), ("boundary and type", 2.5)]
    assert costs([entity(3, 8)], [entity(3, 11)]) == [("boundary", 1.5)]  # one more word at the end
    assert costs([entity(3, 8)], [entity(6, 8)]) == [("boundary", 2.5)]  # O for B, and B for I
    assert costs([], [entity(0, 8)]) == [("spurious", 0.25)]


def test_kinds_of_suspects_take_turns():
    costs = (("type", 1), ("missed", 9), ("missed", 8), (CORRECT, 0), ("missed", 7), ("boundary and type", 2))
    found = [Case("1", kind, "", "", cost, "") for kind, cost in costs]
    assert [(case.kind[0], case.cost) for case in in_turn(found)] == [("m", 9), ("b", 2), ("m", 8), ("t", 1), ("m", 7)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Names are entities in 60 sentences, but for one that is not tagged and one word that is."""
    folder = tmp_path_factory.mktemp("suspects")
    numbers, lines = random.Random(0), []
    for sentence in range(60):
        words = [numbers.choice((*NAMES, "the", "was", "in", "of", "who", "when")) for _ in range(6)]
        tags = ["B-N" if word in NAMES else "O" for word in words]
        if sentence == 17:
            words[2], tags[2] = "paris", "O"
        if sentence == 40:
            words[3], tags[3] = "when", "B-N"
        lines += [*(f"{word}\t{tag}\n" for word, tag in zip(words, tags, strict=True)), "\n"]
    (folder / "train.conll").write_text("".join(lines))
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in WORDS))
    assert main(["suspects", *settings(folder), "--folds", "2", "-o", str(folder / "out"), "--json"]) == 0
    return folder


def settings(folder):
    return ["token_classification", f"model.train_ds.file={folder / 'train.conll'}",
            "model.language_model.pretrained_model_name=null", f"model.language_model.config={NETWORK}",
            f"model.tokenizer.vocab_file={folder / 'vocab.txt'}", "model.dataset.max_seq_length=32",
            "model.optim.lr=1e-2", "model.train_ds.batch_size=10", "trainer.max_epochs=20", "trainer.accelerator=cpu",
            "model.train_ds.use_cache=false", "exp_manager.create_tensorboard_logger=false"]  # fmt: skip


def test_planted_errors_are_the_first_suspects(folder):
    head, *lines = (folder / "out" / "suspects.tsv").read_text().splitlines()
    assert head.startswith("id\tkind\tgold\tpredicted\tcost")
    first = [line.split("\t") for line in lines[:2]]
    assert {(item[0], item[1], item[2], item[3]) for item in first} == {
        ("18", "spurious", "", "paris [N]"), ("41", "missed", "when [N]", "")}  # fmt: skip
    assert all(float(item[4]) > math.log(20) for item in first)
    page = (folder / "out" / "suspects.html").read_text()
    assert "<h1>Suspect labels of" in page and "paris [N]" in page
    rows = [json.loads(line) for line in (folder / "out" / "predictions.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [str(number) for number in range(1, 61)]
    assert all(len(row["losses"]) == 6 for row in rows)


def test_runs_of_one_cross_validation_are_required_and_trained_ones_are_kept(folder, capsys):
    runs = [str(folder / "out" / f"fold-{number}-of-2") for number in (1, 2)]
    assert main(["suspects", "--runs", *runs, "-o", str(folder / "again")]) == 0
    assert (folder / "again" / "suspects.tsv").read_text() == (folder / "out" / "suspects.tsv").read_text()
    capsys.readouterr()
    assert main(["suspects", *settings(folder), "--folds", "2", "-o", str(folder / "out")]) == 0
    assert "Training on" not in capsys.readouterr().err
    assert main(["suspects", "--runs", runs[0], "-o", str(folder / "again")]) == 64
    assert "1 runs are not the 2" in capsys.readouterr().err
    shutil.copytree(runs[0], folder / "plain")
    facts = json.loads((folder / "plain" / "run.json").read_text())
    del facts["settings"]["model"]["train_ds"]["held_out_fold"]
    (folder / "plain" / "run.json").write_text(json.dumps(facts))
    assert main(["suspects", "--runs", str(folder / "plain"), "-o", str(folder / "again")]) == 64
    assert "left out no fold" in capsys.readouterr().err
    assert main(["suspects", "-o", str(folder / "again")]) == 64
