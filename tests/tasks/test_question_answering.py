import json
import math
import unicodedata

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megabert.config.parser import compose
from megabert.data.fingerprint import fingerprint
from megabert.data.packing import BatchSize, pack
from megabert.data.sampler import sequence_lengths
from megabert.data.windows import max_context_masks, window_spans
from megabert.errors import ConfigError, InputError
from megabert.formats.squad import Answer, Example
from megabert.tasks.answer_spans import word_edges
from megabert.tasks.question_answering import QuestionAnswering, QuestionAnsweringSettings
from megabert.tasks.task_data import load_training_data
from megabert.tokenizers.wordpiece import SPECIAL_TOKENS, Tokenizer
from tests.conftest import WORDS, squad_document

TOKENIZER = Tokenizer(WORDS)
LETTERS = Tokenizer([*SPECIAL_TOKENS, *"abcdefghijklmnopqrstuvwxyz", "?"])


def task(*overrides):
    return QuestionAnswering(compose(QuestionAnsweringSettings, overrides, owner="question_answering")[0])


def small(*overrides):
    return task("model.dataset.max_seq_length=12", "model.dataset.max_query_length=3", "model.dataset.doc_stride=2",
                *overrides)  # fmt: skip


def question(context, answer=None, start=None, text="x ?"):
    answers = () if answer is None else (Answer(answer, start if start is not None else context.index(answer)),)
    return Example("q", text, context, answers)


def test_windows_start_a_stride_apart_and_end_with_the_text():
    assert window_spans(3, room=5, stride=2) == [(0, 3)]
    assert window_spans(9, room=5, stride=2) == [(0, 5), (2, 7), (4, 9)]
    assert window_spans(0, room=5, stride=2) == [(0, 0)]


@given(st.integers(0, 300), st.integers(1, 50), st.data())
def test_every_token_has_its_maximum_context_in_one_window(num_tokens, room, data):
    stride = data.draw(st.integers(1, room))
    spans = window_spans(num_tokens, room, stride)
    shown = sorted({token for start, end in spans for token in range(start, end)})
    assert shown == list(range(num_tokens))
    counts = np.zeros(num_tokens, dtype=int)
    for (start, end), best in zip(spans, max_context_masks(num_tokens, spans), strict=True):
        counts[start:end] += best
    assert (counts == 1).all()


def test_the_maximum_context_is_in_the_window_with_more_tokens_around():
    # tokens 2, 3 and 4 are in both windows; 4 has more context in the second, 3 as much in both: the first counts
    first, second = max_context_masks(7, [(0, 5), (2, 7)])
    assert first.tolist() == [True, True, True, True, False]
    assert second.tolist() == [False, False, True, True, True]


def test_a_feature_is_question_and_context_with_special_tokens():
    (feature,) = small().features([question("a b c d", "b c")], LETTERS, with_targets=True)
    assert [LETTERS.tokens[i] for i in feature.token_ids] == ["[CLS]", "x", "?", "[SEP]", "a", "b", "c", "d", "[SEP]"]
    assert feature.segment_ids.tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 1]
    assert feature.targets["span"].tolist() == [5, 6]


def test_the_target_of_a_window_without_the_answer_is_cls():
    context = "a b c d e f g h i j"  # room for 7 tokens: windows 0-7, 2-9, 4-10
    features = small().features([question(context, "h i")], LETTERS, with_targets=True)
    assert [f.targets["span"].tolist() for f in features] == [[0, 0], [9, 10], [7, 8]]


def test_windows_without_the_answer_are_drawn_anew_each_epoch(tmp_path):
    context = " ".join("abcdefghijklmnopqrstuvwxyz")
    rows = [question(context, answer) for answer in ("h i", "y z")]
    document = squad_document([(context, [("x ?", "h i"), ("x ?", "y z")])])
    (tmp_path / "a.json").write_text(json.dumps(document))
    qa = small(f"model.train_ds.file={tmp_path / 'a.json'}", "model.dataset.null_windows=1.5")
    every = qa.features(rows, LETTERS, with_targets=True)
    with_answer = [n for n, item in enumerate(every) if item.targets["span"].any()]
    made, cached = (
        load_training_data(qa, LETTERS, qa.settings.model, tmp_path / "home", learn_labels=True).features
        for _ in range(2)
    )
    seen = set()
    for epoch in range(12):
        drawn = made.resampled(epoch)
        assert len(drawn) == len(with_answer) + int(1.5 * len(with_answer)) < len(every)
        assert set(with_answer) < set(drawn.indices.tolist())
        assert sequence_lengths(drawn).tolist() == [len(item) for item in drawn]
        assert np.array_equal(drawn.indices, cached.resampled(epoch).indices)
        seen |= set(drawn.indices.tolist())
    assert seen == set(range(len(every)))
    assert fingerprint(made) == fingerprint(cached)
    assert small("model.dataset.null_windows=99").drawn(every) is every is small().drawn(every)


