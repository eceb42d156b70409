import dataclasses
import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

import megabert
from megabert import inference
from megabert.build import load_embedder, load_language_model, new_task_model
from megabert.captured_batches import SmallBatches
from megabert.config.parser import compose
from megabert.errors import ConfigError, InputError
from megabert.inference import Predictor
from megabert.tasks.question_answering import QuestionAnswering, QuestionAnsweringSettings
from megabert.torch_session import TorchSession
from tests.training.test_loop import TINY


@pytest.fixture
def predictor(vocab_file):
    words = [
        "model.language_model.pretrained_model_name=null",
        TINY.replace("num_attention_heads: 4", "num_attention_heads: 2"),  # a head size that the GPU kernel supports
        f"model.tokenizer.vocab_file={vocab_file}",
        "model.dataset.max_seq_length=64",
        "model.dataset.max_query_length=24",
        "model.dataset.doc_stride=16",
    ]
    settings = compose(QuestionAnsweringSettings, words, owner="question_answering")[0]
    task = QuestionAnswering(settings)
    language_model = load_language_model(settings.model, home=None, seed=1)
    model = new_task_model(task, language_model, seed=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)), alpha=0.1)
    session = TorchSession(model.eval(), task.loss, torch.device("cpu"))
    return Predictor(task, language_model.tokenizer, session)


def test_a_prediction_does_not_depend_on_its_batch(predictor, squad_file):
    examples = predictor.task.read(squad_file) * 3
    together = predictor.predict_examples(examples)
    alone = [dataclasses.replace(predictor, batch_size=1).predict_examples([example])[0] for example in examples]
    for first, second in zip(together, alone, strict=True):
        assert first.text == second.text
        assert [c.score for c in first.n_best] == pytest.approx([c.score for c in second.n_best], abs=1e-5)


def test_predictions_are_in_the_order_of_the_examples(predictor, squad_file):
    examples = predictor.task.read(squad_file)
    assert [item.id for item in predictor.predict_examples(examples[::-1])] == ["1.1", "1.0", "0.1", "0.0"]


def test_no_examples_give_no_predictions(predictor):
    assert predictor.predict_examples([]) == []


def test_evaluation_is_prediction_and_score(predictor, squad_file):
    examples = predictor.task.read(squad_file)
    result = predictor.evaluate(examples, with_loss=True)
    assert result.scores == predictor.task.score(examples, predictor.predict_examples(examples))
    assert np.isfinite(result.loss)


def test_more_tokens_than_positions_are_refused(predictor):
    task = QuestionAnswering(compose(QuestionAnsweringSettings, [], owner="question_answering")[0])
    language_model = dataclasses.make_dataclass("L", ["encoder", "source"])(predictor.session.model.encoder, "here")
    with pytest.raises(ConfigError, match="max_seq_length=384 is more than the 64 positions"):
        new_task_model(task, language_model, seed=0)


def test_an_encoder_comes_with_its_tokenizer(minilm):
    import megabert

    encoder, tokenizer = megabert.load_encoder(minilm)
    assert isinstance(encoder, torch.nn.Module)
    assert not encoder.training
    ids = [tokenizer.cls_id, *tokenizer.encode(["Hello there"])[0].token_ids.tolist(), tokenizer.sep_id]
    assert encoder(torch.tensor([ids])).shape == (1, len(ids), 384)


def test_the_compiler_is_not_imported_for_inference():
    """Importing torch._dynamo takes a second or more."""
    import subprocess
    import sys

    code = (
        "import sys, torch\n"
        "from megabert.weights import materialize\n"
        "from megabert.model.pretraining_heads import PretrainingHead, PretrainingModel\n"
        "from megabert.model.config import EncoderConfig\n"
        "config = EncoderConfig(50, 1, 16, 2, 16, 8)\n"
        "with torch.device('meta'):\n"
        "    PretrainingHead(config, target_share=1.0, sentence_order=True)\n"
        "    model = PretrainingModel(config)\n"
        "materialize(model.eval())\n"
        "assert model.language_model.vocabulary.weight is model.encoder.embeddings.word.weight\n"
        "model(torch.tensor([[1, 2, 3]]))\n"
        "print('torch._dynamo' in sys.modules or 'sympy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "False"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: batches are captured there")
def test_compiled_and_captured_predictions_match_eager_ones(predictor, squad_file, tmp_path):
    from megabert.model.precision import resolve_static_batches
    from megabert.parallel.sharding import compile_layers

    examples = predictor.task.read(squad_file) * 20
    predictor.session.model.cuda()
    session = dataclasses.replace(predictor.session, device=torch.device("cuda"))
    plain = dataclasses.replace(predictor, session=session, batch_size=2)
    expected = plain.predict_examples(examples)
    compile_layers(session.model)
    has_size = resolve_static_batches(True, session.device, session.model.encoder.config, "32")
    static = dataclasses.replace(plain, session=dataclasses.replace(session, is_static=has_size))
    actual = static.predict_examples(examples)
    assert has_size
    assert [item.text for item in actual] == [item.text for item in expected]


