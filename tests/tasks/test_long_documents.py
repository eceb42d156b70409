"""Documents of many windows: memory in proportion to the document, all answers reachable, strategies of pooling."""

import tracemalloc

import numpy as np
import pytest

from megabert.config.parser import compose
from megabert.data.windows import best_windows, max_context_masks, window_spans
from megabert.data.word_windows import word_logits, word_windows
from megabert.tasks import registry
from megabert.tokenizers.wordpiece import Tokenizer
from tests.conftest import WORDS

TOKENIZER = Tokenizer(WORDS)


def task_of(name, *words):
    kind = registry.find(name)
    return kind(compose(kind.settings_type, words, owner=name)[0])


def document(num_words):
    random = np.random.default_rng(0)
    return " ".join(np.array(WORDS[-20:])[random.integers(20, size=num_words)])


def test_the_window_with_the_most_context_is_that_of_a_table_of_all_windows():
    random = np.random.default_rng(0)
    for _ in range(200):
        num_tokens, room = int(random.integers(1, 80)), int(random.integers(2, 30))
        spans = window_spans(num_tokens, room, int(random.integers(1, room + 1)))
        context = np.full((len(spans), num_tokens), -np.inf)
        for number, (start, end) in enumerate(spans):
            place = np.arange(end - start)
            context[number, start:end] = np.minimum(place, end - start - 1 - place) + 0.01 * (end - start)
        assert np.array_equal(best_windows(num_tokens, spans), context.argmax(axis=0))
        assert sum(mask.sum() for mask in max_context_masks(num_tokens, spans)) == num_tokens


LABELS = {"labels": ["O", "B-X"], "weights": [1.0, 1.0]}


@pytest.mark.parametrize(
    ("name", "fields", "state", "num_logits"),
    [
        ("question_answering", {"question": "who", "context": None}, {}, 2),
        ("text_classification", {"text": None}, {**LABELS, "problem": "single_label"}, 2),
        ("token_classification", {"text": None}, {**LABELS, "cuts": {}}, 2),
        ("multiple_choice", {"question": "who", "choices": ["a", "b"], "passage": None}, {}, 1),
    ],
)
def test_a_long_document_is_read_in_memory_in_proportion_to_it(name, fields, state, num_logits):
    words = ("model.dataset.long_texts=windows",) if name == "multiple_choice" else ()
    task = task_of(name, *words)
    if state:
        task.restore_state(state)
    peaks = []
    for num_words in (4000, 16_000):
        text = document(num_words)
        example = task.example(**{key: text if value is None else value for key, value in fields.items()})
        tracemalloc.start()
        prediction, num_features = predict(task, example, num_logits)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert prediction.windows == num_features // (2 if name == "multiple_choice" else 1) > num_words / 600
        assert task.to_json(prediction)["windows"] == prediction.windows
        if name == "token_classification":
            assert len(prediction.tags) == num_words
    # 100,000 words: 250 MB
    assert peaks[1] < min(5 * peaks[0], 40 * 2**20)


def predict(task, example, num_logits):
    features = task.features([example], TOKENIZER, with_targets=False)
    is_token = task.name() in ("question_answering", "token_classification")
    logits = [np.zeros((len(item), num_logits) if is_token else num_logits, dtype=np.float32) for item in features]
    (prediction,) = task.decode([example], features, logits)
    return prediction, len(features)


def oracle(task, examples, tokenizer):
    """Predictions from logits that are the largest where the gold answer begins and ends, in windows that show it."""
    features = task.features(examples, tokenizer, with_targets=True)
    logits = []
    for item in features:
        scores = np.zeros((len(item), 2), dtype=np.float32)
        start, end = item.targets["span"]
        if start:
            scores[start, 0] = scores[end, 1] = 10
        logits.append(scores)
    return task.decode(examples, features, logits)


@pytest.mark.parametrize("pooling", ["best_context", "maximum"])
def test_no_answer_that_a_window_shows_is_unreachable(pooling):
    words = [f"w{number}" for number in range(300)]
    context = " ".join(words)
    tokenizer = Tokenizer([*WORDS, *words])
    task = task_of(
        "question_answering", "model.dataset.max_seq_length=48", "model.dataset.max_query_length=5",
        "model.dataset.doc_stride=16", "model.dataset.max_answer_length=40", f"model.dataset.window_pooling={pooling}",
    )  # fmt: skip
    from megabert.formats.squad import Answer, Example

    room, stride = 48 - 1 - 3, 16
    for length in (1, 15, room - stride + 1):  # the longest that some window shows wherever it starts
        examples = []
        for first in range(0, 300 - length, 13):
            text = " ".join(words[first : first + length])
            examples.append(Example(str(first), "who", context, (Answer(text, context.index(text)),)))
        found = oracle(task, examples, tokenizer)
        assert [item.text for item in found] == [item.answers[0].text for item in examples]


def test_every_answer_of_covid_qa_is_reachable(datasets, minilm):
    tokenizer = Tokenizer((minilm / "vocab.txt").read_text(encoding="utf-8").splitlines())
    task = task_of(
        "question_answering", "model.dataset.whole_words=false", "model.dataset.max_answer_length=190",
        "model.dataset.n_best_size=1",
    )  # fmt: skip
    examples = task.read(datasets("covid_qa") / "dev.json")[::6]
    found = oracle(task, examples, tokenizer)
    assert max(item.windows for item in found) > 20
    for example, item in zip(examples, found, strict=True):
        gold = example.answers[0]
        assert gold.text in item.text and len(item.text) <= len(gold.text) + 20, example.id


@pytest.mark.parametrize("pooling", ["best_context", "mean", "maximum"])
def test_logits_of_words_are_pooled_over_windows(pooling):
    (words,) = [WORDS[-20:] * 3]
    features = word_windows([words], TOKENIZER, 18)
    windows = features.windows()
    logits = [np.random.default_rng(n).normal(size=(len(item.token_ids), 3)).astype(np.float32)
              for n, item in enumerate(windows)]  # fmt: skip
    (found,) = word_logits(features, logits, [len(words)], pooling)
    for word in range(len(words)):
        rows = [(bool(item.has_max_context[place]), values[place]) for item, values in zip(windows, logits, strict=True)
                for place in np.flatnonzero(item.words == word)]  # fmt: skip
        values = np.array([row for _, row in rows])
        expected = {"mean": values.mean(0), "maximum": values.max(0),
                    "best_context": next(row for is_best, row in rows if is_best)}[pooling]  # fmt: skip
        assert found[word] == pytest.approx(expected, abs=1e-6)


def test_probabilities_and_logits_of_a_text_are_pooled_over_windows():
    logits = [np.array([2.0, 0.0]), np.array([-1.0, 1.0]), np.array([0.0, 0.5])]

    def softmax(values):
        return np.exp(values) / np.exp(values).sum(axis=-1, keepdims=True)

    expected = {"probabilities": softmax(np.array(logits)).mean(0), "mean": softmax(np.mean(logits, 0)),
                "maximum": softmax(np.max(logits, 0))}  # fmt: skip
    for pooling, values in expected.items():
        task = task_of(
            "text_classification", f"model.dataset.window_pooling={pooling}", "model.dataset.max_seq_length=24"
        )
        task.restore_state({**LABELS, "problem": "single_label"})
        example = task.example(text=document(40))
        features = task.features([example], TOKENIZER, with_targets=False)
        (found,) = task.decode([example], features, [item.astype(np.float32) for item in logits[: len(features)]])
        assert len(features) == 3 == found.windows
        assert list(found.probabilities.values()) == pytest.approx(values.tolist())
