"""SQuAD scores against hand-computed answers, an independent oracle, and properties."""

import math
from fractions import Fraction
from itertools import groupby

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from megabert.errors import InputError
from megabert.metrics.squad import (
    normalize_answer,
    squad_best_threshold,
    squad_exact_match,
    squad_f1,
    squad_v1,
    squad_v2,
)

NO_BREAK_SPACE = "\u00a0"
# Few words, so that answers overlap, and every trap of the normalisation: articles as words and inside words,
# punctuation in and outside ASCII, white space of Unicode, letters that are longer in lower case.
PIECES = ["the", "The ", "a", "an ", "A.", "theory", "ant", "p53", "1,480", "IL-2", "mg", "ein", "ß", "7"]
PIECES += ["É", "İ", "μ", "$", ".", ",", "-", "–", "'", "’", "_"]
PIECES += [" ", NO_BREAK_SPACE, "\u3000", "\t", "\n", "a\u0301"]
strings = st.lists(st.sampled_from(PIECES), max_size=6).map("".join) | st.text(max_size=8)
question_ids = st.sampled_from("abcdefgh")
golds = st.dictionaries(question_ids, st.lists(strings, max_size=3), min_size=1)
answerable_golds = st.dictionaries(question_ids, st.lists(strings, min_size=1, max_size=3), min_size=1)
null_scores = st.sampled_from([-3.5, -1.0, 0.0, 0.25, 0.5, 1.0, 2.0])


# The oracle: the same definitions without regular expressions, counters or binary fractions.


def oracle_words(text: str) -> list[str]:
    kept = "".join(letter for letter in text.lower() if not (letter.isascii() and letter.isprintable())
                   or letter.isalnum() or letter == " ")  # fmt: skip
    runs = ["".join(run) for _, run in groupby(kept, lambda letter: letter.isalnum() or letter == "_")]
    return "".join(" " if run in ("a", "an", "the") else run for run in runs).split()


def oracle_f1(prediction: str, gold: str, *, both_empty: int) -> Fraction:
    prediction_words, remaining = oracle_words(prediction), oracle_words(gold)
    total = len(prediction_words) + len(remaining)
    if total == 0:
        return Fraction(both_empty)
    num_common = 0
    for word in prediction_words:
        if word in remaining:
            remaining.remove(word)
            num_common += 1
    return Fraction(2 * num_common, total)


def oracle_v1(gold, predictions) -> tuple[Fraction, Fraction]:
    exact = f1 = Fraction(0)
    for question_id, answers in gold.items():
        if question_id in predictions:
            text = predictions[question_id]
            exact += max(oracle_words(text) == oracle_words(answer) for answer in answers)
            f1 += max(oracle_f1(text, answer, both_empty=0) for answer in answers)
    return exact / len(gold) * 100, f1 / len(gold) * 100


def oracle_v2(gold, predictions) -> tuple[Fraction, Fraction]:
    exact = f1 = Fraction(0)
    for question_id, answers in gold.items():
        targets = [answer for answer in answers if oracle_words(answer)] or [""]
        if question_id in predictions:
            text = predictions[question_id]
            exact += max(oracle_words(text) == oracle_words(target) for target in targets)
            f1 += max(oracle_f1(text, target, both_empty=1) for target in targets)
    return exact / len(gold) * 100, f1 / len(gold) * 100


def assert_scores(result, expected) -> None:
    assert result["exact_match"] == pytest.approx(float(expected[0]), abs=1e-9)
    assert result["f1"] == pytest.approx(float(expected[1]), abs=1e-9)


# Normalisation.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Cat", "cat"),
        ("an  apple\ta day", "apple day"),
        ("theory of another ant", "theory of another ant"),  # articles inside words stay
        ("the the", ""),
        ("the-cat", "thecat"),  # punctuation goes first, so this article is no longer a word
        ("A. Fleming", "fleming"),
        ("1,480", "1480"),
        ("5.5 %", "55"),
        ("IL-2", "il2"),
        ("snake_case", "snakecase"),
        ("$100", "100"),
        ("it's", "its"),
        ("it’s", "it’s"),  # a typographic apostrophe is not ASCII punctuation
        ("1914–1918", "1914–1918"),  # nor is an en dash
        (f"9{NO_BREAK_SPACE}kg", "9 kg"),
        (f"{NO_BREAK_SPACE}\u2003\n", ""),
        ("the\u200bcat", "\u200bcat"),  # a zero-width space bounds a word but is no white space
        ("Ärzte", "ärzte"),
        ("İ", "i\u0307"),  # lower case may be longer
        ("straße", "straße"),
        ("á", "á"),
        ("a\u0301", "\u0301"),  # the same letter decomposed: its base is an article to the official scripts
        ("...", ""),
        ("", ""),
    ],
)
def test_normalisation_of_a_known_answer(text, expected):
    assert normalize_answer(text) == expected