def test_lists_of_fields_are_a_batch(predictor):
    questions, context = ["Where was Marie Curie born?", "Who was born?"], "Marie Curie was born in Warsaw."
    together = predictor.predict(question=questions, context=context)
    alone = [predictor.predict(question=question, context=context) for question in questions]
    assert [(item.id, item.text) for item in together] == [("1", alone[0].text), ("2", alone[1].text)]
    assert predictor.predict(question=[], context=[]) == []
    with pytest.raises(InputError, match="question has 2, context has 1"):
        predictor.predict(question=questions, context=[context])
    with pytest.raises(InputError, match="question is a dict; expected a string"):
        predictor.predict(question={"a": 1}, context=context)
    with pytest.raises(InputError, match="context is missing; unexpected field text"):
        predictor.predict(question="Where?", text=context)


def test_an_embedding_is_the_mean_of_a_sequence_s_hidden_states(predictor):
    texts = ["Marie Curie was born in Warsaw.", "", "radium " * 100]
    found = predictor.embed(texts)
    tokenizer, encoder = predictor.tokenizer, predictor.session.model.encoder
    for text, vector in zip(texts[:2], found, strict=False):
        ids = [tokenizer.cls_id, *tokenizer.encode([text])[0].token_ids.tolist(), tokenizer.sep_id]
        with torch.inference_mode():
            expected = encoder(torch.tensor([ids]))[0].mean(0).numpy()
        np.testing.assert_allclose(vector, expected, atol=1e-5)
    assert found.shape == (3, 32) and np.isfinite(found).all()
    assert predictor.embed([]).shape[0] == 0
    with pytest.raises(InputError, match=r"Give \[text\]"):
        predictor.embed(texts[0])
    assert predictor.labels == {}


@pytest.mark.parametrize("name", ["question_answering", "text_embedding"])
def test_many_texts_have_the_embeddings_that_each_has_alone(name, predictor, monkeypatch):
    if name == "text_embedding":
        predictor = load_embedder("megabert-mini-uncased", home=None, accelerator="cpu")
    texts = ["Marie Curie was born.", "radium " * 300, "a", "Warsaw in 1867, " * 40, "x" * 500, "polonium"]
    alone = np.concatenate([predictor.embed([text]) for text in texts])
    monkeypatch.setattr(inference, "TEXTS_AHEAD", 4)
    np.testing.assert_allclose(predictor.embed(texts), alone, atol=2e-6)
    with pytest.raises(InputError, match="text is blank" if name == "text_embedding" else "lone surrogate"):
        predictor.embed([*texts, " " if name == "text_embedding" else "a \ud800"])


def language_model(*words):
    settings = compose(QuestionAnsweringSettings, list(words), owner="question_answering")[0]
    return load_language_model(settings.model, home=None, seed=1)


def test_the_first_layers_of_a_checkpoint_are_those_of_the_whole():
    name = "model.language_model.pretrained_model_name=megabert-mini-uncased"
    whole = language_model(name).encoder.eval()
    first = language_model(name, "model.language_model.first_layers=2").encoder.eval()
    assert first.config.num_layers == len(first.layers) == 2
    token_ids = torch.arange(5, 25)[None]
    del whole.layers[2:]
    with torch.no_grad():
        assert torch.equal(first(token_ids), whole(token_ids))


@pytest.mark.parametrize(
    "words, message",
    [
        (["model.language_model.pretrained_model_name=megabert-mini-uncased"], "first_layers=7: .* has 6. Give fewer"),
        (["model.language_model.pretrained_model_name=null", TINY], "is for a checkpoint. Random weights"),
    ],
)
def test_layers_that_there_are_not_are_refused(vocab_file, words, message):
    file = f"model.tokenizer.vocab_file={vocab_file}"
    with pytest.raises(ConfigError, match=message):
        language_model(*words, "model.language_model.first_layers=7", *([file] if TINY in words else []))


