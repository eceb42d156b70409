import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megabert.config.parser import compose
from megabert.errors import InputError
from megabert.metrics import classification, tagging
from megabert.tasks import registry, text_classification
from megabert.tasks.iob_tags import best_valid_tags
from megabert.tasks.token_classification import TokenClassification, TokenClassificationSettings
from megabert.tokenizers.wordpiece import Tokenizer
from tests.conftest import WORDS

TOKENIZER = Tokenizer(WORDS, lower_case=True)


def task(*words):
    return TokenClassification(compose(TokenClassificationSettings, words, owner="token_classification")[0])


def write(path, content):
    path.write_text(content, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("scheme", "tags"),
    [
        ("IOB1", "I-A I-A B-A O I-B O"),
        ("IOB2", "B-A I-A B-A O B-B O"),
        ("IOBES", "B-A E-A S-A O S-B O"),
    ],
)
def test_tagging_schemes_are_converted_to_iob2(scheme, tags, tmp_path):
    words = "".join(f"w{place} {tag}\n" for place, tag in enumerate(tags.split()))
    (example,) = task().read(write(tmp_path / "x.conll", words))
    assert " ".join(example.tags) == "B-A I-A B-A O B-B O"


def test_columns_may_have_more_than_two_and_documents(tmp_path):
    file = write(
        tmp_path / "x.txt", "-DOCSTART- -X- O O\n\nEU NNP I-NP B-ORG\nrejects VBZ I-VP O\n\nBonn NNP O B-LOC\n\n"
    )
    first, second = task().read(file)
    assert (first.text, first.tags) == ("EU rejects", ("B-ORG", "O"))
    assert (second.text, second.tags) == ("Bonn", ("B-LOC",))


def test_json_rows_of_words_keep_their_other_fields(tmp_path):
    file = write(tmp_path / "x.jsonl", '{"id": 3, "tokens": ["a", "b"], "ner_tags": ["B-X", "O"], "pmid": 7}\n')
    (example,) = task().read(file)
    assert (example.id, example.tags, example.given) == ("3", ("B-X", "O"), {"pmid": 7})
    for row in ('{"tokens": ["a"], "labels": ["B-X"]}', '{"text": "a", "labels": [[0, 1, "X"]]}'):
        examples = task().read(write(file, row))
        with pytest.raises(
            InputError, match=r"x.jsonl:1: the training data have no tags.*Of the fields labels none is"
        ):
            task().learn_labels(examples)


def test_a_folder_alone_has_nemo_s_names_of_files():
    tagger = task("model.dataset.data_dir=D")
    assert tagger.files(tagger.settings.model.train_ds) == ["D/text_train.txt", "D/labels_train.txt"]
    assert tagger.files(tagger.settings.model.validation_ds) == ["D/text_dev.txt", "D/labels_dev.txt"]
    assert tagger.files(tagger.settings.model.test_ds) == []
    assert task("model.train_ds.file=x").files(task("model.train_ds.file=x").settings.model.train_ds) == ["x"]


def test_nemo_s_two_files(tmp_path):
    write(tmp_path / "text_dev.txt", "Jennifer is here .\nParis\n")
    write(tmp_path / "labels_dev.txt", "B-PER O O O\nB-LOC\n")
    tagger = task(f"model.dataset.data_dir={tmp_path}", "model.test_ds.text_file=text_dev.txt",
               "model.test_ds.labels_file=labels_dev.txt")  # fmt: skip
    first, second = tagger.read_files(tagger.files(tagger.settings.model.test_ds))
    assert first.tags == ("B-PER", "O", "O", "O")
    assert second.text == "Paris"
    write(tmp_path / "labels_dev.txt", "B-PER O O\nB-LOC\n")
    with pytest.raises(InputError, match=r"labels_dev.txt:1: 3 tags for the 4 words"):
        tagger.read_files(tagger.files(tagger.settings.model.test_ds))
    write(tmp_path / "labels_dev.txt", "B-PER O O O\n")
    with pytest.raises(InputError, match="has 2 lines"):
        tagger.read_files(tagger.files(tagger.settings.model.test_ds))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from(["marie", "xyz", "paris", "of", "q1-7", "\u200b"]), min_size=1, max_size=40))
def test_each_word_has_one_target_and_one_prediction(words):
    tagger = task("model.dataset.max_seq_length=12")
    tags = tuple("B-X" if place % 3 == 0 else "O" for place in range(len(words)))
    from megabert.formats.tagged_words import Sentence

    (example,) = tagger.labelled([Sentence(tuple(words), tags, "here")])
    tagger.learn_labels([example])
    features = tagger.features([example], TOKENIZER, with_targets=True)
    predicted = sorted(
        word for feature in features for word in feature.notes.words[feature.notes.word_positions()].tolist()
    )
    assert predicted == [place for place, word in enumerate(words) if word != "\u200b"]
    targets = [
        tagger.labels[target] for feature in features for target in feature.token_targets["tag"].tolist() if target >= 0
    ]
    assert sorted(targets) == sorted(tag for tag, word in zip(tags, words, strict=True) if word != "\u200b")
    assert all(len(feature) <= 12 for feature in features)