def test_spans_of_several_windows_are_compared_by_log_probability_where_that_is_set():
    context = "a b c d e f g h i j"
    for name, expected in (("logits", "b"), ("log_probability", "i")):
        qa = small(f"model.dataset.span_score={name}")
        features = qa.features([question(context)], LETTERS, with_targets=False)
        # The first window's logits are higher, but it puts its probability on "no answer"; the last one's are lower.
        place = features[-1].notes.context_start + 4  # "i" of the window from "e"
        logits = [logits_for(item, 0, 0, 40.0) for item in features]
        logits[0][features[0].notes.context_start + 1] = 30.0
        logits[-1] = logits_for(features[-1], place, place, 20.0)
        (prediction,) = qa.decode([question(context)], features, logits)
        assert prediction.text == expected


def test_a_long_question_is_truncated_and_an_empty_context_has_one_window():
    (feature,) = small().features([question("", text="a b c d e")], LETTERS, with_targets=False)
    assert [LETTERS.tokens[i] for i in feature.token_ids] == ["[CLS]", "a", "b", "c", "[SEP]", "[SEP]"]


def test_an_answer_inside_a_word_targets_the_tokens_that_touch_it():
    tokenizer = Tokenizer([*SPECIAL_TOKENS, "who", "?", "sun", "##flower", "grows"])
    (feature,) = small().features([question("Sunflower grows", "flow", text="who ?")], tokenizer, with_targets=True)
    assert feature.targets["span"].tolist() == [5, 5]


def logits_for(feature, start, end, value=10.0):
    scores = np.zeros((len(feature), 2), dtype=np.float32)
    scores[start, 0] = value
    scores[end, 1] = value
    return scores


def test_the_answer_is_a_span_of_the_original_text():
    example = question("Marie  CURIE was\u00a0born in Warsaw.", text="Who was born?")
    qa = task()
    (feature,) = qa.features([example], TOKENIZER, with_targets=False)
    place = feature.notes.context_start
    (prediction,) = qa.decode([example], [feature], [logits_for(feature, place, place + 1)])
    assert prediction.text == "Marie  CURIE"
    assert (prediction.start, prediction.end) == (0, 12)
    assert prediction.probability > 0.9
    assert abs(sum(candidate.probability for candidate in prediction.n_best) - 1) < 1e-9


def test_an_answer_is_at_most_as_long_as_allowed():
    example = question("a b c d", text="x ?")
    qa = small("model.dataset.max_answer_length=2")
    (feature,) = qa.features([example], LETTERS, with_targets=False)
    place = feature.notes.context_start
    (prediction,) = qa.decode([example], [feature], [logits_for(feature, place, place + 3)])
    assert len(prediction.text.split()) <= 2
    assert all(len(candidate.text.split()) <= 2 for candidate in prediction.n_best)


def test_the_question_and_special_tokens_are_never_answers():
    example = question("a b c d")
    qa = small()
    (feature,) = qa.features([example], LETTERS, with_targets=False)
    (prediction,) = qa.decode([example], [feature], [logits_for(feature, 1, 2)])
    assert prediction.text in example.context
    assert prediction.text


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 14))
def test_the_best_span_is_that_of_an_exhaustive_search(seed, num_words):
    context = " ".join("abcdefghijklmnopqrstuvwxyz"[index] for index in range(num_words))
    example = question(context)
    qa = small("model.dataset.max_answer_length=3")
    features = qa.features([example], LETTERS, with_targets=False)
    generator = np.random.default_rng(seed)
    logits = [generator.normal(size=(len(item), 2)).astype(np.float32) for item in features]
    best = (-np.inf, "")
    for feature, scores in zip(features, logits, strict=True):
        window = feature.notes
        for first in range(len(window.offsets)):
            for last in range(first, min(first + 3, len(window.offsets))):
                if last - first + 1 >= window.min_length[first]:
                    place = window.context_start
                    score = float(scores[place + first, 0]) + float(scores[place + last, 1])
                    text = context[window.offsets[first, 0] : window.offsets[last, 1]]
                    best = max(best, (score, text))
    (prediction,) = qa.decode([example], features, logits)
    assert prediction.text == best[1]
    assert prediction.n_best[0].score == pytest.approx(best[0])