@given(strings)
def test_normalisation_agrees_with_the_oracle(text):
    assert normalize_answer(text).split() == oracle_words(text)


@given(strings)
def test_normalised_text_has_single_blanks(text):
    assert normalize_answer(text) == " ".join(normalize_answer(text).split())


# One prediction against one gold answer.


@pytest.mark.parametrize(
    ("prediction", "gold", "exact", "f1"),
    [
        ("the CFTR gene", "CFTR gene", 1, 1),
        ("CFTR", "the CFTR gene", 0, 2 / 3),
        ("in 1953", "1953", 0, 2 / 3),
        ("red red blood", "red blood blood", 0, 2 / 3),  # two of three words in common, with multiplicity
        ("red red", "red", 0, 2 / 3),
        ("blood red", "red blood", 0, 1),  # F1 ignores the order
        ("lungs", "liver", 0, 0),
        ("", "liver", 0, 0),
        ("liver", "", 0, 0),
        ("", "", 1, 1),
        ("the", "...", 1, 1),
    ],
)
def test_scores_of_one_answer(prediction, gold, exact, f1):
    assert squad_exact_match(prediction, gold) == exact
    assert squad_f1(prediction, gold) == pytest.approx(f1)


@given(strings, strings)
def test_f1_is_symmetric_and_within_0_and_1(one, other):
    assert squad_f1(one, other) == squad_f1(other, one)
    assert 0 <= squad_exact_match(one, other) <= squad_f1(one, other) <= 1


@given(strings, strings)
def test_f1_agrees_with_the_oracle(one, other):
    assert squad_f1(one, other) == pytest.approx(float(oracle_f1(one, other, both_empty=1)))


# SQuAD 1.1.

GOLD = {"gene": ["CFTR", "the CFTR gene"], "year": ["1953"], "who": ["James Watson", "Watson"]}


def test_v1_takes_the_best_gold_answer_and_averages_in_per_cent():
    result = squad_v1(GOLD, {"gene": "The CFTR gene.", "year": "in 1953", "who": "Francis Crick"})
    assert result == {
        "exact_match": pytest.approx(100 / 3),
        "f1": pytest.approx(100 * (1 + 2 / 3 + 0) / 3),
        "total": 3,
        "missing": 0,
        "unknown": 0,
    }


def test_v1_counts_a_missing_id_as_0_and_ignores_an_unknown_one():
    result = squad_v1(GOLD, {"gene": "CFTR", "somebody else's": "CFTR"})
    assert result["exact_match"] == result["f1"] == pytest.approx(100 / 3)
    assert (result["total"], result["missing"], result["unknown"]) == (3, 2, 1)


def test_v1_gives_no_f1_where_the_gold_answer_is_only_an_article():
    result = squad_v1({"q": ["The A"]}, {"q": ""})
    assert (result["exact_match"], result["f1"]) == (100, 0)


def test_v1_without_any_prediction_is_0():
    assert squad_v1(GOLD, {}) == {"exact_match": 0, "f1": 0, "total": 3, "missing": 3, "unknown": 0}


def test_v1_names_the_question_that_has_no_gold_answer():
    with pytest.raises(InputError, match=r"'q'.*SQuAD 2\.0"):
        squad_v1({"q": []}, {"q": "a"})


@pytest.mark.parametrize("score", [squad_v1, squad_v2, lambda gold, strings: squad_best_threshold(gold, strings, {})])
def test_no_question_at_all_is_an_error(score):
    with pytest.raises(InputError, match="no question"):
        score({}, {"q": "a"})


@given(answerable_golds, st.dictionaries(question_ids, strings))
def test_v1_agrees_with_the_oracle(gold, predictions):
    assert_scores(squad_v1(gold, predictions), oracle_v1(gold, predictions))