@pytest.mark.parametrize("kind", ["head", "mean"])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))])  # fmt: skip  # noqa: E501
def test_small_batches_of_a_static_size_have_the_logits_of_packed_ones(predictor, squad_file, kind, device):
    session = dataclasses.replace(predictor.session, device=torch.device(device))
    session.model.to(device)
    session = session if kind == "head" else session.without_head()
    examples = predictor.task.read(squad_file)
    features = predictor.task.features(examples, predictor.tokenizer, with_targets=False)
    options = {"batch_size": 32, "max_length": 64, "pad_id": predictor.tokenizer.pad_id}
    small = SmallBatches(session.model, session.device, 64, predictor.tokenizer.pad_id, capture=device == "cuda")
    full = [dataclasses.replace(features[0], token_ids=np.resize(features[0].token_ids, length), segment_ids=np.zeros(length, np.int64), notes=None) for length in (60, 4)]  # fmt: skip  # noqa: E501
    features = [*full, *features]  # the first two fill a size
    for count in (1, 2, len(features)):
        size = small.size_of(features[:count])
        assert size.num_tokens > sum(map(len, features[:count]))
        wanted = session.run(features[:count], **options).logits
        for _ in range(2):
            for first, second in zip(small.run(features[:count], size), wanted, strict=True):
                np.testing.assert_allclose(first, second, atol=1e-5)
    assert small.size_of(features * 1000) is None
    assert session.with_small_batches(64, 0).small is None or device == "cuda"


RUN = Path(__file__).parent / "runs_v1" / "text_classification" / "run" / "checkpoints"
QUESTIONS, CONTEXTS = ["Where is it?", "Who found it?"], ["It is in Paris.", "Marie found it."]


class Column:
    """A column of a table, as pandas' Series has it: compared element by element, one dim, a tolist."""

    ndim = 1

    def __init__(self, values):
        self.values = values

    def tolist(self):
        return list(self.values)

    def __len__(self):
        return len(self.values)

    def __eq__(self, other):
        return np.array(self.values) == other

    __hash__ = None


@pytest.mark.parametrize("kind", [tuple, np.array, Column, iter, lambda values: (item for item in values)])
def test_arrays_columns_and_iterators_are_lists(predictor, kind):
    expected = predictor.predict(question=QUESTIONS, context=CONTEXTS)
    assert predictor.predict(question=kind(QUESTIONS), context=kind(CONTEXTS)) == expected
    assert np.array_equal(predictor.embed(kind(CONTEXTS)), predictor.embed(CONTEXTS))


class Table(Column):
    ndim = 2


@pytest.mark.parametrize("texts", ["one text", None, 5, {"a"}, {"a": 1}, b"ab", Table(CONTEXTS)])
def test_what_is_no_list_of_texts_is_named(predictor, texts):
    with pytest.raises(InputError, match="takes a list of texts"):
        predictor.embed(texts)


@pytest.mark.parametrize("value", [None, float("nan"), 5, Table(CONTEXTS)])
def test_what_is_no_text_is_named_with_its_place(predictor, value):
    with pytest.raises(InputError, match=r"^text 2 is a \w+; expected a string"):
        predictor.embed(["a", value])
    with pytest.raises(InputError, match=r"^example 2: context is "):
        predictor.predict(question=QUESTIONS, context=["a", value])
    with pytest.raises(InputError, match=r"takes fields by name: question=..., context=..."):
        predictor.predict("a", "b")


def test_fields_that_there_are_not_are_named_beside_those_of_the_task(predictor):
    with pytest.raises(InputError, match=r"unexpected field text\. .* question_answering takes question, context\.$"):
        predictor.predict(question="a", text="b")
    with pytest.raises(InputError, match=r"^example 1: .*passage\. .* question_answering takes"):
        predictor.predict(question=["a"], passage="b")


@pytest.mark.parametrize(("option", "value"), [("accelerator", "cuda"), ("precision", "float32"), ("precision", 32)])
def test_an_unknown_option_is_refused_with_those_that_there_are(option, value):
    run = next(RUN.iterdir())
    with pytest.raises(ConfigError, match=rf"{option} is '?{value}'?; choose one of auto"):
        megabert.load(run, **{"accelerator": "cpu", option: value})


def test_another_default_dtype_changes_nothing():
    run = next(RUN.iterdir())
    expected = megabert.load(run, accelerator="cpu", precision="32").predict(text="a good day")
    torch.set_default_dtype(torch.float64)
    try:
        assert megabert.load(run, accelerator="cpu", precision="32").predict(text="a good day") == expected
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.filterwarnings("ignore:.*fork")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a system with fork")
def test_a_forked_process_computes_without_the_threads_that_it_lacks():
    predictor = megabert.load(RUN.parents[2] / "token_classification" / "run", accelerator="cpu")
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        torch.ones(400, 400) @ torch.ones(400, 400) + torch.randn(400, 400)  # starts the threads
        if (child := os.fork()) == 0:
            with suppress(BaseException):
                product = torch.ones(400, 400) @ torch.ones(400, 400) + torch.randn(400, 400)
                is_right = predictor.predict(text="Marie in Paris").spans[0].text == "Marie"
                os._exit(0 if is_right and product.mean() > 300 else 1)
            os._exit(2)
        ended = wait_for(child)
    finally:
        torch.set_num_threads(threads)
    assert ended == 0, "the forked process failed or waits forever"


def wait_for(child):
    """Return a child's exit status; one that does not end in 20 s is killed."""
    for _ in range(400):
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return status
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]
