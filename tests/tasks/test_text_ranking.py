"""Text ranking: groups as a ranking that is re-ranked has them, draws of negatives, learning, ranking again."""

import json

import numpy as np
import pytest

from megabert.cli import main
from megabert.cli.reranking import _reordered
from megabert.config.parser import compose
from megabert.data.fingerprint import fingerprint
from megabert.data.sampler import sequence_counts, sequence_lengths
from megabert.errors import ConfigError, InputError
from megabert.tasks import registry
from megabert.tokenizers.wordpiece import Tokenizer
from tests.conftest import WORDS

KIND = registry.find("text_ranking")
QUERIES, TOPICS = 4, ["radium", "river", "city", "france"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Queries with two relevant passages each: one third in the run, one that the run lacks."""
    folder = tmp_path_factory.mktemp("ranking")
    passages = {f"d{n}": f"{'the ' * (n % 5)}{TOPICS[n % 4]} in paris {n}" for n in range(40)}
    passages |= {f"x{n}": f"who was born in {n}" for n in range(QUERIES)}
    ranked = {f"q{n}": [f"d{n + 4 * k}" for k in range(9)] for n in range(QUERIES)}
    files = {
        "c.tsv": "".join(f"{name}\t{text}\n" for name, text in passages.items()),
        "q.tsv": "".join(f"q{n}\twhat is {TOPICS[n]}\n" for n in range(QUERIES)),
        "qrels.txt": "".join(f"q{n} 0 {name} 1\n" for n in range(QUERIES) for name in (f"x{n}", f"d{n + 8}")),
        "r.trec": "".join(f"{q} Q0 {d} {k} {9 - k} a\n" for q, names in ranked.items() for k, d in enumerate(names)),
    }
    for name, content in files.items():
        (folder / name).write_text(content)
    return folder


def words(folder, *more):
    names = {"passages": "c.tsv", "queries": "q.tsv", "qrels": "qrels.txt", "run": "r.trec"}
    given = [f"model.{ds}.{key}={folder / file}" for ds in ("train_ds", "validation_ds") for key, file in names.items()]
    return [*given, "model.dataset.max_seq_length=24", "model.train_ds.num_negatives=3", *more]


def task_of(folder, *more):
    return KIND(compose(KIND.settings_type, words(folder, *more), owner="text_ranking")[0])


def test_groups_are_those_of_a_ranking_that_is_ranked_again(folder):
    task = task_of(folder)
    examples = task.read_data(task.settings.model.train_ds)
    # Not x0, which the run lacks: beside the run's first passages it teaches that the query's words do not matter.
    assert [item.passage_ids[0] for item in examples] == ["d8", "d9", "d10", "d11"]
    assert examples[0].passage_ids[1:] == ("d0", "d4", "d12", "d16", "d20", "d24", "d28", "d32")
    assert task.notes == ["4 relevant passages are not among the first 100 of the run, and are left out."]
    task = task_of(folder, "model.train_ds.run_depth=2")
    with pytest.raises(InputError, match="no example to train on"):
        task.read_data(task.settings.model.train_ds)
    task = task_of(folder, "model.train_ds.run_depth=0")
    examples = task.read_data(task.settings.model.train_ds)
    assert [item.passage_ids for item in examples[:2]] == [("x0", "d0", "d4", "d12"), ("d8", "d0", "d4", "d12")]
    task = task_of(folder, "model.train_ds.run=null")
    with pytest.raises(ConfigError, match=r"needs negatives: model.train_ds.run=FILE"):
        task.read_data(task.settings.model.train_ds)


def test_negatives_are_drawn_anew_each_epoch_by_the_seed(folder):
    def made(*more):
        task = task_of(folder, *more)
        examples = task.read_data(task.settings.model.train_ds)
        return task.features(examples, Tokenizer(WORDS, lower_case=True), with_targets=True)

    features = made()
    drawn = []
    for epoch in range(30):
        groups = features.resampled(epoch)
        assert sequence_lengths(groups).tolist() == [len(item) for item in groups]
        assert sequence_counts(groups).tolist() == [item.num_sequences for item in groups] == [4] * 4
        places = groups.places(0)
        assert places[0] == 0 and len(set(places)) == 4
        assert groups[0].targets["is_first"].tolist() == [1, 0, 0, 0]
        assert groups[0].targets["score"].tolist() == [7, *(9 - np.array([0, 1, 3, 4, 5, 6, 7, 8])[places[1:] - 1])]
        drawn.append(tuple(places[1:]))
    assert len(set(drawn)) > 20 and {place for item in drawn for place in item} == set(range(1, 9))
    same, other = made(), made("seed=1")
    assert [tuple(same.resampled(epoch).places(0)[1:]) for epoch in range(30)] == drawn
    assert [tuple(other.resampled(epoch).places(0)[1:]) for epoch in range(30)] != drawn
    assert fingerprint(features) == fingerprint(same) != fingerprint(made("model.train_ds.num_negatives=2"))


def test_a_handful_of_queries_is_learnt(folder, tmp_path, vocab_file):
    more = [
        "model.language_model.pretrained_model_name=null", f"model.tokenizer.vocab_file={vocab_file}",
        "model.language_model.config={hidden_size: 32, num_layers: 1, num_attention_heads: 4}",
        "model.optim.lr=5e-3", "trainer.max_epochs=30", "trainer.val_check_interval=0", "trainer.accelerator=cpu",
        "trainer.enable_progress_bar=false", "exp_manager.create_tensorboard_logger=false",
        f"exp_manager.explicit_log_dir={tmp_path / 'run'}", "model.train_ds.batch_size=4",
    ]  # fmt: skip
    assert main(["train", "text_ranking", *words(folder, *more)]) == 0
    scores = json.loads((tmp_path / "run" / "validation" / "scores.json").read_text())
    assert scores["mrr@10"] == 100  # one of the two relevant passages is in the run
    output = ["-k", "4", "-o", str(tmp_path / "o.trec"), "--accelerator", "cpu"]
    files = ["--queries", str(folder / "q.tsv"), "--collection", str(folder / "c.tsv")]
    assert main(["rerank", str(tmp_path / "run"), str(folder / "r.trec"), *files, *output]) == 0
    rows = [line.split() for line in (tmp_path / "o.trec").read_text().splitlines()]
    own = [row[2] for row in rows if row[0] == "q0"]
    assert own[0] == "d8" and set(own[:4]) == {"d0", "d4", "d8", "d12"}
    assert own[4:] == ["d16", "d20", "d24", "d28", "d32"]  # below, in their order
    values = [float(row[4]) for row in rows if row[0] == "q0"]
    assert values == sorted(set(values), reverse=True)


def test_what_is_not_ranked_again_follows_also_where_rankings_are_fused():
    first, new = {"a": 9.0, "b": 7.0, "c": 5.0, "d": 1.0}, {"a": 0.0, "b": 1.0, "c": 2.0}
    order, scores = zip(*_reordered(first, new, 3, 0.25), strict=True)
    assert order == ("a", "b", "c", "d") and scores[3] < scores[2]
    assert scores[:3] == pytest.approx((0.5 * 1.5**0.5, 0, -0.5 * 1.5**0.5))
    assert [name for name, _ in _reordered(first, new, 3, 0.75)] == ["c", "b", "a", "d"]
    assert [name for name, _ in _reordered(first, new, 3, None)] == ["c", "b", "a", "d"]


def test_validation_without_judgements_is_refused(folder, tmp_path):
    (tmp_path / "v.jsonl").write_text('{"query": "a", "negatives": ["b"]}\n')
    task = task_of(folder, f"model.validation_ds.file={tmp_path / 'v.jsonl'}")
    with pytest.raises(InputError, match="no query has a relevant passage"):
        task.read_data(task.settings.model.validation_ds)