@given(answerable_golds, st.dictionaries(question_ids, strings), st.randoms())
def test_the_order_of_questions_answers_and_predictions_changes_nothing(gold, predictions, random):
    def shuffled(items):
        return random.sample(list(items), len(items))

    shuffled_gold = {question_id: shuffled(answers) for question_id, answers in shuffled(gold.items())}
    shuffled_predictions = dict(shuffled(predictions.items()))
    for score in (squad_v1, squad_v2):
        assert score(shuffled_gold, shuffled_predictions) == pytest.approx(score(gold, predictions))


@given(answerable_golds, st.randoms())
def test_a_gold_answer_as_prediction_scores_100(gold, random):
    predictions = {question_id: random.choice(answers) for question_id, answers in gold.items()}
    assert squad_v1(gold, predictions)["exact_match"] == 100
    if all(normalize_answer(text) for text in predictions.values()):
        assert squad_v1(gold, predictions)["f1"] == squad_v2(gold, predictions)["f1"] == 100


# SQuAD 2.0.

GOLD_V2 = {"gene": ["CFTR"], "year": ["1953"], "none": [], "nothing": []}


def test_v2_scores_all_questions_and_both_groups():
    result = squad_v2(GOLD_V2, {"gene": "CFTR", "year": "in 1953", "none": "", "nothing": "Mars"})
    assert result == {
        "exact_match": 50,
        "f1": pytest.approx(100 * (1 + 2 / 3 + 1 + 0) / 4),
        "total": 4,
        "HasAns_exact_match": 50,
        "HasAns_f1": pytest.approx(100 * (1 + 2 / 3) / 2),
        "HasAns_total": 2,
        "NoAns_exact_match": 50,
        "NoAns_f1": 50,
        "NoAns_total": 2,
        "missing": 0,
        "unknown": 0,
    }


@pytest.mark.parametrize(("gold", "absent"), [({"q": ["x"]}, "NoAns_"), ({"q": []}, "HasAns_")])
def test_v2_leaves_out_the_keys_of_an_empty_group(gold, absent):
    assert not [key for key in squad_v2(gold, {"q": "x"}) if key.startswith(absent)]


def test_v2_counts_a_missing_id_as_0_and_ignores_an_unknown_one():
    result = squad_v2(GOLD_V2, {"gene": "CFTR", "none": "", "somebody else's": ""})
    assert (result["exact_match"], result["HasAns_f1"], result["NoAns_f1"]) == (50, 50, 50)
    assert (result["total"], result["missing"], result["unknown"]) == (4, 2, 1)
    # What the official script would average before its KeyError: the two that were predicted, both right.
    assert result["exact_match"] * result["total"] / (result["total"] - result["missing"]) == 100


def test_v2_leaves_out_gold_answers_that_normalise_to_nothing():
    assert squad_v2({"q": ["the", "cat"]}, {"q": ""})["exact_match"] == 0
    # With no other answer "" is right, though the question stays among those with an answer.
    assert squad_v2({"q": ["the"]}, {"q": ""})["HasAns_exact_match"] == 100


def test_v2_turns_a_prediction_into_no_answer_only_above_the_threshold():
    predictions = {"gene": "CFTR", "year": "1953", "none": "Venus", "nothing": "Mars"}
    scores = {"gene": 0.1, "year": 0.9, "none": 0.9, "nothing": 0.5}
    at_default = squad_v2(GOLD_V2, predictions, null_scores=scores)
    at_half = squad_v2(GOLD_V2, predictions, null_scores=scores, threshold=0.5)
    below_half = squad_v2(GOLD_V2, predictions, null_scores=scores, threshold=0.499)
    assert at_default == squad_v2(GOLD_V2, predictions)
    assert (at_half["HasAns_exact_match"], at_half["NoAns_exact_match"]) == (50, 50)
    assert (below_half["HasAns_exact_match"], below_half["NoAns_exact_match"]) == (50, 100)


def test_v2_takes_no_answer_for_wrong_where_the_only_gold_answer_is_an_article():
    assert squad_v2({"q": ["the"]}, {"q": ""}, null_scores={"q": 2.0})["exact_match"] == 0


def test_v2_names_a_prediction_without_a_null_score():
    with pytest.raises(InputError, match="1 predicted questions have no null score; the first is 'year'"):
        squad_v2(GOLD_V2, {"gene": "", "year": ""}, null_scores={"gene": 0.0, "none": 0.0})