def test_the_null_answer_wins_by_more_than_the_threshold():
    example = question("a b c d")
    for threshold, answer in ((0.0, ""), (25.0, "a")):
        qa = small("model.dataset.version_2_with_negative=true", f"model.dataset.null_score_diff_threshold={threshold}")
        (feature,) = qa.features([example], LETTERS, with_targets=False)
        scores = logits_for(feature, 0, 0) + logits_for(feature, 4, 4, value=1.0)
        (prediction,) = qa.decode([example], [feature], [scores])
        assert prediction.null_score_diff == pytest.approx(20.0 - 2.0)
        assert prediction.text == answer


def test_a_context_without_words_has_no_answer_and_finite_scores():
    examples = [question(""), question("a b")]
    qa = small("model.dataset.version_2_with_negative=true")
    features = qa.features(examples, LETTERS, with_targets=False)
    predictions = qa.decode(examples, features, [logits_for(item, 0, 0) for item in features])
    assert predictions[0].text == ""
    assert math.isfinite(predictions[0].null_score_diff)
    assert qa.score(examples[:1], predictions[:1])["exact_match"] == 100


def test_the_null_score_is_the_smallest_of_the_windows():
    example = question("a b c d e f g h i j")
    qa = small("model.dataset.version_2_with_negative=true")
    features = qa.features([example], LETTERS, with_targets=False)
    logits = [logits_for(item, 0, 0, value=value) for item, value in zip(features, (5.0, 1.0, 3.0), strict=True)]
    (prediction,) = qa.decode([example], features, logits)
    assert prediction.null_score_diff == pytest.approx(2.0)


def test_loss_is_the_cross_entropy_over_each_window_s_own_tokens():
    qa = small()
    examples = [question("a b c d", "b"), question("a b", "a b")]
    features = qa.features(examples, LETTERS, with_targets=True)
    qa.settings.model.dataset.max_seq_length = 20
    expected = 0.0
    logits = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
    start = 0
    for feature in features:
        own = logits[start : start + len(feature)].double()
        start += len(feature)
        for side in (0, 1):
            expected -= 0.5 * float(torch.log_softmax(own[:, side], 0)[feature.targets["span"][side]])
    for static_size in (None, BatchSize(100, 20)):
        batch = pack(features, max_seqlen=20, pad_id=0, size=static_size)
        leaf = logits[: len(batch.token_ids_T)].clone().requires_grad_()
        loss = qa.loss(leaf, batch)
        assert float(loss.detach()) == pytest.approx(expected, rel=1e-6)
        (gradient,) = torch.autograd.grad(loss, leaf)
        assert gradient.isfinite().all()
        assert not gradient[start:].any()


def test_settings_that_leave_no_room_or_skip_tokens_are_refused():
    with pytest.raises(ConfigError, match="no room"):
        task("model.dataset.max_seq_length=64")
    with pytest.raises(ConfigError, match="skips tokens"):
        task("model.dataset.max_seq_length=192", "model.dataset.doc_stride=128")


def test_unanswerable_questions_need_version_2():
    example = Example("q", "x", "a b", ())
    with pytest.raises(InputError, match="version_2_with_negative=true"):
        small().features([example], LETTERS, with_targets=True)
    (feature,) = small("model.dataset.version_2_with_negative=true").features([example], LETTERS, with_targets=True)
    assert feature.targets["span"].tolist() == [0, 0]