LABELS_IOB = ["O", "B-A", "I-A", "B-B", "I-B"]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.floats(-5, 5), min_size=5, max_size=5), min_size=1, max_size=5))
def test_constrained_tags_are_the_most_likely_valid_sequence(rows):
    scores = np.array(rows)

    def is_valid(path):
        tags = [LABELS_IOB[number] for number in path]
        return all(
            not tag.startswith("I-") or before[2:] == tag[2:] for before, tag in itertools.pairwise(["O", *tags])
        )

    best = max(
        sum(scores[word, number] for word, number in enumerate(path))
        for path in itertools.product(range(5), repeat=len(rows))
        if is_valid(path)
    )
    found = best_valid_tags(scores, LABELS_IOB)
    assert is_valid(found)
    assert scores[np.arange(len(rows)), found].sum() == pytest.approx(best)


def test_tags_of_another_kind_are_not_constrained():
    scores = np.array([[0.0, 1.0], [0.0, 2.0]])
    assert best_valid_tags(scores, ["NOUN", "VERB"]).tolist() == [1, 1]


TAGS = st.sampled_from(["O", "B-A", "I-A", "B-B", "I-B"])
SENTENCES = st.lists(st.lists(TAGS, min_size=1, max_size=9), min_size=1, max_size=6)


@settings(max_examples=150, deadline=None)
@given(SENTENCES, st.randoms(use_true_random=False))
def test_entity_scores_equal_seqeval_s(gold, random):
    seqeval = pytest.importorskip("seqeval.metrics")
    from seqeval.scheme import IOB2

    predicted = [[random.choice([tag, tag, "O", "B-A", "I-B"]) for tag in tags] for tags in gold]
    scores = tagging.entity_scores(gold, predicted)
    assert scores["f1"] == pytest.approx(100 * seqeval.f1_score(gold, predicted, zero_division=0))
    assert scores["precision"] == pytest.approx(100 * seqeval.precision_score(gold, predicted, zero_division=0))
    strict = seqeval.f1_score(gold, predicted, mode="strict", scheme=IOB2, zero_division=0)
    assert scores["strict_f1"] == pytest.approx(100 * strict)


LABELS = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abcd")), min_size=2, max_size=40)


@settings(max_examples=100, deadline=None)
@given(LABELS)
def test_classification_scores_equal_scikit_learn_s(pairs):
    theirs = pytest.importorskip("sklearn.metrics")
    gold, predicted = zip(*pairs, strict=True)
    scores = classification.classification_scores(gold, predicted, "abcd")
    assert scores["accuracy"] == pytest.approx(100 * theirs.accuracy_score(gold, predicted))
    for average in ("macro", "weighted"):
        expected = theirs.f1_score(gold, predicted, average=average, zero_division=0)
        assert scores[f"{average}_f1"] == pytest.approx(100 * expected)
    assert scores["matthews"] == pytest.approx(100 * theirs.matthews_corrcoef(gold, predicted))
    micro = classification.micro_f1(gold, predicted, without={"a"})
    expected = theirs.f1_score(gold, predicted, labels=list("bcd"), average="micro", zero_division=0)
    assert micro["f1"] == pytest.approx(100 * expected)


SETS = st.lists(st.tuples(st.sets(st.sampled_from("abc")), st.sets(st.sampled_from("abc"))), min_size=1, max_size=20)


@settings(max_examples=60, deadline=None)
@given(SETS)
def test_multi_label_scores_equal_scikit_learn_s(pairs):
    theirs = pytest.importorskip("sklearn.metrics")
    gold, predicted = ([[label in item for label in "abc"] for item in side] for side in zip(*pairs, strict=True))
    scores = classification.multi_label_scores([a for a, _ in pairs], [b for _, b in pairs])
    assert scores["f1"] == pytest.approx(100 * theirs.f1_score(gold, predicted, average="micro", zero_division=0))
    assert scores["exact_match"] == pytest.approx(100 * theirs.accuracy_score(gold, predicted))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.floats(-5, 5)), min_size=2, max_size=30))
def test_correlations_equal_scipy_s(pairs):
    stats = pytest.importorskip("scipy.stats")
    gold, predicted = ([float(value) for value in side] for side in zip(*pairs, strict=True))
    if len(set(gold)) < 2 or max(predicted) - min(predicted) < 1e-3:
        return
    assert classification.pearson(gold, predicted) == pytest.approx(stats.pearsonr(gold, predicted).statistic, abs=1e-9)
    assert classification.spearman(gold, predicted) == pytest.approx(
        stats.spearmanr(gold, predicted).statistic, abs=1e-9
    )


@settings(max_examples=30, deadline=None)
@given(LABELS)
def test_scored_files_have_scikit_learn_s_macro_f1_over_classes_of_either_side(pairs):
    theirs = pytest.importorskip("sklearn.metrics")
    kind = registry.find("text_classification")
    scorer = kind(compose(kind.settings_type, [], owner="text_classification")[0])  # without the labels of a run
    examples = [text_classification.Example("", "", None, (gold,), "") for gold, _ in pairs]
    predictions = [text_classification.Prediction("", "", (found,), {}) for _, found in pairs]
    expected = theirs.f1_score(*zip(*pairs, strict=True), average="macro", zero_division=0)
    assert scorer.score(examples, predictions)["macro_f1"] == pytest.approx(100 * expected)