@given(golds, st.dictionaries(question_ids, strings))
def test_v2_agrees_with_the_oracle(gold, predictions):
    assert_scores(squad_v2(gold, predictions), oracle_v2(gold, predictions))


@given(golds, st.dictionaries(question_ids, strings))
def test_the_groups_of_v2_add_up_to_the_whole(gold, predictions):
    result = squad_v2(gold, predictions)
    for key in ("exact_match", "f1"):
        parts = [result.get(group + key, 0) * result.get(group + "total", 0) for group in ("HasAns_", "NoAns_")]
        assert result[key] * result["total"] == pytest.approx(sum(parts))
        assert 0 <= result[key] <= 100


@given(answerable_golds, st.dictionaries(question_ids, strings))
def test_v1_and_v2_differ_only_where_an_answer_normalises_to_nothing(gold, predictions):
    if all(normalize_answer(answer) for answers in gold.values() for answer in answers):
        v1, v2 = squad_v1(gold, predictions), squad_v2(gold, predictions)
        assert v1 == {key: v2[key] for key in v1}


# The best threshold.


def test_best_threshold_of_a_known_file():
    gold = {"a": ["x"], "b": [], "c": ["y z"], "d": []}
    predictions = {"a": "x", "b": "w", "c": "y", "d": "v"}
    scores = {"a": -4.0, "b": 3.0, "c": -1.0, "d": -2.0}
    # Nothing answered: 2 right. Up to -4: 3 right. Up to -2: d gets wrong, 2. Up to -1: c adds 0 and 2/3.
    assert squad_best_threshold(gold, predictions, scores) == {
        "best_exact": 75,
        "best_exact_threshold": -4.0,
        "best_f1": 75,
        "best_f1_threshold": -4.0,
    }


def test_best_threshold_never_stops_between_equal_null_scores():
    # A sweep over single questions would answer a, stop before b, and report 100.
    gold, predictions, scores = {"a": ["x"], "b": []}, {"a": "x", "b": "x"}, {"a": 0.5, "b": 0.5}
    result = squad_best_threshold(gold, predictions, scores)
    assert result["best_exact"] == result["best_f1"] == 50


@pytest.mark.parametrize(("lowest", "expected"), [(0.2, 0.0), (0.0, -5e-324), (-3.0, -3.0000000000000004)])
def test_best_threshold_to_answer_nothing_is_0_or_just_below_all(lowest, expected):
    gold, predictions, scores = {"a": [], "b": []}, {"a": "x", "b": "y"}, {"a": lowest, "b": 1.0}
    result = squad_best_threshold(gold, predictions, scores)
    assert (result["best_exact"], result["best_exact_threshold"]) == (100, expected)
    assert squad_v2(gold, predictions, null_scores=scores, threshold=expected)["exact_match"] == 100


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_best_threshold_refuses_null_scores_that_are_not_finite(score):
    with pytest.raises(InputError, match="'gene'"):
        squad_best_threshold(GOLD_V2, {"gene": "CFTR"}, {"gene": score})


def test_best_threshold_without_predictions_is_0():
    assert set(squad_best_threshold(GOLD_V2, {}, {}).values()) == {0.0}


@given(golds, st.dictionaries(question_ids, strings), st.fixed_dictionaries(dict.fromkeys("abcdefgh", null_scores)))
@example({"a": []}, {"a": "the"}, dict.fromkeys("abcdefgh", 0.0))
def test_best_threshold_is_the_best_of_all_thresholds(gold, predictions, scores):
    # Between and beyond the values that null scores can take here, every threshold acts like one of these.
    thresholds = [-9.0, -3.5, -1.0, 0.0, 0.25, 0.5, 1.0, 2.0, 9.0]
    results = [squad_v2(gold, predictions, null_scores=scores, threshold=threshold) for threshold in thresholds]
    best = squad_best_threshold(gold, predictions, scores)
    for name, key in (("best_exact", "exact_match"), ("best_f1", "f1")):
        assert best[name] == pytest.approx(max(result[key] for result in results))
        at_best = squad_v2(gold, predictions, null_scores=scores, threshold=best[name + "_threshold"])
        assert at_best[key] == pytest.approx(best[name])