def test_the_version_of_the_data_determines_the_scores(tmp_path):
    gold = tmp_path / "gold.json"
    predictions = tmp_path / "predictions.json"
    gold.write_text(json.dumps(squad_document()))
    predictions.write_text(json.dumps({"0.0": "Warsaw", "0.1": "the radium!", "1.0": "Seine", "9.9": "unknown id"}))
    scores = QuestionAnswering.score_files(gold, predictions)
    assert (scores["exact_match"], scores["f1"]) == (75.0, 75.0)  # 1.1 is missing
    facts = [("Cats sleep.", [("Who sleeps?", "Cats"), ("Who barks?", "")])]
    gold.write_text(json.dumps(squad_document(facts, "v2.0")))
    predictions.write_text(json.dumps({"0.0": "cats", "0.1": ""}))
    assert QuestionAnswering.score_files(gold, predictions)["NoAns_exact_match"] == 100.0


def test_an_example_needs_question_and_context():
    with pytest.raises(InputError, match="context is missing"):
        task().example(question="Who?")
    with pytest.raises(InputError, match="unexpected field txt"):
        task().example(question="Who?", context="He.", txt="")


UNICODE_ANSWERS = ["Maria Lindt", "José", "René Garcé", "राम्", "مُحَمَّدٌ", "Ana ❤\ufe0f", "Ana\u200d", "Olga\u00ad",
                   "张伟", "TNF-α", "Griﬃ", "İlker Yıldız", "דָּוִד", "Nguyễn Văn Tú", "สมชาย์"]  # fmt: skip


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("lower_case", [True, False])
@pytest.mark.parametrize("answer", UNICODE_ANSWERS)
def test_an_answer_keeps_its_marks(answer, lower_case, form):
    answer = unicodedata.normalize(form, answer)
    tokenizer = Tokenizer([*SPECIAL_TOKENS, "on", "by"], lower_case=lower_case)  # all names are unknown words
    reader = task()
    example = question(f"signed by {answer} on Monday", answer)
    (feature,) = reader.features([example], tokenizer, with_targets=True)
    logits = np.zeros((len(feature.token_ids), 2), dtype=np.float32)
    logits[feature.targets["span"], [0, 1]] = 10
    (prediction,) = reader.decode([example], [feature], [logits])
    assert prediction.text == answer
    assert reader.score([example], [prediction])["exact_match"] == 100


@pytest.mark.parametrize(("context", "best"), [("ab cd ef", (1, 2)), ("ab-cd ef", (2, 3)), ("ab 12cd", (2, 3))])
def test_answers_are_whole_words(context, best):
    letters = Tokenizer([*SPECIAL_TOKENS, *"abcdef12?-", *(f"##{letter}" for letter in "abcdef12")])
    example = question(context)
    for words, is_whole in (((), True), (("model.dataset.whole_words=false",), False)):
        reader = task(*words)
        (feature,) = reader.features([example], letters, with_targets=False)
        start = feature.notes.context_start
        logits = np.zeros((len(feature.token_ids), 2), dtype=np.float32)
        logits[start + best[0], 0] = logits[start + best[1], 1] = 10
        (prediction,) = reader.decode([example], [feature], [logits])
        edges = {0, len(context)} | {i for i, c in enumerate(context) for i in (i, i + 1) if not c.isalnum()}
        assert ({prediction.start, prediction.end} <= edges) is is_whole


def test_scripts_without_blanks_have_edges_everywhere():
    for text in ("สมชาย", "张伟说", "東京タワー", "서울에서"):
        offsets = np.array([[i, i + 1] for i in range(len(text))])
        assert word_edges(text, offsets).all()
    for text in ("Straße", "राम्", "Nguyễn", "x1"):
        offsets = np.array([[i, i + 1] for i in range(len(text))])
        expected = [[i == 0, i == len(text) - 1] for i in range(len(text))]
        assert word_edges(text, offsets).tolist() == expected


def test_a_word_of_many_tokens_has_an_answer_inside():
    letters = Tokenizer([*SPECIAL_TOKENS, "a", "##a", "?"])
    reader = task("model.dataset.max_answer_length=3")
    example = question("a" * 40)
    (feature,) = reader.features([example], letters, with_targets=False)
    logits = np.random.default_rng(0).normal(size=(len(feature.token_ids), 2)).astype(np.float32)
    assert 1 <= len(reader.decode([example], [feature], [logits])[0].text) <= 3


def test_ids_are_unique_across_files(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.json").write_text(json.dumps(squad_document()))
    reader = task(f"model.train_ds.file={tmp_path}/*.json")
    with pytest.raises(InputError, match=r"b.json: two questions have the id '0.0'"):
        reader.read_data(reader.settings.model.train_ds)
